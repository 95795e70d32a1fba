"""CLIP through open_clip: the small models of our own (configurations in `configs/`) and every model that open_clip
knows.

A model is named by its open_clip name (e.g. `scenes-vit-s8`, `ViT-B-32-quickgelu`) and its weights by `pretrained`:
None (random), an open_clip tag such as `openai`, or the path of a local checkpoint (.safetensors, or a .pt read with
`weights_only=True`).

A name says which activation the model has, so a tag whose weights were trained with the other one is refused (`openai`
asks for a `-quickgelu` name). Mean, std, interpolation and crop come with the tag, in `visual.preprocess_cfg`; a local
checkpoint has those on which all tags of its model agree, else OpenAI's.
"""

import difflib
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.data.language import VOCABULARY, words
from shared.errors import UserError
from shared.files import write_atomic

CONFIGS = Path(__file__).parent / "configs"
SUFFIXES = (".safetensors", ".pt", ".bin", ".pth")  # of files of weights
# "clip" is OpenAI's, where a tower does not come with its own (see `shared.models.victim.Pixels.of`)
MEAN_STD = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


class PatchEmbedding(nn.Conv2d):
    """A convolution whose stride is its kernel, computed as one matrix product: y = W·vec(patch) + b.

    Same weights and same result as `nn.Conv2d`; on a CPU its input gradient takes a small fraction of the convolution's
    time.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> (N, D, H/p, W/p)."""
        n, c, h, w = x.shape
        p, q = self.kernel_size
        patches = (
            x.reshape(n, c, h // p, p, w // q, q).permute(0, 2, 4, 1, 3, 5).reshape(n, (h // p) * (w // q), c * p * q)
        )
        return F.linear(patches, self.weight.flatten(1), self.bias).transpose(1, 2).unflatten(2, (h // p, w // q))


class WordTokenizer:
    """Words to numbers for the small text towers: 0 pads, 1 starts, 2…V+1 are words, V+2 (the largest, where open_clip
    pools) ends a text.

    Words are those of `shared.data.language.words`. Raises UserError for one outside the vocabulary and for a text
    longer than the context.
    """

    def __init__(self, vocabulary: Sequence[str], context_length: int):
        self.vocabulary, self.context_length = tuple(vocabulary), context_length
        self._number = {word: i + 2 for i, word in enumerate(self.vocabulary)}

    @property
    def size(self) -> int:
        return len(self.vocabulary) + 3

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Texts -> (N, context_length) int64."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        rows, longest = [], self.context_length
        for text in texts:
            said = words(text)
            unknown = [w for w in said if w not in self._number]
            if unknown:
                raise UserError(
                    f"the text {text!r} has the word {unknown[0]!r}, which this small model was not trained on: "
                    "use its own words (see `vocabulary` in the model's config), or a model with a full tokenizer."
                )
            if len(said) + 2 > longest:
                raise UserError(
                    f"the text {text!r} has {len(said)} words; this model reads at most {longest - 2}: shorten it."
                )
            rows.append([1, *(self._number[w] for w in said), self.size - 1, *[0] * (longest - len(said) - 2)])
        return torch.tensor(rows, dtype=torch.long).view(len(texts), longest)


def small_config(name: str) -> dict | None:
    """The configuration of one of our own small models, or None if `name` is not one of them."""
    path = CONFIGS / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def create_clip(name: str, pretrained: str | Path | None = None, vocabulary: Sequence[str] | None = None) -> nn.Module:
    """An open_clip CLIP in fp32 and eval mode; `model.tokenizer` goes with it.

    Random initial weights are a function of torch's global generator, which is left as it was found:
    `torch.manual_seed` first for other ones. vocabulary: the words of a small model's text tower (default: those its
    checkpoint was trained on, else those of the scenes world). Raises UserError for an unknown name, weights that do
    not fit the model, or a file that is missing, truncated or not a plain checkpoint.
    """
    with torch.random.fork_rng(devices=[]):  # a model is initialised at random even where its weights are then loaded
        config = small_config(name)
        return _open_clip(name, pretrained) if config is None else _small(config, pretrained, vocabulary)


def _small(config: dict, pretrained, vocabulary) -> nn.Module:
    import open_clip

    if pretrained is not None and vocabulary is None:
        vocabulary = _stored_vocabulary(pretrained)
    tokenizer = WordTokenizer(VOCABULARY if vocabulary is None else vocabulary, config["text_cfg"]["context_length"])
    model = open_clip.CLIP(**{**config, "text_cfg": {**config["text_cfg"], "vocab_size": tokenizer.size}})
    if pretrained is not None:
        load(model, read_weights(pretrained), f"the checkpoint {pretrained}", "give the model name it was made with")
    return _finish(model, tokenizer)


def _stored_vocabulary(path) -> list[str] | None:
    try:
        vocabulary = json.loads(read_metadata(path).get("vocabulary", "null"))
        if vocabulary is None or (isinstance(vocabulary, list) and all(isinstance(w, str) for w in vocabulary)):
            return vocabulary
    except json.JSONDecodeError:
        pass
    raise UserError(
        f"the checkpoint {path} has a vocabulary that is not a list of words: it is damaged; get or make it again."
    )


def _open_clip(name: str, pretrained: str | Path | None) -> nn.Module:
    import open_clip

    known = [*open_clip.list_models(), *(p.stem for p in CONFIGS.glob("*.json"))]
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, 3)) or "none"
        raise UserError(f"there is no CLIP model named {name!r}; near names: {near}.")
    local = pretrained is not None and is_path(pretrained)
    if pretrained is not None and not local:
        _demand_tag(name, str(pretrained))
    # before the model is built, which takes seconds
    weights = read_weights(pretrained) if local else None  # type: ignore[arg-type]
    preprocess = _common_preprocessing(name) if local else None
    root = logging.getLogger()
    if local:
        root.addFilter(_is_no_false_alarm)
    try:
        model = open_clip.create_model(
            name, pretrained=None if local else pretrained, precision="fp32", force_preprocess_cfg=preprocess,
            pretrained_text=False)  # fmt: skip
    except Exception as error:  # whatever the hub client raises: no network, a damaged file
        raise UserError(
            f"the weights {pretrained!r} of {name} cannot be had ({error}): run on a machine with a network, or give "
            "the path of a local checkpoint."
        ) from error
    finally:
        root.removeFilter(_is_no_false_alarm)
    if local:
        load(
            model,
            weights,  # type: ignore[arg-type]
            f"the checkpoint {pretrained}",
            "give the model name it was made with",
        )
    else:
        demand_finite(model.state_dict(), f"the weights {pretrained!r} of {name}")
    return _finish(model, open_clip.get_tokenizer(name))


def _is_no_false_alarm(record: logging.LogRecord) -> bool:
    """Without what open_clip says of a model that it built for weights which are loaded later."""
    return "initialized randomly" not in record.getMessage()


def _demand_tag(name: str, tag: str) -> None:
    """Raises UserError unless open_clip has these weights, trained with the activation that the model of this name
    has."""
    import open_clip

    tags, found = open_clip.list_pretrained_tags_by_model(name), open_clip.get_pretrained_cfg(name, tag)
    if not found:
        raise UserError(
            f"there are no weights {tag!r} of {name}: give one of {', '.join(tags) or 'no tags (there are none)'}, or "
            "the path of a local checkpoint."
        )
    wanted, quick = found.get("quick_gelu", False), open_clip.get_model_config(name).get("quick_gelu", False)
    if wanted == quick:
        return
    other = f"{name}-quickgelu" if wanted else name.removesuffix("-quickgelu")
    advice = (
        f"use the model name {other}"
        if open_clip.is_pretrained_cfg(other, tag) and other != name
        else "choose other weights"
    )
    raise UserError(
        f"the weights {tag!r} of {name} were trained with the {'quick GELU' if wanted else 'GELU'}, which this model "
        f"does not have: {advice}."
    )


def _common_preprocessing(name: str) -> dict | None:
    """What all tags of a model say of mean, std, interpolation and crop; None where they differ or there are none."""
    import open_clip

    keys = ("mean", "std", "interpolation", "resize_mode")
    configs = [open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)]
    distinct = {tuple(config[k] for k in keys) for config in configs}
    return dict(zip(keys, distinct.pop(), strict=True)) if len(distinct) == 1 else None


def _finish(model: nn.Module, tokenizer) -> nn.Module:
    from shared.models.blocks import make_lean

    conv = getattr(model.visual, "conv1", None)
    if type(conv) is nn.Conv2d and conv.stride == conv.kernel_size:  # type: ignore[union-attr]
        conv.__class__ = PatchEmbedding
    model.tokenizer = tokenizer
    return make_lean(model.float().eval())


def load(model: nn.Module, weights: Mapping[str, Tensor], source: str, advice: str) -> None:
    """Copy `weights` into a model that has exactly these tensors; raises UserError as `demand_fit` does."""
    demand_fit(model.state_dict(), weights, source, advice)
    model.load_state_dict(weights)


def demand_fit(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str, advice: str) -> None:
    """Raises UserError with the first name, unless `weights` has all tensors of `own` and no others, of its shapes and
    kinds of number.

    source: what holds the weights, e.g. "the checkpoint x.pt"; advice: what to do.
    """
    missing = [k for k in own if k not in weights]
    unknown = [k for k in weights if k not in own]
    other = [
        k
        for k in own
        if k in weights
        and (own[k].shape != weights[k].shape or own[k].is_floating_point() != weights[k].is_floating_point())
    ]
    refuse_misfit(source, advice, missing, other, unknown)


def refuse_misfit(
    source: str, advice: str, missing: Sequence[str], other: Sequence[str], unknown: Sequence[str]
) -> None:
    """Raises UserError if there are names of tensors that a source lacks, has of another shape or kind, or has and
    should not."""
    for names, what in ((missing, "missing"), (other, "of another shape or kind"), (unknown, "unknown")):
        if names:
            count = len(missing) + len(other) + len(unknown)
            raise UserError(
                f"{source} does not fit this model: {count} tensors differ, the first is {names[0]!r}, which is "
                f"{what}; {advice}."
            )


def demand_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raises UserError with the first name, unless all tensors are plain ones and all numbers finite."""
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
            raise UserError(
                f"{source} holds {name!r}, which is sparse, quantised, nested or without numbers: store it as a dense "
                "tensor of floating point numbers."
            )
        if (
            not (tensor.float() if tensor.itemsize == 1 else tensor).isfinite().all()
        ):  # torch cannot ask this of every 8-bit float
            raise UserError(
                f"{source} holds a NaN or an infinite number in {name!r}: it is damaged, or its training diverged; get "
                "or make it again."
            )


def is_path(weights: str | Path) -> bool:
    """Whether this is the path of a file of weights, or of a folder; else it is a name, even where a folder has it
    too."""
    before = str(weights).partition(":")[0]  # of a colon, as in hf-hub:OWNER/NAME
    return Path(weights).suffix in SUFFIXES or "/" in before or Path(weights).is_file()


def weights_file(path: str | Path, option: str = "") -> Path:
    """The path of a file of weights. Raises UserError where there is none. option: that gave it, for the sentence."""
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is no file" if path.exists() else "does not exist"
        advice = f"give {option} the path of a .safetensors or .pt file".replace("  ", " ")
        raise UserError(f"the checkpoint {path} {what}: {advice}.")
    return path


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, or of a .pt file read with `weights_only=True` (a plain pickle is refused).

    Raises UserError, also for numbers that are not finite: weights from files pass through here, or through
    `demand_finite` where a library reads.
    """
    path = weights_file(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the pickle's protocol, before it is refused
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"the checkpoint {path} cannot be read ({type(error).__name__}): it is truncated, damaged or not a plain "
            "file of tensors; get or make it again."
        ) from error
    if path.suffix == ".safetensors":
        demand_finite(state, f"the checkpoint {path}")
        return state
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    state = state if isinstance(state, dict) else {}
    tensors = {k.removeprefix("module."): v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors:
        raise UserError(
            f"the checkpoint {path} holds no named tensors: give a state dict, or a file with one under `state_dict`."
        )
    demand_finite(tensors, f"the checkpoint {path}")
    return tensors


def read_metadata(path: str | Path) -> dict[str, str]:
    """The string metadata of a .safetensors file ({} for other files). Raises UserError for a damaged file."""
    path = weights_file(path)
    if path.suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as handle:
            return handle.metadata() or {}
    except Exception as error:
        raise UserError(
            f"the checkpoint {path} cannot be read ({type(error).__name__}): it is truncated or damaged; "
            "get or make it again."
        ) from error


def save_clip(model: nn.Module, path: str | Path) -> None:
    """Write a model's weights as .safetensors, atomically, with the small text tower's vocabulary as metadata."""
    words = {"vocabulary": json.dumps(model.tokenizer.vocabulary)} if isinstance(model.tokenizer, WordTokenizer) else {}
    save_tensors(model.state_dict(), path, words)


def save_tensors(tensors: Mapping[str, Tensor], path: str | Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors as .safetensors, atomically; the file is equal for equal tensors and metadata."""
    from safetensors.torch import save

    content = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata or None)
    if metadata and len(metadata) > 1:  # the library writes metadata in an order that differs from call to call
        end = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:end])
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        line = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        line += b" " * (-len(line) % 8)
        content = len(line).to_bytes(8, "little") + line + content[end:]
    write_atomic(path, content)
