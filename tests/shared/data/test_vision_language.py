"""The vision-language sets of the scenes world: pure functions of (set, split, index), disjoint splits, sentences that fit the pictures."""

import numpy as np
import pytest
import torch

from shared.data.catalogue import Source, open_vl
from shared.data.scenes import ATTRIBUTES, VL_DOMAINS
from shared.data.vision_language import CaptionSet, QuestionSet, SceneCaptions, SceneQuestions, fare_draw
from shared.errors import UserError

SPECS = [f"scenes-{kind}:{domain}" for kind in ("captions", "questions") for domain in VL_DOMAINS]


def text_of(data, indices):
    return (
        data.references(indices)
        if isinstance(data, CaptionSet)
        else list(zip(data.questions(indices), data.answers(indices), strict=True))
    )


@pytest.mark.parametrize("spec", SPECS)
def test_an_example_is_a_function_of_its_index(spec):
    data, again = (open_vl(spec, "test", Source()) for _ in range(2))
    indices = [41, 3, 99_999, 3]
    x, texts = data.pictures(indices), text_of(data, indices)
    assert x.shape == (4, 3, 32, 32) and x.dtype == torch.float32 and x.min() >= 0 and x.max() <= 1
    assert torch.equal(x[1], x[3]) and texts[1] == texts[3]
    for k, i in enumerate(indices):
        assert torch.equal(again.pictures([i])[0], x[k]) and text_of(again, [i]) == [texts[k]]
    assert len(data) == 100_000 and data.name == spec and data.version == again.version
    assert data.usable(indices) == indices and data.skipped == ()


def test_no_two_sets_or_splits_share_pictures():
    sets = [open_vl(spec, split, Source()) for spec in SPECS for split in ("train", "validation", "test")]
    assert len({data.version for data in sets}) == 12
    pictures = torch.cat([data.pictures(range(50)) for data in sets]).flatten(1)
    assert len(torch.unique(pictures, dim=0)) == 600


def test_references_and_prompt():
    data = SceneCaptions("plain", "test")
    references = data.references(range(200))
    assert all(len(r) == 5 for r in references) and np.mean([len(set(r)) for r in references]) > 3
    shapes, colours = data.scenes(range(200)).values("shape"), ATTRIBUTES["colour"]
    from shared.data.language import SYNONYMS

    for k, texts in enumerate(references):
        names = SYNONYMS[ATTRIBUTES["shape"][shapes[k]]]
        assert all(any(name in text for name in names) for text in texts)
        assert any(any(c in text for c in colours) for text in texts)
    assert data.prompt.strip()


def test_questions_have_ten_equal_answers():
    data = SceneQuestions("shifted", "test")
    assert isinstance(data, QuestionSet)
    asked, answers = data.questions(range(300)), data.answers(range(300))
    assert all(len(a) == 10 and len(set(a)) == 1 and " " not in a[0] for a in answers)
    background = [k for k, q in enumerate(asked) if q == "what colour is the background"]
    values = data.scenes(range(300)).values("background")
    assert len(background) > 20 and all(answers[k][0] == ATTRIBUTES["background"][values[k]] for k in background)


def test_the_version_follows_the_domain_and_the_grammar(monkeypatch):
    before = SceneCaptions("plain", "test").version
    assert before != SceneCaptions("shifted", "test").version
    import shared.data.vision_language as module

    monkeypatch.setattr(module, "descriptions", lambda *_: [["something else"] * 5] * 16)
    assert SceneCaptions("plain", "test").version != before


def test_mistakes_are_named():
    with pytest.raises(UserError, match=r"no set scenes-captions:odd .*plain or shifted"):
        open_vl("scenes-captions:odd", "test", Source())
    with pytest.raises(UserError, match="splits are train, validation, test"):
        open_vl("scenes-questions:plain", "val", Source())
    with pytest.raises(UserError, match=r"scenes-captions:plain, .*textvqa"):
        open_vl("scenes:shape", "test", Source())
    with pytest.raises(IndexError):
        SceneCaptions("plain", "test", n=10).pictures([10])
    with pytest.raises(IndexError):
        SceneQuestions("plain", "test", n=10).questions([-1])


def test_the_draw_of_500_is_numpys():
    draw = fare_draw(5000)
    assert draw == np.random.RandomState(42).permutation(5000)[:500].tolist() and len(set(draw)) == 500
    with pytest.raises(UserError, match="cannot be drawn"):
        fare_draw(100)
