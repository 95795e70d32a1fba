"""Sentences about scenes: captions from a small grammar with synonyms, full descriptions, and questions with one-word
answers.

All are pure functions of (seed, index), like the pictures of `shared.data.scenes`. `VOCABULARY` lists every word that
can occur, so that a small text tower needs only a small embedding.
"""

from itertools import pairwise

import numpy as np
import regex

from shared.data.scenes import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    POSITIONS,
    SHAPES,
    SIZES,
    SURFACES,
    Scenes,
    uniforms,
)

SYNONYMS = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross", "plus"),
    "ring": ("ring", "hoop"),
    "heart": ("heart",),
    "moon": ("moon", "crescent"),
    "red": ("red", "crimson"),
    "green": ("green",),
    "blue": ("blue",),
    "yellow": ("yellow",),
    "purple": ("purple", "violet"),
    "orange": ("orange",),
    "cyan": ("cyan", "turquoise"),
    "pink": ("pink",),
    "plain": ("plain", "solid"),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted"),
    "checkered": ("checkered", "chequered"),
    "small": ("small", "little"),
    "medium": ("medium", "mid-sized"),
    "large": ("large", "big"),
    "grey": ("grey", "gray"),
}
TEMPLATES = ("a photo of {}", "a picture of {}", "an image of {}", "this is {}", "there is {}", "{}")
_PLACES = {
    "left": ("on the left", "at the left"),
    "right": ("on the right", "at the right"),
    "top": ("at the top", "near the top"),
    "bottom": ("at the bottom", "near the bottom"),
    "centre": ("in the centre", "in the middle"),
}
_GROUNDS = ("on a {} background", "against a {} background")
_NOUNS = ("object", "thing", "shape")


class _Dice:
    """A row of uniform numbers used up one by one, so that a sentence is a function of its own row only."""

    def __init__(self, row: np.ndarray):
        self._row = iter(row.tolist())

    def chance(self, p: float) -> bool:
        return next(self._row) < p

    def pick(self, options):
        return options[int(next(self._row) * len(options))]

    def word(self, name: str, varied: float = 0.3) -> str:
        # the plain word most of the time: synonyms must be learnt, but prompts use the plain one
        options = SYNONYMS.get(name, (name,))
        return self.pick(options) if self.chance(varied) else options[0]


def article(phrase: str) -> str:
    """'a' or 'an' before `phrase`."""
    return ("an " if phrase[0] in "aeio" else "a ") + phrase


def plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(("s", "x")) else "s")


def _phrase(dice: _Dice, s: Scenes, i: int, k: int, size: bool, rich: float) -> str:
    words = []
    if size and dice.chance(0.5 * rich):
        words.append(dice.word(SIZES[s.size[i]]))
    if dice.chance(0.6 * rich):
        words.append(dice.word(SURFACES[s.surface[i, k]]))
    if dice.chance(0.8 * rich):
        words.append(dice.word(COLOURS[s.colour[i, k]]))
    words.append(dice.word(SHAPES[s.shape[i, k]]) if dice.chance(0.85) or not words else dice.pick(_NOUNS))
    return " ".join(words)


def captions(s: Scenes, seed: int, indices) -> list[str]:
    """N captions. Each names a random part of what is to be seen; what it names is true."""
    rows = uniforms(seed, np.asarray(indices, np.int64), 32, 40)
    return [_caption(_Dice(rows[i]), s, i) for i in range(len(s))]


def _caption(dice: _Dice, s: Scenes, i: int) -> str:
    if s.kind[i] == 0:
        body = article(_phrase(dice, s, i, 0, True, 1.0))
        if dice.chance(0.1):
            body = "one " + body.split(" ", 1)[1]
        if s.size[i] < 2 and dice.chance(0.35):  # a large object fills the picture: its position says little
            body += " " + dice.pick(_PLACES[POSITIONS[s.position[i]]])
    elif s.kind[i] == 1:
        *rest, noun = _phrase(dice, s, i, 0, False, 0.7).split(" ")
        body = " ".join([COUNTS[s.n_objects[i] - 1], *rest, plural(noun)])
    else:
        first, second = (article(_phrase(dice, s, i, k, False, 0.9)) for k in (0, 1))
        body = f"{first} to the left of {second}" if dice.chance(0.3) else f"{first} and {second}"
    if dice.chance(0.3):
        body += " " + dice.pick(_GROUNDS).format(dice.word(BACKGROUNDS[s.background[i]]))
    return dice.pick(TEMPLATES).format(body)


def descriptions(s: Scenes, seed: int, indices, k: int = 5) -> list[list[str]]:
    """k full captions for each of N scenes: references to score a captioner with. The first j of k are those of k = j.

    Unlike `captions`, each names the colour and the shape of every object, and how many there are; the background
    mostly; the size or the surface often. The plain word far more often than a synonym.
    """
    rows = uniforms(seed, np.asarray(indices, np.int64), 34, _DICE * k)
    return [[_description(_Dice(rows[i, _DICE * j : _DICE * (j + 1)]), s, i) for j in range(k)] for i in range(len(s))]


_DICE = 16  # numbers for one description, enough for the longest


def _description(dice: _Dice, s: Scenes, i: int) -> str:
    def words_of(k: int, detail: bool) -> str:
        named = [dice.word(SIZES[s.size[i]], 0.1)] if detail and s.kind[i] == 0 and dice.chance(0.6) else []
        if detail and dice.chance(0.3):
            named.append(dice.word(SURFACES[s.surface[i, k]], 0.1))
        return " ".join([*named, dice.word(COLOURS[s.colour[i, k]], 0.1), dice.word(SHAPES[s.shape[i, k]], 0.1)])

    if s.kind[i] == 0:
        body = article(words_of(0, True))
    elif s.kind[i] == 1:
        *rest, noun = words_of(0, True).split(" ")
        body = " ".join([COUNTS[s.n_objects[i] - 1], *rest, plural(noun)])
    else:
        body = (
            article(words_of(0, False))
            + (" to the left of " if dice.chance(0.2) else " and ")
            + article(words_of(1, False))
        )
    if dice.chance(0.7):
        body += (
            " on" if dice.chance(0.85) else " against"
        ) + f" a {dice.word(BACKGROUNDS[s.background[i]], 0.1)} background"
    return ("there are " if s.kind[i] == 1 else "there is ") + body if dice.chance(0.1) else body


_QUESTIONS = {
    "shape": "what shape is it",
    "colour": "what colour is the {shape}",
    "surface": "what surface does the {shape} have",
    "size": "how big is the {shape}",
    "position": "where is the {shape}",
    "background": "what colour is the background",
    "count": "how many objects are there",
    "yes-no": "is there {guess}",
}


def questions(s: Scenes, seed: int, indices) -> list[tuple[str, str]]:
    """N pairs (question, answer). Answers are one word: a value of ATTRIBUTES, or yes / no.

    Yes/no questions are right half of the time. Size and position are asked of single objects only.
    """
    rows = uniforms(seed, np.asarray(indices, np.int64), 33, 8)
    pairs = []
    for i in range(len(s)):
        dice = _Dice(rows[i])
        kinds = ["background", "count", "yes-no"]
        kinds += {
            0: ["shape", "colour", "surface", "size", *(["position"] if s.size[i] < 2 else [])],
            1: ["shape", "colour", "surface"],
            2: ["colour", "surface"],
        }[int(s.kind[i])]
        kind = dice.pick(kinds)
        shape = SHAPES[s.shape[i, 0]]
        if kind == "yes-no":
            true = dice.chance(0.5)
            # another colour makes it wrong: if there is a second object of another colour, it is also of another shape
            colour = (s.colour[i, 0] + (0 if true else 1 + dice.pick(range(len(COLOURS) - 1)))) % len(COLOURS)
            pairs.append(
                (_QUESTIONS[kind].format(guess=article(f"{COLOURS[colour]} {shape}")), "yes" if true else "no")
            )
            continue
        noun = plural(shape) if s.kind[i] == 1 else shape
        text = _QUESTIONS[kind].format(shape=noun)
        if s.kind[i] == 1:
            text = (
                text.replace("what shape is it", "what shape are they")
                .replace(" is the " + noun, " are the " + noun)
                .replace("does", "do")
            )
        pairs.append((text, ATTRIBUTES[kind][s.values(kind)[i]]))
    return pairs


def objects(s: Scenes, i: int) -> set[tuple[str, str]]:
    """What scene i holds, as (colour, shape)."""
    return {(COLOURS[s.colour[i, k]], SHAPES[s.shape[i, k]]) for k in range(s.n_objects[i])}


def named_objects(text: str) -> set[tuple[str, str]]:
    """What a sentence speaks of, as (colour, shape): every pair of a colour and a shape that follow each other,
    synonyms and plurals understood."""
    said = words(text)
    return {(_COLOUR_OF[a], _SHAPE_OF[b]) for a, b in pairwise(said) if a in _COLOUR_OF and b in _SHAPE_OF}


_COLOUR_OF = {word: name for name in COLOURS for word in SYNONYMS[name]}
_SHAPE_OF = {form: name for name in SHAPES for word in SYNONYMS[name] for form in (word, plural(word))}


def words(text: str) -> list[str]:
    """Lower-case words of a text: letters with their marks, and digits, of any script.

    Punctuation is dropped; hyphens and apostrophes inside a word stay.
    """
    return regex.findall(r"[\p{L}\p{M}\p{N}]+(?:[-'’][\p{L}\p{M}\p{N}]+)*", text.lower())


def _vocabulary() -> tuple[str, ...]:
    found = {w for options in SYNONYMS.values() for o in options for w in (o, plural(o))}
    found |= (
        {v for values in ATTRIBUTES.values() for v in values}
        | {plural(v) for v in SHAPES}
        | set(_NOUNS)
        | {plural(n) for n in _NOUNS}
    )
    texts = [
        *TEMPLATES,
        *_GROUNDS,
        *(p for places in _PLACES.values() for p in places),
        *_QUESTIONS.values(),
        "and to the left of",
        "are they do",
        "yes no",
        "one",
        "an outline drawing of gray photograph rotated cluttered blurry tiny textured",
    ]
    found |= {w for t in texts for w in words(t.replace("{shape}", "").replace("{guess}", "").replace("{}", ""))}
    return tuple(sorted(found))


VOCABULARY = _vocabulary()
