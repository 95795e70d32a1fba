"""Adversarial prompt tuning of text: context vectors against embeddings put in by hand, both ways of making the attack against loops."""

import math

import open_clip
import pytest
import torch
import torch.nn.functional as F

from papers.rvpt.tuning import Tuning, few_shot
from papers.rvpt.words import LearnedWords, embedding_divergence, tune_words
from shared.attacks import Threat
from shared.attacks.pgd import ascend
from shared.errors import UserError
from shared.models.victim import text_matrix
from shared.rng import SampleRng
from shared.training.adversarial import TrainAttack
from shared.training.contrastive import batch_indices
from tests.accuracy import assert_within_rounding

DEEP = 4 * 4 * 96  # terms of the longest sum, in an MLP, for each of four blocks

TUNING, THREAT, ATTACK = Tuning(epochs=2, batch=8, lr=0.05), Threat("linf", 8 / 255), TrainAttack(steps=2, ratio=0.5)


def test_words_of_the_table_give_the_embeddings_of_their_sentence(clip, data):
    before = text_matrix(clip, data.prompts)
    words = LearnedWords(clip, data.classes, 3)
    numbers = clip.tokenizer("photo of blue")[0, 1:4]
    words.words.data.copy_(clip.token_embedding.weight[numbers])
    assert_within_rounding(words(), text_matrix(clip, [f"photo of blue {name}" for name in data.classes]), terms=DEEP)
    assert not clip.token_embedding._forward_hooks and [n for n, _ in words.named_parameters()] == ["words"]
    assert torch.equal(text_matrix(clip, data.prompts), before)
    (g,) = torch.autograd.grad(words().square().sum(1)[0] + words()[:, 0].sum(), words.words)
    assert g.abs().amax(1).min() > 0 and all(p.grad is None for p in clip.parameters())


def test_text_towers_of_another_class_work_too(data):
    text = open_clip.CLIPTextCfg(context_length=12, vocab_size=60, width=8, heads=2, layers=1)
    vision = open_clip.CLIPVisionCfg(layers=1, width=8, head_width=4, patch_size=4, image_size=8)
    with torch.random.fork_rng(devices=[]):
        clip = open_clip.CustomTextCLIP(6, vision, text)

    def tokenizer(texts):
        rows = [[1, *(2 + ord(w[0]) % 40 for w in t.split()), 59] for t in texts]
        return torch.tensor([r + [0] * (12 - len(r)) for r in rows])

    clip.tokenizer = tokenizer
    words = LearnedWords(clip, data.classes, 2)
    words.words.data.copy_(clip.text.token_embedding.weight[tokenizer(["photo of"])[0, 1:3]])
    assert_within_rounding(
        words(), clip.encode_text(tokenizer([f"photo of {name}" for name in data.classes]), normalize=True), terms=DEEP
    )


def test_too_many_words_and_towers_without_table_are_refused(clip, data):
    for length in (0, 40):
        with pytest.raises(UserError):
            LearnedWords(clip, data.classes, length)
    with pytest.raises(UserError, match="Linear"):
        LearnedWords(torch.nn.Linear(1, 1), data.classes)


def test_the_divergence_is_the_literal_one(victim, data):
    x = data.__getitems__([0, 1])[0]
    x_adv = (x + 0.05).clamp(0, 1)
    p, q = victim.embed(x).softmax(1), victim.embed(x_adv).softmax(1)
    literal = torch.stack(
        [
            sum(a * math.log(a / b) for a, b in zip(u.tolist(), v.tolist(), strict=True)) * torch.ones(())
            for u, v in zip(p, q, strict=True)
        ]
    )
    assert_within_rounding(
        embedding_divergence(victim, x)(x_adv), literal, terms=DEEP, scale=1.0
    )  # of the terms, which cancel


@pytest.mark.parametrize("when", ["once", "each"])
def test_tuning_is_the_loop_by_hand(clip, victim, data, when):
    shots = few_shot(data, 2, 0)
    words, hand = (LearnedWords(clip, data.classes, 3, seed=1) for _ in range(2))
    before = {k: v.clone() for k, v in clip.state_dict().items()}
    own, v = victim.text.clone(), hand.words
    momentum, start = torch.zeros_like(v), v.detach().clone()

    def attacked(loss, x, indices, stream):
        return ascend(loss, x, THREAT, steps=2, step_size=4 / 255, rng=SampleRng(4, indices, stream))

    def logits(f, text):
        return 10 * F.normalize(f, dim=1) @ text.T

    for step in range(4):
        indices = batch_indices(16, 8, step, 4)
        x, y = shots.__getitems__(indices)
        if when == "once":
            x_adv = attacked(embedding_divergence(victim, x), x, indices, "bank")
        else:
            text = hand().detach()
            x_adv = attacked(
                lambda z, y=y, t=text: F.cross_entropy(logits(victim.embed(z), t), y, reduction="none"),
                x,
                indices,
                f"train{step}",
            )
        (g,) = torch.autograd.grad(F.cross_entropy(logits(victim.embed(x_adv).detach(), hand()), y), v)
        with torch.no_grad():
            momentum = 0.9 * momentum + g + 5e-4 * v
            v -= 0.05 * 0.5 * (1 + math.cos(math.pi * step / 4)) * momentum
    learned = tune_words(victim, words, shots, TUNING, THREAT, ATTACK, 4, when=when)
    # a step of the attack whose gradient is rounding alone has the size of any other
    assert (words.words - v).norm() <= 0.02 * (v - start).norm()
    assert_within_rounding(learned.text, words().detach(), terms=DEEP)
    assert_within_rounding(learned(x), logits(victim.embed(x), learned.text), terms=DEEP)
    assert torch.equal(victim.text, own) and all(torch.equal(t, before[k]) for k, t in clip.state_dict().items())
    assert not words.words.requires_grad


def test_attacks_made_once_refuse_augmentation(clip, victim, data):
    with pytest.raises(UserError, match="once"):
        tune_words(victim, LearnedWords(clip, data.classes, 3), data, Tuning(augment="crop_flip"), THREAT, ATTACK, 0)
