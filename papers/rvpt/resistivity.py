"""Perturbation resistivity: how little the features of a tower move under a change of the picture, layer by layer.

    PR_d(x) = cos( c^d(x), c^d(x + δ) ),  d = 1 … L         c^d: class token after block d;  at the output: cos( F(x), F(x + δ) )

High is insensitive. Zhang et al. 2025, §1 and appendix B (figures 1, 6, 7, 8); which token is compared is not written
there. Its noise of standard deviation 0.001 is far below one grey level, 1/255; it is a field here. Also the attention
map of figure 4.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.rvpt.method import DeepPrompts, depth_of, encode, pooled, walk
from shared.errors import UserError
from shared.models.victim import ZeroShot
from shared.options import Bounded, Count, Positive, Range, Share, Weight
from shared.rng import SampleRng


@dataclass(frozen=True)
class Perturbations(Bounded):
    """x -> x + δ for pictures (N, 3, H, W) in [0, 1]; draws are per picture. Appendix B's values."""

    noise: Weight = 0.001
    """Standard deviation of the Gaussian noise, in pixels of [0, 1]."""
    kernel: Count = 3
    """Side of the Gaussian blur's window."""
    variance: Positive = 5.0
    """Of the blur's Gaussian, in pixels²."""
    brightness: Share = 0.5
    """Colours are multiplied by a factor uniform on [1 − brightness, 1 + brightness] …"""
    hue: Annotated[float, Range(0, 0.5)] = 0.3
    """… and the hue is turned by a share of the circle uniform on [−hue, hue]."""

    def __post_init__(self):
        super().__post_init__()
        if self.kernel % 2 == 0:
            raise UserError(f"the window of the blur (`kernel`) is {self.kernel}: use an odd number of pixels.")

    def all(self) -> dict[str, Callable[[Tensor, SampleRng], Tensor]]:
        """Name -> function of pictures and their streams."""
        return {"noise": self.add_noise, "blur": self.blur, "colour": self.jitter, "flip": flip}

    def add_noise(self, x: Tensor, rng: SampleRng) -> Tensor:
        """x + N(0, noise²), cut to [0, 1]."""
        return (x + self.noise * rng.child("noise").normal(x.shape[1:], device=x.device)).clamp(0, 1)

    def blur(self, x: Tensor, rng: SampleRng | None = None) -> Tensor:
        """Convolution with a Gaussian on a window of kernel × kernel pixels, edges mirrored."""
        r = self.kernel // 2
        if min(x.shape[-2:]) <= r:
            raise UserError(f"the window of the blur is {self.kernel}: use a number of pixels that fits the picture.")
        weights = torch.exp(-torch.arange(-r, r + 1, device=x.device, dtype=x.dtype).square() / (2 * self.variance))
        weights = weights / weights.sum()
        x = F.pad(x, (r, r, r, r), mode="reflect")
        x = F.conv2d(x, weights.view(1, 1, -1, 1).expand(3, 1, -1, 1), groups=3)
        return F.conv2d(x, weights.view(1, 1, 1, -1).expand(3, 1, 1, -1), groups=3).clamp(0, 1)

    def jitter(self, x: Tensor, rng: SampleRng) -> Tensor:
        """Brightness, then hue (torchvision's in a fixed order)."""
        from torchvision.transforms.functional import adjust_hue

        u = 2 * rng.child("colour").uniform((2,), device=x.device) - 1
        x = (x * (1 + self.brightness * u[:, 0]).view(-1, 1, 1, 1)).clamp(0, 1)
        turned = [adjust_hue(p, self.hue * v) for p, v in zip(x, u[:, 1].tolist(), strict=True)]
        return torch.stack(turned) if turned else x


def flip(x: Tensor, rng: SampleRng | None = None) -> Tensor:
    """Left and right exchanged."""
    return x.flip(-1)


class Features(NamedTuple):
    """Of N pictures."""

    layers: Tensor
    """Class tokens after each block (N, L, d_v)."""
    output: Tensor
    """The encoder's output (N, D)."""


class Resistivity(NamedTuple):
    """PR of N pictures."""

    layers: Tensor
    """(N, L)"""
    output: Tensor
    """(N,)"""


@torch.no_grad()
def features(victim: ZeroShot, x: Tensor) -> Features:
    """Features of pictures (N, 3, H, W) in [0, 1] in a victim, prompted or not."""
    tower, x = victim.visual, victim.pixels(x)
    if isinstance(tower, DeepPrompts):
        states = tower.states(x)[1:]
        return Features(torch.stack([f[:, 0] for f in states], dim=1), pooled(tower.tower, states[-1]))
    output, layers = encode(tower, x)
    return Features(layers, output)


@torch.no_grad()
def torchvision_features(classifier: nn.Module, x: Tensor) -> Features:
    """Features in a torchvision vision transformer, as panel (d) has one; output: its class token before the head. x:
    what the network expects."""
    if not hasattr(getattr(classifier, "encoder", None), "layers") or not hasattr(classifier, "heads"):
        raise UserError(
            f"a {type(classifier).__name__} is no vision transformer of torchvision: give one such as vit_b_32."
        )
    tokens, output = [], []
    hooks = [
        block.register_forward_hook(lambda module, args, out: tokens.append(out[:, 0]))
        for block in classifier.encoder.layers
    ]
    hooks.append(classifier.heads.register_forward_pre_hook(lambda module, args: output.append(args[0])))
    try:
        classifier(x)
    finally:
        for hook in hooks:
            hook.remove()
    return Features(torch.stack(tokens, dim=1), output[0])


def resistivity(encode_picture: Callable[[Tensor], Features], x: Tensor, perturbed: Tensor) -> Resistivity:
    """PR of pictures x and `perturbed` (N, 3, H, W). encode_picture: e.g. partial(features, victim)."""
    a, b = encode_picture(x), encode_picture(perturbed)
    return Resistivity(
        *(F.cosine_similarity(u.float(), v.float(), dim=-1).clamp(-1, 1) for u, v in zip(a, b, strict=True))
    )


@torch.no_grad()
def attention_map(victim: ZeroShot, x: Tensor) -> Tensor:
    """How much the class token of the last block looks at each patch: (N, H/p, W/p), mean over heads, as its softmax
    gives it.

    The rest up to 1 goes to the class token itself and to prompts. Raises UserError for blocks whose attention is not
    torch's own.
    """
    tower, x = victim.visual, victim.pixels(x)
    prompts = tower.by_layer if isinstance(tower, DeepPrompts) else {}
    tower = tower.tower if isinstance(tower, DeepPrompts) else tower
    last = depth_of(tower) - 1
    block, f = tower.transformer.resblocks[last], tower._embeds(x)
    if not isinstance(block.attn, nn.MultiheadAttention):
        raise UserError(
            f"the attention of this tower is a {type(block.attn).__name__}, which shows no map: use a plain ViT such "
            "as ViT-B-32."
        )
    f = [f, *walk(tower, f, 0, last, prompts)][-1]
    p = prompts.get(last, f.new_empty(0, f.shape[-1]))
    h = block.ln_1(torch.cat((f[:, :1], p.to(f.dtype).expand(len(f), -1, -1), f[:, 1:]), dim=1))
    q, k = (
        F.linear(t, w, b)
        for t, w, b in zip(
            (h[:, :1], h), block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3), strict=False
        )
    )
    heads = block.attn.num_heads
    q, k = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k))
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)[:, :, 0, 1 + len(p) :]
    return weights.mean(dim=1).unflatten(-1, tuple(tower.grid_size))
