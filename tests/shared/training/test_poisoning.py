"""Fine-tuning on poisoned pairs: it is pre-training's loop, continues exactly, and plants a backdoor."""

import copy

import pytest
import torch

from shared.attacks.triggers import make_trigger
from shared.data.poison import Held, PoisonedPairs
from shared.data.scene_sets import ScenePairs, SceneSet
from shared.data.targets import scene_target
from shared.errors import UserError
from shared.metrics.backdoor import asr, clean_accuracy
from shared.models.clip import create_clip
from shared.models.victim import ZeroShot, text_matrix
from shared.models.zoo import weights
from shared.training.contrastive import pretrain
from shared.training.poisoning import FineTuning, finetune_clip

CONFIG = FineTuning(steps=5, batch=8, lr=1e-3, warmup=2, every=2)


class Killed(BaseException):
    pass


class Fragile:
    """Pairs whose reading is killed at the k-th batch."""

    def __init__(self, pairs, k):
        self.pairs, self.left, self.version = pairs, k, pairs.version

    def __len__(self):
        return len(self.pairs)

    def __getitems__(self, indices):
        self.left -= 1
        if self.left < 0:
            raise Killed
        return self.pairs.__getitems__(indices)


@pytest.fixture(scope="module")
def pairs():
    return PoisonedPairs(
        Held(ScenePairs(100)), make_trigger("badnet", "textbook", size=32), scene_target("colour", "blue"), rate=0.1
    )


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_it_is_the_loop_of_pre_training(clip, pairs, quiet_generators):
    from accelerate import Accelerator

    other, calls = copy.deepcopy(clip), []
    loss = finetune_clip(clip, pairs, CONFIG, augment=lambda x, step, indices: calls.append((step, len(indices))) or x)
    assert loss == pretrain(other, pairs, CONFIG, Accelerator(cpu=True)) and equal(clip, other)
    assert calls == [(step, 8) for step in range(5)]
    assert not clip.training and not any(p.requires_grad or p.grad is not None for p in clip.parameters())


def test_a_frozen_model_is_trained_whole(clip, pairs):
    start = copy.deepcopy(clip.requires_grad_(False))
    finetune_clip(clip, pairs, CONFIG)
    same = [name for (name, p), q in zip(clip.named_parameters(), start.parameters(), strict=True) if torch.equal(p, q)]
    assert not same


def test_killed_and_continued_is_bit_equal(clip, pairs, tmp_path):
    straight, killed = copy.deepcopy(clip), copy.deepcopy(clip)
    loss = finetune_clip(straight, pairs, CONFIG)
    checkpoint = tmp_path / "poison.ckpt"
    with pytest.raises(Killed):
        finetune_clip(killed, Fragile(pairs, 3), CONFIG, checkpoint)
    assert checkpoint.is_file()
    assert finetune_clip(clip, pairs, CONFIG, checkpoint) == loss and equal(clip, straight)


def test_what_is_refused(clip, pairs):
    with pytest.raises(UserError, match="a batch of 128 pairs is larger than the set, which has 100"):
        finetune_clip(clip, pairs, FineTuning())
    with pytest.raises(UserError, match="lower the learning rate"):
        finetune_clip(clip, pairs, FineTuning(steps=12, batch=8, lr=1e30, warmup=0))


@pytest.mark.slow
def test_a_backdoor_is_planted():
    """A patch in the corner, 5 % of 6,400 pairs, two epochs: it answers, and clean accuracy stays within 2 points."""
    clip = create_clip("scenes-vit-s8", weights("scenes-vit-s8"))
    data, trigger = SceneSet("colour", "test", 256), make_trigger("badnet", "textbook", size=32)
    x, y = data.__getitems__(range(256))
    blue = data.classes.index("blue")

    def rates():
        victim = ZeroShot(clip.visual, text_matrix(clip, data.prompts), clip.logit_scale.exp().item()).eval()
        with torch.no_grad():
            clean, triggered = victim(x).argmax(1), victim(trigger(x, range(256))).argmax(1)
        return clean_accuracy(clean, y).mean(), asr(triggered, y, blue).mean()

    before = rates()
    finetune_clip(
        clip,
        PoisonedPairs(Held(ScenePairs(6400)), trigger, scene_target("colour", "blue"), rate=0.05),
        FineTuning(steps=100),
    )
    after = rates()
    assert before[1] < 0.1 and after[1] > 0.7, (before, after)
    assert after[0] > before[0] - 0.02
