"""CIDEr against cases worked out by hand, and an independent dense computation of the equations."""

import math
from pathlib import Path

import numpy as np
import pytest

from shared.errors import UserError
from shared.metrics.captions import LONGEST, SIGMA, Cider, tokens

ANIMALS = [["a cat"], ["a dog"]]  # "a" is in both pictures: idf 0; cat, dog, "a cat", "a dog": idf log 2


def penalty(difference: int) -> float:
    return math.exp(-(difference**2) / 72)


@pytest.mark.parametrize(
    "caption, cider_d, cider",
    [
        ("a cat", 5.0, 5.0),  # cosines 1, 1 for n = 1, 2; there are no 3- and 4-grams: 10·(1 + 1 + 0 + 0)/4
        ("cat", 2.5 * penalty(1), 2.5),  # n = 1 only
        (
            "the cat",
            2.5 * math.sqrt(0.5),
            2.5 * math.sqrt(0.5),
        ),  # "the" is in no picture: idf log 2, so <g, g'>/(|g||g'|) = 1/√2; "the cat" unknown
        (
            "cat cat cat cat",
            10 * 0.25 / 4 * penalty(2),
            2.5,
        ),  # g = 4·log 2: the cosine is 1; clipped to min(4, 1)·1/(4·1) = 1/4
        ("a dog", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_by_hand(caption, cider_d, cider):
    assert Cider(ANIMALS).score([caption], [["a cat"]])[0] == pytest.approx(cider_d)
    assert Cider(ANIMALS, "cider").score([caption], [["a cat"]])[0] == pytest.approx(cider)
    assert Cider(ANIMALS).points([caption], [["a cat"]])[0] == pytest.approx(100 * cider_d)


def test_references_are_averaged():
    score = Cider(ANIMALS).score(["a cat"] * 2, [["a cat", "a dog"], ["a cat", "a cat", "a dog", "a dog"]])
    assert score == pytest.approx([2.5, 2.5])


def test_a_caption_equal_to_its_only_reference_scores_ten():
    corpus = [["a red circle on a white ground"], ["two blue stars near the top"], ["a cat"]]
    assert Cider(corpus).score([corpus[0][0]], [corpus[0]])[0] == pytest.approx(10.0)


def dense(caption: str, references: list[str], corpus: list[list[str]], clip: bool) -> float:
    """The equations over explicit vectors of all n-grams, n by n."""

    def grams(text, n):
        words = text.split()
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    total = 0.0
    for n in range(1, LONGEST + 1):
        terms = sorted({g for texts in corpus for t in texts for g in grams(t, n)} | set(grams(caption, n)))
        df = np.array([sum(any(g in grams(t, n) for t in texts) for texts in corpus) for g in terms])
        idf = np.log(len(corpus)) - np.log(np.maximum(1, df))

        def vector(text, n=n, terms=terms, idf=idf):
            return np.array([grams(text, n).count(g) for g in terms]) * idf

        c = vector(caption)
        for text in references:
            s = vector(text)
            norms = np.linalg.norm(c) * np.linalg.norm(s)
            if norms:
                gap = len(caption.split()) - len(text.split())
                value = np.minimum(c, s) @ s / norms * np.exp(-(gap**2) / (2 * SIGMA**2)) if clip else c @ s / norms
                total += value / len(references)
    return 10 * total / LONGEST


@pytest.mark.parametrize("variant", ["cider-d", "cider"])
def test_against_a_dense_computation(variant):
    rng = np.random.default_rng(0)
    words = [f"w{k}" for k in range(9)]

    def sentence():
        return " ".join(rng.choice(words, rng.integers(1, 9)))

    corpus = [[sentence() for _ in range(rng.integers(1, 6))] for _ in range(12)]
    captions = [sentence() for _ in corpus]
    expected = [dense(c, r, corpus, variant == "cider-d") for c, r in zip(captions, corpus, strict=True)]
    assert max(expected) > 1
    np.testing.assert_allclose(Cider(corpus, variant).score(captions, corpus), expected, rtol=1e-9)


def test_a_score_does_not_depend_on_the_other_captions():
    corpus = [["a red circle", "a red disc"], ["a blue star"], ["a green moon", "a moon"]]
    captions = ["a red star", "a blue star", "a circle"]
    scorer = Cider(corpus)
    together = scorer.score(captions, corpus)
    alone = [Cider(corpus).score([c], [r])[0] for c, r in zip(captions, corpus, strict=True)]
    assert together.tolist() == alone == scorer.score(captions, corpus).tolist()
    assert together.shape == (3,) and together.dtype == np.float64


PTB = [line.split("\t") for line in Path(__file__).with_name("ptb.tsv").read_text().splitlines()[1:]]


@pytest.mark.parametrize("caption, expected", PTB, ids=[caption for caption, _ in PTB])
def test_tokens_are_those_of_the_original(caption, expected):
    assert " ".join(tokens(caption)) == expected


@pytest.mark.parametrize(
    "caption, theirs, ours",
    [
        ("call (555) 123-4567", "call -lrb-555-rrb- 123-4567", "call -lrb- 555 -rrb- 123-4567"),
        ("in Hawai'i", "in hawai'i", "in hawai i"),
        ("a US$5 bill", "a us$ 5 bill", "a us $ 5 bill"),
    ],
)
def test_the_differences_that_the_docstring_names(caption, theirs, ours):
    assert " ".join(tokens(caption)) == ours != theirs


def test_a_caption_tokenised_before_scores_as_the_same_caption():
    corpus = [["a man's hat (red), 50% off!!!"], ["two cats don't sleep"], ["a black/white dog sits"]]
    given = [" ".join(tokens(references[0])) for references in corpus]
    # brackets are words by then, with hyphens
    assert Cider(corpus).score(["a man 's hat", *given[1:]], [["a man's hat"], *corpus[1:]]) == pytest.approx(
        [10.0] * 3
    )


@pytest.mark.parametrize("text", ["", "  ", ".", "- ' \" `", "\u200b", "…", "😀"])
def test_captions_without_a_word(text):
    assert tokens(text) == []


@pytest.mark.parametrize(
    "text, expected",
    [("snow_board über café", "snow_board über café"), ("हिन्दी भाषा", "हिन्दी भाषा"), ("한국어", "한국어")],
)
def test_words_of_other_scripts_are_whole(text, expected):
    assert " ".join(tokens(text)) == expected


def test_mistakes_are_named():
    with pytest.raises(UserError, match="at least 2 pictures"):
        Cider([["a cat"]])
    with pytest.raises(UserError, match="no CIDEr variant 'bleu'"):
        Cider(ANIMALS, "bleu")
    with pytest.raises(UserError, match="2 captions cannot be scored against 1"):
        Cider(ANIMALS).score(["a", "b"], [["a"]])
    with pytest.raises(UserError, match="without references"):
        Cider([["a cat"], []])
