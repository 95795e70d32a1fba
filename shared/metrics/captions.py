"""CIDEr and CIDEr-D: how well a caption agrees with what people wrote (Vedantam, Zitnick, Parikh 2015, arXiv 1411.5726,
§4 and §5).

For n = 1 … 4 let h_k(s) be the count of the n-gram ω_k in sentence s and, over the pictures I of a corpus of
references,

    idf_k = log( |I| / max(1, number of pictures of which some reference holds ω_k) ),      g_k(s) = h_k(s)·idf_k.

For a caption c with references S = {s_1 … s_m}, and |·| the Euclidean norm over the n-grams of one length n,

    CIDEr_n   = 1/m Σ_j  <g(c), g(s_j)> / (|g(c)|·|g(s_j)|)
    CIDEr-D_n = 1/m Σ_j  exp( −(l(c) − l(s_j))² / (2σ²) ) · <min(g(c), g(s_j)), g(s_j)> / (|g(c)|·|g(s_j)|),     σ = 6, l = number of words

and the score is 10 times the mean over n, for both, as in the authors' code. `points` is 100 times that, the number
that papers print (so 115.5 there is 1.155 here; a caption equal to its only reference scores 10, that is 1000 points).

Conventions. What everybody calls CIDEr (coco-caption, and through it OpenFlamingo and RobustVLM) is CIDEr-D. As there,
h_k is a count: the paper divides it by the length of the sentence, which changes nothing in CIDEr and a little in the
clipping of CIDEr-D. No stemming, as there. The corpus is an argument, so that the score of a caption depends on no
other caption; coco-caption, and so RobustVLM, takes the references of the pictures that are being scored: pass those
for their numbers.

Tokens (`tokens`) follow the original, which runs Stanford's PTBTokenizer (Java) and drops its list of punctuation
marks: contractions split as in the Penn Treebank (do n't, dog 's, can not, gon na), abbreviations keep their stop
(u.s., mr.), numbers, words with hyphens and words around a slash are whole, brackets are words (-lrb-: its list has
them in capitals, so they survive), and so are % & @ + # = * and repeated marks (!!!). Where the two still differ:
  a telephone number in brackets            is one word there and four here
  rare apostrophes in words (Hawai'i, ne'er) one word there, two here (d'oh, c'est, O'Brien are the same)
  US$5, 10:30-11, a?b, f/1.8, «isn`t»       cut at other places
  abbreviations outside `_ABBREVIATIONS`    lose their stop here
Both captions are cut by the same rules, so that a score changes only by the n-grams that hold such a word.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shared.errors import UserError
from shared.metrics.texts import check_texts

LONGEST = 4  # n-grams of 1 … 4 words
SIGMA = 6.0
PRINTED = 100.0
VARIANTS = ("cider-d", "cider")
_SPELLINGS = {
    "’": "'",
    "‘": "'",
    "“": '"',
    "”": '"',
    "«": '"',
    "»": '"',
    "‹": '"',
    "›": '"',
    "–": " -- ",
    "—": " -- ",
    "…": " ... ",
    "£": " # ",
    "€": " $ ",
    "¢": " cents ",
    "½": " 1/2 ",
    "¼": " 1/4 ",
    "¾": " 3/4 ",
    "⅓": " 1/3 ",
    "⅔": " 2/3 ",
    "\xad": "",
    "\u200b": " ",
    "&amp;": " & ",
    "&lt;": " < ",
    "&gt;": " > ",
    "&quot;": '"',
}
_SPELLED = re.compile("|".join(map(re.escape, _SPELLINGS)))
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_ABBREVIATIONS = (
    "mr|mrs|ms|dr|prof|rev|sen|gov|gen|col|lt|capt|sgt|st|mt|ft|rd|blvd|ave|ct|sq|jan|feb|mar|apr|jun|jul|aug|sep|sept|"
    "oct|nov|dec|mon|tue|tues|wed|thu|thurs|fri|inc|corp|ltd|co|bros|assn|dept|univ|est|etc|al|vs|cf|jr|sr|e\\.g|i\\.e|ph\\.d"
)
# letters, digits, and the vowel signs that Python does not count among them
_W = r"(?:[^\W_]|[\u0900-\u0dff\u0e31-\u0e4e])"
_TOKEN = re.compile(
    "|".join(
        (
            r"(?:https?://|www\.)\S*[^\W_]",
            r"[\w.]+@\w+(?:\.\w+)+",
            r"[@#][A-Za-z_]+(?:(?<=@.)\w+)?",
            r"</?[A-Za-z][^<>]*>",
            r"[:;=]-?[()DP](?![A-Za-z])",  # smileys
            rf"(?i:(?<![\w.-])(?:{_ABBREVIATIONS})\.(?![A-Za-z]))",
            r"(?i:(?<!\w)(?:nos?|figs?)\.(?=\s*\d))",
            r"(?<![\w'])(?:[A-Za-z]\.){2,}(?:-[A-Za-z]+)?(?![A-Za-z])",
            r"(?<![\w'])(?:[A-HJ-Z]\.|[a-zI]\.(?!\s+(?:A\s|[A-Z][a-z])))(?![A-Za-z])",
            r"[A-Z]+(?:&[A-Z]+)+",
            r"(?<!\w)[Cc](?:\+\+|#)",
            r"[A-Za-z]+(?:[.!][A-Za-z]+)+",
            r"\d+(?:[.,]\d+)*(?:-[A-Za-z]+)+",
            r"(?:(?<!\w)[-+])?(?:\d+(?:[.,:]\d+)+|(?<![\d.])[.:]\d+)",
            r"(?<!\S)[-+]\d+|(?<=\d)\+\d+",
            r"(?i:(?<!\w)(?:can(?=not(?![\w'-]))|(?:gon|wan)(?=na(?![\w'-]))|got(?=ta(?![\w'-]))"
            r"|(?:gim|lem)(?=me(?![\w'-]))))",
            rf"(?i:(?<!\w)(?:[jy]'(?={_W})|'t(?=(?:is|was)(?!\w))|'(?:em|til|cause)(?!\w)|'\d0s(?!\w)|'\d\d(?![\w'])))",
            r"(?i:'n(?:'|(?!\w)))",
            r"(?i:(?<!\w)(?:ol|lil)'(?!\w))",
            rf"(?i:(?<!\w)(?:[dlosnc]|qu)'{_W}{{2,}}|(?<!\w)ma'am)",
            rf"(?<!\w)[A-HJ-XZ]'{_W}{{2,}}",
            rf"(?i:{_W}+?(?=n't(?!\w))|n't(?!\w)|'(?:s|m|d|ll|re|ve)(?!\w))",
            rf"{_W}+(?:[-/_]{_W}+)*(?<!n(?='t))",
            r"[!?]{2,}",
            r"\*+",
            r"_+",
            "<<",
            ">>",
            r"[^\w\s'\"`.,:;!?\U00010000-\U0010ffff-]",
        )
    )
)


def tokens(text: str) -> list[str]:
    """The words of a caption, as above."""
    text = _SPELLED.sub(lambda found: _SPELLINGS[found[0]], text)
    return re.sub(r"[][(){}]", lambda found: _BRACKETS[found[0]], " ".join(_TOKEN.findall(text)).lower()).split()


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
        check_texts(corpus)
        if len(corpus) < 2:
            raise UserError(
                "CIDEr needs the references of at least 2 pictures to tell rare words from common ones, got "
                f"{len(corpus)}."
            )
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
        """(N,) float64, 0 … 10: caption i against its own references.

        Raises UserError if their numbers differ, a picture has no references, or something is no list of texts."""
        check_texts([captions, *references])
        if len(captions) != len(references):
            raise UserError(
                f"{len(captions)} captions cannot be scored against {len(references)} lists of references: give one "
                "list per caption."
            )
        return np.array(
            [self._score(self._vector(c), self._vectors(r)) for c, r in zip(captions, references, strict=True)],
            np.float64,
        )

    def points(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
        """`score` × 100, what papers print."""
        return PRINTED * self.score(captions, references)

    def _vector(self, text: str) -> _Vector:
        words = tokens(text)
        weights = tuple(
            {gram: count * self._idf.get(gram, self._unseen) for gram, count in counts.items()}
            for counts in _counts(words)
        )
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
