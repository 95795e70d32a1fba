"""`open_vlm`: a vision-language model by name.

zoo:scenes-llava  zoo:scenes-idefics      the small models of the scenes world; their file leaves out the vision tower, which is the zoo's CLIP
clip:<name>  clip:<name>:<pretrained>     a zero-shot CLIP for given classes and prompts (as in `create_clip`; without weights: the zoo's)
<hub name or folder>                      LLaVA or Idefics as transformers keeps them, e.g. llava-hf/llava-1.5-7b-hf, HuggingFaceM4/idefics-9b
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from shared.errors import UserError
from shared.models import zoo
from shared.models.clip import CONFIGS, create_clip, demand_fit, read_metadata, read_weights, save_tensors
from shared.models.hub import from_pretrained
from shared.models.victim import Norm
from shared.models.vlm.base import VLM, LanguageVLM
from shared.models.vlm.idefics import IdeficsVLM
from shared.models.vlm.llava import LlavaVLM
from shared.models.vlm.text import IMAGE, SMALL_VOCABULARY, STYLES, Subwords, Words
from shared.models.vlm.vision import activation, vision_state
from shared.models.vlm.zero_shot import ZeroShotVLM

PUBLISHED = ("llava", "idefics")  # kinds of models, as transformers calls them


def open_vlm(
    source: str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    classes: Sequence[str] = (),
    prompts: Sequence[str] = (),
    context: str = "",
) -> VLM:
    """The model, in eval mode, its parameters frozen.

    dtype: of a published model's weights (default: half precision on a GPU, single on a CPU). classes, prompts: of
    `clip:…`. context: text-only examples before the image, for models whose style has a place for them. Raises
    UserError for what does not exist or is none of these models.
    """
    kind, _, name = source.partition(":")
    if kind == "zoo" and name:
        vlm = load_small(zoo.weights(name))
    elif kind == "clip" and name:
        name, _, pretrained = name.partition(":")
        if not pretrained:
            pretrained = zoo.weights(name)
        vlm = ZeroShotVLM(create_clip(name, pretrained).to(device), classes, prompts)
    else:
        vlm = _published(source, torch.device(device), dtype, context)
    return vlm.to(device).requires_grad_(False).eval()


def small_config(name: str) -> dict:
    """The configuration of a small model: its kind, the CLIP whose tower it has, and its language model's sizes. Raises
    UserError if unknown."""
    path = CONFIGS / "vlm" / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.json")))
        raise UserError(f"there is no small vision-language model {name!r}; there are: {known}.")
    return json.loads(path.read_text())


def small_vlm(name: str, clip: nn.Module | None = None, vocabulary: Sequence[str] = SMALL_VOCABULARY) -> LanguageVLM:
    """A small model of configs/vlm with random weights and the vision tower of `clip` (default: the zoo's, which its
    configuration names).

    Like `create_clip` a function of torch's global generator, which is left as it was found. Raises UserError for an
    unknown name.
    """
    config = small_config(name)
    if clip is None:
        clip = create_clip(config["clip"], zoo.weights(config["clip"]))
    with torch.random.fork_rng(devices=[]):
        vlm = {"llava": _small_llava, "idefics": _small_idefics}[config["kind"]](
            config["text"], clip.visual, vocabulary
        )
    vlm.name, vlm.clip = name, config["clip"]
    vlm.set_vision(clip.visual)
    vlm.tower.requires_grad_(False)
    return vlm.eval()


def _vision_sizes(visual: nn.Module) -> dict:
    state = vision_state(visual)
    width, _, patch, _ = state["embeddings.patch_embedding.weight"].shape
    blocks = visual.transformer.resblocks
    size = visual.image_size[0] if isinstance(visual.image_size, tuple) else visual.image_size
    return {
        "image_size": size,
        "patch_size": patch,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": blocks[0].attn.num_heads,
        "intermediate_size": len(state["encoder.layers.0.mlp.fc1.bias"]),
        "hidden_act": activation(visual),
        "hidden_size": width,
    }


def _small_llava(text: dict, visual: nn.Module, vocabulary) -> LanguageVLM:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    sizes = _vision_sizes(visual)
    patches = (sizes["image_size"] // sizes["patch_size"]) ** 2
    words = Words(vocabulary, patches)
    llama = LlamaConfig(
        vocab_size=words.size, pad_token_id=words.pad, bos_token_id=words.start, eos_token_id=words.end, **text
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**sizes),
        text_config=llama,
        image_token_index=words.image,
        image_seq_length=patches,
    )
    return LlavaVLM(LlavaForConditionalGeneration(config), words)


def _small_idefics(text: dict, visual: nn.Module, vocabulary) -> LanguageVLM:
    from transformers import IdeficsConfig, IdeficsForVisionText2Text

    sizes = _vision_sizes(visual)
    words = Words(vocabulary, 1)
    config = IdeficsConfig(
        vision_config={"embed_dim": sizes.pop("hidden_size"), **sizes},
        vocab_size=words.size,
        pad_token_id=words.pad,
        bos_token_id=words.start,
        eos_token_id=words.end,
        freeze_text_layers=False,
        **text,
    )
    return IdeficsVLM(IdeficsForVisionText2Text(config), words, words.image)


def own_state(vlm: LanguageVLM) -> dict[str, torch.Tensor]:
    """The state of a small model without its vision tower."""
    tower = {id(t) for t in vlm.tower.state_dict(keep_vars=True).values()}
    return {k: v.detach() for k, v in vlm.model.state_dict(keep_vars=True).items() if id(v) not in tower}


def save_small(vlm: LanguageVLM, path: str | Path) -> None:
    """Write a small model without its vision tower, atomically; which one it needs is in the metadata."""
    save_tensors(
        own_state(vlm),
        path,
        {
            "model": vlm.name,
            "vocabulary": json.dumps(vlm.text.vocabulary),
            "clip": vlm.clip,
            "clip_sha256": zoo.card(vlm.clip)["sha256"],
        },
    )


def load_small(path: str | Path) -> LanguageVLM:
    """What `save_small` wrote, with the zoo's tower in it. Raises UserError if that has changed since, or the file is
    none of these."""
    facts = read_metadata(path)
    if not {"model", "vocabulary", "clip", "clip_sha256"} <= set(facts):
        raise UserError(
            f"the file {path} is not a small vision-language model: it does not say which vision tower it needs."
        )
    if zoo.card(facts["clip"])["sha256"] != facts["clip_sha256"]:
        raise UserError(
            f"the model {path} was trained on another vision tower than the {facts['clip']} that is in the zoo now: "
            "restore that with git, or train the model again with `make zoo`."
        )
    vlm, weights = small_vlm(facts["model"], vocabulary=json.loads(facts["vocabulary"])), read_weights(path)
    own = own_state(vlm)
    demand_fit(own, weights, f"the checkpoint {path}", f"it should be a {facts['model']}: get or make it again")
    vlm.model.load_state_dict(weights, strict=False)
    return vlm


def _published(source: str, device: torch.device, dtype: torch.dtype | None, context: str) -> LanguageVLM:
    from transformers import AutoConfig, AutoTokenizer, IdeficsForVisionText2Text, LlavaForConditionalGeneration

    advice = "give a hub name on a machine with a network, or the folder of a downloaded model"
    try:
        config = AutoConfig.from_pretrained(source)
        if config.model_type not in PUBLISHED:
            raise UserError(
                f"{source!r} is a model of the kind {config.model_type!r}; this can use {' and '.join(PUBLISHED)}."
            )
        if config.model_type == "llava" and config.vision_config.model_type != "clip_vision_model":
            raise UserError(
                f"{source!r} is a LLaVA with a vision tower of the kind {config.vision_config.model_type!r}; this can "
                "use one with a CLIP."
            )
        tokenizer = AutoTokenizer.from_pretrained(source)
        build = LlavaForConditionalGeneration if config.model_type == "llava" else IdeficsForVisionText2Text
        half = torch.float16 if device.type == "cuda" else torch.float32
        model = from_pretrained(build, source, "transformers", dtype=dtype or half)
    except UserError:
        raise
    except Exception as error:  # whatever the hub client raises: no network, no such name, a damaged file
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"the model {source!r} cannot be opened ({type(error).__name__}: {reason}): {advice}."
        ) from error
    style, vision, norm = STYLES[config.model_type], config.vision_config, _normalisation(source)
    if config.model_type == "llava":
        patches = (vision.image_size // vision.patch_size) ** 2 + (config.vision_feature_select_strategy != "default")
        return LlavaVLM(
            model, Subwords(tokenizer, style, IMAGE * patches, config.image_token_index, patches, context), norm
        )
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    around = "<fake_token_around_image>"
    return IdeficsVLM(model, Subwords(tokenizer, style, around + IMAGE + around, image, 1, context), image, norm)


def _normalisation(source: str) -> Norm:
    """Mean and std in the folder's configuration of pictures; CLIP's where it has none, as both kinds of model do by
    default."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        facts, _ = ImageProcessingMixin.get_image_processor_dict(source)
    except OSError:
        return "clip"
    if not facts.get("do_normalize", True):
        return "none"
    return (facts["image_mean"], facts["image_std"]) if {"image_mean", "image_std"} <= facts.keys() else "clip"
