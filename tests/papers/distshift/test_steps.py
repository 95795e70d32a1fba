"""What the tags of a number mean: which victim is attacked, what is measured once per seed, a claim for every cell, settings that cannot work."""

from dataclasses import replace

import pytest

from papers.distshift.config import PRESETS, Models, Protected, check
from papers.distshift.paper import PAPER
from papers.distshift.steps import Accuracy, Known, Network, changed, victim_of
from papers.distshift.tables import BASELINE, CLEAN, GUIDED, METHODS, RANDOM, VARIANTS, conditions, sets
from shared.claims.claims import load
from shared.claims.selection import matches
from shared.errors import UserError
from shared.experiment.step import Trained, closure
from tests.papers.ends import ROOT

CPU = PRESETS["cpu"]
CLAIMS = load(ROOT / "papers/distshift/claims.yaml")
WHOLE = PAPER.plan(CPU)


def scores(config=CPU) -> list:
    return [n for n in PAPER.plan(config) if n.tags["kind"] == "score"]


def test_there_is_a_claim_for_each_cell_of_the_main_tables():
    found = [n.tags for n in scores(replace(CPU, headline=True)) if n.tags["attack"] != "clean"]
    wanted = {tags["set"] for tags in found}
    tested = set()
    for claim in (c for c in CLAIMS.claims if c.id.startswith("cell-")):
        tested |= {tags["set"] for tags in found if matches(claim.quantity, tags)}
        assert {r["method"] for r in claim.rivals} == set(METHODS) - {"noise", BASELINE, *GUIDED}
    assert tested == wanted
    assert len(wanted) == 8


def test_clean_accuracy_stands_beside_every_cell():
    found = [n.tags for n in scores()]
    clean = {(t["method"], t["data"], t["seed"]) for t in found if t["attack"] == "clean"}
    assert {(t["method"], t["data"], t["seed"]) for t in found} == clean
    where = [(c["attack"], c["norm"]) for c in conditions(CPU).values()]
    assert where == [("clean", "none"), ("pgd", "linf"), ("autoattack", "linf"), ("pgd", "l2"), ("autoattack", "l2")]


def test_random_defences_are_measured_with_every_seed():
    for method in METHODS:
        seeds = {n.tags["seed"] for n in scores() if n.tags["method"] == method}
        assert seeds == set(CPU.seeds if method in RANDOM else CPU.seeds[:1])


def test_the_bare_victim_is_attacked_and_the_adversarially_trained_one_for_itself():
    judged = [n for n in WHOLE if isinstance(n.step, Accuracy) and n.tags["attack"] != "clean"]
    assert {n.tags["kind"] for n in judged} == {"score", "eps", "time", "rounds", "scale", "variant"}
    for n in judged:
        which = "at" if n.tags["method"] == "pgd_at" else "base"
        assert n.step.seen.attacked.victim == n.step.victim == victim_of(CPU, n.tags["data"], which)


def test_tags_name_places_not_values():
    tags = next(n.tags for n in WHOLE if n.tags["kind"] == "eps" and n.tags["norm"] == "l2" and n.tags["eps"] > 0.6)
    assert {"place": 1, "times": pytest.approx(2), "norm": "l2", "attack": "pgd"}.items() <= tags.items()


def test_one_attack_that_knows_the_defence_is_judged_in_four_ways():
    known = [step for step in closure(n.step for n in WHOLE) if isinstance(step, Known)]
    assert 4 * len(known) == sum(n.tags["kind"] == "adaptive" for n in WHOLE)
    assert {step.checked > 0 for step in known if step.against == "exact" and step.row != "pgd_at"} == {True}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_a_guidance_whatever_the_default(variant):
    for rescale, domain in (("none", "x_t"), ("x_t/alpha", "x_t"), ("none", "x0_hat")):
        if variant == "unscaled" and domain == "x0_hat":
            continue
        made = replace(replace(CPU.guidance, kind="G1", domain=domain, rescale=rescale), **changed(variant))
        assert made != CPU.guidance or variant == "g1-running"


def test_another_scale_of_the_guidance_concerns_what_is_guided_and_takes_it():
    after = {n.name: n.step for n in PAPER.plan(replace(CPU, guidance=replace(CPU.guidance, scale=0.7)))}
    touched = [n.tags for n in WHOLE if n.name in after and after[n.name] != n.step]
    assert {tags["method"] for tags in touched} == {"distshift", "purified", "purified_clean"}
    assert {tags["kind"] for tags in touched} == {tags["kind"] for tags in (n.tags for n in WHOLE)} - {"norm", "scale"}
    assert not any(tags.get("variant") == "coup" for tags in touched)  # it has a scale of its own


def test_the_cpu_scale_trains_nothing_and_photos_three_networks():
    assert not [step for step in closure(n.step for n in WHOLE) if isinstance(step, Trained)]
    photos = PRESETS["photos"]
    made = [step for step in closure(n.step for n in PAPER.plan(photos)) if isinstance(step, Trained)]
    assert sorted(step.name.partition("__")[0] for step in made) == ["at", "base", "denoiser"]
    assert {step.training.eps for step in made if isinstance(step, Network)} == {0.0, photos.attack.linf}
    assert sets(photos) == ("folder:all",)


def test_clean_pictures_have_no_ball():
    assert all((n.tags["norm"] == "none") == (n.tags["attack"] == CLEAN["attack"]) for n in WHOLE)


@pytest.mark.parametrize(("changes", "message"), [
    ({"seeds": ()}, "--seeds must be"), ({"seeds": (1, 1)}, "--seeds must be"),
    ({"sweeps": replace(CPU.sweeps, times=(1.0,))}, "2 among them"), ({"sweeps": replace(CPU.sweeps, times=(2.0, 1.0))}, "growing multiples"),
    ({"sweeps": replace(CPU.sweeps, block=7)}, "a multiple of"),
    ({"models": Models(CPU.models.first, CPU.models.first)}, "both sets are scenes:ten"),
    ({"models": Models(Protected(), CPU.models.second)}, "names the first set"),
    ({"models": Models(replace(CPU.models.first, restrict=True), CPU.models.second)}, "only ImageNet30 is a part"),
])  # fmt: skip
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        check(replace(CPU, **changes))
