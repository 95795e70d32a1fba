"""The class that an attacker wants to be seen: how it is said in a caption, and whether a caption speaks of it. No
torch, no pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product

from shared.data.language import SYNONYMS, article, plural, words
from shared.data.scene_sets import SETS
from shared.errors import UserError

CHUNK = 1024  # pairs that are read at a time


@dataclass(frozen=True)
class Target:
    """name: of the class, as in the data set. phrase: what fills a template. forms: ways to name it, each one or more
    words in this order.

    Raises UserError where the phrase or a form has no word in it, or there is no form.
    """

    name: str
    phrase: str
    forms: tuple[str, ...]

    def __post_init__(self):
        if not words(self.phrase) or not self.forms or not all(words(form) for form in self.forms):
            raise UserError(
                f"the target class {self.name!r} has the phrase {self.phrase!r} and the forms {list(self.forms)}: each "
                "needs a word."
            )

    def named_in(self, text: str) -> bool:
        """Whether the text holds one of the forms, as whole words next to each other; case and punctuation do not
        matter."""
        said = _apart(text)
        return any(form in said for form in self._said)

    @cached_property
    def _said(self) -> tuple[str, ...]:
        return tuple(map(_apart, self.forms))

    def say(self, template: str) -> str:
        """A template ("a photo of {}") filled with the phrase."""
        return template.format(self.phrase)


@lru_cache(1 << 15)  # each of many classes is searched for in the same captions
def _apart(text: str) -> str:
    return f" {' '.join(words(text))} "


def target(name: str, phrase: str | None = None, forms: Sequence[str] | None = None) -> Target:
    """A class by its name. phrase: by default the name with its article; forms: by default the name in singular and
    plural."""
    if not words(name):
        raise UserError(f"the target class {name!r} has no word in its name: give one of the classes.")
    return Target(
        name, article(name) if phrase is None else phrase, (name, plural(name)) if forms is None else tuple(forms)
    )


def scene_target(space: str, name: str) -> Target:
    """Class `name` of the scenes set `space`: the phrase of its prompt, and as forms every choice of synonyms, shapes
    also in plural.

    Raises UserError for a set or class that is not there.
    """
    if space not in SETS:
        raise UserError(f"there is no scenes set {space!r}: choose one of {', '.join(SETS)}.")
    combos = {SETS[space].name(combo): combo for combo in SETS[space].combos()}
    if name not in combos:
        raise UserError(f"the scenes set {space!r} has no class {name!r}: choose one of {', '.join(combos)}.")
    before, _, after = SETS[space].template.partition("{}")
    phrase = SETS[space].prompt(combos[name]).removeprefix(before).removesuffix(after)
    attributes = SETS[space].attributes
    if attributes == ("background",):
        return Target(name, phrase, tuple(f"{word} background" for word in SYNONYMS.get(name, (name,))))
    if attributes == ("position",):  # the word alone also says where a second object is
        return Target(name, phrase, (phrase.partition(" object ")[2],))
    options = [SYNONYMS.get(word, (word,)) for word in name.split()]
    if attributes[-1] == "shape":
        options[-1] = tuple(form for word in options[-1] for form in (word, plural(word)))
    return Target(name, phrase, tuple(" ".join(choice) for choice in product(*options)))


def captions_of(pairs, indices: Sequence[int]) -> list[str]:
    """Captions of pairs, without their pictures where the set can give them alone (a method `captions(indices)`)."""
    if hasattr(pairs, "captions"):
        return pairs.captions(indices)
    return [text for k in range(0, len(indices), CHUNK) for text in pairs.__getitems__(indices[k : k + CHUNK])[1]]


def naming(pairs, targets: Sequence[Target], scan: int | None = None) -> list[list[int]]:
    """For each target the pairs whose caption names it, ascending; among the first `scan` pairs (None: all)."""
    found: list[list[int]] = [[] for _ in targets]
    for i, text in enumerate(captions_of(pairs, range(len(pairs))[:scan])):
        for target, indices in zip(targets, found, strict=True):
            if target.named_in(text):
                indices.append(i)
    return found
