"""Captions from class names, and the augmentation that goes with them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from shared.data.captioned import TEMPLATES, Captioned, flip_and_shift, vocabulary_of
from shared.data.language import words
from shared.data.scene_sets import SceneSet
from shared.errors import UserError
from shared.models.clip import WordTokenizer

CLASSES = ("airplane", "cat", "diaper bag", "Egyptian café (old)", "sea-lion's rock")


class Named(SceneSet):
    """Pictures of a scenes set under other class names."""

    def __init__(self, n=2000):
        super().__init__("position", n=n)
        self.classes = CLASSES


@pytest.fixture(scope="module")
def texts():
    return Captioned(Named()).__getitems__(range(2000))[1]


def test_a_caption_names_the_class_of_its_picture(texts):
    data = Captioned(Named())
    x, captions = data.__getitems__([3, 8])
    assert torch.equal(x, Named().__getitems__([3, 8])[0]) and captions == [texts[3], texts[8]] and len(data) == 2000
    for i, text in enumerate(texts):
        assert text.endswith(CLASSES[i % 5])
        assert not any(other in text for k, other in enumerate(CLASSES) if k != i % 5)


@pytest.mark.parametrize("names", [("C", "C++", "C#"), ("ape", "a", "A!"), ("\U0001f436", "\U0001f431")])
def test_classes_that_are_the_same_words_are_refused_before_a_model_is_made_of_them(names):
    with pytest.raises(UserError, match="the same words"):
        vocabulary_of(names)


def test_vowel_signs_are_part_of_a_word():
    """Devanagari: without its signs, \u0915\u093f (ki) and \u0915\u0940 (kii) are both \u0915 (ka)."""
    names = ("\u0915\u093f", "\u0915\u0940", "\u0915", "cafe\u0301")
    assert [words(name) for name in names] == [[name] for name in names]
    tokens = WordTokenizer(vocabulary_of(names), 12)([f"a photo of {name}" for name in names])
    assert len(set(map(tuple, tokens.tolist()))) == 4


def test_captions_are_functions_of_the_seed_and_the_index(texts):
    assert Captioned(Named()).__getitems__([1500, 2, 9])[1] == [texts[1500], texts[2], texts[9]]
    assert Captioned(Named(), seed=1).__getitems__(range(50))[1] != texts[:50]


def test_all_templates_are_used_and_the_prompt_of_the_papers_most(texts):
    openings = {}
    for i, text in enumerate(texts):
        opening = text.removesuffix(CLASSES[i % 5]).removesuffix("a ").removesuffix("an ")
        openings[opening] = openings.get(opening, 0) + 1
    assert set(openings) == {t.removesuffix("{}") for t in TEMPLATES}
    assert "this is a photo of a airplane" in texts  # as the papers write it
    bare = sum(text.startswith("this is a photo of a ") for text in texts)
    assert bare / 2000 == pytest.approx(3.5 / 12, abs=0.08)


def test_the_vocabulary_covers_every_caption_and_prompt(texts):
    vocabulary = vocabulary_of(CLASSES)
    assert {w for t in texts for w in words(t)} <= set(vocabulary) and len(set(vocabulary)) == len(vocabulary)
    tokens = WordTokenizer(vocabulary, 16)(texts)
    assert tokens.shape == (2000, 16)
    WordTokenizer(vocabulary, 16)([f"This is a photo of a {c}." for c in CLASSES])


def test_flip_and_shift_is_one_of_the_crops_of_the_padded_picture():
    x = Named().__getitems__(range(120))[0]
    out = flip_and_shift(x, 3, range(120))
    found = []
    for picture, result in zip(x, out, strict=True):
        places = [
            (m, dy, dx)
            for m, base in enumerate((picture, picture.flip(2)))
            for p in [F.pad(base[None], (4,) * 4, mode="reflect")[0]]
            for dy in range(9)
            for dx in range(9)
            if torch.equal(p[:, dy : dy + 32, dx : dx + 32], result)
        ]
        assert places
        found.append(places[0])
    mirrored, dy, dx = np.array(found).T
    assert 40 < mirrored.sum() < 80 and set(dy) == set(dx) == set(range(9))


def test_flip_and_shift_is_a_function_of_step_and_index():
    x = Named().__getitems__(range(12))[0]
    before = torch.get_rng_state()
    out = flip_and_shift(x, 5, range(12))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(flip_and_shift(x[[7, 1]], 5, [7, 1]), out[[7, 1]])
    assert not torch.equal(flip_and_shift(x, 6, range(12)), out)
    assert torch.equal(x, Named().__getitems__(range(12))[0])
