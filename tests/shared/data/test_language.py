"""Captions and questions read back: a small parser of its own checks that everything they say is true."""

import re

import numpy as np
import pytest

from shared.data.language import (
    SYNONYMS,
    TEMPLATES,
    VOCABULARY,
    article,
    captions,
    descriptions,
    named_objects,
    objects,
    plural,
    questions,
    words,
)
from shared.data.scenes import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    POSITIONS,
    SHAPES,
    SIZES,
    SURFACES,
    Domain,
    sample,
)

N = 3000
PLAIN_WORD = {option: name for name, options in SYNONYMS.items() for option in options}
OPENINGS = ("a photo of ", "a picture of ", "an image of ", "this is ", "there is ", "")
PLACES = {
    "on the left": "left",
    "at the left": "left",
    "on the right": "right",
    "at the right": "right",
    "at the top": "top",
    "near the top": "top",
    "at the bottom": "bottom",
    "near the bottom": "bottom",
    "in the centre": "centre",
    "in the middle": "centre",
}
NOUNS = ("object", "thing", "shape")


@pytest.fixture(scope="module")
def world():
    s = sample(21, np.arange(N))
    return s, captions(s, 21, np.arange(N)), questions(s, 21, np.arange(N))


def plain(word: str) -> str:
    return PLAIN_WORD.get(word, word)


def singular(word: str) -> str:
    singulars = {plural(w): w for w in (*NOUNS, *(o for name in SHAPES for o in SYNONYMS.get(name, (name,))))}
    return singulars[word]


def check_phrase(phrase: list[str], s, i: int, k: int) -> None:
    """Adjectives in the order size, surface, colour and a noun, each true of object k of scene i."""
    *adjectives, noun = map(plain, phrase)
    order = []
    for word in adjectives:
        kind = next(j for j, values in enumerate((SIZES, SURFACES, COLOURS)) if word in values)
        assert word == (SIZES[s.size[i]], SURFACES[s.surface[i, k]], COLOURS[s.colour[i, k]])[kind]
        order.append(kind)
    assert order == sorted(set(order))
    assert noun in NOUNS or noun == SHAPES[s.shape[i, k]]
    assert adjectives or noun not in NOUNS  # "a thing" would say nothing


def without_article(text: str) -> list[str]:
    first, *rest = text.split()
    assert first == "one" or first == ("an" if rest[0][0] in "aeiou" else "a")
    return rest


def check(text: str, s, i: int) -> None:
    body = text.removeprefix(next(o for o in OPENINGS if text.startswith(o)))
    ground = re.search(r" (?:on|against) a (\S+) background$", body)
    if ground:
        assert plain(ground[1]) == BACKGROUNDS[s.background[i]]
        body = body[: ground.start()]
    for words_, place in PLACES.items():
        if body.endswith(" " + words_):
            assert s.kind[i] == 0 and place == POSITIONS[s.position[i]]
            body = body.removesuffix(" " + words_)
    if s.kind[i] == 2:
        first, second = re.split(" to the left of | and ", body)
        assert " to the left of " not in body or s.cx[i, 0] < s.cx[i, 1]
        check_phrase(without_article(first), s, i, 0)
        check_phrase(without_article(second), s, i, 1)
    elif s.kind[i] == 1:
        number, *rest, noun = body.split()
        assert number == COUNTS[s.n_objects[i] - 1]
        check_phrase([*rest, singular(noun)], s, i, 0)
    else:
        check_phrase(without_article(body), s, i, 0)


def test_captions_only_say_what_is_true(world):
    s, texts, _ = world
    for i, text in enumerate(texts):
        check(text, s, i)


def test_the_check_notices_a_wrong_word(world):
    """The parser above can fail: a caption is wrong about a scene that differs in all that it may name."""
    s, texts, _ = world
    for i in range(200):
        j = next(j for j in range(N) if differs(s, i, j))
        with pytest.raises(AssertionError):
            check(texts[i], s, j)


def differs(s, i, j) -> bool:
    """Whether scene j has as many objects as scene i and none of its other attributes."""
    objects = all((getattr(s, name)[i, :2] != getattr(s, name)[j, :2]).all() for name in ("shape", "colour", "surface"))
    whole = s.size[i] != s.size[j] and s.position[i] != s.position[j]
    return s.kind[i] == s.kind[j] and objects and (whole or s.kind[i] > 0) and s.background[i] != s.background[j]


def test_captions_use_all_templates_synonyms_and_values(world):
    _, texts, _ = world
    said = {w for t in texts for w in words(t)}
    assert {w for options in SYNONYMS.values() for w in options} <= said
    assert {v for values in ATTRIBUTES.values() for v in values} <= said
    assert tuple(o + "{}" for o in OPENINGS) == TEMPLATES
    for opening in OPENINGS[:-1]:
        assert sum(t.startswith(opening) for t in texts) > N / 10
    assert any(" to the left of " in t for t in texts) and any(t.split(" of ")[-1].startswith("one ") for t in texts)
    assert len(set(texts)) > 0.6 * N


def test_the_plain_word_is_the_common_one(world):
    _, texts, _ = world
    said = [w for t in texts for w in words(t)]
    for name, options in SYNONYMS.items():
        if len(options) == 2 and name not in ("plain", "grey"):
            assert said.count(options[0]) > 3 * said.count(options[1])


def test_every_word_is_in_the_vocabulary_and_texts_are_short(world):
    _, texts, pairs = world
    said = {w for t in texts for w in words(t)} | {w for pair in pairs for t in pair for w in words(t)}
    assert said <= set(VOCABULARY)
    assert len(set(VOCABULARY)) == len(VOCABULARY) and list(VOCABULARY) == sorted(VOCABULARY)
    assert max(len(words(t)) for t in texts) <= 22  # context of the small text tower, less start and end


def test_sentences_are_functions_of_seed_and_index(world):
    _, texts, pairs = world
    some = [5, 2999, 17]
    part = sample(21, some)
    assert captions(part, 21, some) == [texts[i] for i in some]
    assert questions(part, 21, some) == [pairs[i] for i in some]
    assert captions(sample(21, np.arange(50)), 22, np.arange(50)) != texts[:50]


@pytest.fixture(scope="module")
def described(world):
    return descriptions(world[0], 21, np.arange(N), 3)


def test_descriptions_are_true_and_name_colour_and_shape_of_every_object(world, described):
    s = world[0]
    for i, texts in enumerate(described):
        for text in texts:
            check(text.removeprefix("there are "), s, i)
            assert named_objects(text) == objects(s, i) != set()


def test_what_a_sentence_names():
    assert named_objects("There are three striped crimson boxes, and a red disc on a blue background.") == {
        ("red", "square"),
        ("red", "circle"),
    }
    assert (
        named_objects("a small star on a red background")
        == named_objects("")
        == named_objects("red, star") - {("red", "star")}
        == set()
    )
    s = sample(21, [0, 1])
    assert len(objects(s, 0)) == len({*zip(s.colour[0, : s.n_objects[0]], s.shape[0, : s.n_objects[0]], strict=True)})


def test_descriptions_vary_and_stay_short(described):
    flat = [t for texts in described for t in texts]
    said = {w for t in flat for w in words(t)}
    assert said <= set(VOCABULARY) and max(len(words(t)) for t in flat) <= 18
    assert {*SIZES, *SURFACES, *BACKGROUNDS, "and", "left", "against", "there"} <= said
    assert np.mean([len(set(texts)) > 1 for texts in described]) > 0.8
    for name, options in SYNONYMS.items():
        assert len(options) < 2 or 0 < sum(options[1] in t for t in flat) < 0.2 * sum(options[0] in t for t in flat), (
            name
        )


def test_descriptions_are_functions_of_seed_and_index_and_the_first_ones_do_not_depend_on_how_many(described):
    some = [5, 2999, 17]
    assert descriptions(sample(21, some), 21, some, 2) == [described[i][:2] for i in some]
    assert descriptions(sample(21, some), 22, some, 3) != [described[i] for i in some]


ASKED = {
    "shape": r"what shape (?:is it|are they)",
    "colour": r"what colour (?:is|are) the (?!background)\w+",
    "surface": r"what surface do(?:es)? the \w+ have",
    "size": r"how big is the \w+",
    "position": r"where is the \w+",
    "background": "what colour is the background",
    "count": "how many objects are there",
    "yes-no": r"is there an? \w+ \w+",
}


def test_answers_are_right(world):
    s, _, pairs = world
    asked = dict.fromkeys(ASKED, 0)
    for i, (question, answer) in enumerate(pairs):
        (kind,) = (k for k, pattern in ASKED.items() if re.fullmatch(pattern, question))
        asked[kind] += 1
        many = s.kind[i] == 1
        if kind == "yes-no":
            colour, shape = words(question)[-2:]
            present = {(COLOURS[s.colour[i, k]], SHAPES[s.shape[i, k]]) for k in range(s.n_objects[i])}
            assert answer == ("yes" if (colour, shape) in present else "no")
            assert f" {article(colour)} " in question
            continue
        assert (
            answer
            == ATTRIBUTES[kind][
                {
                    "count": s.n_objects - 1,
                    "background": s.background,
                    "size": s.size,
                    "position": s.position,
                    "shape": s.shape[:, 0],
                    "colour": s.colour[:, 0],
                    "surface": s.surface[:, 0],
                }[kind][i]
            ]
        )
        noun = re.search(r" the (\w+)", question)
        if noun and kind != "background":
            shape = SHAPES[s.shape[i, 0]]
            assert noun[1] == (plural(shape) if many else shape)
            assert bool(re.search(r"\b(are|do)\b", question)) == many
        if kind in ("size", "position"):
            assert s.kind[i] == 0 and (kind == "size" or s.size[i] < 2)
        if kind == "shape":
            assert s.kind[i] != 2  # which of the two?
    assert min(asked.values()) > N / 40


def test_yes_and_no_are_equally_often_right():
    n = np.arange(30_000)
    answers = [a for _, a in questions(sample(22, n), 22, n) if a in ("yes", "no")]
    assert len(answers) > 3000 and answers.count("yes") / len(answers) == pytest.approx(0.5, abs=0.03)


def test_questions_about_single_objects_only_name_one():
    n = np.arange(500)
    for question, answer in questions(sample(23, n, Domain(kinds=(1.0, 0.0, 0.0))), 23, n):
        assert question != "how many objects are there" or answer == "one"


def test_words_articles_and_plurals():
    assert words('A photo of: two mid-sized "Discs", isn\'t it?') == [
        "a",
        "photo",
        "of",
        "two",
        "mid-sized",
        "discs",
        "isn't",
        "it",
    ]
    assert words("un café, 2½ maßkrüge - ja; snake_case") == ["un", "café", "2½", "maßkrüge", "ja", "snake", "case"]
    assert words("") == []
    assert [article(w) for w in ("circle", "orange", "object", "image")] == [
        "a circle",
        "an orange",
        "an object",
        "an image",
    ]
    assert [plural(w) for w in ("circle", "cross", "box", "plus", "moon")] == [
        "circles",
        "crosses",
        "boxes",
        "pluses",
        "moons",
    ]
