"""The small CLIP's parts against torch and open_clip, and the sentences for models that cannot be had."""

import open_clip
import pytest
import torch
from torch import nn

from shared.data.language import VOCABULARY
from shared.errors import UserError
from shared.models.clip import MEAN_STD, PatchEmbedding, WordTokenizer, create_clip, small_config
from tests.accuracy import assert_as_accurate, assert_within_rounding, in_both

CASES = [((4, 4), (2, 3, 16, 16), False), ((8, 8), (1, 3, 32, 32), True), ((2, 5), (3, 4, 8, 15), True)]


@pytest.mark.parametrize("kernel, shape, bias", CASES)
def test_patch_embedding_is_a_convolution(kernel, shape, bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(shape[1], 6, kernel, kernel, bias=bias).double()
    patch = PatchEmbedding(shape[1], 6, kernel, kernel, bias=bias).double()
    patch.load_state_dict(conv.state_dict())
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    out, expected = patch(x), conv(x)
    assert out.shape == expected.shape
    assert_within_rounding(out, expected, terms=patch.weight[0].numel())
    weight = torch.randn_like(out)
    ours = torch.autograd.grad((weight * out.square()).sum(), [x, *patch.parameters()])
    theirs = torch.autograd.grad((weight * expected.square()).sum(), [x, *conv.parameters()])
    assert_within_rounding(ours, theirs, terms=max(patch.weight[0].numel(), out.numel()))


def test_the_small_model_is_open_clips_own(small_clip):
    """Same weights in a model that open_clip builds by itself: same embeddings."""
    config = small_config("scenes-vit-s8")
    theirs = open_clip.CLIP(**{**config, "text_cfg": {**config["text_cfg"], "vocab_size": small_clip.tokenizer.size}}).eval()
    theirs.load_state_dict(small_clip.state_dict())
    assert type(theirs.visual.conv1) is nn.Conv2d and type(small_clip.visual.conv1) is PatchEmbedding
    x, tokens = torch.rand(4, 3, 32, 32), small_clip.tokenizer(["a red circle", "two stars", "a heart on the left", "a ring"])
    with torch.no_grad():
        assert_as_accurate(small_clip(x, tokens), *in_both(lambda clip, x: clip(x, tokens), theirs, x), terms=4 * 96)


def test_an_open_clip_model_gets_the_patch_embedding_and_its_own_tokenizer(monkeypatch):
    model = open_clip.CLIP(16, {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
                           {"context_length": 77, "width": 32, "heads": 2, "layers": 1})
    calls = []
    monkeypatch.setattr(open_clip, "create_model", lambda *a, **k: calls.append((a, k)) or model.half().train())
    clip = create_clip("ViT-B-32", "laion2b_s34b_b79k")
    assert calls == [(("ViT-B-32",), {"pretrained": "laion2b_s34b_b79k", "precision": "fp32"})]
    assert type(clip.visual.conv1) is PatchEmbedding and not clip.training
    assert {p.dtype for p in clip.parameters()} == {torch.float32}
    assert clip.tokenizer(["a photo of a cat"]).shape == (1, 77)


def test_building_a_model_leaves_the_global_generator_alone_and_follows_it():
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = create_clip("scenes-vit-s8").state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    again = create_clip("scenes-vit-s8").state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)
    torch.manual_seed(12)
    other = create_clip("scenes-vit-s8").state_dict()
    assert not torch.equal(first["visual.conv1.weight"], other["visual.conv1.weight"])


# ---- what cannot be had ----------------------------------------------------------------------------------------------------

@pytest.fixture
def nothing_built(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a model was built")

    monkeypatch.setattr(open_clip, "create_model", refuse)


def test_openai_weights_ask_for_the_quick_gelu(nothing_built):
    with pytest.raises(UserError, match="use the model name ViT-B-32-quickgelu"):
        create_clip("ViT-B-32", "openai")


@pytest.mark.parametrize("name, near", [("ViT-B32", "ViT-B-32"), ("scenes-vit-s9", "scenes-vit-s8"), ("xyzzy", "none")])
def test_unknown_names_are_refused_with_near_ones(nothing_built, name, near):
    with pytest.raises(UserError, match=f"no CLIP model named '{name}'.*{near}"):
        create_clip(name)


def test_weights_that_cannot_be_fetched_are_a_sentence(monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "create_model", offline)
    with pytest.raises(UserError, match=r"the weights 'openai' of ViT-B-32-quickgelu cannot be had \(no route to host\)"):
        create_clip("ViT-B-32-quickgelu", "openai")


def test_a_tag_is_no_checkpoint_of_a_small_model():
    with pytest.raises(UserError, match="the checkpoint openai does not exist"):
        create_clip("scenes-vit-s8", "openai")


# ---- words -----------------------------------------------------------------------------------------------------------------

def test_tokens_by_hand():
    tokenizer = WordTokenizer(("a", "cat", "mid-sized"), 6)
    assert tokenizer.size == 6
    assert tokenizer(["a cat", "", "Mid-sized cat."]).tolist() == [[1, 2, 3, 5, 0, 0], [1, 5, 0, 0, 0, 0], [1, 4, 3, 5, 0, 0]]
    assert tokenizer("a cat").tolist() == [[1, 2, 3, 5, 0, 0]]
    assert tokenizer(["a a a a"]).tolist() == [[1, 2, 2, 2, 2, 5]] and tokenizer([]).shape == (0, 6)


def test_the_end_is_the_largest_number_where_open_clip_pools(small_clip):
    tokens = small_clip.tokenizer(["a red circle", "a photo of two striped pink moons on a white background"])
    ends = tokens.argmax(1)
    assert ends.tolist() == [4, 12] and tokens.max() == small_clip.tokenizer.size - 1 == len(VOCABULARY) + 2
    longer = tokens.clone()
    longer[:, -1] = 2  # behind the end, so that nothing may change
    with torch.no_grad():
        assert torch.equal(small_clip.encode_text(tokens), small_clip.encode_text(longer))


def test_words_outside_the_vocabulary_and_long_texts_are_refused():
    tokenizer = WordTokenizer(("a", "cat"), 5)
    with pytest.raises(UserError, match="has the word 'dog'"):
        tokenizer(["a cat", "a dog"])
    with pytest.raises(UserError, match="has 4 words; this model reads at most 3"):
        tokenizer(["a cat a cat"])


def test_mean_and_std_are_those_of_open_clip():
    assert MEAN_STD["clip"] == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    assert MEAN_STD["imagenet"] == (open_clip.constants.IMAGENET_MEAN, open_clip.constants.IMAGENET_STD)
