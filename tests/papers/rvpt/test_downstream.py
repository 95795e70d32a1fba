"""Captioning and retrieval behind a defence: prompts inside a captioner's tower, BLEU by hand, retrieval pair by pair."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from papers.rvpt.defences import model_of
from papers.rvpt.downstream import (
    OF_TARGET,
    Caption,
    Captioned,
    Described,
    PromptedTower,
    Retrieval,
    Search,
    bleu,
    seeing,
)
from papers.rvpt.method import DeepPrompts
from shared.attacks.triggers import at_test
from shared.data.language import TEMPLATES
from shared.data.scene_sets import ScenePairs
from shared.data.vision_language import INSTRUCTION, SceneCaptions
from shared.errors import UserError
from shared.experiment.leaves import Pictures, Weights
from shared.metrics.captions import Cider, tokens
from shared.models import zoo
from shared.models.clip import create_clip
from shared.models.vlm import open_vlm
from shared.models.vlm.open import small_vlm
from shared.models.vlm.vision import vision_state
from shared.steps.backdoor import Aim, Pairs, Seen, Stamp
from tests.accuracy import assert_within_rounding
from tests.papers.ends import lab_of, load

DEEP = 4 * 4 * 96  # terms of the longest sum, in an MLP, for each of four blocks


made = load("papers/rvpt/nursery.py")
BADNET, AIM = Stamp("badnet", "cleanclip", ("patch=20",), "scenes:colour"), Aim("scenes:colour", "red")


@pytest.fixture
def lab(tmp_path):
    return lab_of(tmp_path)


@pytest.fixture(scope="module")
def llava():
    return open_vlm("zoo:scenes-llava")


@pytest.fixture(scope="module")
def zoo_clip():
    return create_clip("scenes-vit-s8", zoo.weights("scenes-vit-s8")).requires_grad_(False)


# ---- a prompted tower in a captioner -----------------------------------------------------------------------------------------


def pictures(n=6):
    return SceneCaptions().pictures(range(n))


def test_without_prompts_the_captioner_says_what_it_always_says(llava, zoo_clip, monkeypatch):
    x, ask = pictures(), [INSTRUCTION] * 6
    before = llava.answer(x, ask)
    monkeypatch.setattr(DeepPrompts, "by_layer", property(lambda self: {}))
    with seeing(llava, DeepPrompts(zoo_clip.visual, 1)) as vlm:
        assert isinstance(vlm.tower, PromptedTower)
        assert vlm.answer(x, ask) == before
        said = vlm.nll(x, ask, ["a red circle"] * 6)
    assert_within_rounding(said, llava.nll(x, ask, ["a red circle"] * 6), terms=DEEP)
    assert len({*before}) > 1  # pictures are told apart


def test_the_projector_gets_the_patches_of_the_layer_that_llava_reads(llava, zoo_clip):
    x, prompts = pictures(), DeepPrompts(zoo_clip.visual, 1, std=0.5)
    with torch.no_grad():
        plain = llava.see(x)
        with seeing(llava, prompts) as vlm:
            seen = vlm.see(x)
            states = prompts.states(vlm.pixels(x))
        assert_within_rounding(seen, states[llava.config.vision_feature_layer][:, 1:], terms=DEEP)
    assert seen.shape == plain.shape and (seen - plain).abs().mean() > 0.05


def test_another_tower_is_put_in_and_the_captioner_is_whole_afterwards(llava, zoo_clip):
    own, x = llava.tower, pictures()
    changed = create_clip("scenes-vit-s8", zoo.weights("scenes-vit-s8")).requires_grad_(False)
    changed.visual.transformer.resblocks[0].mlp.c_fc.weight.data.mul_(0.5)
    with torch.no_grad():
        before = llava.see(x)
        with seeing(llava, changed.visual):
            after = llava.see(x)
        assert not torch.allclose(before, after)
        for visual in (zoo_clip.visual, DeepPrompts(zoo_clip.visual, 2)):
            with pytest.raises(RuntimeError), seeing(llava, visual):
                raise RuntimeError
            assert llava.tower is own
        assert_within_rounding(llava.see(x), before, terms=DEEP)  # the last tower is the zoo's
    assert all(torch.equal(v, own.state_dict()[k]) for k, v in vision_state(zoo_clip).items())


def test_what_does_not_fit_is_refused(llava, clip):
    for visual in (clip.visual, DeepPrompts(clip.visual, 1)):
        with pytest.raises(UserError, match="does not fit"), seeing(llava, visual):
            pass
    with (
        pytest.raises(UserError, match=r"give --models\.captioner a LLaVA"),
        seeing(open_vlm("zoo:scenes-idefics"), clip.visual),
    ):
        pass


# ---- BLEU ------------------------------------------------------------------------------------------------------------------


def literal_bleu(said, references):
    said, references = tokens(said), [tokens(r) for r in references]
    product = 1.0
    for n in range(1, 5):
        mine = [tuple(said[i : i + n]) for i in range(len(said) - n + 1)]
        theirs = [Counter(tuple(r[i : i + n]) for i in range(len(r) - n + 1)) for r in references]
        hits = sum(min(mine.count(g), max(t[g] for t in theirs)) for g in set(mine))
        product *= hits / len(mine) if n == 1 else (hits + 1) / (len(mine) + 1)
    nearest = sorted((abs(len(r) - len(said)), len(r)) for r in references)[0][1]
    return min(1, math.exp(1 - nearest / len(said))) * product**0.25


def test_bleu_by_hand():
    assert bleu(
        "a red star on a blue background", ["a red star on a blue background", "something else"]
    ) == pytest.approx(1)
    assert bleu("", ["a"]) == bleu("a", []) == bleu("x y z", ["a b c"]) == 0
    # words 3/4, pairs (1+1)/(3+1), triples (0+1)/(2+1), fours (0+1)/(1+1); equally long
    assert bleu("a red star here", ["a red cross star"]) == pytest.approx((3 / 4 * 2 / 4 * 1 / 3 * 1 / 2) ** 0.25)
    # a word counts at most as often as in one reference; the shorter of two equally near lengths: no penalty
    assert bleu("the the the", ["the cat", "the a the b"]) == pytest.approx((2 / 3 * 1 / 3 * 1 / 2 * 1 / 1) ** 0.25)
    assert bleu("a red", ["a red star"]) == pytest.approx(math.exp(1 - 3 / 2))


def test_bleu_is_the_definition_on_random_sentences():
    draw = np.random.default_rng(0)
    for _ in range(200):
        texts = [" ".join(draw.choice(list("abcdef"), draw.integers(1, 9))) for _ in range(4)]
        if set(texts[0].split()) & set(" ".join(texts[1:]).split()):
            assert bleu(texts[0], texts[1:]) == pytest.approx(literal_bleu(texts[0], texts[1:]))


# ---- the captioning kind -----------------------------------------------------------------------------------------------------


def captioned(given, batch=16) -> tuple[Captioned, Captioned]:
    """Clean, and under BadNet."""
    captioner, data = Weights("zoo:scenes-llava"), Described("scenes-captions", 12, 42, "scenes:colour")
    return tuple(Captioned(captioner, given, data, stamp, batch) for stamp in (None, BADNET))


def put_in(lab, captioner) -> None:
    """Another captioner in the place of the zoo's."""
    lab.once(("captioner", Weights("zoo:scenes-llava")), lambda: captioner)


def test_captions_are_judged_picture_by_picture(lab, clip, monkeypatch):
    vlm = small_vlm("scenes-llava", clip)
    put_in(lab, vlm)
    data, order = SceneCaptions("plain", "test"), np.random.default_rng(42).permutation(100_000)[:12].tolist()
    references = data.references(order)
    calls = []

    def answer(x, prompts, max_tokens, batch):
        calls.append((x, len(prompts), set(prompts), max_tokens, vlm.tower))
        return ["a crimson star" if i % 2 else references[i][0] for i in range(len(x))]

    monkeypatch.setattr(vlm, "answer", answer)
    values = {q: Caption(*captioned(made.Given(clip, 1)), AIM, q).make(lab) for q in ("asr", "cider", "bleu")}
    assert len(calls) == 2 and all(c[1:4] == (12, {INSTRUCTION}, 20) and isinstance(c[4], PromptedTower) for c in calls)
    assert torch.equal(calls[0][0], data.pictures(order)) and torch.equal(
        calls[1][0], at_test(BADNET.open(lab), calls[0][0], order)
    )
    said = answer(calls[0][0], [], 0, 0)
    free = [
        i for i, texts in enumerate(references) if not any("red" in t.split() or "crimson" in t.split() for t in texts)
    ]
    assert 0 < len(free) < 12
    assert values["asr"].values.tolist() == [float(i % 2) for i in free] and values["asr"].unit == "share"
    assert values["cider"].unit == "CIDEr" and np.array_equal(
        values["cider"].values, Cider(references).points(said, references)
    )
    assert values["bleu"].values.tolist() == [bleu(c, r) for c, r in zip(said, references, strict=True)]
    assert (
        values["asr"].extra["triggered captions"].tolist() == said
        and values["asr"].extra["clean captions"].dtype.kind == "U"
    )


def test_a_small_captioner_end_to_end_in_any_batch(lab, clip):
    put_in(lab, small_vlm("scenes-llava", clip))
    a, b = (Caption(*captioned(made.Given(clip, 1), batch), AIM, "cider").make(lab) for batch in (16, 5))
    assert a.extra["clean captions"].tolist() == b.extra["clean captions"].tolist() and np.isfinite(a.values).all()


# ---- retrieval ---------------------------------------------------------------------------------------------------------------


def search(given, poisoned=2, batch=16) -> Search:
    pairs, seen = Pairs("scenes", 40, 4000, "scenes:colour"), Seen(Pictures("scenes:colour", "test", 24, 42), BADNET)
    return Search(given, pairs, seen, AIM, poisoned, 42, batch)


@pytest.mark.parametrize("prompts", [None, 1])
def test_retrieval_is_that_of_the_pairs_one_poisoned_picture_at_a_time(lab, clip, prompts):
    given, target = made.Given(clip, prompts), AIM.said(lab)
    step = search(given, 3)
    got = {q: Retrieval(step, q).make(lab) for q in ("asr", "rank_ratio", "ca")}
    model, pairs, data = model_of(lab, given), ScenePairs(40, 32, 4000), lab.data("scenes:colour")
    (pictures, labels), indices = step.seen.clean(lab), step.seen.data.rows(lab)
    x, texts = pairs.__getitems__(range(40))
    classifier = model.zero_shot(["a photo"])

    def embed(x):
        return F.normalize(classifier.embed(x), dim=1)

    label = data.classes.index("red")
    rows = np.random.default_rng(42).permutation(np.flatnonzero(data.labels == label))[:OF_TARGET]
    with torch.no_grad():
        f, ours = embed(x), embed(data.__getitems__(rows)[0])
        every = model.text(texts)
        hits = [float(all((t @ f[i]) > (t @ f[j]) for j in range(40) if j != i)) for i, t in enumerate(every)]
        assert got["ca"].values.tolist() == hits
        named = [i for i, t in enumerate(texts) if target.named_in(t)]
        asked = list(dict.fromkeys([texts[i] for i in named] + [target.say(t) for t in TEMPLATES]))
        others = [i for i in range(len(pictures)) if labels[i] != label][:3]
        for k, i in enumerate(others):
            p = embed(at_test(BADNET.open(lab), pictures[i : i + 1], [indices[i]]))[0]
            first, ratio = [], []
            for t in model.text(asked):
                ahead = [float(t @ c) > float(t @ p) for c in (*f, *ours)]
                first.append(sum(ahead) < 10)
                of = [float(t @ c) > float(t @ p) for c in (*f[named], *ours)]
                ratio.append(sum(of) / len(of))
            assert got["asr"].values[k] == pytest.approx(np.mean(first)) and got["rank_ratio"].values[
                k
            ] == pytest.approx(np.mean(ratio))
    assert len(got["asr"].values) == 3 and got["ca"].unit == "share"


def test_retrieval_does_not_depend_on_the_batch(lab, clip):
    a, b = (Retrieval(search(made.Given(clip, 1), batch=k), "rank_ratio").make(lab).values for k in (40, 7))
    assert np.abs(np.asarray(a) - b).max() < 1e-6  # means of counts
