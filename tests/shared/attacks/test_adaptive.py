"""Attacks through random defences: draws, averages, straight-through, bookkeeping, and the checks that must notice masking."""

import copy
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shared.attacks import Threat, apgd, input_gradient, pgd
from shared.attacks.adaptive import (
    ATTACKS,
    AdaptiveAttack,
    Defended,
    DefendedVLM,
    draws_of,
    majority,
    predict,
    resubmit,
    summaries,
)
from shared.attacks.sanity_random import check_adaptive
from shared.errors import UserError
from shared.models.preprocess import BitDepth, ResizePad
from shared.rng import SampleRng
from tests.accuracy import assert_within_rounding

THREAT = Threat("linf", 10 / 255)
N = 32
PIXELS = 3 * 12 * 12  # terms of the longest sum


class Noise:
    """x + s·ε, cut to [0, 1]; remembers the rows it drew."""

    random = True

    def __init__(self, s=0.1):
        self.s, self.seen = s, []

    def __call__(self, x, rng):
        self.seen.append([(rng.stream, index) for index in rng.indices])
        return (x + self.s * rng.normal(x.shape[1:])).clamp(0, 1)


class Masked(Noise):
    """A defence whose own gradient is useless (a ripple drowns it) though the picture hardly changes."""

    def __call__(self, x, rng):
        return super().__call__(x + 1e-3 * torch.sin(1e5 * x), rng)


@pytest.fixture
def batch(images):
    return images[0][:N], images[1][:N]


@pytest.fixture
def rng():
    return SampleRng(7, range(N))


def test_draws_are_those_of_single_streams():
    rng = SampleRng(1, [4, 9], "s")
    rows = draws_of(rng, 3, 2)
    normal = rows.normal((5,))
    for d in range(2):
        assert torch.equal(normal[d::2], draws_of(rng, 3 + d, 1).normal((5,)))
    assert len(normal.unique()) == 20 and torch.equal(draws_of(rng, 0, 1).normal((5,)), rng.normal((5,)))


def test_every_call_draws_anew_and_a_new_victim_begins_again(net, batch, rng):
    x, _ = batch
    victim = Defended(net, Noise(), rng)
    first, second = victim(x), victim(x)
    assert (first - second).abs().max() > 1e-3
    again = Defended(net, Noise(), rng)
    assert torch.equal(again(x), first) and torch.equal(again(x), second)


@pytest.mark.parametrize("gradient", ["exact", "bpda"])
def test_one_pass_over_draws_is_several_passes_over_one(exact, batch, rng, gradient):
    """The mean loss over 4 draws in one pass, its gradient, and the images of PGD: those of eot_iter=4 with single draws."""
    x, y = batch
    many, one = (Defended(exact, Noise(), rng, gradient=gradient, draws=d) for d in (4, 1))
    loss = many.loss("ce")
    value, grad = input_gradient(lambda point: loss(many(point), y), x)
    parts = [input_gradient(lambda point: F.cross_entropy(one(point), y, reduction="none"), x) for _ in range(4)]
    assert_within_rounding(value, torch.stack([p[0] for p in parts]).mean(dim=0), terms=PIXELS)
    assert_within_rounding(grad, torch.stack([p[1] for p in parts]).mean(dim=0), terms=PIXELS)

    many, one = (Defended(exact, Noise(), rng, gradient=gradient, draws=d) for d in (4, 1))
    how = {"steps": 3, "step_size": 0.01, "rng": SampleRng(0, range(N)), "drop": False}
    ours = pgd(many, x, y, THREAT, loss=many.loss("ce"), **how)
    theirs = pgd(one, x, y, THREAT, eot_iter=4, **how)
    assert ((ours - theirs).abs() > 1e-6).flatten(1).any(
        dim=1
    ).float().mean() < 0.1  # but for signs of gradients that are zero to rounding


def test_averages_of_logits_and_of_losses_differ(net, batch, rng):
    x, y = batch
    victim = Defended(net, Noise(0.3), rng, draws=8)
    each = net(Noise(0.3)(x.repeat_interleave(8, 0), draws_of(rng, 0, 8))).view(N, 8, -1)
    logits = victim(x)
    assert_within_rounding(logits, each.mean(dim=1), terms=PIXELS)
    of_losses = F.cross_entropy(each.flatten(0, 1), y.repeat_interleave(8), reduction="none").view(N, 8).mean(dim=1)
    assert_within_rounding(victim.loss("ce")(logits, y), of_losses, terms=PIXELS)
    logits = Defended(net, Noise(0.3), rng, draws=8)
    mean = logits(x)
    assert_within_rounding(
        logits.loss("ce", "logits")(mean, y), F.cross_entropy(mean, y, reduction="none"), terms=PIXELS
    )
    assert (of_losses > F.cross_entropy(mean, y, reduction="none")).all()  # Jensen


def test_losses_with_further_labels_are_repeated_too(net, batch, rng):
    x, y = batch
    victim = Defended(net, Noise(), rng, draws=3)
    loss = victim.loss(
        lambda z, labels, t: z.gather(1, t[:, None]).squeeze(1) - z.gather(1, labels[:, None]).squeeze(1)
    )
    z = victim(x)
    assert_within_rounding(
        loss(z, y, (y + 1) % 10),
        z.gather(1, ((y + 1) % 10)[:, None])[:, 0] - z.gather(1, y[:, None])[:, 0],
        terms=PIXELS,
    )


def test_bpda_is_exact_forwards_and_the_identity_backwards(net, batch, rng):
    x, y = batch
    defence = Noise(0.2)
    bpda, exact = Defended(net, defence, rng, gradient="bpda"), Defended(net, defence, rng)
    assert torch.equal(bpda(x), exact(x))
    images = defence(x, draws_of(rng, 2, 1)).requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(net(images), y, reduction="sum"), images)
    got = [input_gradient(lambda p, v=v: F.cross_entropy(v(p), y, reduction="none"), x)[1] for v in (bpda, exact)]
    bpda.calls = exact.calls = 2
    got = [input_gradient(lambda p, v=v: F.cross_entropy(v(p), y, reduction="none"), x)[1] for v in (bpda, exact)]
    assert_within_rounding(got[0], expected, terms=PIXELS)
    inside = (images > 0) & (images < 1)
    assert_within_rounding(got[1], expected * inside, terms=PIXELS)
    assert not inside.all()


def test_a_deterministic_defence_is_passed_once(net, batch, rng, counted):
    x, _ = batch
    victim = Defended(counted(net), BitDepth(4), rng, draws=20)
    victim(x)
    assert victim.victim.images == N
    calls = []
    out = resubmit(lambda images, _: calls.append(len(images)) or net(images).argmax(1), BitDepth(4), x, rng, 5)
    assert sum(calls) == N and out.shape == (N, 5) and (out == out[:, :1]).all()


def test_subsets_keep_their_samples_streams(net, batch, rng):
    x, _ = batch
    defence = Noise()
    whole = Defended(net, defence, rng)
    whole(x)
    part = whole.subset(torch.tensor([5, 2]))
    assert_within_rounding(part(x[[5, 2]]), whole(x)[[5, 2]], terms=PIXELS)
    assert (part.calls, whole.calls) == (2, 2) and len(whole.rng) == N
    with pytest.raises(UserError, match="rng is for 32 samples, the batch has 2: attack with drop=False"):
        whole(x[:2])
    with pytest.raises(UserError, match="drop=False"):  # what happens when an attack drops samples
        pgd(Defended(net, Noise(0.02), rng), *batch, THREAT, steps=5, step_size=0.01, rng=SampleRng(0, range(N)))


def test_attack_and_defence_draw_from_separate_streams(net, batch, rng):
    """The defence's draws are the same whatever the attack's seed, nothing is drawn from torch's generator, and what is scored was never attacked."""
    x, y = batch
    attack = AdaptiveAttack(draws=2, steps=3)
    state, seen = torch.get_rng_state(), []
    for seed in (0, 1):
        defence = Noise()
        attack(net, defence, x, y, THREAT, rng=SampleRng(seed, range(N)), defence_rng=rng)
        seen.append(defence.seen)
    assert seen[0] == seen[1] and torch.equal(torch.get_rng_state(), state)
    drawn = {row for call in seen[0] for row in call}
    assert len(drawn) == N * 2 * 5  # apgd: clean, start and 3 steps, every draw another
    scored = Noise()
    before = resubmit(predict(net), scored, x, rng, 4)
    assert torch.equal(before, resubmit(predict(net), Noise(), x, rng, 4))
    assert not drawn & {row for call in scored.seen for row in call}


@pytest.mark.parametrize("optimiser", ["pgd", "apgd"])
@pytest.mark.parametrize("gradient", ["exact", "bpda", "none"])
def test_drivers_stay_in_the_ball_whatever_the_batch(net, exact, batch, rng, optimiser, gradient):
    x, y = batch
    attack = AdaptiveAttack(gradient, draws=2, steps=4, optimiser=optimiser)
    before = x.clone()
    whole = attack(exact, Noise(), x, y, THREAT, rng=SampleRng(0, range(N)), defence_rng=rng)
    parts = attack(exact, Noise(), x, y, THREAT, rng=SampleRng(0, range(N)), defence_rng=rng, batch=5)
    assert torch.equal(x, before) and not whole.requires_grad
    assert (whole - x).abs().max() <= THREAT.eps + 1e-6 and whole.min() >= 0 and whole.max() <= 1
    assert ((whole - parts).abs() > 1e-5).flatten(1).any(dim=1).float().mean() < 0.1
    direct = Defended(exact, Noise(), rng.child("attack"), gradient=gradient, draws=2) if gradient != "none" else exact
    loss = "ce" if gradient == "none" else direct.loss("ce")
    knobs = {"steps": 4, "rng": SampleRng(0, range(N)), "loss": loss}
    last = {"step_size": 2.5 * THREAT.eps / 4, "keep": "last"}
    same = (
        apgd(direct, x, y, THREAT, drop=False, **knobs)
        if optimiser == "apgd"
        else pgd(direct, x, y, THREAT, **last, **knobs)
    )
    assert torch.equal(same, whole)


def test_attacks_that_know_more_do_more(net, batch, rng):
    """Behind random resizing every attack works. Behind a mirror, and a victim that mirrors back, only the one that looks through it does."""
    x, y = batch

    class Mirror(Noise):
        def __call__(self, x, rng):
            return super().__call__(x, rng).flip(3)

    mirrored = nn.Sequential(copy.deepcopy(net))
    mirrored.register_forward_pre_hook(lambda _, args: (args[0].flip(3),))
    short = {"draws": 4, "optimiser": "pgd", "steps": 8, "step_size": 0.4}
    for victim, defence in ((net, ResizePad(1.2)), (mirrored, Mirror(0.05))):
        clean, left = (resubmit(predict(victim), defence, x, rng, 8) == y[:, None]).float().mean().item(), {}
        for gradient in ("exact", "bpda", "none"):
            x_adv = AdaptiveAttack(gradient, **short)(
                victim, defence, x, y, THREAT, rng=SampleRng(0, range(N)), defence_rng=rng
            )
            left[gradient] = (resubmit(predict(victim), defence, x_adv, rng, 8) == y[:, None]).float().mean().item()
        assert left["exact"] < clean - 0.2, (left, clean)
        if victim is mirrored:
            assert left["exact"] + 0.2 < min(left["bpda"], left["none"]), left


def test_the_extra_term_is_raised_with_the_loss(net, batch, rng):
    x, y = batch
    seen = []

    def brightness(images, streams):
        seen.append((len(images), len(streams)))
        return 1e5 * images.flatten(1).mean(dim=1)

    attack = AdaptiveAttack(draws=2, steps=5, optimiser="pgd", step_size=0.5)
    x_adv = attack(net, Noise(), x, y, THREAT, rng=SampleRng(0, range(N)), defence_rng=rng, extra=brightness)
    assert (x_adv - (x + THREAT.eps).clamp(max=1)).abs().max() < 1e-3  # where the victim's own loss does not matter
    assert seen == [(2 * N, 2 * N)] * 5


def test_resubmissions_do_not_depend_on_the_batch(exact, batch, rng):
    x, _ = batch
    whole, parts = (resubmit(lambda images, _: exact(images)[:, 0], Noise(), x, rng, 5, batch=b) for b in (1000, 7))
    assert whole.shape == (N, 5)
    assert_within_rounding(whole, parts, terms=PIXELS)
    by_position = resubmit(lambda images, rows: rows, Noise(), x, rng, 3)
    assert torch.equal(by_position, torch.arange(N)[:, None].expand(N, 3))
    rows = torch.tensor([3, 30])
    assert_within_rounding(
        resubmit(lambda images, _: exact(images)[:, 0], Noise(), x[rows], rng.subset(rows), 5),
        whole[rows],
        terms=PIXELS,
    )


def test_summaries_by_hand():
    y = torch.tensor([0, 0, 0, 0, 0])
    labels = torch.tensor([[0, 0, 1, 0], [1, 0, 0, 1], [1, 2, 0, 0], [1, 1, 2, 0], [1, 2, 3, 4]])
    told = {name: values.tolist() for name, values in summaries(labels == y[:, None]).items()}
    assert told == {"one": [1, 0, 0, 0, 0], "mean": [0.75, 0.5, 0.5, 0.25, 0], "worst": [0, 0, 0, 0, 0]}
    assert majority(labels, y).tolist() == [
        True,
        False,
        True,
        False,
        False,
    ]  # 2:2 is a tie and wrong, 2:1:1 a plurality
    assert summaries(torch.tensor([[30.0, 10.0]]))["worst"].tolist() == [10.0]
    assert majority(torch.tensor([[2]]), torch.tensor([2])).tolist() == [True]


class ToyVLM(nn.Module):
    """Brightness in words; nll is its distance from a number."""

    size = 12

    def answer(self, x, prompts, max_tokens=20, batch=64):
        assert len(x) == len(prompts)
        return [f"{p} {v:.4f}" for p, v in zip(prompts, x.flatten(1).mean(dim=1).tolist(), strict=True)]

    def nll(self, x, prompts, targets):
        assert len(x) == len(prompts) == len(targets)
        return (x.flatten(1).mean(dim=1) - torch.tensor([float(t) for t in targets])).square()

    def embed(self, x):
        return x.mean(dim=(2, 3))


@pytest.mark.parametrize("gradient", ["exact", "bpda"])
def test_a_vlm_behind_a_defence(batch, rng, gradient):
    x, _ = batch
    prompts, targets = [f"p{i}" for i in range(N)], [str(i / N) for i in range(N)]
    vlm, noise = DefendedVLM(ToyVLM(), Noise(), rng, gradient=gradient, draws=3), Noise()
    image = x.clone().requires_grad_()
    value = vlm.nll(image, prompts, targets)
    drawn = noise(x.repeat_interleave(3, 0), draws_of(rng, 0, 3))
    expected = ToyVLM().nll(drawn, [""] * 3 * N, [t for t in targets for _ in range(3)]).view(N, 3).mean(dim=1)
    assert_within_rounding(value, expected, terms=PIXELS)
    assert torch.autograd.grad(value.sum(), image)[0].abs().sum() > 0
    drawn = noise(x.repeat_interleave(3, 0), draws_of(rng, 3, 3))
    assert_within_rounding(vlm.embed(x), drawn.mean(dim=(2, 3)).view(N, 3, 3).mean(dim=1), terms=PIXELS)
    told = vlm.answer(x, prompts, batch=5)
    assert (
        told == vlm.answer(x, prompts) == ToyVLM().answer(noise(x, rng.child("answer")), prompts)
        and vlm.calls == 2
        and vlm.size == 12
    )
    assert vlm.answer(x, prompts, rng=rng.child("other")) != told
    part = vlm.subset(torch.tensor([1]))
    assert part.answer(x[[1]], ["p1"]) == told[1:2] and part.nll(x[[1]], ["p1"], ["0"]).shape == (1,)
    with pytest.raises(UserError, match="batch has 1"):
        vlm.nll(x[:1], prompts[:1], targets[:1])


CHECKED = AdaptiveAttack(draws=3, steps=8, optimiser="pgd", step_size=0.4)


def failed(report):
    return {name for name, entry in report.items() if name != "passed" and not entry["passed"]}


@pytest.mark.parametrize("threat", [THREAT, Threat("l2", 0.5)], ids=lambda t: t.norm)
def test_the_checks_pass_on_an_honest_attack(net, batch, rng, threat):
    report = check_adaptive(net, Noise(), *batch, threat, CHECKED, rng=SampleRng(0, range(N)), defence_rng=rng)
    assert report["passed"], failed(report)
    assert len(report) == 11 and json.loads(json.dumps(report, allow_nan=False)) == report
    assert all(
        set(entry) == {"passed", "value", "threshold", "detail"} for name, entry in report.items() if name != "passed"
    )


def test_the_checks_catch_a_gradient_that_is_drowned_and_one_that_is_cut(net, batch, rng):
    knobs = {"rng": SampleRng(0, range(N)), "defence_rng": rng, "images": 16, "n": 4}
    assert {"exact_bpda", "exact_transfer"} <= failed(
        check_adaptive(net, Masked(0.05), *batch, THREAT, CHECKED, **knobs)
    )

    class Cut(Noise):
        def __call__(self, x, rng):
            return super().__call__(x, rng).detach() + 0 * x

    assert {"zero_samples", "zero_pixels", "unbounded"} <= failed(
        check_adaptive(net, Cut(), *batch, THREAT, CHECKED, **knobs)
    )

    class Broken(Noise):
        def __call__(self, x, rng):
            return super().__call__(x, rng) + 0 * (x - x).sqrt()  # the derivative at 0 is infinite, 0·∞ no number

    assert "finite" in failed(check_adaptive(net, Broken(), *batch, THREAT, CHECKED, **knobs))


def test_published_budgets():
    eot, bpda = ATTACKS["PGD+EOT"], ATTACKS["BPDA+EOT"]
    assert (eot.steps, eot.draws, round(eot.step_size * 8 / 255, 6)) == (200, 20, 0.007) and eot.gradient == "exact"
    assert (bpda.steps, bpda.draws, bpda.average, bpda.step_size * 8) == (50, 15, "logits", 2)
    assert replace(eot, steps=10).steps == 10 and ATTACKS["transfer"].gradient == "none"


@pytest.mark.parametrize(
    "make, says",
    [
        (
            lambda net, x, y, r: Defended(net, Noise(), r, gradient="adjoint"),
            "gradient is 'adjoint': use 'exact' or 'bpda'",
        ),
        (lambda net, x, y, r: Defended(net, Noise(), r, draws=0), "draws is 0: use a whole number from 1"),
        (lambda net, x, y, r: Defended(net, Noise(), r).loss("ce", "gradients"), "average is 'gradients'"),
        (lambda net, x, y, r: Defended(net, Noise(), r).loss("ce")(net(x), y), "logits of its last call"),
        (
            lambda net, x, y, r: AdaptiveAttack(optimiser="adam")(net, Noise(), x, y, THREAT, rng=r, defence_rng=r),
            "optimiser is 'adam': use 'pgd' or 'apgd'",
        ),
        (
            lambda net, x, y, r: replace(ATTACKS["BPDA"], restarts=2)(net, Noise(), x, y, THREAT, rng=r, defence_rng=r),
            "'pgd' with one",
        ),
        (
            lambda net, x, y, r: AdaptiveAttack()(net, Noise(), x, y, THREAT, rng=r, defence_rng=SampleRng(0, [1])),
            "use rng.subset",
        ),
        (
            lambda net, x, y, r: ATTACKS["transfer"](
                net, Noise(), x, y, THREAT, rng=r, defence_rng=r, extra=lambda *_: 0
            ),
            "extra loss term",
        ),
        (lambda net, x, y, r: resubmit(predict(net), Noise(), x, r, 0), "n is 0"),
        (lambda net, x, y, r: resubmit(predict(net), Noise(), x[:0], r.subset(torch.arange(0)), 2), "no images"),
        (
            lambda net, x, y, r: check_adaptive(net, Noise(), x, y, THREAT, ATTACKS["BPDA"], rng=r, defence_rng=r),
            "gradient 'bpda'",
        ),
        (
            lambda net, x, y, r: check_adaptive(net, Noise(), x, y, Threat("linf", 0), CHECKED, rng=r, defence_rng=r),
            "eps above 0",
        ),
    ],
)
def test_mistakes_are_told_in_a_sentence(net, batch, rng, make, says):
    with pytest.raises(UserError, match=says):
        make(net, *batch, rng)


def test_an_empty_batch_comes_back_empty(net, batch):
    x, y = batch
    none = SampleRng(0, [])
    assert AdaptiveAttack()(net, Noise(), x[:0], y[:0], THREAT, rng=none, defence_rng=none).shape == (0, *x.shape[1:])
