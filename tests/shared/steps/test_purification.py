"""Pictures behind a defence, attackers who know it or do not: on a linear victim behind noise that is a function of the seed."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from shared.attacks import Threat
from shared.attacks.pgd import pgd
from shared.experiment.leaves import Pictures
from shared.steps.purification import Attacked, Checked, Known, KnownAccuracy, Quality, Seen, Transform, through, usual
from tests.papers.ends import lab_of

DATA = Pictures("scenes:shape", "test", 6)


@dataclass(frozen=True)
class Linear:
    """Logits of 3·H·W pixels."""

    seed: int = 0

    def open(self, lab) -> nn.Module:
        def make() -> nn.Module:
            torch.manual_seed(self.seed)
            return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, lab.data(DATA.spec).num_classes)).eval()

        return lab.once(self, make)


@dataclass(frozen=True)
class Noise:
    """Uniform noise of some size."""

    size: float

    def open(self, lab):
        return lambda x, rng: x + self.size * (rng.uniform(x.shape[1:]).to(x) - 0.5)


@dataclass(frozen=True)
class Once:
    """One step of PGD."""

    eps: float
    seed: int = 0
    name: str = "once"
    weight: float = 1.0

    def __call__(self, victim, x, y, rng):
        return pgd(victim, x, y, Threat("linf", self.eps), steps=1, step_size=self.eps, rng=rng)

    def check(self, victim, x, y, rng):
        return {"pictures": len(x), "drawn": rng.stream}


@pytest.fixture
def lab(tmp_path):
    return lab_of(tmp_path)


def known(against: str, checked: int = 0, draws: int = 3) -> Known:
    return Known(Linear(), Seen(DATA, n=4), Noise(0.2), against, "linf", 0.1, 2, 2, draws, checked, 0, 1)


def test_what_is_behind_a_defence_is_the_same_in_any_batch(lab):
    seen = Seen(DATA)
    whole = seen.behind(lab, Noise(0.2), 1, 6)
    assert torch.equal(whole, seen.behind(lab, Noise(0.2), 1, 4))
    assert torch.equal(whole[:2], Seen(DATA, n=2).behind(lab, Noise(0.2), 1, 1))
    assert not torch.equal(whole, seen.behind(lab, Noise(0.2), 2, 6))
    assert not through(Noise(0.2).open(lab), seen.clean(lab)[0].requires_grad_(), seen.rows(lab), 1, 6).requires_grad


def test_attacked_pictures_are_seen_in_place_of_the_clean_ones(lab):
    attacked = Attacked(Linear(), DATA, Once(0.1))
    lab.make([attacked])
    seen = Seen(DATA, attacked, 3)
    x, x_adv = seen.clean(lab)[0], seen.pictures(lab)
    assert len(x) == len(x_adv) == len(seen.rows(lab)) == 3
    assert 0 < (x_adv - x).abs().max() <= 0.1 + 1e-6
    again = Attacked(Linear(), DATA, Once(0.1), "other stream")
    lab.make([again])
    assert not torch.equal(Seen(DATA, again, 3).pictures(lab), x_adv)


def test_checks_look_at_few_pictures_and_leave_their_record(lab):
    checks = Checked(Linear(), Seen(DATA, n=2), Once(0.1))
    lab.make([checks])
    assert lab.facts(checks) == {"sanity": '{"pictures": 2, "drawn": "sanity"}'}


def test_quality_of_nothing_done_is_the_highest(lab):
    found = {m: Quality(Seen(DATA), Transform(), 0, m).make(lab) for m in ("psnr", "ssim")}
    assert (found["psnr"].unit, found["ssim"].unit) == ("dB", "index")
    assert found["psnr"].values.tolist() == [100.0] * 6
    assert found["ssim"].values == pytest.approx(1.0)
    assert (Quality(Seen(DATA), Noise(0.2), 0, "psnr").make(lab).values < 40).all()


def test_who_knows_the_defence_stays_in_the_ball_and_is_judged_again_and_again(lab):
    steps = {name: known(name) for name in ("control", *usual(2, 2))}
    lab.make(steps.values())
    x, y = Seen(DATA, n=4).clean(lab)
    for name, step in steps.items():
        left = lab.weights(step)
        assert left["labels"].shape == (4, 3)
        distance = (left["x_adv"] - x).abs().max()
        assert (distance == 0) == (name == "control")
        assert distance <= 0.1 + 1e-6
        right = left["labels"] == y[:, None]
        assert KnownAccuracy(step, "mean").make(lab).values == pytest.approx(right.double().mean(1).numpy())
        assert KnownAccuracy(step, "worst").make(lab).values == pytest.approx(right.all(1).double().numpy())
    assert not torch.equal(lab.weights(steps["bpda"])["x_adv"], lab.weights(steps["exact"])["x_adv"])


def test_the_exact_attack_is_checked_where_it_is_asked_for(lab):
    steps = [known("exact"), known("exact", checked=2)]
    lab.make(steps)
    assert [KnownAccuracy(step, "one").make(lab).sanity is None for step in steps] == [True, False]
    assert torch.equal(*(lab.weights(step)["x_adv"] for step in steps))


def test_draws_of_judging_do_not_depend_on_how_many_there_are(lab):
    few, many = known("transfer", draws=2), known("transfer", draws=4)
    lab.make([few, many])
    assert torch.equal(lab.weights(few)["labels"], lab.weights(many)["labels"][:, :2])
