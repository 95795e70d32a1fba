"""The interface of vision-language models: transformers' own loss and generation, independence of the batch, gradients to the pixels."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F

from shared.data.language import VOCABULARY, words
from shared.data.vision_language import INSTRUCTION, SceneCaptions, SceneQuestions
from shared.errors import UserError
from shared.models import zoo
from shared.models.clip import create_clip, save_tensors
from shared.models.victim import ZeroShot, text_matrix
from shared.models.vlm import open_vlm
from shared.models.vlm.open import load_small, own_state, save_small, small_vlm
from shared.models.vlm.text import SMALL_VOCABULARY, STYLES, Style, Words
from shared.models.vlm.zero_shot import ZeroShotVLM
from tests.accuracy import assert_within_rounding

WIDEST = (
    4 * 4 * 96
)  # terms of the longest sum, in an MLP, for each of four blocks: transformers rounds in single precision, so there is no float64
PROMPTS = [INSTRUCTION, "what shape is it", "is there a red circle", "how many objects are there", INSTRUCTION]
TARGETS = ["a red circle on a white background", "star", "no", "two", "there are three dotted blue hearts"]


def random_vlm(name: str, clip):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        vlm = small_vlm(name, clip).requires_grad_(False)
        for (
            key,
            p,
        ) in (
            vlm.model.named_parameters()
        ):  # larger than at the start of a training, with open gates: the picture matters
            if "alpha" in key:
                p.fill_(0.7)
            elif not any(p is q for q in vlm.tower.parameters()) and p.ndim > 1:
                p.mul_(3)
    return vlm


@pytest.fixture(scope="module", params=["scenes-llava", "scenes-idefics"])
def vlm(request, small_clip):
    """A small model with random weights. Read only."""
    return random_vlm(request.param, small_clip)


@pytest.fixture(scope="module")
def x():
    return torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def transformers_inputs(vlm, x, ids):
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if vlm.name == "scenes-llava":
        return {**inputs, "pixel_values": vlm.pixels(x)}
    looks = (torch.arange(ids.shape[1]) >= 1).long()  # all but <start>, which stands before the image
    return {
        **inputs,
        "pixel_values": vlm.pixels(x)[:, None],
        "image_attention_mask": looks.expand(len(x), -1)[:, :, None].clone(),
    }


# ---- likelihood ------------------------------------------------------------------------------------------------------------


def test_the_nll_is_transformers_loss_of_the_target_alone(vlm, x):
    values = vlm.nll(x, PROMPTS, TARGETS)
    assert values.shape == (5,) and values.std() > 0.5
    for i in range(5):
        before, after = vlm.text.prompt(PROMPTS[i]), vlm.text.target(TARGETS[i])
        ids = torch.tensor([before + after])
        labels = torch.tensor([[-100] * len(before) + after])
        loss = vlm.model(
            **transformers_inputs(vlm, x[i : i + 1], ids), labels=labels
        ).loss  # a mean over the target's tokens
        assert_within_rounding(values[i], loss * len(after), terms=WIDEST)


def test_the_end_of_the_target_counts(vlm, x):
    ids = torch.tensor([vlm.text.prompt(PROMPTS[1])])
    logp = vlm.model(**transformers_inputs(vlm, x[:1], ids)).logits[0, -1].log_softmax(-1)
    assert_within_rounding(vlm.nll(x[:1], PROMPTS[1:2], [""])[0], -logp[vlm.text.end], terms=WIDEST)


def test_no_image_depends_on_the_others_of_its_batch(vlm, x):
    xs = x.clone().requires_grad_()
    values = vlm.nll(xs, PROMPTS, TARGETS)
    (grads,) = torch.autograd.grad(values.sum(), xs)
    for i in range(5):
        xi = x[i : i + 1].clone().requires_grad_()
        value = vlm.nll(xi, PROMPTS[i : i + 1], TARGETS[i : i + 1])
        (grad,) = torch.autograd.grad(value.sum(), xi)
        assert_within_rounding(value[0], values[i], terms=WIDEST)
        assert_within_rounding(grad[0], grads[i], terms=WIDEST)
    order = [3, 0, 4, 1, 2]
    shuffled = vlm.nll(x[order], [PROMPTS[i] for i in order], [TARGETS[i] for i in order])
    assert_within_rounding(shuffled, values[order], terms=WIDEST)


def test_the_gradient_is_the_slope(vlm, x):
    double = copy.deepcopy(vlm).double()
    xs = x[:2].double().requires_grad_()
    (grad,) = torch.autograd.grad(double.nll(xs, PROMPTS[:2], TARGETS[:2]).sum(), xs)
    direction = torch.randn(xs.shape, generator=torch.Generator().manual_seed(4), dtype=torch.double)
    up, down = (double.nll(xs.detach() + s * 1e-3 * direction, PROMPTS[:2], TARGETS[:2]).sum() for s in (1, -1))
    slope = ((up - down) / 2e-3).item()
    # transformers rounds parts of a double model (norms, rotations) to single precision
    assert abs(slope) > 1e-3 and (grad * direction).sum().item() == pytest.approx(slope, rel=2e-2)


def test_only_the_pixels_get_a_gradient_and_nothing_is_changed(vlm, x):
    before, image = copy.deepcopy(vlm.state_dict()), x.clone()
    xs = x.clone().requires_grad_()
    torch.autograd.grad(vlm.nll(xs, PROMPTS, TARGETS).sum(), xs)
    vlm.answer(x, PROMPTS, max_tokens=2)
    assert torch.equal(x, image) and all(p.grad is None for p in vlm.parameters()) and not vlm.training
    assert all(torch.equal(v, before[k]) for k, v in vlm.state_dict().items())


def test_before_training_a_flamingo_is_blind(small_clip, x):
    vlm, xs = small_vlm("scenes-idefics", small_clip).requires_grad_(False), x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(vlm.nll(xs, PROMPTS, TARGETS).sum(), xs)
    assert not grad.any()


def test_images_of_any_size_are_resized_inside(vlm, x):
    large = F.interpolate(x, scale_factor=2, mode="nearest").requires_grad_()
    value = vlm.nll(large, PROMPTS, TARGETS)
    (grad,) = torch.autograd.grad(value.sum(), large)
    resized = F.interpolate(large.detach(), (32, 32), mode="bicubic", antialias=True).clamp(0, 1)
    assert_within_rounding(value, vlm.nll(resized, PROMPTS, TARGETS), terms=WIDEST)
    assert (
        grad.shape == large.shape and grad.any() and vlm.size == 32 and len(vlm.answer(large.detach(), PROMPTS, 1)) == 5
    )


def test_an_empty_batch_is_fine(vlm, x):
    assert vlm.nll(x[:0], [], []).shape == (0,) and vlm.answer(x[:0], []) == []


# ---- answers ---------------------------------------------------------------------------------------------------------------


def test_answers_are_those_of_transformers_generation(vlm, x):
    answers = vlm.answer(x, PROMPTS, max_tokens=6)
    assert len(set(answers)) > 1
    for i in range(5):
        ids = torch.tensor([vlm.text.prompt(PROMPTS[i])])
        said = vlm.model.generate(**transformers_inputs(vlm, x[i : i + 1], ids), max_new_tokens=6, do_sample=False)[
            0, ids.shape[1] :
        ].tolist()
        said = said[: said.index(vlm.text.end)] if vlm.text.end in said else said
        assert answers[i] == vlm.text.say(said)


def test_answers_do_not_depend_on_the_batch(vlm, x):
    answers = vlm.answer(x, PROMPTS)
    assert vlm.answer(x, PROMPTS, batch=1) == vlm.answer(x, PROMPTS, batch=2) == answers
    assert [vlm.answer(x[i : i + 1], PROMPTS[i : i + 1])[0] for i in range(5)] == answers
    assert vlm.answer(x.flip(0), PROMPTS[::-1])[::-1] == answers


def test_answers_have_at_most_so_many_words_and_stop_at_the_end(vlm, x):
    assert (
        all(len(a.split()) <= 3 for a in vlm.answer(x, PROMPTS, max_tokens=3))
        and vlm.answer(x, PROMPTS, max_tokens=0) == [""] * 5
    )
    ending = copy.deepcopy(vlm)
    ending.head = lambda hidden, inner=ending.head: inner(hidden).index_fill(-1, torch.tensor(ending.text.end), 1e4)
    assert ending.answer(x, PROMPTS) == [""] * 5


def test_one_answer_ends_before_another(vlm, x):
    """The end comes where the answer says so, for each row by itself: what follows is dropped."""
    script = torch.tensor([[10, 11, 2, 12], [13, 14, 15, 2]])
    speaking, calls = copy.deepcopy(vlm), iter(range(4))
    speaking.head = lambda hidden: F.one_hot(script[:, next(calls)], speaking.text.size).float()
    first, second = speaking.answer(x[:2], [INSTRUCTION] * 2, max_tokens=4)
    assert first == speaking.text.say([10, 11]) and second == speaking.text.say([13, 14, 15])


# ---- the tower -------------------------------------------------------------------------------------------------------------


def test_the_tower_is_the_clips_and_can_be_exchanged(vlm, small_clip, x):
    changed = copy.deepcopy(vlm)
    assert_within_rounding(vlm.embed(x) @ small_clip.visual.proj, small_clip.visual(vlm.pixels(x)), terms=WIDEST)
    robust = copy.deepcopy(small_clip.visual)
    for p in robust.parameters():
        p.data = p.data * 1.1
    changed.set_vision(robust.state_dict())
    assert_within_rounding(changed.embed(x) @ robust.proj, robust(vlm.pixels(x)), terms=WIDEST)
    assert not torch.allclose(changed.nll(x, PROMPTS, TARGETS), vlm.nll(x, PROMPTS, TARGETS), rtol=1e-4)
    changed.set_vision(small_clip)
    assert torch.equal(changed.nll(x, PROMPTS, TARGETS), vlm.nll(x, PROMPTS, TARGETS))


# ---- text ------------------------------------------------------------------------------------------------------------------


def test_the_words_cover_the_scenes_sets_and_what_attacks_ask_for():
    text, rows = Words(SMALL_VOCABULARY, 16), range(200)
    captions, questions = SceneCaptions("plain", "train"), SceneQuestions("shifted", "train")
    said = [
        *(t for r in captions.references(rows) for t in r),
        *questions.questions(rows),
        *(a[0] for a in questions.answers(rows)),
    ]
    for sentence in (*said, captions.prompt, "maybe", "Word"):
        assert text.say(text.target(sentence)[:-1]) == " ".join(words(sentence))
    assert set(VOCABULARY) <= set(SMALL_VOCABULARY) and max(len(text.target(t)) for t in said) <= 20
    assert text.prompt("red") == [1, *[3] * 16, *text.target("red")[:-1], 4] and text.target("")[-1] == text.end
    assert text.size == max(n for w in SMALL_VOCABULARY for n in text.target(w)) + 1


def test_what_cannot_be_said_or_does_not_fit_is_refused(vlm, x):
    with pytest.raises(UserError, match="has the word 'giraffe', which this small model was not trained on"):
        vlm.nll(x[:1], [INSTRUCTION], ["a giraffe"])
    with pytest.raises(UserError, match="has the word 'zebra'"):
        vlm.answer(x[:1], ["is it a zebra"])
    for call in (
        lambda: vlm.answer(x, PROMPTS[:2]),
        lambda: vlm.nll(x, PROMPTS, TARGETS[:2]),
        lambda: vlm.nll(x, PROMPTS, "abcde"),
    ):
        with pytest.raises(UserError, match="5 images need 5 prompts"):
            call()
    with pytest.raises(UserError, match=r"shape \(3, 32, 32\): give a batch"):
        vlm.answer(x[0], PROMPTS[:3])


def test_styles_put_the_users_words_in_their_place():
    llava, idefics = STYLES["llava"], STYLES["idefics"]
    assert llava.wrap(INSTRUCTION, "<image>").endswith(
        "user's questions. USER: <image>\nProvide a short caption for this image. ASSISTANT:"
    )
    assert llava.wrap("What?", "<image>").endswith(
        "USER: <image>\nWhat?\nAnswer the question using a single word or phrase. ASSISTANT:"
    )
    assert idefics.wrap(INSTRUCTION, "<image>", "Output:a dog ") == "Output:a dog <image>Output:"
    assert idefics.wrap("What?", "<image>") == "<image>Question:What? Short answer:"
    assert (
        idefics.cut(" a dog\nQuestion: x") == "a dog"
        and idefics.cut("cat Output: dog") == "cat"
        and llava.cut(" a\nb ") == "a\nb"
    )
    assert Style("{prompt}", "{prompt}").wrap("a {b}", "") == "a {b}"


# ---- files -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["scenes-llava", "scenes-idefics"])
def saved(request, tmp_path_factory):
    """A small model on the zoo's tower, and its file."""
    vlm = random_vlm(request.param, create_clip("scenes-vit-s8", zoo.weights("scenes-vit-s8")))
    path = tmp_path_factory.mktemp("vlm") / "m.safetensors"
    save_small(vlm, path)
    return vlm, path


def test_a_file_leaves_the_tower_out_and_gives_the_same_model(saved, x):
    vlm, path = saved
    loaded = load_small(path).requires_grad_(False)
    assert (
        path.stat().st_size < 8 * 2**20 and not any("vision" in k for k in own_state(vlm)) and len(own_state(vlm)) > 20
    )
    assert torch.equal(loaded.nll(x, PROMPTS, TARGETS), vlm.nll(x, PROMPTS, TARGETS)) and loaded.answer(
        x, PROMPTS
    ) == vlm.answer(x, PROMPTS)
    assert not loaded.training


def test_random_weights_leave_the_global_generator_alone(small_clip):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = own_state(small_vlm("scenes-llava", small_clip))
    assert torch.equal(state, torch.get_rng_state())
    second = own_state(small_vlm("scenes-llava", small_clip))
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_a_file_that_does_not_fit_is_refused(saved, tmp_path, monkeypatch):
    vlm, _ = saved
    facts = {
        "model": vlm.name,
        "vocabulary": json.dumps(vlm.text.vocabulary),
        "clip": vlm.clip,
        "clip_sha256": zoo.card(vlm.clip)["sha256"],
    }
    path, state = tmp_path / "m.safetensors", own_state(vlm)
    save_tensors(state, path)
    with pytest.raises(UserError, match="does not say which vision tower it needs"):
        load_small(path)
    save_tensors(state, path, {**facts, "clip_sha256": "0" * 64})
    with pytest.raises(
        UserError, match="trained on another vision tower than the scenes-vit-s8 that is in the zoo now"
    ):
        load_small(path)
    save_tensors({k: v for k, v in state.items() if k != "lm_head.weight"}, path, facts)
    with pytest.raises(UserError, match=r"1 tensors differ, the first is 'lm_head.weight'"):
        load_small(path)


def test_unknown_sources_are_refused(tmp_path):
    with pytest.raises(UserError, match="no zoo model named 'huge'"):
        open_vlm("zoo:huge")
    with pytest.raises(
        UserError, match="no small vision-language model 'huge'; there are: scenes-idefics, scenes-llava"
    ):
        small_vlm("huge")
    with pytest.raises(
        UserError, match=r"cannot be opened .*give a hub name on a machine with a network, or the folder"
    ):
        open_vlm("nobody/has-this")
    with pytest.raises(UserError, match="cannot be opened"):
        open_vlm(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="of the kind 'bert'; this can use llava and idefics"):
        open_vlm(str(tmp_path))


# ---- zero-shot CLIP --------------------------------------------------------------------------------------------------------

CLASSES, SENTENCES = ("red", "blue", "green"), ("a red object", "a blue object", "a green object")


def test_a_zero_shot_clip_says_class_names(small_clip, x):
    vlm = ZeroShotVLM(small_clip, CLASSES, SENTENCES)
    victim = ZeroShot(small_clip.visual, text_matrix(small_clip, SENTENCES), small_clip.logit_scale.exp().item())
    logits, targets = victim(x), ["blue", "red", "green", "red", "red"]
    assert vlm.answer(x, [""] * 5, batch=2) == [CLASSES[k] for k in logits.argmax(1)]
    assert_within_rounding(
        vlm.nll(x, [""] * 5, targets),
        F.cross_entropy(logits, torch.tensor([1, 0, 2, 0, 0]), reduction="none"),
        terms=WIDEST,
    )
    assert torch.equal(vlm.embed(x), victim.embed(x)) and vlm.size == 32 and vlm.answer(x[:0], []) == []
    with pytest.raises(UserError, match="'pink' is none of the 3 classes"):
        vlm.nll(x[:1], [""], ["pink"])
    with pytest.raises(UserError, match="3 class names and 1 prompts do not make a classifier"):
        ZeroShotVLM(small_clip, CLASSES, SENTENCES[:1])


def test_a_zero_shot_clip_takes_another_tower(small_clip, x):
    vlm, other = ZeroShotVLM(copy.deepcopy(small_clip), CLASSES, SENTENCES), copy.deepcopy(small_clip)
    other.visual.proj.data *= 2
    for tower in (other, other.visual, other.state_dict(), other.visual.state_dict()):
        vlm.set_vision(small_clip)
        vlm.set_vision(tower)
        assert_within_rounding(vlm.embed(x), other.visual(vlm.victim.pixels(x)), terms=WIDEST)
    with pytest.raises(UserError, match="the vision tower does not fit this model"):
        vlm.set_vision(create_clip("scenes-vit-xs8"))


def test_a_zero_shot_clip_of_the_zoo_opens_by_name(x):
    vlm = open_vlm("clip:scenes-vit-s8", classes=CLASSES, prompts=SENTENCES)
    assert set(vlm.answer(x, [""] * 5)) <= set(CLASSES) and not any(p.requires_grad for p in vlm.parameters())
