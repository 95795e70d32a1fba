"""PMG-AFT's loss against its formula written out with exp, log and sums; the objective's short cuts against the plain formula; the baselines."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import rel_entr
from scipy.special import softmax as scipy_softmax
from torch import nn

from papers.pmg_aft import steps
from papers.pmg_aft.baselines import Contrastive
from papers.pmg_aft.config import PRESETS
from papers.pmg_aft.method import PMGAFT, PMGLoss, kl_divergence, pmg_aft_loss
from papers.pmg_aft.steps import RELEASED, Face, base, methods
from shared.data.catalogue import Source
from shared.experiment.lab import Lab
from shared.models.victim import ZeroShot
from shared.training.adversarial import frozen
from tests.accuracy import assert_as_accurate, assert_within_rounding, in_both

N, K = 5, 7
WEIGHTS = [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (0.7, 2.3)]
LOSSES = [PMGLoss(a, b, direction, reduction, detach) for (a, b), direction, reduction, detach in itertools.product(
    WEIGHTS, ("target_first", "adversarial_first"), ("batchmean", "sum"), (False, True))]  # fmt: skip


def logits(seed: int, spread: float = 2.0) -> torch.Tensor:
    return spread * torch.randn(N, K, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def labels() -> torch.Tensor:
    return torch.randint(K, (N,), generator=torch.Generator().manual_seed(9))


def written_out(adversarial, guide, clean, y, c: PMGLoss):
    """L, term by term, as the docstring of papers.pmg_aft.method says it, with loops over pictures and classes."""

    def probabilities(z):
        return [[torch.exp(v) / sum(torch.exp(w) for w in row) for v in row] for row in z]

    def divergence(p, q):
        total = 0
        for n in range(N):
            for k in range(K):
                total = total + p[n][k] * (torch.log(p[n][k]) - torch.log(q[n][k]))
        return total / N if c.reduction == "batchmean" else total

    p_adv, p_guide, p_clean = (
        probabilities(adversarial),
        probabilities(guide),
        probabilities(clean.detach() if c.detach_clean else clean),
    )
    robust = -sum(torch.log(p_adv[n][y[n]]) for n in range(N)) / N
    if c.direction == "target_first":
        general, near_clean = divergence(p_guide, p_adv), divergence(p_clean, p_adv)
    else:
        general, near_clean = divergence(p_adv, p_guide), divergence(p_adv, p_clean)
    return robust + c.alpha * general + c.beta * near_clean, {"robust": robust, "general": general, "clean": near_clean}


@pytest.mark.parametrize("config", LOSSES, ids=str)
def test_loss_and_gradients_are_those_of_the_formula(config):
    y, ours, theirs = labels(), [], []
    for function, into in ((pmg_aft_loss, ours), (written_out, theirs)):
        z = [logits(seed).requires_grad_() for seed in range(3)]
        loss, terms = function(*z, y, config)
        into += [loss, *terms.values(), *torch.autograd.grad(loss, z, materialize_grads=True, allow_unused=True)]
    assert len(ours) == 7
    assert_within_rounding(ours, theirs, terms=N * K, scale=10.0)
    if config.detach_clean or config.beta == 0:
        assert not ours[-1].any()
    else:
        assert ours[-1].any()


def test_terms_by_hand():
    """Two classes, one picture, numbers that fit on paper."""
    adversarial, guide, clean = (
        torch.tensor([[0.0, math.log(odds)]], dtype=torch.float64) for odds in (1, 3, 9)
    )  # P(class 1) = 1/2, 3/4, 9/10
    loss, terms = pmg_aft_loss(adversarial, guide, clean, torch.tensor([0]), PMGLoss(alpha=2.0, beta=10.0))
    assert terms["robust"].item() == pytest.approx(math.log(2))
    assert terms["general"].item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert terms["clean"].item() == pytest.approx(0.1 * math.log(0.2) + 0.9 * math.log(1.8))
    assert loss.item() == pytest.approx(math.log(2) + 2 * terms["general"].item() + 10 * terms["clean"].item())
    swapped = pmg_aft_loss(adversarial, guide, clean, torch.tensor([0]), PMGLoss(direction="adversarial_first"))[1]
    assert swapped["general"].item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))


def test_divergence_is_scipys():
    p, q = logits(1, 3.0), logits(2, 3.0)
    expected = rel_entr(scipy_softmax(p.numpy(), axis=1), scipy_softmax(q.numpy(), axis=1)).sum()
    assert kl_divergence(p, q, "sum").item() == pytest.approx(expected, rel=1e-12)
    assert kl_divergence(p, q, "batchmean").item() == pytest.approx(expected / N, rel=1e-12)
    assert kl_divergence(p, p, "sum").item() == pytest.approx(0, abs=1e-15)
    assert kl_divergence(p, q, "sum").item() != pytest.approx(kl_divergence(q, p, "sum").item(), rel=0.01)


def test_divergence_of_certain_predictions_is_finite():
    """At temperature 100 most probabilities underflow; the divergence must not become a NaN."""
    p, q = torch.tensor([[0.0, 200.0, -300.0]]), torch.tensor([[200.0, 0.0, -300.0]], requires_grad=True)
    value = kl_divergence(p, q, "batchmean")
    assert value.item() == pytest.approx(200.0)
    assert torch.autograd.grad(value, q)[0].isfinite().all()


def test_gradient_of_the_guide_term_is_the_difference_of_probabilities():
    """∂ KL(P_0 ‖ P_θ)/∂z_θ = (P_θ − P_0)/N: what pulls the fine-tuned model towards its guide."""
    z, guide = logits(1).requires_grad_(), logits(2)
    gradient = torch.autograd.grad(kl_divergence(guide, z, "batchmean"), z)[0]
    assert_within_rounding(gradient, (z.softmax(1) - guide.softmax(1)) / N, terms=3 * 64)


@pytest.mark.parametrize("batch", [1, 4, 256])
def test_a_summed_divergence_weighs_as_much_as_the_batch_is_large(batch):
    """Reduction "sum", as released, is α and β times N: with 256 pictures the cross-entropy hardly counts."""
    z = [torch.randn(batch, K, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in range(3)]
    y = torch.zeros(batch, dtype=torch.long)
    summed = pmg_aft_loss(*z, y, PMGLoss(reduction="sum"))[0]
    weighed = pmg_aft_loss(*z, y, PMGLoss(alpha=batch, beta=batch))[0]
    assert_within_rounding(summed, weighed, terms=3 * 64)
    plain = pmg_aft_loss(*z, y, PMGLoss())[1]
    assert pmg_aft_loss(*z, y, PMGLoss(reduction="sum"))[1]["robust"] == plain["robust"]


# -- the objective -------------------------------------------------------------------------------------------------------------------------


class Tower(nn.Module):
    """A vision tower of 8×8 pixels that counts its passes."""

    image_size = 8

    def __init__(self, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.inner = nn.Parameter(torch.randn(3 * 64, 16, generator=generator) / 10)
        self.outer = nn.Parameter(torch.randn(16, 6, generator=generator))
        self.passes: list[int] = []

    def forward(self, x):
        self.passes.append(len(x))
        return torch.tanh(x.flatten(1) @ self.inner) @ self.outer


def classifier(seed: int = 0, scale: float = 10.0, norm: str = "clip") -> ZeroShot:
    text = F.normalize(torch.randn(K, 6, generator=torch.Generator().manual_seed(50)), dim=1)
    return ZeroShot(Tower(seed), text, scale, norm)


def batch():
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(N, 3, 8, 8, generator=generator)
    return x, (x + 0.1 * torch.randn(x.shape, generator=generator)).clamp(0, 1), labels()


@pytest.mark.parametrize("config", LOSSES, ids=str)
def test_short_cuts_of_the_objective_change_nothing(config):
    x, x_adv, y = batch()
    victim, guide = classifier(0), classifier(1)  # this guide could be trained, so that a leak would show
    loss = PMGAFT(guide, config).loss(victim, x, x_adv, y)
    loss.backward()
    assert all(p.grad is None for p in guide.parameters())
    passes = (sum(victim.visual.passes), sum(guide.visual.passes))
    assert passes == (
        N * (1 if config.beta == 0 else 2),
        0 if config.alpha == 0 else N,
    )  # a term of weight 0 costs nothing
    plain = classifier(0)
    expected = pmg_aft_loss(plain(x_adv), guide(x_adv).detach(), plain(x), y, config)[0]
    expected.backward()
    assert_within_rounding(
        [loss, *(p.grad for p in victim.parameters())], [expected, *(p.grad for p in plain.parameters())], terms=3 * 64
    )


def test_the_guide_sees_the_adversarial_picture():
    x, x_adv, y = batch()
    seen = []
    guide = classifier(1)
    guide.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    PMGAFT(guide, PMGLoss()).loss(classifier(0), x, x_adv, y)
    assert len(seen) == 1
    assert torch.equal(seen[0], x_adv)


def test_without_weights_it_is_tecoa():
    x, x_adv, y = batch()
    victim = classifier(0)
    assert_within_rounding(
        PMGAFT(classifier(1), PMGLoss(0.0, 0.0)).loss(victim, x, x_adv, y),
        F.cross_entropy(victim(x_adv), y),
        terms=3 * 64,
    )


def test_at_the_start_the_guide_pulls_nowhere():
    """A copy of the model as it is now says the same: L_general and its gradient are 0."""
    x, x_adv, y = batch()
    victim = classifier(0)
    loss = PMGAFT(frozen(victim), PMGLoss(beta=0.0)).loss(victim, x, x_adv, y)
    loss.backward()
    other = classifier(0)
    F.cross_entropy(other(x_adv), y).backward()
    assert_within_rounding([p.grad for p in victim.parameters()], [p.grad for p in other.parameters()], terms=3 * 64)


def test_a_frozen_copy_does_not_follow_the_training():
    victim = classifier(0)
    guide = frozen(victim)
    before = copy.deepcopy(guide.state_dict())
    assert not any(p.requires_grad for p in guide.parameters())
    with torch.no_grad():
        for p in victim.parameters():
            p.add_(1)
    assert all(torch.equal(v, before[k]) for k, v in guide.state_dict().items())


def test_the_attack_raises_the_cross_entropy_of_each_picture():
    x, x_adv, y = batch()
    victim = classifier(0)
    for objective in (PMGAFT(classifier(1), PMGLoss()), Contrastive(adversarial=True)):
        losses = objective.attack_loss(victim, x, y)(x_adv)
        assert_within_rounding(
            losses, torch.stack([-victim(x_adv).log_softmax(1)[i, y[i]] for i in range(N)]), terms=3 * 64
        )
    assert Contrastive(adversarial=False).attack_loss(victim, x, y) is None


# -- baselines and faces -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adversarial", [False, True])
def test_contrastive_loss_written_out(adversarial):
    x, x_adv, _ = batch()
    y = torch.tensor([2, 0, 2, 5, 1])  # two pictures of one class: negatives of each other, as the loss has it
    victim = classifier(0)
    with torch.no_grad():
        image, text = victim.embed(x_adv).double().numpy(), victim.text[y].double().numpy()
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    rows = columns = 0.0
    for i in range(N):
        rows += -10 * image[i] @ text[i] + math.log(sum(math.exp(10 * image[i] @ text[j]) for j in range(N)))
        columns += -10 * image[i] @ text[i] + math.log(sum(math.exp(10 * image[j] @ text[i]) for j in range(N)))
    assert_within_rounding(
        Contrastive(adversarial).loss(victim, x, x_adv, y),
        torch.tensor((rows + columns) / (2 * N)),
        terms=3 * 64,
        scale=10.0,
    )


def test_faces():
    """The released code: plain cosines as logits, ImageNet's mean and std, an averaged loss in half precision for the attack."""
    assert Face() == Face("model", "clip", "sum", "none")
    assert Face("one", "imagenet", "mean", "fp16") == RELEASED
    tuned = methods(PRESETS["cpu"])
    assert {name for name, step in tuned.items() if step.face == RELEASED} == {
        "tecoa_released",
        "pmg_released",
        "pmg_released_april",
    }
    assert all(
        (step.attack.reduction, step.attack.autocast) == (step.face.reduction, step.face.autocast)
        for step in tuned.values()
    )


def test_a_victim_of_the_released_face_gives_plain_cosines(tmp_path):
    process = type("P", (), {"device": torch.device("cpu"), "num_processes": 1, "is_main_process": True})
    lab, clip = Lab(tmp_path, Source(), process), base(PRESETS["smoke"])
    data, whole = lab.data("scenes:shape"), clip.open(lab)
    victim = steps.classifier(lab, clip, whole.visual, "scenes:shape", RELEASED.norm, RELEASED.temperature)
    x = data.__getitems__(range(6))[0]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():

        def cosines(clip, x):
            image, texts = clip.encode_image((x - mean) / std), clip.encode_text(clip.tokenizer(list(data.prompts)))
            return F.cosine_similarity(image[:, None], texts[None], dim=2)

        assert_as_accurate(victim(x), *in_both(cosines, whole, x), terms=4 * 96, scale=1.0)
        assert victim(x).abs().max() <= 1 + 1e-6
        written = steps.classifier(lab, clip, whole.visual, "scenes:shape", "clip")
        assert written.scale == pytest.approx(whole.logit_scale.exp().item())
        assert not torch.allclose(written(x) / written.scale, victim(x), atol=1e-3)
