"""What metrics of texts take: N texts, and N lists of texts that they are held against."""

from collections.abc import Iterable, Sequence
from itertools import chain

from shared.errors import UserError


def check_texts(lists: Iterable[Sequence[str]]) -> None:
    """Raise UserError unless these are lists of texts; one text is no list, though Python would take it for its
    letters."""
    lists = list(lists)
    alone = next((texts for texts in lists if isinstance(texts, str)), None)
    if alone is not None:
        raise UserError(f"{alone[:40]!r} stands where a list of texts belongs: put it in a list of its own.")
    other = next((text for text in chain.from_iterable(lists) if not isinstance(text, str)), "")
    if not isinstance(other, str):
        raise UserError(f"{str(other)[:40]} is a {type(other).__name__} and no text: give texts only.")
