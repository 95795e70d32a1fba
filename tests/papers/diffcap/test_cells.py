"""The plan: every claim has its measurements, every measurement its own file and an unambiguous place, headline and complete run fit together."""

from dataclasses import replace

import pytest

from papers.diffcap.cells import RANDOM, cells, gate_cells, rows, scores
from papers.diffcap.config import PRESETS, check
from papers.diffcap.evaluate import groups
from shared.claims.claims import load
from shared.claims.selection import matches
from shared.errors import UserError

CPU = PRESETS["cpu"]
CLAIMS = load("papers/diffcap/claims.yaml")


@pytest.mark.parametrize("scale", PRESETS)
@pytest.mark.parametrize("headline", [False, True])
def test_every_measurement_has_its_own_file(scale, headline):
    check(PRESETS[scale])
    found = cells(replace(PRESETS[scale], headline=headline))
    assert len({c.slug() for c in found}) == len(found) == len(set(found))
    assert set(gate_cells(replace(PRESETS[scale], headline=headline))) <= set(found)


def test_the_complete_run_continues_from_the_headline():
    part, whole = cells(replace(CPU, headline=True)), cells(CPU)
    assert set(part) < set(whole) and len(part) < len(whole) * 0.7


@pytest.mark.parametrize("scale", ["cpu", "paper"])
@pytest.mark.parametrize("claim", CLAIMS.claims, ids=lambda c: c.id)
def test_a_claim_finds_what_it_needs(claim, scale):
    if scale not in claim.testable:
        return
    config = replace(PRESETS[scale], headline=claim.headline)
    tags = [c.tags(config) for c in cells(config)]
    for selector in claim.selectors:
        found = [t for t in tags if matches(selector, t)]
        assert found
        places = [(t["set"], t["seed"]) for t in found]
        assert len(set(places)) == len(places), "the selector is not precise enough"


def test_there_is_a_claim_for_each_cell_of_the_main_tables():
    config = replace(CPU, headline=True)
    wanted = {(c.model, c.spec, c.eps) for c in scores(config) if c.eps}
    tested = set()
    for claim in (c for c in CLAIMS.claims if c.id.startswith("cell-")):
        tested |= {(c.model, c.spec, c.eps) for c in scores(config) if matches(claim.quantity, c.tags(config))}
        assert {r["method"] for r in claim.rivals} | {"diffcap", "clipure"} >= set(rows(config, "clip"))
    assert tested == wanted and len(wanted) == 20


def test_random_defences_are_measured_with_every_seed():
    for c in (("diffcap", 3), ("jpeg", 1), ("none", 1), ("diffpure", 3)):
        assert len({s.seed for s in scores(CPU) if s.method == c[0]}) == c[1]
    assert {s.method for s in scores(CPU) if s.seed} == set(RANDOM)


def test_tags_name_places_not_values():
    cell = next(c for c in scores(CPU) if c.model == "llava" and c.spec == CPU.data.captions[1] and c.eps == CPU.attack.eps[0])
    assert {"task": "captions", "place": 2, "strength": 1, "attack": "adversarial"}.items() <= cell.tags(CPU).items()


def test_what_shares_an_attack_is_measured_on_one_process():
    for group in groups(cells(CPU)):
        against = {(c.method, dict(c.point)["against"]) for c in group if c.kind == "adaptive"}
        assert len(against) <= 1 or against == {("diffpure", "exact"), ("diffcap", "from_diffpure")}
    assert sum(map(len, groups(cells(CPU)))) == len(cells(CPU))


@pytest.mark.parametrize(("changes", "message"), [
    ({"seeds": ()}, "--seeds must be"), ({"seeds": (1, 1)}, "--seeds must be"),
    ({"attack": replace(CPU.attack, eps=(0.1, 0.05))}, "growing strengths"), ({"attack": replace(CPU.attack, eps=())}, "growing strengths"),
    ({"method": replace(CPU.method, dt=7)}, "a multiple of --method.dt"),
    ({"method": replace(CPU.method, dt=500)}, "a multiple of --method.dt"),
    ({"data": replace(CPU.data, classes=())}, "--data.classes needs"),
])  # fmt: skip
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        check(replace(CPU, **changes))
