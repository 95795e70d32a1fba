"""Figures of one machine: `python -m tests.device.check [--out FILE]`, minutes on a GPU; on a CPU at tiny sizes, to see that it works.

Each part is measured on its own; one that fails is named in the file, and the exit code is then 1.
"""

import argparse
import contextlib
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from shared.attacks import Threat, pgd
from shared.bench.plain import random_clip
from shared.data.files import CLIP_INPUT, decode
from shared.diffusion.denoiser import UNetDenoiser
from shared.diffusion.guided import GuidedConfig, build_unet
from shared.diffusion.sampler import Sampler
from shared.diffusion.schedule import Schedule
from shared.experiment.provenance import provenance
from shared.files import write_json
from shared.models.victim import ZeroShot, image_size
from shared.models.vlm.llava import LlavaVLM
from shared.models.vlm.text import SMALL_VOCABULARY, Words
from shared.rng import SampleRng, set_draws
from tests.photo import jpeg

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
Figures = dict[str, float]


def seconds(call: Callable[[], object], repetitions: int = 5) -> float:
    """The median over calls, after one that is not counted; the device has finished when a call ends."""
    taken = []
    for _ in range(repetitions + 1):
        began = time.perf_counter()
        call()
        if GPU:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def victim_and_pictures() -> tuple[nn.Module, Tensor, Tensor]:
    """ViT-B/32 and a batch of 64."""
    clip = random_clip("ViT-B-32-quickgelu" if GPU else "scenes-vit-s8").requires_grad_(False).to(DEVICE)
    text = nn.functional.normalize(torch.randn(10, clip.visual.output_dim, device=DEVICE), dim=1)
    x = torch.rand(64 if GPU else 4, 3, *image_size(clip.visual), device=DEVICE)
    return ZeroShot(clip.visual, text, 100.0), x, torch.arange(len(x), device=DEVICE) % 10


def noise_and_pgd() -> Figures:
    """What a draw takes on the CPU with the copy, and on the device; and of a step of PGD."""
    victim, x, y = victim_and_pictures()
    rng, threat = SampleRng(0, range(len(x))), Threat("linf", 4 / 255)
    found = {"batch": float(len(x)), "side": float(x.shape[-1])}
    for draws in ("cpu", "device"):
        set_draws(draws)
        for name, draw in (("uniform", rng.uniform), ("normal", rng.normal)):
            found[f"{name} by the {draws}, s"] = seconds(lambda draw=draw: draw(x.shape[1:], device=DEVICE))
    set_draws("auto")
    for autocast in (None, "bf16"):
        how = {"steps": 4, "step_size": 1 / 255, "random_start": False, "keep": "last", "autocast": autocast}
        found[f"PGD step in {autocast or 'fp32'}, s"] = seconds(lambda how=how: pgd(victim, x, y, threat, **how)) / 4
    slowest = max(found[f"{name} by the device, s"] for name in ("uniform", "normal"))
    quicker = min(found[f"{n} by the cpu, s"] / found[f"{n} by the device, s"] for n in ("uniform", "normal"))
    return found | {
        "noise, times as fast": quicker,
        "noise, share of a PGD step": slowest / found["PGD step in fp32, s"],
    }


def compiled() -> Figures:
    """A step of PGD through torch.compile, and how far its logits are from those without."""
    victim, x, y = victim_and_pictures()
    before, began = victim(x), time.perf_counter()
    victim.compile()
    apart = (victim(x) - before).abs().max().item()
    how = {"steps": 4, "step_size": 1 / 255, "random_start": False, "keep": "last"}
    taken = seconds(lambda: pgd(victim, x, y, Threat("linf", 4 / 255), **how)) / 4
    return {"PGD step, s": taken, "all with compiling, s": time.perf_counter() - began, "logits apart": apart}


def diffusion_step() -> Figures:
    """One step of the sampler with guided-diffusion's network at 256 pixels."""
    config = GuidedConfig() if GPU else GuidedConfig(16, 32, (1, 2), blocks=1, attention=(8,), head=16)
    with torch.device(DEVICE):
        denoiser = UNetDenoiser(build_unet(config), Schedule(steps=config.steps), config.size)
    x = torch.randn(4, 3, config.size, config.size, device=DEVICE)
    t, sampler = torch.full((len(x),), 150), Sampler("ddim", 1)
    with torch.no_grad():
        taken = seconds(lambda: sampler.sample(denoiser, x, t, SampleRng(0, range(len(x))), False, None), 3)
    return {"batch": float(len(x)), "side": float(config.size), "step, s": taken}


def llava() -> Figures:
    """The likelihood of an answer under LLaVA-1.5 7B's modules, two layers of each kind in place of 24 and 32."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    eyes = {
        "image_size": 336,
        "patch_size": 14,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
    }
    text = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
    if not GPU:
        eyes |= {"image_size": 28, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
        text = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
    patches = (eyes["image_size"] // eyes["patch_size"]) ** 2
    words = Words(SMALL_VOCABULARY, patches)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(num_hidden_layers=2, **eyes),
        text_config=LlamaConfig(vocab_size=words.size, pad_token_id=words.pad, num_hidden_layers=2, **text),
        image_token_index=words.image,
        image_seq_length=patches,
    )
    with torch.device(DEVICE):
        vlm = LlavaVLM(LlavaForConditionalGeneration(config), words).requires_grad_(False).eval()
    x = torch.rand(4, 3, eyes["image_size"], eyes["image_size"], device=DEVICE)
    with torch.no_grad():
        taken = seconds(lambda: vlm.nll(x, ["a photo"] * 4, ["a circle"] * 4), 3)
    return {"batch": 4.0, "layers": 2.0, "forward, s": taken}


def pictures() -> Figures:
    """Reading JPEGs of 500 × 375 to 224 pixels, by Pillow and the fast way."""
    content = jpeg(500, 375)
    found = {
        name: seconds(lambda size=size: [decode(content, "a", size) for _ in range(8)]) / 8
        for name, size in (("Pillow, s", CLIP_INPUT), ("fast, s", CLIP_INPUT.fast()))
    }
    return found | {"times as fast": found["Pillow, s"] / found["fast, s"]}


def two_streams() -> Figures:
    """Two halves of a batch on two CUDA streams at once against the whole on one: the same noise, logits to rounding."""
    victim, x, _ = victim_and_pictures()
    rng = SampleRng(0, range(len(x)))
    set_draws("device")

    def work(at: Tensor) -> tuple[Tensor, Tensor]:
        noise = rng.subset(at).normal(x.shape[1:], DEVICE)
        return noise, victim((x[at.to(DEVICE)] + noise / 100).clamp(0, 1))

    with torch.no_grad():
        whole = work(torch.arange(len(x)))
        halves = []
        for at in torch.arange(len(x)).chunk(2):
            stream = torch.cuda.Stream() if GPU else None
            if GPU:
                stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream) if GPU else contextlib.nullcontext():
                halves.append(work(at))
        if GPU:
            torch.cuda.synchronize()
    set_draws("auto")
    noise, logits = (torch.cat(parts) for parts in zip(*halves, strict=True))
    if not torch.equal(noise, whole[0]):
        raise AssertionError("the noise of two streams is not that of one")
    apart = (logits - whole[1]).abs().max().item() / whole[1].abs().max().item()
    if apart > 1e-3:
        raise AssertionError(f"logits of two streams are {apart:.1e} of their scale from those of one")
    return {"logits apart, of their scale": apart}


PARTS = (noise_and_pgd, pictures, two_streams, diffusion_step, llava, compiled)
AIMS = {"noise, times as fast": (20, ">="), "noise, share of a PGD step": (0.02, "<=")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/device.json"))
    parser.add_argument("--without", nargs="*", default=[], help="parts that are left out, by name")
    given = parser.parse_args()
    torch.manual_seed(0)
    figures, wrong = {}, {}
    for part in (p for p in PARTS if p.__name__ not in given.without):
        began = time.perf_counter()
        try:
            figures[part.__name__] = part()
        except Exception as error:
            traceback.print_exc()
            wrong[part.__name__] = f"{type(error).__name__}: {error}"
        print(f"{part.__name__}: {time.perf_counter() - began:.0f} s", flush=True)
        for name, value in figures.get(part.__name__, {}).items():
            bar, sense = AIMS.get(name, (0, ""))
            met = value >= bar if sense == ">=" else value <= bar
            print(
                f"  {name}: {value:.4g}" + (f" (aim {sense} {bar}{'' if met else ': MISSED'})" if sense and GPU else "")
            )
        if GPU:
            torch.cuda.empty_cache()
        kept = {**provenance(), "sizes": "full" if GPU else "tiny", "figures": figures, "wrong": wrong}
        write_json(given.out, kept)  # after each part, since there may be no time for the next one
    print(f"kept in {given.out}; {len(wrong)} of {len(PARTS)} parts failed")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
