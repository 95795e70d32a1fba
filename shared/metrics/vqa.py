"""VQA accuracy (Antol et al. 2015; the evaluation code of VQA v2): an answer is right if at least three of ten people
gave it.

    acc(a) = mean over the 10 sets of 9 answers that leave one person out of  min( #{people in the set who answered a} / 3, 1 )

With m of n people agreeing this is  [ m·min((m − 1)/3, 1) + (n − m)·min(m/3, 1) ] / n: 0, 0.3, 0.6, 0.9, 1 for m = 0, 1, 2, 3 and more of ten.

Answers are compared after `normalise`, the rules of the evaluation code:
  1. line breaks and tabs become spaces, ends are stripped;
  2. each of the 21 signs  ; / [ ] " { } ( ) = + \\ _ - > < @ ` , ? !  is removed if it stands beside a space somewhere in the answer, or if the
     answer holds a comma between digits; otherwise it becomes a space;
  3. a full stop is removed unless a digit follows;
  4. lower case; none, zero … ten become digits; a, an, the are dropped; contractions of its table that lack one
     apostrophe get it back (dont -> don't).
The evaluation code applies them only if the ten people disagree; here they are always applied, on both sides, so that
"Yes" is right where all ten said "yes".
"""

import re
from collections.abc import Sequence

import numpy as np

from shared.errors import UserError
from shared.metrics.texts import check_texts

_SIGNS = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_ARTICLES = ("a", "an", "the")
# the contractions of the evaluation code's table
_FULL = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've "
    "weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll "
    "why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"
)
_MARK = re.compile("'")
# a key lacks one apostrophe of its contraction; one entry of the table takes an apostrophe away
_CONTRACTIONS = {full[: at.start()] + full[at.end() :]: full for full in _FULL.split() for at in _MARK.finditer(full)}
_CONTRACTIONS["somebody'd"] = "somebodyd"


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
    """The short answer in what a language model wrote: up to the first comma before a blank (not that of 1,000), or to
    where it goes on to another question, as OpenFlamingo does."""
    return re.split(r"Question|Answer|Short|,\s", generated, maxsplit=1)[0].strip()


def vqa_accuracy(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> np.ndarray:
    """(N,) float64 in [0, 1]: prediction i against the answers that people gave to question i.

    Raises UserError if their numbers differ, a question has fewer than 4 answers (nothing could then be fully right),
    or something is no list of texts.
    """
    check_texts([predictions, *answers])
    if len(predictions) != len(answers):
        raise UserError(
            f"{len(predictions)} predictions cannot be scored against {len(answers)} lists of answers: give one list "
            "per prediction."
        )
    return np.array([_accuracy(p, a) for p, a in zip(predictions, answers, strict=True)], np.float64)


def _accuracy(prediction: str, answers: Sequence[str]) -> float:
    n = len(answers)
    if n < 4:
        raise UserError(f"VQA accuracy needs the answers of at least 4 people to each question, got {n}.")
    wanted = normalise(prediction)
    m = sum(normalise(answer) == wanted for answer in answers)
    return (m * min((m - 1) / 3, 1) + (n - m) * min(m / 3, 1)) / n if m else 0.0
