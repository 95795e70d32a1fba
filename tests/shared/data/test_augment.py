"""Augmentation: what it may do to a picture or a caption, and that it is a function of (seed, step, index)."""

from collections import Counter

import pytest
import torch

from shared.data.augment import EDA, SCENE_SYNONYMS, CropAndJitter, cropped
from shared.data.language import VOCABULARY, words
from shared.data.scene_sets import ScenePairs
from shared.errors import UserError
from shared.models.clip import WordTokenizer
from tests.accuracy import assert_within_rounding


@pytest.fixture(scope="module")
def batch():
    return ScenePairs(300).__getitems__(range(300))


# ---- pictures --------------------------------------------------------------------------------------------------------------


def test_pictures_stay_pictures_and_change(batch):
    x = batch[0]
    before, state = x.clone(), torch.get_rng_state()
    out = CropAndJitter()(x, 0, range(300))
    assert out.shape == x.shape and out.dtype == x.dtype and out.min() >= 0 and out.max() <= 1
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), state)
    assert ((out - x).abs().flatten(1).max(1).values > 0.02).all()
    cosine = torch.nn.functional.cosine_similarity((out - 0.5).flatten(1), (x - 0.5).flatten(1)).mean()
    assert cosine > 0.5  # still of the same scene


def test_a_picture_is_augmented_by_seed_step_and_index_alone(batch):
    x, augment = batch[0], CropAndJitter()
    out = augment(x[:20], 3, range(20))
    assert_within_rounding(augment(x[[11, 2]], 3, [11, 2]), out[[11, 2]], terms=32 * 32)
    for other in (
        augment(x[:20], 4, range(20)),
        CropAndJitter(seed=1)(x[:20], 3, range(20)),
        augment(x[:20], 3, range(1, 21)),
    ):
        assert not torch.allclose(other, out, atol=1e-2)


def test_the_whole_picture_comes_back_as_it_is_or_mirrored(batch):
    x, whole = batch[0][:8], CropAndJitter(area=(1.0, 1.0))
    middle = torch.full((8, 5), 0.5)  # of every draw: width/height 1, the centre, not mirrored
    assert_within_rounding(cropped(x, middle[:, :4], whole.area, middle[:, 4] < 0.5), x, terms=32 * 32)
    middle[:, 4] = 0.49
    assert_within_rounding(cropped(x, middle[:, :4], whole.area, middle[:, 4] < 0.5), x.flip(3), terms=32 * 32)
    untouched = torch.tensor([[0.9, 0.1, 0.1, 0.1, 0.5]]).expand(8, 5)  # 0.9: not jittered; 0.5: not grey
    assert_within_rounding(whole._colour(x, untouched), x, terms=32 * 32)


def test_a_crop_is_a_part_of_the_picture():
    ramp = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)  # value = place along the width
    x = ramp.repeat(200, 1, 1, 1)
    out = CropAndJitter(area=(0.25, 0.25), jittered=0, grey=0, mirror=False)(x, 0, range(200))
    left, right = out[..., 0].mean((1, 2)), out[..., -1].mean((1, 2))
    width = (right - left) * 32 / 31  # from the middle of the first pixel to that of the last
    assert width.min() > 0.4 and width.max() < 0.62  # sqrt(1/4 · [3/4, 4/3]), less the pixels' own width
    assert left.min() < 0.05 and right.max() > 0.95


def test_grey_and_jitter_happen_as_often_as_asked(batch):
    x = batch[0]
    out = CropAndJitter(jittered=0, grey=0.25)(x, 0, range(300))
    grey = (out.max(1).values - out.min(1).values).flatten(1).max(1).values < 1e-5
    assert 0.15 < grey.double().mean() < 0.35
    flat = torch.full((300, 3, 4, 4), 0.5)
    bright = CropAndJitter(grey=0, jittered=0.5, strength=0.4)(flat, 0, range(300)).mean((1, 2, 3))
    assert 0.4 < (bright != 0.5).double().mean() < 0.6 and 0.29 < bright.min() < 0.35 and 0.65 < bright.max() < 0.71


@pytest.mark.parametrize(
    "options",
    [{"area": (0, 1)}, {"area": (0.8, 0.5)}, {"area": (0.5, 1.5)}, {"jittered": 2}, {"grey": -0.1}, {"strength": 1}],
)
def test_bounds_are_checked(options):
    with pytest.raises(UserError):
        CropAndJitter(**options)


# ---- captions --------------------------------------------------------------------------------------------------------------


def kind(before: list[str], after: list[str]) -> str:
    """Which operation made `after` of `before` (one word changed by it)."""
    if len(after) > len(before):
        return "insertion"
    if len(after) < len(before):
        return "deletion"
    return "swap" if Counter(after) == Counter(before) else "synonym"


def test_each_operation_does_what_it_says(batch):
    texts, seen = batch[1], Counter()
    for step in range(4):
        for text, out in zip(texts, EDA()(texts, step, range(300)), strict=True):
            before, after = words(text), out.split(" ")
            seen[what := kind(before, after)] += 1
            n = max(1, round(0.1 * len(before)))
            if what == "synonym":
                changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
                assert len(changed) <= n and all(b in SCENE_SYNONYMS[a] for a, b in changed)
            elif what == "insertion":
                new = Counter(after) - Counter(before)
                assert sum(new.values()) == n and set(new) <= {w for a in before for w in SCENE_SYNONYMS.get(a, ())}
            elif what == "deletion":
                rest = iter(before)
                assert after and all(w in rest for w in after)  # in the same order
    assert min(seen[k] for k in ("synonym", "insertion", "swap", "deletion")) > 150


def test_captions_are_changed_by_seed_step_and_index_alone(batch, monkeypatch):
    texts, eda = batch[1], EDA()
    out = eda(texts, 2, range(300))
    assert eda([texts[7], texts[1]], 2, [7, 1]) == [out[7], out[1]] and eda(texts, 2, range(300)) == out
    assert sum(a != b for a, b in zip(out, eda(texts, 3, range(300)), strict=True)) > 100
    assert EDA(seed=1)(texts, 2, range(300)) != out
    assert sum(a != b for a, b in zip(out, texts, strict=True)) > 270  # two equal words may be swapped


def test_a_small_tokenizer_can_read_every_result(batch):
    tokenizer = WordTokenizer(VOCABULARY, 13)  # no room beyond the longest captions
    texts = [t for t in batch[1] if len(words(t)) <= 11]
    assert max(len(words(t)) for t in texts) == 11
    eda = EDA.of(tokenizer, alpha=0.4)
    for step in range(5):
        tokenizer(eda(texts, step, range(len(texts))))
    few = WordTokenizer([w for w in VOCABULARY if w not in ("crimson", "disc", "discs")], 24)
    eda = EDA.of(few, seed=3)
    out = [eda(["a red circle", "two circles"], step, [0, 1]) for step in range(60)]
    assert not {"crimson", "disc", "discs"} & {w for pair in out for t in pair for w in t.split()}


def test_a_full_tokenizer_takes_any_word():
    import open_clip

    eda = EDA.of(open_clip.get_tokenizer("ViT-B-32"), synonyms={"dog": ("hound",)})
    out = {eda(["A dog, barking!"], step, [0])[0] for step in range(200)}
    assert {"a hound barking", "a dog", "dog a barking"} <= out and any(
        t.split().count("hound") == 1 and "dog" in t for t in out
    )
    assert eda.vocabulary is None and eda.longest is None


def test_texts_that_cannot_change_stay():
    eda = EDA(synonyms={})
    assert eda(["Unknown!", "", "…"], 0, [0, 1, 2]) == ["unknown", "", ""]
    for alpha in (0, 1):
        with pytest.raises(UserError, match="use a number above 0 and below 1"):
            EDA(alpha=alpha)
