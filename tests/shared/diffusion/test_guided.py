"""The converted guided-diffusion U-Net against its published architecture, written out here layer by layer under the original names."""

import math

import pytest
import torch
import torch.nn.functional as F

from shared.diffusion import open_denoiser
from shared.diffusion.guided import CIFAR10, GuidedConfig, build_unet, convert, key_map, read_guided
from shared.errors import UserError
from tests.accuracy import assert_within_rounding

SMALL = GuidedConfig(size=16, channels=32, multipliers=(1, 2), blocks=1, attention=(8,), head=16)
DEEPER = GuidedConfig(size=16, channels=32, multipliers=(1, 1, 2), blocks=2, attention=(8, 4), head=32)
IMPROVED = GuidedConfig(
    size=16, channels=32, multipliers=(1, 2), blocks=2, attention=(8,), head=16, steps=4000, improved=True
)
WIDEST = 9 * 128  # terms of the longest sum, a convolution where the U joins
EVERYWHERE = GuidedConfig(size=8, channels=32, multipliers=(1, 1), blocks=1, attention=(8, 4), head=8)


class Weights(dict):
    """Random tensors, made when they are first asked for: the literal network below says which there are, and of what shape."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def of(self, name, *shape):
        if name not in self:
            noise = torch.randn(shape, generator=self.generator, dtype=torch.float64)
            self[name] = noise / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.2 * noise
        assert self[name].shape == shape
        return self[name]


def linear(w, name, x, out):
    return x @ w.of(f"{name}.weight", out, x.shape[-1]).T + w.of(f"{name}.bias", out)


def conv(w, name, x, out, size=3, stride=1):
    weight = w.of(f"{name}.weight", out, x.shape[1], size, size)
    return F.conv2d(x, weight, w.of(f"{name}.bias", out), stride=stride, padding=size // 2)


def norm(w, name, x):
    """32 groups, each with its own mean and variance over channels and pixels, ε = 1e-5."""
    groups = x.reshape(len(x), 32, -1)
    groups = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, keepdim=True, unbiased=False) + 1e-5).sqrt()
    c, shape = x.shape[1], (1, -1, *[1] * (x.ndim - 2))
    return groups.reshape(x.shape) * (1 + w.of(f"{name}.weight", c)).reshape(shape) + w.of(f"{name}.bias", c).reshape(
        shape
    )


def silu(x):
    return x / (1 + torch.exp(-x))


def residual(w, name, x, emb, out, resample=None):
    h = silu(norm(w, f"{name}.in_layers.0", x))
    if resample is not None:
        h, x = resample(h), resample(x)
    h = conv(w, f"{name}.in_layers.2", h, out)
    scale, shift = linear(w, f"{name}.emb_layers.1", silu(emb), 2 * out)[:, :, None, None].split(out, 1)
    h = norm(w, f"{name}.out_layers.0", h) * (1 + scale) + shift
    h = conv(w, f"{name}.out_layers.3", silu(h), out)
    return h + (x if x.shape[1] == out else conv(w, f"{name}.skip_connection", x, out, size=1))


def attention(w, name, x, head, legacy=True):
    n, c, height, width = x.shape
    flat = x.reshape(n, c, -1)
    matrix = w.of(f"{name}.qkv.weight", 3 * c, c, 1)[:, :, 0]
    qkv = matrix @ norm(w, f"{name}.norm", flat) + w.of(f"{name}.qkv.bias", 3 * c)[:, None]
    out = []
    for i in range(c // head):
        if legacy:  # the heads one after the other, each with its q, k and v
            q, k, v = qkv[:, 3 * head * i : 3 * head * (i + 1)].split(head, 1)
        else:
            q, k, v = (part[:, head * i : head * (i + 1)] for part in qkv.split(c, 1))
        weight = torch.softmax(torch.einsum("ncq,nck->nqk", q, k) / math.sqrt(head), 2)
        out.append(torch.einsum("nqk,nck->ncq", weight, v))
    h = (
        w.of(f"{name}.proj_out.weight", c, c, 1)[:, :, 0] @ torch.cat(out, 1)
        + w.of(f"{name}.proj_out.bias", c)[:, None]
    )
    return x + h.reshape(n, c, height, width)


def smaller(x):
    return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4


def larger(x):
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def literal(w, config, x, index, legacy=True):
    """The whole network: x (N, 3, size, size), index (N,) from 0 -> (N, 6, size, size)."""
    frequencies = torch.exp(
        -math.log(10000) * torch.arange(config.channels // 2, dtype=torch.float64) / (config.channels // 2)
    )
    if config.improved:
        index = index * 1000.0 / config.steps
    angles = index[:, None] * frequencies
    emb = linear(w, "time_embed.0", torch.cat((angles.cos(), angles.sin()), 1), 4 * config.channels)
    emb = linear(w, "time_embed.2", silu(emb), 4 * config.channels)
    h = conv(w, "input_blocks.0.0", x, config.channels)
    stack, number = [h], 1
    for level, multiplier in enumerate(config.multipliers):
        for _ in range(config.blocks):
            h = residual(w, f"input_blocks.{number}.0", h, emb, multiplier * config.channels)
            if h.shape[-1] in config.attention:
                h = attention(w, f"input_blocks.{number}.1", h, config.head, legacy)
            stack.append(h)
            number += 1
        if level != len(config.multipliers) - 1:
            if config.improved:
                h = conv(w, f"input_blocks.{number}.0.op", h, h.shape[1], stride=2)
            else:
                h = residual(w, f"input_blocks.{number}.0", h, emb, h.shape[1], smaller)
            stack.append(h)
            number += 1
    h = residual(w, "middle_block.0", h, emb, h.shape[1])
    h = attention(w, "middle_block.1", h, config.head, legacy)
    h = residual(w, "middle_block.2", h, emb, h.shape[1])
    number = 0
    for level, multiplier in reversed(list(enumerate(config.multipliers))):
        for i in range(config.blocks + 1):
            h = residual(
                w, f"output_blocks.{number}.0", torch.cat((h, stack.pop()), 1), emb, multiplier * config.channels
            )
            place = 1
            if h.shape[-1] in config.attention:
                h = attention(w, f"output_blocks.{number}.1", h, config.head, legacy)
                place = 2
            if level and i == config.blocks and config.improved:
                h = conv(w, f"output_blocks.{number}.{place}.conv", larger(h), h.shape[1])
            elif level and i == config.blocks:
                h = residual(w, f"output_blocks.{number}.{place}", h, emb, h.shape[1], larger)
            number += 1
    assert not stack
    return conv(w, "out.2", silu(norm(w, "out.0", h)), 6)


def random_checkpoint(config, legacy=True):
    """(weights under their original names, x, t, the literal network's output)."""
    w, generator = Weights(), torch.Generator().manual_seed(1)
    x, t = (
        torch.randn(3, 3, config.size, config.size, generator=generator, dtype=torch.float64),
        torch.tensor([1, 150, config.steps]),
    )
    out = literal(w, config, x, t - 1, legacy)
    stored = {
        k: (v + 1 if ("norm" in k or "layers.0" in k or k == "out.0.weight") and k.endswith("weight") else v)
        for k, v in w.items()
    }
    return stored, x, t, out


@pytest.mark.parametrize(
    "config", [SMALL, DEEPER, EVERYWHERE, IMPROVED], ids=["small", "deeper", "everywhere", "improved"]
)
def test_the_converted_model_is_the_published_one(config):
    weights, x, t, expected = random_checkpoint(config)
    denoiser = convert(weights, config)
    with torch.no_grad():
        eps, v = denoiser(x.float(), t)
        exact = denoiser.double()(x, t)
    assert_within_rounding([eps, 2 * v - 1], [expected[:, :3], expected[:, 3:]], terms=WIDEST)
    assert_within_rounding(
        exact.eps.float(), expected[:, :3], terms=WIDEST
    )  # the embedding of t is in single precision
    assert expected.std() > 0.3 and denoiser.schedule.steps == config.steps and denoiser.size == config.size
    assert denoiser.schedule.cosine == config.improved


def test_the_order_of_heads_and_of_q_k_v_matters():
    """The parity above would notice the other order of the attention's weights."""
    weights, x, t, other = random_checkpoint(SMALL, legacy=False)
    assert (convert(weights, SMALL).double()(x, t).eps - other[:, :3]).abs().max() > 1e-2


def test_gradients_are_on_without_changing_the_result():
    weights, x, t, _ = random_checkpoint(SMALL)
    denoiser = convert(weights, SMALL)
    with torch.no_grad():
        plain = denoiser(x.float(), t).eps
    assert_within_rounding(denoiser(x.float().requires_grad_(), t).eps, plain, terms=WIDEST)


def test_the_published_model_has_the_published_size(quiet_generator):
    with torch.device("meta"):
        unet = build_unet(GuidedConfig())
    assert sum(p.numel() for p in unet.parameters()) == 552_814_086
    with torch.device("meta"):
        unet = build_unet(CIFAR10)
    assert sum(p.numel() for p in unet.parameters()) == 52_546_438
    assert GuidedConfig().attends == [False, False, False, True, True, True]
    stems = {name.rpartition(".")[0] for name in key_map(GuidedConfig())}
    assert {
        "input_blocks.17.1.qkv",
        "input_blocks.15.0.emb_layers.1",
        "middle_block.1.proj_out",
        "output_blocks.2.2.in_layers.2",
        "output_blocks.11.1.out_layers.3",
        "output_blocks.17.0.skip_connection",
        "out.2",
    } <= stems
    assert (
        max(int(s.split(".")[1]) for s in stems if s.startswith("input_blocks"))
        == 17
        == max(int(s.split(".")[1]) for s in stems if s.startswith("output_blocks"))
    )


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_checkpoint_file_is_read_in_half_precision_too(tmp_path, suffix, quiet_generator):
    from safetensors.torch import save_file

    weights, x, t, _ = random_checkpoint(SMALL)
    path, halves = tmp_path / f"m{suffix}", {k: v.half().contiguous() for k, v in weights.items()}
    torch.save(halves, path) if suffix == ".pt" else save_file(halves, path)
    with torch.no_grad():
        read = read_guided(path, SMALL)(x.float(), t).eps
        assert_within_rounding(read, convert(halves, SMALL)(x.float(), t).eps, terms=WIDEST)
    assert read.dtype == torch.float32


def spoil(weights, how):
    weights = dict(weights)
    if how == "missing":
        del weights["middle_block.1.qkv.bias"]
    elif how == "unknown":
        weights["label_emb.weight"] = torch.zeros(1000, 128)
    elif how == "shape":
        weights["out.2.weight"] = weights["out.2.weight"][:3]
    elif how == "qkv":
        weights["middle_block.1.qkv.weight"] = weights["middle_block.1.qkv.weight"][:64]
    return weights


@pytest.mark.parametrize(
    "how, name",
    [
        ("missing", "middle_block.1.qkv.bias"),
        ("unknown", "label_emb.weight"),
        ("shape", "out.2.weight"),
        ("qkv", "middle_block.1.qkv.weight"),
    ],
)
def test_another_model_is_refused_with_the_name_of_a_tensor(how, name):
    weights, *_ = random_checkpoint(SMALL)
    with pytest.raises(
        UserError, match=rf"1 tensors are missing, unknown or of another shape, the first is '{name}'; give the file of"
    ) as error:
        convert(spoil(weights, how), SMALL)
    assert "\n" not in str(error.value)


def test_the_wrong_file_is_refused_quickly(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "m.pt")
    with pytest.raises(
        UserError, match=r"m\.pt is not the guided-diffusion model expected here: .* the unconditional 256x256 model"
    ):
        open_denoiser(f"guided:{tmp_path / 'm.pt'}")
    with pytest.raises(UserError, match="does not exist"):
        open_denoiser("guided:/nowhere.pt")
    (tmp_path / "n.pt").write_bytes(b"text")
    with pytest.raises(UserError, match="cannot be read"):
        open_denoiser(f"guided:{tmp_path / 'n.pt'}")
