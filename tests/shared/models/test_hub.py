"""Folders of transformers and diffusers: every tensor comes from the files, or there is one sentence with the first that does not."""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.diffusion.weights import from_diffusers, random_denoiser
from shared.errors import UserError
from shared.models.hub import from_pretrained

VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "projection_dim": 16,
}
TEXT = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def llava(tied: bool = False):
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(**TEXT, tie_word_embeddings=tied),
        image_token_index=39,
        tie_word_embeddings=tied,
    )
    return LlavaForConditionalGeneration, LlavaForConditionalGeneration(config)


def idefics(tied: bool = False):
    from transformers import IdeficsConfig, IdeficsForVisionText2Text

    vision = {
        "embed_dim": 16,
        "image_size": 16,
        "patch_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    options = {
        "additional_vocab_size": 2,
        "cross_layer_interval": 2,
        "use_resampler": False,
        "tie_word_embeddings": tied,
    }
    config = IdeficsConfig(**TEXT, vision_config=vision, **options)
    return IdeficsForVisionText2Text, IdeficsForVisionText2Text(config)


def unet():
    from diffusers import UNet2DModel

    return UNet2DModel, random_denoiser("tiny").unet


KINDS = {"llava": llava, "idefics": idefics, "diffusers": unet}


@pytest.fixture(params=KINDS)
def folder(request, tmp_path):
    """(class, library, folder, its file of weights, the model that was saved)"""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind, model = KINDS[request.param]()
    model.save_pretrained(tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    return kind, "diffusers" if request.param == "diffusers" else "transformers", str(tmp_path), path, model


def changed(path, how):
    """Damage a file; what the sentence should name."""
    tensors = load_file(path)
    name = sorted(k for k in tensors if tensors[k].ndim == 2)[0]
    if how == "missing":
        del tensors[name]
    elif how == "renamed":
        tensors[f"{name}_old"] = tensors.pop(name)
    elif how == "extra":
        tensors["more.weight"] = torch.zeros(2)
    elif how == "shape":
        tensors[name] = tensors[name][:, :-1].contiguous()
    elif how == "transposed":
        name = sorted(k for k in tensors if tensors[k].ndim == 2 and len(set(tensors[k].shape)) == 2)[0]
        tensors[name] = tensors[name].T.contiguous()
    elif how == "all":
        tensors = {f"other.{k}": v for k, v in tensors.items()}
    else:
        tensors[name][0, 0] = float(how)
    save_file(tensors, path, {"format": "pt"})
    return name


def test_a_whole_folder_opens_with_its_weights(folder):
    kind, library, source, _, model = folder
    opened = from_pretrained(kind, source, library)
    assert not opened.training
    for (name, ours), theirs in zip(opened.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize(
    "how, what",
    [
        ("missing", "missing"),
        ("renamed", "missing"),
        ("all", "missing"),
        ("extra", "unknown"),
        ("shape", "of another shape"),
        ("transposed", "of another shape"),
        ("nan", "NaN"),
        ("-inf", "NaN"),
    ],
)
def test_what_is_not_in_the_files_is_one_sentence(folder, how, what, caplog):
    kind, library, source, path, _ = folder
    name = changed(path, how)
    logging.getLogger(library).propagate, before = True, logging.getLogger(library).propagate
    try:
        with pytest.raises(UserError, match=what) as error:
            from_pretrained(kind, source, library)
    finally:
        logging.getLogger(library).propagate = before
    text = str(error.value)
    assert "\n" not in text and source in text and not caplog.records
    if how == "extra":
        assert "'more.weight'" in text
    elif how != "all":  # transformers has names of its own for parts of a file
        assert name.split(".")[-2] in text


@pytest.mark.parametrize("build", [llava, idefics])
def test_tied_weights_may_be_left_out(build, tmp_path):
    kind, model = build(tied=True)
    model.save_pretrained(tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    assert not any(k.startswith("lm_head") for k in load_file(path))
    opened = from_pretrained(kind, str(tmp_path), "transformers")
    assert opened.lm_head.weight is opened.get_input_embeddings().weight
    assert torch.equal(opened.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("build", [llava, idefics])
def test_weights_that_are_not_tied_may_not(build, tmp_path):
    kind, model = build()
    model.save_pretrained(tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    save_file({k: v for k, v in load_file(path).items() if "lm_head" not in k}, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"the first is 'lm_head\.\S*weight', which is missing"):
        from_pretrained(kind, str(tmp_path), "transformers")


def test_a_configuration_with_more_layers_than_the_file(tmp_path):
    kind, model = llava()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for layers, what in ((3, "missing"), (1, "unknown")):
        config["text_config"]["num_hidden_layers"] = layers
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=what):
            from_pretrained(kind, str(tmp_path), "transformers")


def test_half_precision_is_asked_for_and_had(tmp_path):
    kind, model = llava()
    model.save_pretrained(tmp_path)
    opened = from_pretrained(kind, str(tmp_path), "transformers", dtype=torch.bfloat16)
    assert {p.dtype for p in opened.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("how", ["missing", "renamed", "extra", "shape", "nan"])
def test_a_pipeline_of_diffusers_with_a_damaged_unet(tmp_path, how):
    from diffusers import DDPMPipeline, DDPMScheduler

    DDPMPipeline(random_denoiser("tiny").unet, DDPMScheduler()).save_pretrained(tmp_path)
    from_diffusers(str(tmp_path))
    (path,) = tmp_path.rglob("*.safetensors")
    changed(path, how)
    with pytest.raises(UserError, match=r"does not fit this model|holds a NaN") as error:
        from_diffusers(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "how, what", [("missing", "which is missing"), ("extra", "which is unknown"), ("nan", "holds a NaN")]
)
def test_a_damaged_llava_through_open_vlm(tmp_path, how, what):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from shared.models.vlm import open_vlm

    _, model = llava()
    model.save_pretrained(tmp_path)
    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "<image>": 39}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>").save_pretrained(tmp_path)
    (path,) = tmp_path.glob("model.safetensors")
    shutil.copy(path, tmp_path / "kept")
    changed(path, how)
    with pytest.raises(UserError, match=what) as error:
        open_vlm(str(tmp_path))
    assert "\n" not in str(error.value)
