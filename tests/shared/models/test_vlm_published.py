"""A rehearsal of the paper's models: their real classes, configurations and file layout, fewer and narrower layers, random weights."""

import pytest
import torch

from shared.data.vision_language import INSTRUCTION
from shared.errors import UserError
from shared.models.vlm import open_vlm
from shared.models.vlm.idefics import IdeficsVLM
from shared.models.vlm.llava import LlavaVLM
from shared.models.vlm.text import STYLES
from tests.accuracy import assert_within_rounding

WIDEST = 4096  # terms of the longest sum of a forward pass, in LLaVA's vision tower

pytestmark = pytest.mark.slow
PROMPTS, TARGETS = [INSTRUCTION, "What is it?", "How many dogs are there?"], ["A dog on a bench", "dog", "two"]


def tokenizer_files(folder, extra: list[str]) -> dict[str, int]:
    """A byte-level tokenizer of a few hundred tokens, in transformers' layout, that begins sequences with <s> as Llama's does; token numbers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        [STYLES["llava"].wrap(INSTRUCTION, ""), "A dog on a bench, two dogs. Question: Short answer: Output:"] * 4,
        trainer,
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    fast.add_special_tokens({"additional_special_tokens": extra})
    fast.save_pretrained(folder)
    return {"size": len(fast), **{t: fast.convert_tokens_to_ids(t) for t in extra}}


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return save_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def idefics(tmp_path_factory):
    return save_idefics(tmp_path_factory.mktemp("idefics"))


def save_llava(folder) -> str:
    """LLaVA-1.5: CLIP ViT-L/14 at 336 pixels of full width, Llama and CLIP with two layers each; every kind of module of the original."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    numbers = tokenizer_files(folder, ["<image>"])
    vision = CLIPVisionConfig(
        image_size=336,
        patch_size=14,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=2,
        num_attention_heads=16,
        projection_dim=768,
    )
    text = LlamaConfig(
        vocab_size=numbers["size"],
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
    )
    return _saved(
        LlavaForConditionalGeneration,
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=numbers["<image>"],
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
        ),
        folder,
    )


def save_idefics(folder) -> str:
    """Idefics-9b: ViT-H/14, resampler, cross-attention before every fourth layer with normalised queries and keys; reduced depth and width."""
    from transformers import IdeficsConfig, IdeficsForVisionText2Text

    numbers = tokenizer_files(folder, ["<fake_token_around_image>", "<image>"])
    config = IdeficsConfig(
        vocab_size=numbers["<fake_token_around_image>"],
        additional_vocab_size=2,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        cross_layer_interval=4,
        qk_layer_norms=True,
        use_resampler=True,
        alpha_initializer="ones",
        alpha_type="float",
        vision_config={
            "embed_dim": 320,
            "image_size": 224,
            "patch_size": 14,
            "intermediate_size": 1280,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "hidden_act": "gelu",
        },
        perceiver_config={
            "use_resampler": True,
            "resampler_depth": 2,
            "resampler_n_heads": 4,
            "resampler_head_dim": 96,
            "resampler_n_latents": 64,
            "qk_layer_norms_perceiver": True,
        },
    )
    return _saved(IdeficsForVisionText2Text, config, folder)


def _saved(build, config, folder) -> str:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(config)
        for name, p in model.named_parameters():
            if "alpha" not in name and p.ndim > 1:
                p.data *= 2
        model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def x():
    return torch.rand(3, 3, 120, 120, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["llava", "idefics"])
def test_a_published_model_opens_from_its_folder_answers_and_has_gradients(name, request, x):
    vlm = open_vlm(request.getfixturevalue(name))
    assert (
        type(vlm) is {"llava": LlavaVLM, "idefics": IdeficsVLM}[name]
        and vlm.size == {"llava": 336, "idefics": 224}[name]
    )
    answers = vlm.answer(x, PROMPTS, max_tokens=4)
    assert (
        len(answers) == 3
        and all(isinstance(a, str) for a in answers)
        and vlm.answer(x[1:2], PROMPTS[1:2], max_tokens=4) == answers[1:2]
    )
    xs = x.clone().requires_grad_()
    value = vlm.nll(xs, PROMPTS, TARGETS)
    (grad,) = torch.autograd.grad(value.sum(), xs)
    assert value.shape == (3,) and (value > 1).all() and grad.isfinite().all() and all(g.any() for g in grad)
    alone = torch.cat([vlm.nll(x[i : i + 1], PROMPTS[i : i + 1], TARGETS[i : i + 1]) for i in range(3)])
    assert_within_rounding(alone, value, terms=WIDEST)
    assert vlm.embed(x).shape == (3, {"llava": 1024, "idefics": 320}[name])
    assert not any(p.requires_grad for p in vlm.parameters()) and not vlm.training


def test_llava_reads_what_its_processor_would_give_it(llava, x):
    """The prompt with the image's token expanded, against transformers' forward pass on the same numbers."""
    vlm = open_vlm(llava)
    ids = vlm.text.prompt("What is it?")
    assert ids[0] == 1 and ids.count(vlm.config.image_token_index) == 576
    said = vlm.text.tokenizer.decode([i for i in ids if i != vlm.config.image_token_index])
    assert (
        said.endswith("What is it?\nAnswer the question using a single word or phrase. ASSISTANT:")
        and "A chat between a curious user" in said
    )
    target = vlm.text.target("two dogs")
    full, labels = torch.tensor([ids + target]), torch.tensor([[-100] * len(ids) + target])
    loss = vlm.model(input_ids=full, pixel_values=vlm.pixels(x[:1]), labels=labels).loss.item() * len(target)
    assert_within_rounding(vlm.nll(x[:1], ["What is it?"], ["two dogs"]), torch.tensor([loss]), terms=WIDEST)
    out = vlm.model.generate(
        input_ids=full[:, : len(ids)], pixel_values=vlm.pixels(x[:1]), max_new_tokens=5, do_sample=False
    )[0, len(ids) :].tolist()
    out = out[: out.index(vlm.text.end)] if vlm.text.end in out else out
    assert vlm.answer(x[:1], ["What is it?"], max_tokens=5) == [vlm.text.say(out)]


def test_idefics_reads_what_its_processor_would_give_it(idefics, x):
    from transformers import AutoTokenizer, IdeficsImageProcessor, IdeficsProcessor

    vlm = open_vlm(idefics)
    processor = IdeficsProcessor(IdeficsImageProcessor(), AutoTokenizer.from_pretrained(idefics))
    picture = (x[0] * 255).byte().permute(1, 2, 0).numpy()
    theirs = processor(text=[[picture, "Question:What is it? Short answer:"]], return_tensors="pt")
    assert [i for i in theirs["input_ids"][0].tolist() if i != 1] == [
        i for i in vlm.text.prompt("What is it?") if i != 1
    ]
    assert vlm.text.prompt("What is it?")[0] == 1
    ids = torch.tensor([vlm.text.prompt("What is it?")])
    looks = (ids == vlm.image_token).cumsum(1).clamp(max=1)[:, :, None]
    inputs = {"pixel_values": vlm.pixels(x[:1])[:, None], "image_attention_mask": looks}
    out = vlm.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), **inputs, max_new_tokens=5, do_sample=False
    )
    out = out[0, ids.shape[1] :].tolist()
    out = out[: out.index(vlm.text.end)] if vlm.text.end in out else out
    assert vlm.answer(x[:1], ["What is it?"], max_tokens=5) == [vlm.text.say(out)]


def test_text_only_examples_stand_before_the_image(idefics, x):
    plain, shown = open_vlm(idefics), open_vlm(idefics, context="Output:A dog on a bench ")
    assert len(shown.text.prompt(INSTRUCTION)) > len(plain.text.prompt(INSTRUCTION))
    assert not torch.allclose(shown.nll(x[:1], PROMPTS[:1], TARGETS[:1]), plain.nll(x[:1], PROMPTS[:1], TARGETS[:1]))


@pytest.mark.parametrize("name", ["llava", "idefics"])
def test_half_precision_gives_nearly_the_same(name, request, x):
    folder = request.getfixturevalue(name)
    full, half = open_vlm(folder), open_vlm(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    xs = x[:1].clone().requires_grad_()
    value = half.nll(xs, PROMPTS[:1], TARGETS[:1])
    (grad,) = torch.autograd.grad(value.sum(), xs)
    assert value.dtype == grad.dtype == torch.float32 and grad.any()
    assert value.item() == pytest.approx(
        full.nll(x[:1], PROMPTS[:1], TARGETS[:1]).item(), rel=0.05
    )  # bfloat16 has eight bits


def test_a_robust_openai_tower_goes_into_llava(llava, x):
    """An open_clip state dict of ViT-L/14-336, as adversarial fine-tuning leaves it (here: of two layers)."""
    import open_clip

    vlm = open_vlm(llava)
    with torch.random.fork_rng():
        clip = open_clip.CLIP(
            768,
            {"image_size": 336, "layers": 2, "width": 1024, "patch_size": 14},
            {"context_length": 8, "vocab_size": 9, "width": 64, "heads": 1, "layers": 1},
            quick_gelu=True,
        ).eval()
    before = vlm.embed(x[:1])
    vlm.set_vision({f"module.visual.{k}": v for k, v in clip.visual.state_dict().items()})
    assert_within_rounding(vlm.embed(x[:1]) @ clip.visual.proj, clip.visual(vlm.pixels(x[:1])), terms=WIDEST)
    assert not torch.allclose(before, vlm.embed(x[:1]))


def test_a_folder_without_its_tokenizer_is_refused(llava, tmp_path):
    import shutil

    shutil.copytree(llava, tmp_path / "m")
    for path in (tmp_path / "m").glob("*token*"):
        path.unlink()
    with pytest.raises(UserError, match=r"cannot be opened .*give a hub name|does not know the model's image token"):
        open_vlm(str(tmp_path / "m"))
