"""What the tags of a number mean: what is attacked, what depends on τ, a claim for every cell, settings that cannot work."""

from dataclasses import replace

import pytest
import torch

from papers.diffcap.config import PRESETS, check
from papers.diffcap.paper import PAPER
from papers.diffcap.steps import (
    Adaptive,
    Away,
    Classifier,
    Encoder,
    Robust,
    Similarities,
    Speaker,
    calibrated,
    choice_of,
    phi_of,
    purification_of,
    stopping_of,
    victim_of,
)
from papers.diffcap.tables import CHOSEN, HEADLINE_ROWS, METHODS, RANDOM, TOWERS
from papers.diffcap.texts import Answers, Later, Texts
from shared.claims.claims import load
from shared.claims.selection import matches
from shared.data.base import at_end, subset
from shared.errors import UserError
from shared.experiment.leaves import Pictures
from shared.experiment.step import closure
from tests.papers.ends import ROOT, lab_of

CPU = PRESETS["cpu"]
CLAIMS = load(ROOT / "papers/diffcap/claims.yaml")
WHOLE = PAPER.plan(CPU)


def scores(config=CPU) -> list:
    return [n for n in PAPER.plan(config) if n.tags["kind"] == "score"]


def test_there_is_a_claim_for_each_cell_of_the_main_tables():
    found = [n.tags for n in scores(replace(CPU, headline=True)) if n.tags["eps"]]
    wanted = {tags["set"] for tags in found}
    tested = set()
    for claim in (c for c in CLAIMS.claims if c.id.startswith("cell-")):
        tested |= {tags["set"] for tags in found if matches(claim.quantity, tags)}
        assert {r["method"] for r in claim.rivals} | {"diffcap", "clipure"} == set(HEADLINE_ROWS)
    assert tested == wanted
    assert len(wanted) == 20


def test_random_defences_are_measured_with_every_seed():
    for method in METHODS:
        seeds = {n.tags["seed"] for n in scores() if n.tags["method"] == method}
        assert seeds == set(CPU.seeds if method in RANDOM else CPU.seeds[:1])


def test_tags_name_places_not_values():
    tags = [n.tags for n in scores() if n.tags["data"] == CPU.data.captions[1] and n.tags["eps"] == CPU.attack.eps[0]]
    assert all(
        {"task": "captions", "place": 2, "strength": 1, "attack": "adversarial"}.items() <= t.items() for t in tags
    )
    assert {n.tags["factor"] for n in WHOLE if n.tags["kind"] == "ablation"} == {0.5, 1.0, 2.0}


def test_purifiers_face_the_attack_on_the_undefended_model_and_robust_encoders_their_own():
    for n in (n for n in scores() if n.tags["eps"]):
        tower = n.step.seen.attacked.victim.tower
        wanted = n.tags["method"] if n.tags["method"] in TOWERS else "none"
        assert (tower.candidates[0].method if tower else "none") == wanted
        assert n.step.checks.victim.tower == tower
        assert n.step.checks.attack.eps == CPU.attack.eps[-1]
    made = [step for step in closure(n.step for n in WHOLE) if isinstance(step, Robust)]
    assert {step.method for step in made} == set(TOWERS)
    assert len(made) == 2 * len(CPU.choosing.rates)  # all three models of this scale look through one tower


def test_the_towers_of_the_paper_scale_are_six():
    made = [step for step in closure(n.step for n in PAPER.plan(PRESETS["paper"])) if isinstance(step, Robust)]
    assert len({(step.method, step.clip) for step in made}) == len(made) == 6


def touched(**changes) -> set[str]:
    """Names of the numbers whose step is another one with changed settings of the method."""
    after = {n.name: n.step for n in PAPER.plan(replace(CPU, method=replace(CPU.method, **changes)))}
    return {n.name for n in WHOLE if after[n.name] != n.step}


BY_TAU = {
    n.name
    for n in WHOLE
    if n.tags["method"] in ("diffcap", "redraw", "x_t/alpha", "max_similarity", "other_phi", "diffcap_own")
    and n.tags["kind"] not in ("tau", "calibration")
}  # of those with a τ of their own, Δt and T_max were chosen with the calibrated one


def test_a_given_tau_concerns_what_stops_by_it():
    assert touched(tau=0.5) == BY_TAU
    kinds = {
        "score",
        "stop",
        "ablation",
        "variant",
        "cost",
        "quality",
        "targeted",
        "adaptive",
        "adaptive_caption",
        "choice",
        "digits",
        "digits_stop",
        "strip",
    }
    assert {n.tags["kind"] for n in WHOLE if n.name in BY_TAU} == kinds


def test_other_calibration_pairs_concern_what_stops_by_tau_and_the_pairs_themselves():
    more = {n.name for n in WHOLE if n.tags["kind"] in ("tau", "calibration")}
    assert touched(calibration_steps=3) == BY_TAU | more


def test_tau_is_of_the_six_sets_and_pairs_are_attacked_once_for_either_phi():
    assert len(calibrated(CPU).sets) == 6
    needed = closure(n.step for n in WHOLE)
    assert sum(isinstance(step, Similarities) for step in needed) == 6 + 6 + 1  # φ, the other φ, digits
    assert sum(isinstance(step, Away) for step in needed) == 6 + 1


def test_phi_is_one_small_clip_or_the_tower_of_what_is_protected():
    own = replace(CPU, models=replace(CPU.models, own_tower=True))
    assert isinstance(phi_of(CPU, "llava"), Encoder)
    assert isinstance(phi_of(own, "llava"), Speaker)
    assert isinstance(phi_of(own), Classifier)
    assert phi_of(CPU, other=True) == phi_of(own)
    assert phi_of(own, other=True) == phi_of(CPU)


def test_what_was_found_against_diffpure_is_shown_to_diffcap():
    known = {(step.row, step.against): step for step in closure(n.step for n in WHOLE) if isinstance(step, Adaptive)}
    assert known["diffcap", "from_diffpure"].found == known["diffpure", "exact"]
    assert {pair for pair, step in known.items() if step.checked} == {("diffpure", "exact"), ("diffcap", "exact")}
    assert [step.early for pair, step in known.items() if pair[1] == "early_stop"] == [CPU.adaptive.weight]


def test_an_offset_moves_tau_to_at_most_one(tmp_path):
    lab = lab_of(tmp_path)
    for tau, offset, expected in ((0.9, 0.04, 0.94), (0.98, 0.04, 1.0), (0.9, -0.08, 0.82)):
        stopping = replace(stopping_of(CPU, 50, 400, 0.02), tau=tau - 0.02, offset=offset)
        assert stopping.open(lab).rule.tau == pytest.approx(expected)
    assert replace(stopping, factor=0.5).open(lab).rule.dt == 25


def test_grids_have_one_size_and_every_row_of_a_choice_its_own():
    choices = {method: choice_of(CPU, method) for method in CHOSEN}
    assert {len(choice.candidates) for choice in choices.values()} == {4}
    assert len({choice.candidates for choice in choices.values()}) == len(CHOSEN)
    assert len({choice.rule for choice in choices.values()}) == 1
    alone = replace(CPU, choosing=replace(CPU.choosing, times=(150,)))
    assert choice_of(alone, "diffpure") == purification_of(alone, 150)
    assert not [n for n in PAPER.plan(alone) if n.tags["kind"] == "choice" and n.tags["method"] == "diffpure"]


def test_headline_claims_have_96_pictures_and_3_seeds():
    """Of what is random: robust encoders and baselines without noise are the same for every seed."""
    wanted = [n for n in PAPER.plan(replace(CPU, headline=True)) if n.tags["attack"] == "adversarial"]
    for claim in (c for c in CLAIMS.claims if c.headline):
        ours = {**claim.quantity, "method": "diffcap"} if claim.quantity.get("method") == "diffpure" else claim.quantity
        found = [n for n in wanted if matches(ours, n.tags)]
        assert {n.tags["seed"] for n in found} >= set(CPU.seeds), claim.id
        assert all((n.step.seen.n or n.step.seen.data.n) >= 96 for n in found), claim.id


def test_a_part_of_what_is_asked_keeps_the_score_of_the_whole(tmp_path):
    x, asked = (texts := Texts(CPU.data.captions[0], n=6)).read(lab_of(tmp_path), texts.rows(lab_of(tmp_path)))
    perfect = [truths[0] for truths in asked.truths]
    assert len(x) == len(asked) == 6
    assert isinstance(asked[:2], Answers)
    assert asked[:2].scores(perfect[:2]) == pytest.approx(asked.scores(perfect)[:2])
    assert asked.of([3, 1]).truths == [asked.truths[3], asked.truths[1]]


class Small:
    """A set to classify that is read from files."""

    def __init__(self, data):
        self.set = data

    def data(self, spec, split):
        assert split == "test"
        return self.set

    def once(self, name, make):
        return make()


@pytest.mark.parametrize(("used", "n"), [(4, 3), (0, 3)])
def test_pairs_of_sets_without_validation_pictures_are_not_evaluated(tmp_path, used, n):
    data = lab_of(tmp_path).data("scenes:shape")
    data.n = 12
    lab, later = Small(data), Later("named:small", "test", n, 0, used)
    if not used:
        with pytest.raises(UserError, match="all of which are evaluated"):
            later.rows(lab)
        return
    more = Later("named:small", "test", n, 0, 2 * used)
    for part in (later, more):  # the same ones when more are evaluated, as far as that leaves them
        evaluated = subset(data, part.used, 0)
        assert part.rows(lab) == [row for row in at_end(data, n, 0) if row not in evaluated] != []


def test_the_probe_knows_its_digits(tmp_path):
    from papers.diffcap.steps import Probe

    lab, data = lab_of(tmp_path), Pictures("digits:all", "test", 100)
    probe = Probe(victim_of(CPU, "clip", CPU.data.classes[0]), Pictures("digits:all", "train")).open(lab)
    x, y = data.read(lab, data.rows(lab))
    with torch.no_grad():
        assert probe(x).argmax(1).eq(y).double().mean() > 0.7


@pytest.mark.parametrize(("changes", "message"), [
    ({"seeds": ()}, "--seeds must be"), ({"seeds": (1, 1)}, "--seeds must be"),
    ({"attack": replace(CPU.attack, eps=(0.1, 0.05))}, "growing strengths"), ({"attack": replace(CPU.attack, eps=())}, "growing strengths"),
    ({"choosing": replace(CPU.choosing, diffcap=((7, 400, 0.0),))}, "multiple of Δt"),
    ({"choosing": replace(CPU.choosing, diffcap=((25, 400, 0.0),))}, "multiple of Δt"),
    ({"choosing": replace(CPU.choosing, times=(150, 75))}, "have one size"),
    ({"choosing": replace(CPU.choosing, times=())}, "have one size"),
    ({"sweeps": replace(CPU.sweeps, taus=(0.1,))}, "the chosen setting"),
    ({"data": replace(CPU.data, classes=())}, "--data.classes needs"),
])  # fmt: skip
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        check(replace(CPU, **changes))
