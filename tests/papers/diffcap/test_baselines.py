"""CLIPure-Cos against autograd of its written definition, and what its released step size amounts to."""

import math

import pytest
import torch
import torch.nn.functional as F

from papers.diffcap.baselines import CLIPure, blank_direction
from shared.attacks import input_gradient
from shared.errors import UserError
from shared.models.clip import create_clip
from shared.models.victim import ZeroShot, text_matrix
from shared.rng import SampleRng
from tests.accuracy import assert_as_accurate, assert_within_rounding, in_both

D, K = 64, 5


class Linear(torch.nn.Module):
    """A zero-shot victim whose embedding is a linear map of the pixels."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w = torch.randn(48, D, generator=generator).to(dtype)
        self.text = F.normalize(torch.randn(K, D, generator=generator), dim=1).to(dtype)
        self.num_classes = K

    def embed(self, x):
        return x.flatten(1) @ self.w

    def classify(self, z):
        return 100 * F.normalize(z, dim=1) @ self.text.T


@pytest.fixture
def blank():
    return SampleRng(2, [0]).normal((D,))[0].double()


@pytest.fixture
def z(blank):
    """Embeddings 45° to 85° from the blank one."""
    z = SampleRng(1, range(7)).normal((D,)).double() + 0.5 * blank
    angle = F.cosine_similarity(z, blank.expand_as(z), dim=1).acos().rad2deg()
    assert angle.min() > 45 and angle.max() < 85
    return z


def by_autograd(z, blank, steps, step_size, scope):
    """Gradient ascent on cos(z, m) in the direction of z, as written, with autograd; released code norms the gradient of the whole batch at once."""
    for _ in range(steps):
        radius = z.norm(dim=1, keepdim=True)
        point = z.detach().requires_grad_()
        (grad,) = torch.autograd.grad(F.cosine_similarity(point, blank.expand_as(z), dim=1).sum(), point)
        grad = grad * radius
        grad = grad / (grad.norm() if scope == "batch" else grad.norm(dim=1, keepdim=True))
        u = z / radius + step_size * grad
        z = radius * u / u.norm(dim=1, keepdim=True)
    return z


@pytest.mark.parametrize("scope", ["sample", "batch"])
@pytest.mark.parametrize("steps, step_size", [(1, 0.3), (10, 0.05), (10, 30.0), (3, 30.0)])
def test_purified_embeddings_are_those_of_the_written_steps(z, blank, scope, steps, step_size):
    victim = CLIPure(Linear(), blank, steps, step_size, scope)
    out = victim.purify(z)
    turned = (1 + step_size) ** 2 * z.norm(
        dim=1
    ).max().item()  # a step of 30 leaves a thirtieth of z beside the target's direction
    assert_within_rounding(out, by_autograd(z, blank, steps, step_size, scope), terms=steps * D, scale=turned)
    assert_within_rounding(out.norm(dim=1), z.norm(dim=1), terms=steps * D)
    if step_size < 1:
        cosine = [F.cosine_similarity(e, blank.expand_as(e), dim=1) for e in (z, out)]
        assert (cosine[1] > cosine[0]).all()


def test_small_steps_turn_by_their_angle(z, blank):
    out = CLIPure(Linear(), blank, 3, 0.1).purify(z)
    angles = [F.cosine_similarity(e, blank.expand_as(e), dim=1).acos() for e in (z, out)]
    torch.testing.assert_close(angles[0] - angles[1], torch.full((7,), 3 * math.atan(0.1)).double())


def test_the_released_step_turns_there_and_back(z, blank):
    """η = 30 turns by 88°, beyond the target; for one image an even number of steps changes nothing, an odd one does."""
    assert torch.equal(CLIPure(Linear(), blank).purify(z), CLIPure(Linear(), blank, 10, 30.0, "sample").purify(z))
    torch.testing.assert_close(CLIPure(Linear(), blank).purify(z), z, rtol=1e-5, atol=1e-6)
    assert (F.cosine_similarity(CLIPure(Linear(), blank, 9).purify(z), z, dim=1) < 0.5).all()
    torch.testing.assert_close(CLIPure(Linear(), blank, scope="batch").purify(z[:1]), z[:1], rtol=1e-5, atol=1e-6)


def test_only_the_released_scope_mixes_the_images_of_a_batch(z, blank):
    for scope, apart in (("sample", True), ("batch", False)):
        victim = CLIPure(Linear(), blank, 1, 1.0, scope)
        assert torch.allclose(victim.purify(z)[:2], victim.purify(z[:2])) is apart


def test_gradients_exact_detached_and_bpda():
    x = SampleRng(3, range(4)).uniform((3, 4, 4)).double()
    y, blank = torch.tensor([0, 1, 2, 3]), Linear().embed(x).mean(dim=0)

    def gradient(how, steps=10, step_size=30.0):
        victim = CLIPure(Linear(), blank, steps, step_size, gradient=how)
        return input_gradient(lambda p: F.cross_entropy(victim(p), y, reduction="none"), x)[1]

    victim = CLIPure(Linear(), blank, 4, 0.2)
    assert torch.autograd.gradcheck(lambda p: victim(p), x.clone().requires_grad_(), atol=1e-5, fast_mode=True)
    bare = input_gradient(lambda p: F.cross_entropy(Linear().classify(Linear().embed(p)), y, reduction="none"), x)[1]
    torch.testing.assert_close(gradient("bpda"), bare, rtol=1e-4, atol=1e-6)  # ten released steps give z back
    torch.testing.assert_close(gradient("exact"), gradient("bpda"), rtol=1e-3, atol=1e-5)
    assert gradient("detached").norm() < 1e-10 * gradient("exact").norm()  # 30¹⁰ = 6·10¹⁴
    assert gradient("detached", 2, 0.2).norm() > 0.1 * gradient("exact", 2, 0.2).norm()


def test_a_zero_shot_victim_with_blank_templates():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip = create_clip("scenes-vit-s8").requires_grad_(False)
    templates = ["a photo of a {}.", "a {}.", "this is a {}."]
    blank = blank_direction(clip, templates)

    def by_hand(clip):
        texts = [clip.encode_text(clip.tokenizer([t.replace("{}", "")]))[0] for t in templates]
        expected = torch.stack([t / t.norm() for t in texts]).mean(dim=0)
        return expected / expected.norm()

    assert_as_accurate(blank, *in_both(by_hand, clip), terms=4 * 96)
    victim = ZeroShot(clip.visual, text_matrix(clip, ["a red circle", "a blue square", "a green ring"]), 100.0)
    pure, x = CLIPure(victim, blank, 2, 0.3), torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert pure.num_classes == 3 and pure(x).shape == (3, 3) and not torch.allclose(pure(x), victim(x))
    assert_within_rounding(CLIPure(victim, blank, 0)(x), victim(x), terms=4 * 96)
    grad = input_gradient(lambda p: pure(p).sum(dim=1), x)[1]
    assert grad.isfinite().all() and (grad != 0).flatten(1).any(dim=1).all()


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"scope": "all"}, "scope is 'all'"),
        ({"gradient": "none"}, "gradient is 'none'"),
        ({"steps": -1}, "steps is -1"),
        ({"blank": torch.zeros(3)}, r"blank embedding \(3,\)"),
    ],
)
def test_mistakes_are_told_in_a_sentence(blank, settings, says):
    with pytest.raises(UserError, match=says):
        CLIPure(Linear(), **({"blank": blank} | settings))


def test_templates_are_needed():
    with pytest.raises(UserError, match="at least one template"):
        blank_direction(None, [])
