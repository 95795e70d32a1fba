"""Models that are not here, as large as their publishers describe them and without weights: what a plan opens in their
place.

    LLaVA-1.5 7B, 13B        Llama (Touvron et al. 2023, table 2) behind CLIP ViT-L/14 at 336 pixels, 576 patches
                             (Liu et al. 2023)
    Idefics 9B               Llama 7B with a cross-attention layer every fourth, ViT-H/14, a resampler to 64 latents
    google/ddpm-cifar10-32   the U-Net of Ho et al. 2020 for CIFAR-10, 35.7 million parameters

Guided and improved diffusion, classifiers and CLIPs have their own configurations, which the code has.
"""

from pathlib import Path

import torch
from torch import nn

from shared.diffusion import Denoiser
from shared.diffusion.denoiser import UNetDenoiser
from shared.diffusion.guided import CIFAR10, GuidedConfig, build_unet
from shared.diffusion.open import open_denoiser
from shared.diffusion.schedule import Schedule
from shared.models.classifier import Classifier, open_classifier
from shared.models.vlm import open_vlm
from shared.models.vlm.idefics import IdeficsVLM
from shared.models.vlm.llava import LlavaVLM
from shared.models.vlm.text import Text

LLAMA = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
}
PER_WORD = 1.3  # tokens, an assumption
AROUND = 12  # tokens that a prompt's style has around the user's words, an assumption


class Tokens(Text):
    """As many tokens as texts have. image: of the picture's place in a prompt, `count` of them."""

    pad, end, image, word = 0, 2, 3, 5

    def __init__(self, count: int):
        self.count = count

    def _of(self, text: str) -> list[int]:
        return [self.word] * max(1, round(PER_WORD * len(text.split())))

    def prompt(self, text: str) -> list[int]:
        return [1, *[self.image] * self.count, *[self.word] * AROUND, *self._of(text)]

    def target(self, text: str) -> list[int]:
        return [*self._of(text), self.end]

    def say(self, tokens: object) -> str:
        return "a photo"


def here(source: str) -> bool:
    """Whether it is a model of this repository, or a file or folder of this machine."""
    kind, _, rest = source.partition(":")
    return kind in ("zoo", "clip", "random") or Path(rest or kind).exists()


def vlm(source: str, *, half: bool, device: torch.device | str = "cpu", **how: object) -> nn.Module:
    """As `open_vlm` does. half: in half precision, as on a GPU."""
    if here(source):
        return open_vlm(source, device=device, **how)
    made = _idefics() if "idefics" in source.lower() else _llava("13b" if "13b" in source.lower() else "7b")
    made = made.half() if half else made
    return made.to(device).requires_grad_(False).eval()


def _llava(size: str) -> LlavaVLM:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    tower = CLIPVisionConfig(**vision, image_size=336, patch_size=14, hidden_act="quick_gelu")
    text = LlamaConfig(vocab_size=32064, **LLAMA[size])
    config = LlavaConfig(vision_config=tower, text_config=text, image_token_index=Tokens.image, image_seq_length=576)
    return LlavaVLM(LlavaForConditionalGeneration(config), Tokens(576))


def _idefics() -> IdeficsVLM:
    from transformers import IdeficsConfig, IdeficsForVisionText2Text

    tower = {"embed_dim": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
    latents = {"resampler_n_latents": 64, "resampler_depth": 6, "resampler_n_heads": 16, "resampler_head_dim": 96}
    config = IdeficsConfig(
        vocab_size=32002,
        vision_config={**tower, "image_size": 224, "patch_size": 14},
        perceiver_config={"use_resampler": True, **latents},
        use_resampler=True,
        cross_layer_interval=4,
        **LLAMA["7b"],
    )
    return IdeficsVLM(IdeficsForVisionText2Text(config), Tokens(1), Tokens.image)


def denoiser(source: str) -> Denoiser:
    """As `open_denoiser` does."""
    if here(source):
        return open_denoiser(source)
    if source.startswith("diffusers:"):
        return UNetDenoiser(_ddpm(), Schedule(), 32)
    config = CIFAR10 if source.startswith("improved:") else GuidedConfig()
    schedule = Schedule(steps=config.steps, cosine=config.improved)
    return UNetDenoiser(build_unet(config), schedule, config.size, of_thousand=config.improved)


def _ddpm() -> nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
    )


def classifier(arch: str, weights: str, *others: object, **how: object) -> Classifier:
    """As `open_classifier` does."""
    return open_classifier(arch, weights if here(weights) else "random", *others, **how)
