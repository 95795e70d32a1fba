"""VQA accuracy (Antol et al. 2015; the evaluation code of VQA v2): an answer is right if at least three of ten people gave it.

    acc(a) = mean over the 10 sets of 9 answers that leave one person out of  min( #{people in the set who answered a} / 3, 1 )

With m of n people agreeing this is  [ m·min((m − 1)/3, 1) + (n − m)·min(m/3, 1) ] / n: 0, 0.3, 0.6, 0.9, 1 for m = 0, 1, 2, 3 and more of ten.

Answers are compared after `normalise`, the rules of the evaluation code:
  1. line breaks and tabs become spaces, ends are stripped;
  2. each of the 21 signs  ; / [ ] " { } ( ) = + \\ _ - > < @ ` , ? !  is removed if it stands beside a space somewhere in the answer, or if the
     answer holds a comma between digits; otherwise it becomes a space;
  3. a full stop is removed unless a digit follows;
  4. lower case; none, zero … ten become digits; a, an, the are dropped; contractions get their apostrophe back (dont -> don't).
The evaluation code applies them only if the ten people disagree; here they are always applied, on both sides, so that "Yes" is right where all
ten said "yes".
"""

import re
from collections.abc import Sequence
from itertools import product

import numpy as np

from shared.errors import UserError

_SIGNS = ";/[]\"{}()=+\\_-><@`,?!"
_NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8",
            "nine": "9", "ten": "10"}
_ARTICLES = ("a", "an", "the")
_SUBJECTS = {  # word: endings of its contractions
    "d": "he she it they we you who there where how somebody someone something", "s": "he she how let that there what when where who why "
    "somebody someone something", "ll": "how it somebody someone something they what who why you", "re": "there they what why you",
    "ve": "could might must should would they we what where who you not", "d've": "he she it they we you somebody someone something there",
    "n't": "are ca could did does do had has have is might must need ought sha should was were wo would ai",
    "n't've": "could had might should would",
}
_WHOLE = ["ma'am", "o'clock", "ow's'at", "'tis", "'twas", "y'all", "y'all'll", "y'all'd've"]


def _contractions() -> dict[str, str]:
    """Every contraction with some or all of its apostrophes left out -> the contraction."""
    full = [word + ("" if end.startswith("n") else "'") + end for end, words in _SUBJECTS.items() for word in words.split()] + _WHOLE
    known = {}
    for text in full:
        parts = text.split("'")
        for marks in product(("", "'"), repeat=len(parts) - 1):
            known["".join(a + b for a, b in zip(parts, (*marks, ""), strict=True))] = text
    del known["wed"], known["shed"]  # words of their own, which the evaluation code leaves alone
    return known


_CONTRACTIONS = _contractions()


def normalise(answer: str) -> str:
    """An answer as it is compared, see above."""
    raw = text = re.sub(r"[\n\t]", " ", answer).strip()
    with_thousands = re.search(r"\d,\d", raw) is not None
    for sign in _SIGNS:
        text = text.replace(sign, "" if with_thousands or f"{sign} " in raw or f" {sign}" in raw else " ")
    words = re.sub(r"\.(?!\d)", "", text).lower().split()
    words = [w for w in (_NUMBERS.get(w, w) for w in words) if w not in _ARTICLES]
    return " ".join(_CONTRACTIONS.get(w, w) for w in words)


def first_answer(generated: str) -> str:
    """The short answer in what a language model wrote: up to the first comma, or to where it goes on to another question (as OpenFlamingo does)."""
    return re.split(r"Question|Answer|Short|,", generated, maxsplit=1)[0].strip()


def vqa_accuracy(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> np.ndarray:
    """(N,) float64 in [0, 1]: prediction i against the answers that people gave to question i.

    Raises UserError if their numbers differ, or a question has fewer than 4 answers (nothing could then be fully right).
    """
    if len(predictions) != len(answers):
        raise UserError(f"{len(predictions)} predictions cannot be scored against {len(answers)} lists of answers: give one list per prediction.")
    return np.array([_accuracy(p, a) for p, a in zip(predictions, answers, strict=True)], np.float64)


def _accuracy(prediction: str, answers: Sequence[str]) -> float:
    n = len(answers)
    if n < 4:
        raise UserError(f"VQA accuracy needs the answers of at least 4 people to each question, got {n}.")
    wanted = normalise(prediction)
    m = sum(normalise(answer) == wanted for answer in answers)
    return (m * min((m - 1) / 3, 1) + (n - m) * min(m / 3, 1)) / n if m else 0.0
