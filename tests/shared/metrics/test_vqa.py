"""VQA accuracy by hand, and the rules by which answers are compared."""

import itertools

import numpy as np
import pytest

from shared.errors import UserError
from shared.metrics.vqa import first_answer, normalise, vqa_accuracy


@pytest.mark.parametrize("agree, expected", [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_accuracy_by_hand(agree, expected):
    """2 of 10: the two sets that leave one of them out give 1/3, the other eight 2/3: (2/3 + 16/3)/10 = 0.6."""
    people = ["red"] * agree + [f"other {k}" for k in range(10 - agree)]
    assert vqa_accuracy(["red"], [people])[0] == pytest.approx(expected)


def test_the_closed_form_is_the_mean_over_the_ten_subsets():
    for m in range(11):
        people = ["yes"] * m + ["no"] * (10 - m)
        subsets = itertools.combinations(people, 9)
        assert vqa_accuracy(["yes"], [people])[0] == pytest.approx(
            np.mean([min(s.count("yes") / 3, 1) for s in subsets])
        )


def test_answers_are_normalised_on_both_sides():
    assert vqa_accuracy(["The Two."], [["2"] * 10]).tolist() == [1.0]
    assert vqa_accuracy(["no", "Yes"], [["yes"] * 10] * 2).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    "given, compared",
    [
        ("A red bus", "red bus"),
        ("the  THE an", ""),
        ("three dogs", "3 dogs"),
        ("None", "0"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("what's that", "what's that"),
        ("were", "were"),
        ("blue/green", "blue green"),  # the sign stands between letters: a space
        ("blue / green", "blue green"),  # beside a space: removed
        ("t-shirt - red", "tshirt red"),  # … everywhere in the answer
        ("1,000", "1000"),
        ("5.5 ft.", "5.5 ft"),
        ("u.s.", "us"),
        ("line\nbreak\t", "line break"),
        ("yes!", "yes"),  # becomes a space at the end
    ],
)
def test_rules(given, compared):
    assert normalise(given) == compared
    assert normalise(normalise(given)) == normalise(given)


# the table of VQA v2's evaluation code (vqaEval.py, commit a013f00)
TABLE = """
aint>ain't arent>aren't cant>can't couldve>could've couldnt>couldn't couldn'tve>couldn't've couldnt've>couldn't've didnt>didn't
doesnt>doesn't dont>don't hadnt>hadn't hadnt've>hadn't've hadn'tve>hadn't've hasnt>hasn't havent>haven't hed>he'd hed've>he'd've
he'dve>he'd've hes>he's howd>how'd howll>how'll hows>how's Id've>I'd've I'dve>I'd've Im>I'm Ive>I've isnt>isn't itd>it'd itd've>it'd've
it'dve>it'd've itll>it'll let's>let's maam>ma'am mightnt>mightn't mightnt've>mightn't've mightn'tve>mightn't've mightve>might've
mustnt>mustn't mustve>must've neednt>needn't notve>not've oclock>o'clock oughtnt>oughtn't ow's'at>'ow's'at 'ows'at>'ow's'at 'ow'sat>'ow's'at
shant>shan't shed've>she'd've she'dve>she'd've she's>she's shouldve>should've shouldnt>shouldn't shouldnt've>shouldn't've
shouldn'tve>shouldn't've somebody'd>somebodyd somebodyd've>somebody'd've somebody'dve>somebody'd've somebodyll>somebody'll
somebodys>somebody's someoned>someone'd someoned've>someone'd've someone'dve>someone'd've someonell>someone'll someones>someone's
somethingd>something'd somethingd've>something'd've something'dve>something'd've somethingll>something'll thats>that's thered>there'd
thered've>there'd've there'dve>there'd've therere>there're theres>there's theyd>they'd theyd've>they'd've they'dve>they'd've theyll>they'll
theyre>they're theyve>they've twas>'twas wasnt>wasn't wed've>we'd've we'dve>we'd've weve>we've werent>weren't whatll>what'll whatre>what're
whats>what's whatve>what've whens>when's whered>where'd wheres>where's whereve>where've whod>who'd whod've>who'd've who'dve>who'd've
wholl>who'll whos>who's whove>who've whyll>why'll whyre>why're whys>why's wont>won't wouldve>would've wouldnt>wouldn't
wouldnt've>wouldn't've wouldn'tve>wouldn't've yall>y'all yall'll>y'all'll y'allll>y'all'll yall'd've>y'all'd've y'alld've>y'all'd've
y'all'dve>y'all'd've youd>you'd youd've>you'd've you'dve>you'd've youll>you'll youre>you're youve>you've
"""
PAIRS = [pair.split(">") for pair in TABLE.split()]


def test_contractions_are_those_of_the_evaluation_code():
    """Its keys Im, Ive, Id've and I'dve meet only words in lower case, and never match."""
    assert len(PAIRS) == 120
    for short, full in PAIRS:
        assert normalise(short) == (
            short if short == short.lower() == full else full if short == short.lower() else short.lower()
        )


@pytest.mark.parametrize(
    "word",
    [
        "wed",
        "shed",
        "hell",
        "ill",
        "its",
        "id",
        "were",
        "well",
        "dove",
        "cannot",
        "shell",
        "therell",
        "arentve",
        "couldntve",
    ],
)
def test_words_outside_the_table_stay(word):
    assert normalise(word) == word


@pytest.mark.parametrize(
    "text, truth",
    [
        ("1,000", "1,000"),
        ("1,000", "1000"),
        ("2,500,000 people", "2500000 people"),
        ("10,5", "10,5"),
        ("1,000, I think", "1,000"),
        (" 3,000 Question: why", "3000"),
    ],
)
def test_numbers_with_commas_are_whole(text, truth):
    assert vqa_accuracy([first_answer(text)], [[truth] * 10]).tolist() == [1.0]


@pytest.mark.parametrize(
    "text, short",
    [
        (" yes, it is", "yes"),
        ("red Question: what", "red"),
        ("blue\nShort answer: blue", "blue"),
        ("two", "two"),
        ("red,\nwhite", "red"),
        ("red,white", "red,white"),
        ("", ""),
    ],
)
def test_first_answer(text, short):
    assert first_answer(text) == short


def test_mistakes_are_named():
    with pytest.raises(UserError, match="1 predictions cannot be scored against 2"):
        vqa_accuracy(["a"], [["a"] * 10] * 2)
    with pytest.raises(UserError, match="at least 4 people"):
        vqa_accuracy(["a"], [["a"] * 3])
    assert vqa_accuracy([], []).shape == (0,)
