"""What the tags of a number mean: which victim is attacked, what is measured once per seed, a claim for every cell, settings that cannot work."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from papers.distshift import steps
from papers.distshift.baselines import Pull
from papers.distshift.config import PRESETS, Models, Protected, check
from papers.distshift.figures import stored
from papers.distshift.method import RELEASED, Guidance
from papers.distshift.paper import PAPER
from papers.distshift.steps import (
    Accuracy,
    Judged,
    Known,
    Network,
    choice_of,
    diffusion_of,
    guidance_named,
    guidance_of,
    victim_of,
)
from papers.distshift.tables import BASELINE, GUIDED, METHODS, RANDOM, VARIANTS, conditions, sets
from shared.attacks import Threat
from shared.claims.claims import load
from shared.claims.selection import matches
from shared.errors import UserError
from shared.experiment.leaves import Pictures
from shared.experiment.step import Trained, closure, parts
from shared.rng import SampleRng
from shared.steps.choice import Choice
from shared.steps.purification import SameNoise
from tests.papers.ends import ROOT, lab_of

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
        assert {r["method"] for r in claim.rivals} == set(METHODS) - {"noise", "one_step", BASELINE, *GUIDED}
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
    kinds = {"score", "eps", "time", "rounds", "scale", "variant", "released", "released_eps", "released_time"}
    assert {n.tags["kind"] for n in judged} == kinds
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
def test_every_variant_is_a_guidance_whatever_is_left_open(variant):
    for rescale, domain in (("none", "x_t"), ("x_t/alpha", "x_t"), ("none", "x0_hat")):
        base = replace(CPU.guidance, kind="G1", domain=domain, rescale=rescale)
        assert isinstance(guidance_named(replace(CPU, guidance=base), variant), Guidance)


def test_another_scale_of_the_guidance_concerns_what_is_guided_and_takes_it():
    after = {n.name: n.step for n in PAPER.plan(replace(CPU, guidance=replace(CPU.guidance, scale=0.7)))}
    touched = [n.tags for n in WHOLE if n.name in after and after[n.name] != n.step]
    assert {tags["method"] for tags in touched} == {"distshift", "purified", "purified_clean", "guidance"}
    kinds = {n.tags["kind"] for n in WHOLE if not n.tags["kind"].startswith("released")}
    assert {tags["kind"] for tags in touched} == kinds - {"norm"}
    # they have a scale of their own
    assert not [tags for tags in touched if tags.get("variant") in ("coup", "g5-released", "g1-strong")]


# ---- what is chosen ----------------------------------------------------------------------------------------------------


CHOICES = {title: choice_of(CPU, title) for title in ("time", "guidance", "pull")}


def test_every_method_has_as_many_candidates_the_published_setting_first():
    assert {len(choice.candidates) for choice in CHOICES.values()} == {6}
    released = SameNoise(diffusion_of(CPU, "scenes:ten"), CPU.released.t)
    assert CHOICES["time"].candidates[0] == released.settle(lab_of(Path("nowhere"))) == 58
    assert CHOICES["guidance"].candidates[0] == RELEASED
    assert CHOICES["pull"].candidates[0] == Pull()


def test_a_choice_looks_at_validation_pictures_of_every_set_and_costs_little():
    """No more purifications than two rows of the main tables, a guided one counted as three."""
    seen = [seen for choice in CHOICES.values() for pictures in choice.rule.seen for seen in pictures]
    assert {(s.data.spec, s.data.split) for s in seen} == {(spec, "validation") for spec in sets(CPU)}
    assert not {part.split for choice in CHOICES.values() for part in parts(choice) if isinstance(part, Pictures)} & {
        "test"
    }
    each = 6 * 3 * CPU.choosing.n * len(sets(CPU))
    row = len(conditions(CPU)) * CPU.data.n * len(CPU.seeds) * len(sets(CPU))
    assert each * (1 + CPU.baselines.gdmp_rounds + 3) <= 2 * 3 * row


def test_what_is_chosen_is_what_is_measured():
    distshift = next(n.step.defence for n in scores() if n.tags["method"] == "distshift")
    assert distshift.guidance is guidance_of(CPU)
    assert distshift.purification.t is CHOICES["time"] is CHOICES["guidance"].rule.defences[0].purification.t
    assert next(n.step.defence for n in scores() if n.tags["method"] == "gdmp").pull is CHOICES["pull"]
    shown = {(n.tags["method"], n.tags["candidate"], n.tags["quantity"]) for n in WHOLE if n.tags["kind"] == "choice"}
    assert shown == {(m, k, q) for m in CHOICES for k in range(6) for q in ("score", "chosen")}


def test_the_papers_scale_has_the_first_authors_setting_and_chooses_nothing():
    paper = PRESETS["paper"]
    assert [choice_of(paper, title).candidates for title in CHOICES] == [(470,), (RELEASED,), (Pull(),)]
    assert paper.models.first.denoiser.startswith("improved:")
    assert paper.released.times == tuple(range(300, 601, 10))
    assert paper.released.second_times == tuple(range(50, 491, 10))
    known = next(n.step.known for n in PAPER.plan(paper) if n.tags.get("against") == "bpda_released")
    assert (known.steps, known.eot) == (50, 15)


class Answers:
    """A victim that says 1 of bright pictures."""

    def says(self, lab, x, batch):
        return (x.mean(dim=(1, 2, 3)) > 0.5).long()


@dataclass(frozen=True)
class Shown:
    level: float

    def behind(self, lab, defence, seed, batch):
        return torch.full((4, 3, 2, 2), self.level) + torch.tensor([0.0, 0.1, 0.2, 0.3])[:, None, None, None] * defence

    def clean(self, lab):
        return None, torch.ones(4, dtype=torch.int64)


def test_the_rule_is_the_written_mean(monkeypatch):
    monkeypatch.setattr(steps, "placed", lambda defence, candidate: candidate)
    rule = Judged((None,), (Answers(),), ((Shown(0.6), Shown(0.45), Shown(0.25)),), 0)
    expected = [(1 + (a + b) / 2) / 2 for a, b in ((0, 0), (1, 0), (1, 0), (1, 1))]
    torch.testing.assert_close(rule.score(None, 1.0), torch.tensor(expected, dtype=torch.float64))


# ---- as released -------------------------------------------------------------------------------------------------------


def test_the_attack_as_released_is_torchattacks_pgd():
    """Uniform start in the ball, five steps of 3/255 along the sign, each projected; the last iterate, even where an earlier one had succeeded."""
    adversary = next(n.step.seen.attacked.attack for n in WHOLE if n.tags["attack"] == "pgd_released")
    assert (adversary.steps, adversary.step) == (5, 3 / 255)
    torch.manual_seed(0)
    victim, x = (
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3)).double(),
        torch.rand(4, 3, 4, 4).double(),
    )
    y, rng, eps = torch.tensor([0, 1, 2, 0]), SampleRng(0, range(4)), 8 / 255
    found = adversary(victim, x, y, rng, threat=Threat("linf", eps))
    adv = Threat("linf", eps).random_start(x, rng.child("restart0"))
    for _ in range(5):
        adv = adv.detach().requires_grad_()
        (g,) = torch.autograd.grad(torch.nn.functional.cross_entropy(victim(adv), y, reduction="sum"), adv)
        adv = (x + (adv + 3 / 255 * g.sign() - x).clamp(-eps, eps)).clamp(0, 1)
    torch.testing.assert_close(found, adv.detach(), rtol=0, atol=1e-9)


def test_stored_curves_are_those_of_the_facts():
    """Found-2026-11-28, section 2: robust accuracy by ε, and clean and robust by t*."""
    by_eps, by_time = stored("eps"), stored("time")
    table = {x: robust for x, _, robust in by_eps["MobileNetV2"]}
    assert [table[x] for x in (0, 5, 10, 15, 20, 25, 30, 40, 50, 75)] == [
        0.856, 0.811, 0.804, 0.813, 0.823, 0.828, 0.822, 0.670, 0.389, 0.030]  # fmt: skip
    assert set(by_eps) == {"MobileNetV2", "ResNet18", "ResNet56", "ShuffleNetV2"}
    times = {x: (clean, robust) for x, clean, robust in next(iter(by_time.values()))}
    assert times[300] == (0.873, 0.725) and times[470] == (0.849, 0.789) and times[600] == (0.845, 0.804)


def test_the_cpu_scale_trains_nothing_and_photos_three_networks():
    assert {type(step) for step in closure(n.step for n in WHOLE) if isinstance(step, Trained)} == {Choice}
    photos = PRESETS["photos"]
    made = [step for step in closure(n.step for n in PAPER.plan(photos)) if isinstance(step, Trained)]
    assert sorted(step.name.partition("__")[0] for step in made) == ["at", "base", *["choice"] * 3, "denoiser"]
    assert {step.training.eps for step in made if isinstance(step, Network)} == {0.0, photos.attack.linf}
    assert sets(photos) == ("folder:all",)


def test_clean_pictures_have_no_ball():
    bare = ("clean", "validation")
    assert all((n.tags["norm"] == "none") == (n.tags["attack"] in bare) for n in WHOLE)


@pytest.mark.parametrize(("changes", "message"), [
    ({"seeds": ()}, "--seeds must be"), ({"seeds": (1, 1)}, "--seeds must be"),
    ({"sweeps": replace(CPU.sweeps, times=(1.0,))}, "2 among them"), ({"sweeps": replace(CPU.sweeps, times=(2.0, 1.0))}, "growing multiples"),
    ({"sweeps": replace(CPU.sweeps, block=7)}, "a multiple of"),
    ({"sweeps": replace(CPU.sweeps, scales=(0.0, 3.0))}, "1 \\(the chosen scale\\)"),
    ({"choosing": replace(CPU.choosing, times=(50,))}, "grids of one size"),
    ({"choosing": replace(CPU.choosing, guidances=("g9", *CPU.choosing.guidances[1:]))}, "no guidance 'g9'"),
    ({"models": Models(CPU.models.first, CPU.models.first)}, "both sets are scenes:ten"),
    ({"models": Models(Protected(), CPU.models.second)}, "names the first set"),
    ({"models": Models(replace(CPU.models.first, restrict=True), CPU.models.second)}, "only ImageNet30 is a part"),
])  # fmt: skip
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        check(replace(CPU, **changes))
