"""One text where a list belongs, and what is no text, are said; no metric scores the letters of a word."""

import pytest

from shared.errors import UserError
from shared.metrics.captions import Cider
from shared.metrics.vqa import vqa_accuracy

REFERENCES = [["a red cat on a mat"], ["two blue dogs in a field"], ["a man with a hat"]]


@pytest.mark.parametrize(
    ("said", "known", "message"),
    [
        ("abc", REFERENCES, r"'abc' stands where a list of texts belongs"),
        (["a", "b", "c"], ["one", "two", "six"], r"stands where a list of texts belongs"),
        (["a", None, "c"], REFERENCES, r"None is a NoneType and no text"),
        (["a", "b", "c"], [["a"], ["b"], [7]], r"7 is a int and no text"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(said, known, message):
    with pytest.raises(UserError, match=message):
        Cider(REFERENCES).score(said, known)
    with pytest.raises(UserError, match=message):
        vqa_accuracy(said, [texts * 4 for texts in known])


def test_a_corpus_of_texts_alone_is_refused():
    with pytest.raises(UserError, match="put it in a list of its own"):
        Cider(["a red cat", "a blue dog"])
