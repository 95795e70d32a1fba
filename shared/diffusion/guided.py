"""OpenAI's unconditional checkpoints as a diffusers U-Net: guided-diffusion's `256x256_diffusion_uncond.pt` (Dhariwal &
Nichol 2021, ImageNet), and improved-diffusion's `cifar10_uncond_50M_500K.pt` (Nichol & Dhariwal 2021).

Every operation has its exact counterpart in `UNet2DModel`:

    time_embed              cos first, frequencies 10000^(−i/half) without a shift    flip_sin_to_cos, freq_shift 0
    residual block          (1 + scale)·GroupNorm(h) + shift from the time            resnet_time_scale_shift "scale_shift"
    up, down                a residual block around nearest ×2, or the mean of 2×2    upsample_type, downsample_type "resnet"
    attention               heads of 64 channels; also in the middle, with a norm     attention_head_dim, attn_norm_num_groups
    out                     ε and v, three channels each                              out_channels 6

improved-diffusion's has strided convolutions and nearest ×2 with a convolution in the place of up and down ("conv"),
the cosine schedule, and times told as shares of 1,000.

What differs is where the weights stand. The blocks of the original are numbered through, the first of `input_blocks`
being the convolution; and its q, k and v are one 1×1 convolution whose output is split into heads first, then into q, k
and v ("legacy order").
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shared.diffusion.denoiser import UNetDenoiser
from shared.diffusion.schedule import Schedule
from shared.errors import UserError
from shared.models.clip import read_weights


@dataclass(frozen=True)
class GuidedConfig:
    """The architecture; the defaults are the published 256×256 unconditional one."""

    size: int = 256
    channels: int = 256
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
    """Of the channels, per resolution; the first is 1."""
    blocks: int = 2
    """Residual blocks per resolution, going down (one more going up)."""
    attention: tuple[int, ...] = (32, 16, 8)
    """Resolutions with attention."""
    head: int = 64
    """Channels of a head."""
    steps: int = 1000
    """T of its schedule."""
    improved: bool = False
    """As improved-diffusion has it, see the module docstring."""

    @property
    def attends(self) -> list[bool]:
        """Whether each resolution has attention."""
        return [self.size // 2**level in self.attention for level in range(len(self.multipliers))]


CIFAR10 = GuidedConfig(32, 128, (1, 2, 2, 2), blocks=3, attention=(16, 8), steps=4000, improved=True)
"""improved-diffusion's `cifar10_uncond_50M_500K.pt`; its four heads of 256 channels have 64 each."""


def read_guided(path: str | Path, config: GuidedConfig | None = None) -> UNetDenoiser:
    """The denoiser in a checkpoint of guided-diffusion, read with `weights_only`. Raises UserError if it is another
    model's, or no checkpoint."""
    config = config or GuidedConfig()
    return convert(read_weights(path), config, str(path))


def convert(weights: dict[str, Tensor], config: GuidedConfig, source: str = "the checkpoint") -> UNetDenoiser:
    """The denoiser with these weights, given under their original names."""
    with torch.device("meta"):  # half a billion numbers: no time for random ones
        unet = build_unet(config)
    names = key_map(config)
    wrong = [k for k in names if k not in weights] + [k for k in weights if k not in names]
    own = unet.state_dict()
    if not wrong:
        state = {}
        for name, target in names.items():
            state.update(_place(weights[name].float(), target, config.head))
        wrong = [
            name for name, target in names.items() if any(state[k].shape != own[k].shape for k in _targets(target))
        ]
    if wrong:
        raise UserError(
            f"{source} is not the guided-diffusion model expected here: {len(wrong)} tensors are missing, unknown or "
            f"of another shape, the first is {wrong[0]!r}; give the file of the unconditional "
            f"{config.size}x{config.size} model."
        )
    unet.load_state_dict(state, assign=True)
    schedule = Schedule(steps=config.steps, cosine=config.improved)
    return UNetDenoiser(unet, schedule, config.size, of_thousand=config.improved)


def build_unet(config: GuidedConfig):
    """The `UNet2DModel` of that architecture."""
    from diffusers import UNet2DModel

    plain = ("DownBlock2D", "UpBlock2D") if config.improved else ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
    down = ["AttnDownBlock2D" if attends else plain[0] for attends in config.attends]
    up = ["AttnUpBlock2D" if attends else plain[1] for attends in reversed(config.attends)]
    resample = "conv" if config.improved else "resnet"
    return UNet2DModel(
        sample_size=config.size,
        in_channels=3,
        out_channels=6,
        block_out_channels=[config.channels * m for m in config.multipliers],
        layers_per_block=config.blocks,
        down_block_types=down,
        up_block_types=up,
        downsample_type=resample,
        upsample_type=resample,
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=config.head,
        norm_num_groups=32,
        attn_norm_num_groups=32,
        norm_eps=1e-5,
        flip_sin_to_cos=True,
        freq_shift=0,
    )


_RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
}
_ATTENTION = {"norm": "group_norm", "qkv": "qkv", "proj_out": "to_out.0"}


def key_map(config: GuidedConfig) -> dict[str, str]:
    """Original name -> name in the diffusers U-Net, for every tensor; one that ends in `qkv` stands for `to_q`, `to_k`
    and `to_v`."""
    pairs = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }

    def residual(old: str, new: str, widened: bool) -> None:
        pairs.update({f"{old}.{a}": f"{new}.{b}" for a, b in _RESIDUAL.items()})
        if widened:
            pairs[f"{old}.skip_connection"] = f"{new}.conv_shortcut"

    def attention(old: str, new: str) -> None:
        pairs.update({f"{old}.{a}": f"{new}.{b}" for a, b in _ATTENTION.items()})

    widths, last = [config.channels * m for m in config.multipliers], len(config.multipliers) - 1
    number, width, skips = 1, widths[0], [widths[0]]
    for level, attends in enumerate(config.attends):
        for i in range(config.blocks):
            residual(f"input_blocks.{number}.0", f"down_blocks.{level}.resnets.{i}", width != widths[level])
            if attends:
                attention(f"input_blocks.{number}.1", f"down_blocks.{level}.attentions.{i}")
            number, width = number + 1, widths[level]
            skips.append(width)
        if level < last:
            down = f"down_blocks.{level}.downsamplers.0"
            if config.improved:
                pairs[f"input_blocks.{number}.0.op"] = f"{down}.conv"
            else:
                residual(f"input_blocks.{number}.0", down, False)
            number += 1
            skips.append(width)
    residual("middle_block.0", "mid_block.resnets.0", False)
    attention("middle_block.1", "mid_block.attentions.0")
    residual("middle_block.2", "mid_block.resnets.1", False)
    number = 0
    for level in range(last, -1, -1):
        for i in range(config.blocks + 1):
            residual(
                f"output_blocks.{number}.0",
                f"up_blocks.{last - level}.resnets.{i}",
                width + skips.pop() != widths[level],
            )
            width = widths[level]
            if config.attends[level]:
                attention(f"output_blocks.{number}.1", f"up_blocks.{last - level}.attentions.{i}")
            if i == config.blocks and level:
                old = f"output_blocks.{number}.{2 if config.attends[level] else 1}"
                up = f"up_blocks.{last - level}.upsamplers.0"
                if config.improved:
                    pairs[f"{old}.conv"] = f"{up}.conv"
                else:
                    residual(old, up, False)
            number += 1
    return {f"{old}.{kind}": f"{new}.{kind}" for old, new in pairs.items() for kind in ("weight", "bias")}


def _targets(target: str) -> list[str]:
    stem, _, kind = target.rpartition(".")
    return (
        [f"{stem.removesuffix('qkv')}{part}.{kind}" for part in ("to_q", "to_k", "to_v")]
        if stem.endswith(".qkv")
        else [target]
    )


def _place(value: Tensor, target: str, head: int) -> dict[str, Tensor]:
    """One tensor of the original under its new name or names; the 1×1 convolutions of attention become matrices."""
    if ".attentions." in target and value.ndim == 3:
        value = value.squeeze(-1)
    names = _targets(target)
    if len(names) == 1:
        return {target: value}
    if len(value) % (3 * head):
        return dict.fromkeys(names, value[:0])  # of a wrong shape, which the caller reports
    heads = value.unflatten(0, (-1, 3, head))
    return {name: heads[:, i].flatten(0, 1).contiguous() for i, name in enumerate(names)}
