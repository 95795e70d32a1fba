"""The plan: every claim has its measurements, every measurement its own file and an unambiguous place, headline and complete run fit together."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from papers.distshift.cells import DIFFUSION, RANDOM, ROWS, VARIANTS, cells, conditions, gate_cells, scores
from papers.distshift.config import PRESETS, Models, Protected, check
from papers.distshift.evaluate import groups
from papers.distshift.kinds import changes
from papers.distshift.runs import runs
from papers.distshift.tables import short
from shared.claims.claims import load
from shared.claims.selection import matches
from shared.errors import UserError

CPU = PRESETS["cpu"]
CLAIMS = load("papers/distshift/claims.yaml")


@pytest.mark.parametrize("scale", PRESETS)
@pytest.mark.parametrize("headline", [False, True])
def test_every_measurement_has_its_own_file(scale, headline):
    check(PRESETS[scale])
    found = cells(replace(PRESETS[scale], headline=headline))
    assert len({c.slug() for c in found}) == len(found) == len(set(found))
    assert set(gate_cells(replace(PRESETS[scale], headline=headline))) <= set(found)


@pytest.mark.parametrize(("label", "said"), [("", "zoo"), ("CIFAR-10 (JPEG copy)", "CIFAR-10 (JPEG copy)")])
def test_a_folder_of_pictures_is_called_what_it_is_called(label, said):
    config = replace(PRESETS["photos"].data, label=label) if label else PRESETS["photos"].data
    results = SimpleNamespace(config={"data": {"label": config.label}, "names": {"folder:all": "zoo"}})
    assert short(results, "folder:all") == said and short(results, "scenes:ten") == "scenes ten"


def test_the_complete_run_continues_from_the_headline():
    part, whole = cells(replace(CPU, headline=True)), cells(CPU)
    assert set(part) < set(whole) and len(part) < len(whole) * 0.7


@pytest.mark.parametrize("scale", ["cpu", "photos", "paper"])
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
    wanted = {(c.spec, c.attack, c.norm) for c in scores(config) if c.attack != "clean"}
    tested = set()
    for claim in (c for c in CLAIMS.claims if c.id.startswith("cell-")):
        tested |= {(c.spec, c.attack, c.norm) for c in scores(config) if matches(claim.quantity, c.tags(config))}
        assert {r["method"] for r in claim.rivals} == set(ROWS) - {"noise", *DIFFUSION}
    assert tested == wanted and len(wanted) == 8


def test_clean_accuracy_stands_beside_every_cell():
    config = replace(CPU, headline=True)
    for c in scores(config):
        assert any((d.method, d.spec, d.seed, d.attack) == (c.method, c.spec, c.seed, "clean") for d in scores(config))
    assert [(a, n) for a, n, _ in conditions(CPU)] == [("clean", ""), ("pgd", "linf"), ("autoattack", "linf"), ("pgd", "l2"), ("autoattack", "l2")]


def test_random_defences_are_measured_with_every_seed():
    for method in ROWS:
        assert len({s.seed for s in scores(CPU) if s.method == method}) == (3 if method in RANDOM else 1)


def test_the_adversarially_trained_victim_is_attacked_itself():
    for c in cells(CPU):
        assert c.source.victim == ("at" if c.method == "pgd_at" else "base")


def test_tags_name_places_not_values():
    cell = next(c for c in cells(CPU) if c.kind == "eps" and c.norm == "l2" and c.eps > 1 / 2 + 0.1)
    assert {"place": 1, "times": pytest.approx(2), "norm": "l2", "attack": "pgd"}.items() <= cell.tags(CPU).items()


def test_what_shares_an_attack_is_measured_on_one_process():
    for group in groups(cells(CPU)):
        assert len({(c.kind, c.method, dict(c.point).get("against"), c.norm) for c in group if c.kind == "adaptive"}) <= 1
    assert sum(map(len, groups(cells(CPU)))) == len(cells(CPU))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_a_guidance_whatever_the_default(variant):
    for rescale, domain in (("none", "x_t"), ("x_t/alpha", "x_t"), ("none", "x0_hat")):
        if variant == "unscaled" and domain == "x0_hat":
            continue
        made = replace(replace(CPU.guidance, kind="G1", domain=domain, rescale=rescale), **changes(CPU, variant))
        assert made != CPU.guidance or variant == "g1-running"


def test_the_cpu_scale_trains_nothing_and_photos_three_networks():
    assert runs(CPU) == []
    assert [r.what for r in runs(PRESETS["photos"])] == ["denoiser", "at", "base"]
    assert runs(PRESETS["photos"])[1].training.eps == PRESETS["photos"].attack.linf


@pytest.mark.parametrize(("changed", "message"), [
    ({"seeds": ()}, "--seeds must be"), ({"seeds": (1, 1)}, "--seeds must be"),
    ({"sweeps": replace(CPU.sweeps, times=(1.0,))}, "2 among them"), ({"sweeps": replace(CPU.sweeps, times=(2.0, 1.0))}, "growing multiples"),
    ({"sweeps": replace(CPU.sweeps, block=7)}, "a multiple of"),
    ({"models": Models(CPU.models.first, CPU.models.first)}, "both sets are scenes:ten"),
    ({"models": Models(Protected(), CPU.models.second)}, "names the first set"),
    ({"models": Models(replace(CPU.models.first, restrict=True), CPU.models.second)}, "only ImageNet30 is a part"),
])  # fmt: skip
def test_settings_that_cannot_work_are_refused(changed, message):
    with pytest.raises(UserError, match=message):
        check(replace(CPU, **changed))
