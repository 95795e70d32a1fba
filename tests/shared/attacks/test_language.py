"""Attacks on vision-language models, on a tiny one of fixed weights: what they reach, what they keep, and that the batch does not matter."""

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shared.attacks import Threat
from shared.attacks.language import (
    captioning_ensemble,
    embedding_attack,
    judge,
    nll_attack,
    nll_gradient,
    says,
    targeted_string,
    vqa_ensemble,
)
from shared.errors import UserError
from shared.metrics.vqa import vqa_accuracy
from shared.rng import SampleRng
from tests.accuracy import assert_within_rounding

WORDS = ("red", "green", "blue", "circle", "square", "star", "maybe", "word")
THREAT = Threat("linf", 8 / 255)
N = 12
RNG = SampleRng(3, range(N))


class TinyVLM(nn.Module):
    """Says one word for each of two places; the logits of a place are a small net of the pooled image, scaled by what is asked."""

    size = 8

    def __init__(self, dtype=torch.float64):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.body = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(48, 24), nn.Tanh())
            self.heads = nn.ModuleList([nn.Linear(24, len(WORDS)) for _ in range(2)])
        with torch.no_grad():
            self.body[2].weight.mul_(4)
            for head in self.heads:
                head.weight.mul_(6)
        self.to(dtype)
        self.dtype, self.nll_images = dtype, 0

    def embed(self, x):
        return self.body(x.to(self.dtype) - 0.5).float()

    def logits(self, x, prompts):
        scale = torch.tensor([2.0 if "loud" in p else 1.0 for p in prompts], dtype=self.dtype)[:, None]
        return [scale * head(self.body(x.to(self.dtype) - 0.5)) for head in self.heads]

    @torch.no_grad()
    def answer(self, x, prompts, max_tokens=20, batch=64):
        places = [z.argmax(1).tolist() for z in self.logits(x, prompts)][:max_tokens]
        return [" ".join(WORDS[k] for k in row) for row in zip(*places, strict=True)]

    def nll(self, x, prompts, targets):
        self.nll_images += len(x)
        total = torch.zeros(len(x), dtype=self.dtype)
        for place, z in enumerate(self.logits(x, prompts)):
            said = [t.split()[place : place + 1] for t in targets]
            on = torch.tensor([bool(w) for w in said])
            index = torch.tensor([WORDS.index(w[0]) if w else 0 for w in said])
            total = total + F.cross_entropy(z, index, reduction="none") * on
        return total


class Noisy(nn.Module):
    """A VLM behind noise that is drawn by sample, with the interface of `shared.attacks.adaptive.DefendedVLM`."""

    def __init__(self, vlm, rng, sigma=0.02):
        super().__init__()
        self.vlm, self.rng, self.sigma, self.calls = vlm, rng, sigma, 0

    def subset(self, keep):
        return Noisy(self.vlm, self.rng.subset(keep), self.sigma)

    def noisy(self, x, rng):
        return x + self.sigma * rng.normal(x.shape[1:])

    def nll(self, x, prompts, targets):
        self.calls += 1
        return self.vlm.nll(self.noisy(x, self.rng.child(f"call{self.calls}")), prompts, targets)

    def answer(self, x, prompts, max_tokens=20, batch=64, *, rng=None):
        return self.vlm.answer(self.noisy(x, rng or self.rng), prompts, max_tokens)


@pytest.fixture(scope="module")
def vlm():
    return TinyVLM().train()


@pytest.fixture(scope="module")
def x():
    return 0.2 + 0.6 * SampleRng(0, range(N)).uniform((3, 8, 8))


@pytest.fixture(scope="module")
def references(vlm, x):
    """The model's own clean caption four times, and one that is half right."""
    return [[c, c, c, c, c.split()[0] + " star"] for c in vlm.answer(x, ["say"] * N)]


@pytest.fixture(scope="module")
def answers(vlm, x):
    """Seven people say what the model does, three another word."""
    return [[c.split()[0]] * 7 + ["star"] * 3 for c in vlm.answer(x, ["say"] * N)]


def overlap(captions, references):
    """Score: 100 × share of the words of the first reference, place by place."""
    return np.array(
        [
            50.0 * sum(a == b for a, b in zip(c.split(), r[0].split(), strict=True))
            for c, r in zip(captions, references, strict=True)
        ]
    )


def test_the_nll_rises_and_falls_inside_the_ball(vlm, x, references):
    prompts, targets = ["say"] * N, [r[0] for r in references]
    before = x.clone()
    up = nll_attack(vlm, x, prompts, targets, THREAT, rng=RNG, steps=20)
    down = nll_attack(vlm, x, prompts, ["star star"] * N, THREAT, rng=RNG, steps=20, lower=True)
    with torch.no_grad():
        clean, raised = vlm.nll(x, prompts, targets), vlm.nll(up, prompts, targets)
        wanted, lowered = vlm.nll(x, prompts, ["star star"] * N), vlm.nll(down, prompts, ["star star"] * N)
    assert (raised > clean + 0.5).all() and (lowered < wanted - 0.5).all()
    for adv in (up, down):
        assert (
            THREAT.distance(adv, x).max() <= THREAT.eps + 1e-7
            and adv.min() >= 0
            and adv.max() <= 1
            and not adv.requires_grad
        )
    assert torch.equal(x, before) and vlm.training and all(p.grad is None for p in vlm.parameters())


def test_the_first_step_is_one_epsilon_from_the_image_itself(vlm, x, references):
    """With one step: x + ε·sign g, or x where that lowers the loss."""
    prompts, targets = ["say"] * N, [r[0] for r in references]
    wanted = (x + THREAT.eps * nll_gradient(vlm, x, prompts, targets, batch_size=5).sign()).clamp(0, 1)
    got = nll_attack(vlm, x, prompts, targets, THREAT, rng=RNG, steps=1)
    moved = (got != x).flatten(1).any(1)
    assert moved.sum() > N / 2 and torch.allclose(got[moved], wanted[moved], atol=1e-6)


def test_a_given_start_is_where_it_begins(vlm, x, references):
    """One step of size ε from the corner of the ball that is worst for the attack: back to about x, not beyond."""
    prompts, targets = ["say"] * N, [r[0] for r in references]
    corner = THREAT.project(x - THREAT.eps * nll_gradient(vlm, x, prompts, targets).sign(), x)
    got = nll_attack(vlm, x, prompts, targets, THREAT, rng=RNG, steps=1, start=corner)
    assert torch.allclose(
        got, THREAT.project(corner + THREAT.eps * nll_gradient(vlm, corner, prompts, targets).sign(), x), atol=1e-6
    )
    assert ((got - x).abs() < 1e-6).float().mean() > 0.5
    further = nll_attack(vlm, x, prompts, targets, THREAT, rng=RNG, steps=5, start=got)
    with torch.no_grad():
        assert (vlm.nll(further, prompts, targets) >= vlm.nll(got, prompts, targets)).all()


@pytest.mark.parametrize("size", [1, 5])
def test_results_do_not_depend_on_the_batch(vlm, x, references, answers, size):
    how = {"steps": 4, "rng": RNG}
    for attack in (
        lambda **k: captioning_ensemble(vlm, x, "say", references, overlap, THREAT, threshold=10, **how, **k),
        lambda **k: vqa_ensemble(vlm, x, ["say", "say loud"] * (N // 2), answers, THREAT, max_tokens=1, **how, **k),
        lambda **k: targeted_string(vlm, x, "say", "star star", THREAT, **how, **k),
    ):
        whole, parts = attack(), attack(batch_size=size)
        assert whole.answers == parts.answers
        assert_within_rounding(whole.x_adv, parts.x_adv, terms=4)  # steps
        again = attack()
        assert torch.equal(whole.x_adv, again.x_adv)


def test_a_sample_alone_gets_what_it_gets_in_the_batch(vlm, x, references):
    whole = captioning_ensemble(vlm, x, "say", references, overlap, THREAT, steps=8, threshold=10, rng=RNG)
    for i in (0, 7):
        rows = torch.tensor([i])
        alone = captioning_ensemble(
            vlm, x[rows], "say", references[i : i + 1], overlap, THREAT, steps=8, threshold=10, rng=RNG.subset(rows)
        )
        assert_within_rounding(alone.x_adv, whole.x_adv[rows], terms=8)
        assert alone.stage == whole.stage[i : i + 1]


def test_the_stages_of_captioning(vlm, x, references):
    out = captioning_ensemble(vlm, x, "say", references, overlap, THREAT, steps=10, threshold=10, rng=RNG)
    assert list(out.scores) == ["clean", *(f"against {k}" for k in range(1, 6)), "full precision"]
    assert (out.scores["clean"] == 100).all() and out.score.mean() < 50
    table = np.stack(list(out.scores.values()))
    assert (np.diff(table, axis=0) <= 0).all()  # the lowest score so far
    said, score = judge(vlm, out.x_adv, ["say"] * N, references, overlap)
    assert said == out.answers and (score == out.score).all()
    assert THREAT.distance(out.x_adv, x).max() <= THREAT.eps + 1e-7
    for i, stage in enumerate(out.stage):
        assert list(out.scores).index(stage) == int(
            np.argmax(table[:, i] == out.score[i])
        )  # the first stage that reached it
    assert all((out.x_adv[i] == x[i]).all() == (stage == "clean") for i, stage in enumerate(out.stage))


def test_samples_leave_below_the_threshold(x, references):
    """With a threshold above every score nobody is attacked; with one of 60, fewer are than with 10."""
    counts = {}
    for threshold in (101, 60, 0):
        vlm = TinyVLM()
        out = captioning_ensemble(
            vlm, x, "say", references, overlap, Threat("linf", 4 / 255), steps=6, threshold=threshold, rng=RNG
        )
        counts[threshold] = vlm.nll_images
        if threshold == 101:
            assert torch.equal(out.x_adv, x) and set(out.stage) == {"clean"}
    assert counts[101] == 0 < counts[60] < counts[0] == N * 6 * 7


def test_the_last_stage_goes_on_from_the_best_image_against_the_reference_that_gave_it(monkeypatch):
    """A scripted attack whose k-th call makes every image 0.5 + k/100, and a model that says how bright an image is."""
    import shared.attacks.language as module

    calls = []

    def scripted(victim, images, prompts, targets, *rest, **how):
        calls.append((how["rng"].indices, list(targets), how["start"], how.get("half")))
        return torch.full_like(images, 0.5 + len(calls) / 100)

    class Bright:
        def answer(self, images, prompts, max_tokens):
            return [f"{v:.2f}" for v in images.mean((1, 2, 3)).tolist()]

    table = {
        "0.50": (100, 100, 5),
        "0.51": (80, 90, 0),
        "0.52": (60, 90, 0),
        "0.53": (70, 8, 0),
        "0.54": (60, 0, 0),
        "0.55": (61, 0, 0),
        "0.56": (75, 0, 0),
    }  # answer -> score of each of the three samples

    def score(said, texts):
        return np.array([table[a][int(t[0][0])] for a, t in zip(said, texts, strict=True)], float)

    monkeypatch.setattr(module, "nll_attack", scripted)
    texts = [[f"{i} text {k}" for k in range(6)] for i in range(3)]
    images = torch.full((3, 3, 4, 4), 0.5)
    out = captioning_ensemble(
        Bright(), images, "say", texts, score, THREAT, threshold=10, rng=SampleRng(0, range(3)), half=True
    )
    assert [rows for rows, *_ in calls] == [(0, 1)] * 3 + [
        (0,)
    ] * 3  # sample 2 never enters, sample 1 leaves after the third stage
    assert [half for *_, half in calls] == ["fp16"] * 5 + [None] and all(start is None for _, _, start, _ in calls[:5])
    assert [targets[0] for _, targets, *_ in calls] == [f"0 text {k}" for k in (0, 1, 2, 3, 4, 1)]
    assert calls[-1][2].mean().item() == pytest.approx(0.52)
    assert (
        out.stage == ["against 2", "against 3", "clean"]
        and out.score.tolist() == [60, 8, 5]
        and out.answers == ["0.52", "0.53", "0.50"]
    )
    assert out.x_adv.mean((1, 2, 3)).tolist() == pytest.approx([0.52, 0.53, 0.5])


def test_the_half_precision_stages_are_another_attack(x, references):
    vlm = TinyVLM(torch.float32)
    full, half = (
        captioning_ensemble(
            vlm, x, "say", references, overlap, Threat("linf", 2 / 255), steps=2, threshold=10, rng=RNG, half=h
        )
        for h in (False, True)
    )
    assert not torch.equal(full.x_adv, half.x_adv) and abs(full.score.mean() - half.score.mean()) < 30


def test_question_answering_ends_with_two_decoys(vlm, x, answers):
    weak = Threat("linf", 1 / 255)
    out = vqa_ensemble(vlm, x, ["say"] * N, answers, weak, steps=4, rng=RNG, max_tokens=1)
    kinds = max(len(set(a)) for a in answers)
    assert list(out.scores) == [
        "clean",
        *(f"against {k + 1}" for k in range(kinds)),
        "full precision",
        "towards maybe",
        "towards word",
    ]
    assert (out.score == vqa_accuracy(out.answers, answers)).all() and out.score.mean() <= out.scores["clean"].mean()
    strong = vqa_ensemble(vlm, x, ["say"] * N, answers, Threat("linf", 0.2), steps=20, rng=RNG, max_tokens=1)
    assert strong.score.mean() < 0.2 < out.score.mean()


def test_the_most_frequent_answers_are_attacked_and_short_lists_end_early(vlm, x, monkeypatch):
    import shared.attacks.language as module

    seen = Counter()

    def spy(victim, images, prompts, targets, *rest, **how):
        seen.update(
            [
                (index, target, how.get("lower", False))
                for index, target in zip(how["rng"].indices, targets, strict=True)
            ]
        )
        return images  # nothing is found, so everybody stays in

    monkeypatch.setattr(module, "nll_attack", spy)
    people = [["b"] * 2 + ["a"] * 4 + ["c", "d", "e", "f"]] + [["z"] * 10] * (N - 1)

    def right(said, truths):
        return np.ones(len(said))

    vqa_ensemble(vlm, x, ["say"] * N, people, THREAT, steps=1, rng=RNG, score=right)
    assert [t for (i, t, lower) in seen if i == 0 and not lower] == ["a", "b", "c", "d", "e"]
    assert seen[0, "a", False] == 2  # once more in full precision
    assert seen[1, "z", False] == 2 and len([1 for (i, *_) in seen if i == 1]) == 3
    assert seen[1, "maybe", True] == seen[1, "word", True] == 1


def test_a_target_string(vlm, x):
    weak = targeted_string(vlm, x, "say", "star star", Threat("linf", 0.5 / 255), steps=10, rng=RNG)
    strong = targeted_string(vlm, x, "say", "star star", Threat("linf", 0.3), steps=40, rng=RNG)
    assert weak.success.mean() < 0.3 < 0.9 <= strong.success.mean()
    assert (strong.success == says(strong.answers, [["star star"]] * N)).all()
    each = targeted_string(vlm, x, "say", ["star star", "red blue"] * (N // 2), Threat("linf", 0.3), steps=40, rng=RNG)
    assert each.success.mean() > 0.8 and each.answers[0] == "star star"


def test_says_is_a_substring_in_any_case():
    assert says(["A Star!", "start", "sta r"], [["star"]] * 3).tolist() == [1, 1, 0]


def test_the_embedding_moves_towards_the_target(vlm, x):
    target = vlm.embed(x.flip(0)).detach()
    moved = embedding_attack(vlm.embed, x, target, THREAT, steps=20)
    before, after = (torch.cosine_similarity(vlm.embed(images), target) for images in (x, moved))
    assert (after >= before - 1e-6).all() and after.mean() > before.mean() + 0.1
    assert THREAT.distance(moved, x).max() <= THREAT.eps + 1e-7
    assert_within_rounding(embedding_attack(vlm.embed, x, target, THREAT, steps=20, batch_size=5), moved, terms=20)


@pytest.mark.parametrize("size", [None, 5])
def test_random_victims(vlm, x, references, size):
    """Nothing depends on the batch, recheck averages over independent draws, and EOT gradients take several."""
    victim = Noisy(vlm, SampleRng(9, range(N)), sigma=0.1)
    how = {"steps": 5, "threshold": 10, "rng": RNG, "recheck": 4, "eot_iter": 2}
    one = captioning_ensemble(victim, x, "say", references, overlap, THREAT, **how)
    other = captioning_ensemble(victim, x, "say", references, overlap, THREAT, batch_size=size, **how)
    assert_within_rounding(one.x_adv, other.x_adv, terms=5)
    assert (one.score == other.score).all()
    clean = one.scores["clean"]
    assert ((clean > 0) & (clean < 100) & (clean % 50 != 0)).any()  # means over draws
    assert one.score.mean() < clean.mean()
    a, b = (judge(victim, x, ["say"] * N, references, overlap, recheck=8, draw=d)[1] for d in ("a", "b"))
    assert not (a == b).all() and abs(a.mean() - b.mean()) < 15


def test_half_precision_is_an_option(x, references):
    vlm = TinyVLM(torch.float32)
    prompts, targets = ["say"] * N, [r[0] for r in references]
    full, half = (nll_gradient(vlm, x, prompts, targets, half=h) for h in (None, "fp16"))
    assert not torch.equal(full, half) and (full.sign() == half.sign()).float().mean() > 0.97
    a, b = (nll_attack(vlm, x, prompts, targets, THREAT, rng=RNG, steps=5, half=h) for h in (None, "fp16"))
    assert not torch.equal(a, b)
    with torch.no_grad():
        assert (vlm.nll(b, prompts, targets) > vlm.nll(x, prompts, targets)).all()


def test_mistakes_are_named(vlm, x, references):
    with pytest.raises(UserError, match="12 images, 11 prompts and 12 targets"):
        nll_attack(vlm, x, ["say"] * 11, ["star"] * 12, THREAT, rng=RNG)
    with pytest.raises(UserError, match="no empty list"):
        captioning_ensemble(vlm, x, "say", [[], *references[1:]], overlap, THREAT, threshold=10, rng=RNG)
    with pytest.raises(UserError, match=r"in \[0, 1\]"):
        nll_attack(vlm, x * 2, ["say"] * N, ["star"] * N, THREAT, rng=RNG)
    with pytest.raises(UserError, match="rng is for 3 samples"):
        nll_attack(vlm, x, ["say"] * N, ["star"] * N, THREAT, rng=SampleRng(0, range(3)))
    with pytest.raises(UserError, match="recheck is 0"):
        targeted_string(vlm, x, "say", "star", THREAT, steps=1, rng=RNG, recheck=0)
    with pytest.raises(UserError, match="12 images and 3 target embeddings"):
        embedding_attack(vlm.embed, x, vlm.embed(x[:3]), THREAT)


def test_no_images(vlm, x):
    none = SampleRng(0, [])
    assert captioning_ensemble(vlm, x[:0], "say", [], overlap, THREAT, threshold=10, rng=none).x_adv.shape == (
        0,
        3,
        8,
        8,
    )
    assert nll_attack(vlm, x[:0], [], [], THREAT, rng=none).shape == (0, 3, 8, 8)
    assert targeted_string(vlm, x[:0], "say", "star", THREAT, rng=none).success.shape == (0,)
