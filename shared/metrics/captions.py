"""CIDEr and CIDEr-D: how well a caption agrees with what people wrote (Vedantam, Zitnick, Parikh 2015, arXiv 1411.5726, §4 and §5).

For n = 1 … 4 let h_k(s) be the count of the n-gram ω_k in sentence s and, over the pictures I of a corpus of references,

    idf_k = log( |I| / max(1, number of pictures of which some reference holds ω_k) ),      g_k(s) = h_k(s)·idf_k.

For a caption c with references S = {s_1 … s_m}, and |·| the Euclidean norm over the n-grams of one length n,

    CIDEr_n   = 1/m Σ_j  <g(c), g(s_j)> / (|g(c)|·|g(s_j)|)
    CIDEr-D_n = 1/m Σ_j  exp( −(l(c) − l(s_j))² / (2σ²) ) · <min(g(c), g(s_j)), g(s_j)> / (|g(c)|·|g(s_j)|),     σ = 6, l = number of words

and the score is 10 times the mean over n, for both, as in the authors' code. `points` is 100 times that, the number that papers print (so
115.5 there is 1.155 here; a caption equal to its only reference scores 10, that is 1000 points).

Conventions. What everybody calls CIDEr (coco-caption, and through it OpenFlamingo and RobustVLM) is CIDEr-D. As there, h_k is a count: the
paper divides it by the length of the sentence, which changes nothing in CIDEr and a little in the clipping of CIDEr-D. No stemming, as
there. The corpus is an argument, so that the score of a caption depends on no other caption; coco-caption, and so RobustVLM, takes the
references of the pictures that are being scored: pass those for their numbers.

Tokens (`tokens`): lower case, punctuation dropped, hyphens kept inside words, numbers such as 3.5 and 10:30 whole, contractions split as in
the Penn Treebank (do n't, dog 's). The original runs Stanford's PTBTokenizer (Java), which differs in rare cases: it also splits cannot and
gonna, keeps the stops of abbreviations (u.s.) and turns fractions and currency signs into tokens.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shared.errors import UserError

LONGEST = 4  # n-grams of 1 … 4 words
SIGMA = 6.0
PRINTED = 100.0
VARIANTS = ("cider-d", "cider")
_TOKEN = re.compile(r"\d+(?:[.,:]\d+)+|[^\W_]+(?:[-'][^\W_]+)*")
_CONTRACTION = re.compile(r"(?<=.)(n't|'s|'re|'ve|'ll|'d|'m)$")


def tokens(text: str) -> list[str]:
    """The words of a caption, as above."""
    found = []
    for word in _TOKEN.findall(text.lower().replace("’", "'")):
        stem = _CONTRACTION.sub("", word)
        found += [stem, word[len(stem):]] if len(stem) < len(word) else [word]
    return found


@dataclass(frozen=True)
class _Vector:
    """g(s) of one sentence: per n the weights of its n-grams and their norm; length is l(s)."""

    weights: tuple[dict[tuple[str, ...], float], ...]
    norms: tuple[float, ...]
    length: int


def _counts(words: list[str]) -> list[Counter]:
    return [Counter(zip(*(words[k:] for k in range(n)), strict=False)) for n in range(1, LONGEST + 1)]


class Cider:
    """Scores captions with the document frequencies of a corpus.

    corpus: per picture its references, e.g. all of a data set. variant: "cider-d" or "cider".
    Raises UserError for an empty corpus, a picture without references, or an unknown variant.
    """

    def __init__(self, corpus: Sequence[Sequence[str]], variant: str = "cider-d"):
        if variant not in VARIANTS:
            raise UserError(f"there is no CIDEr variant {variant!r}: use {' or '.join(VARIANTS)}.")
        if len(corpus) < 2:
            raise UserError(f"CIDEr needs the references of at least 2 pictures to tell rare words from common ones, got {len(corpus)}.")
        self.variant, self._cache = variant, {}
        frequency: Counter = Counter()
        for references in corpus:
            frequency.update({gram for text in references for counts in _counts(tokens(text)) for gram in counts})
        top = np.log(len(corpus))
        self._idf = {gram: float(top - np.log(count)) for gram, count in frequency.items()}
        self._unseen = float(top)
        for references in corpus:
            self._vectors(references)

    def score(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
        """(N,) float64, 0 … 10: caption i against its own references. Raises UserError if their numbers differ or a picture has no references."""
        if len(captions) != len(references):
            raise UserError(f"{len(captions)} captions cannot be scored against {len(references)} lists of references: give one list per caption.")
        return np.array([self._score(self._vector(c), self._vectors(r)) for c, r in zip(captions, references, strict=True)], np.float64)

    def points(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
        """`score` × 100, what papers print."""
        return PRINTED * self.score(captions, references)

    def _vector(self, text: str) -> _Vector:
        words = tokens(text)
        weights = tuple({gram: count * self._idf.get(gram, self._unseen) for gram, count in counts.items()} for counts in _counts(words))
        return _Vector(weights, tuple(sum(w * w for w in part.values()) ** 0.5 for part in weights), len(words))

    def _vectors(self, references: Sequence[str]) -> tuple[_Vector, ...]:
        """The vectors of one picture's references, computed once."""
        key = tuple(references)
        if not key:
            raise UserError("a picture without references cannot be scored: leave it out.")
        if key not in self._cache:
            self._cache[key] = tuple(self._vector(text) for text in key)
        return self._cache[key]

    def _score(self, caption: _Vector, references: tuple[_Vector, ...]) -> float:
        return 10 * sum(self._similarity(caption, reference) for reference in references) / len(references)

    def _similarity(self, c: _Vector, s: _Vector) -> float:
        clip = self.variant == "cider-d"
        total = 0.0
        for of_c, of_s, norm_c, norm_s in zip(c.weights, s.weights, c.norms, s.norms, strict=True):
            if norm_c and norm_s:
                shared = (gram for gram in of_c if gram in of_s)
                total += sum((min(of_c[g], of_s[g]) if clip else of_c[g]) * of_s[g] for g in shared) / (norm_c * norm_s)
        penalty = np.exp(-((c.length - s.length) ** 2) / (2 * SIGMA**2)) if clip else 1.0
        return float(penalty * total / LONGEST)
