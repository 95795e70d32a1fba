"""A loss of the user's own in place of CLIP's (papers/roclip/yours.py)."""

import copy

import pytest
import torch
from torch import nn

from papers.roclip.method import clip_loss
from papers.roclip.training import Method, Training, train
from papers.roclip.yours import Mine, train_by
from shared.steps.yours import Code

SHORT = Training(epochs=2, batch=64, lr=1e-3, warmup=2, every=2)


class Own:
    """CLIP's own, as a user might write it."""

    def loss(self, image, text, scale, epoch):
        return clip_loss(image, text, scale)


class Counting(nn.Module):
    """It has a buffer and a parameter, and knows the epoch."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(2))
        self.temperature = nn.Parameter(torch.ones(()))

    def loss(self, image, text, scale, epoch):
        self.seen[epoch - 1] += len(image)
        return clip_loss(image, text, scale * self.temperature)


MADE = []


def counting():
    MADE.append(Counting())
    return MADE[-1]


def mine(name: str) -> Mine:
    return Mine(code=Code(f"{__name__}:{name}"))


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """This module under its name, as pytest imports it from a path."""
    import sys
    from types import ModuleType

    module = ModuleType(__name__)
    module.__dict__.update(globals())
    monkeypatch.setitem(sys.modules, __name__, module)
    MADE.clear()


def test_clips_own_loss_trains_the_same_clip(clip, pairs):
    other = copy.deepcopy(clip)
    history = train(clip, pairs, Method(), SHORT).history
    found = train_by(mine("Own"), other, pairs, SHORT)
    assert found.history == history and len(history) == 2
    weights = other.state_dict()
    assert weights.keys() == clip.state_dict().keys()
    assert all(torch.equal(value, weights[name]) for name, value in clip.state_dict().items())


def test_a_module_is_trained_with_it_and_survives_an_interrupt(clip, pairs, tmp_path):
    whole, killed = copy.deepcopy(clip), copy.deepcopy(clip)
    train_by(mine("counting"), whole, pairs, SHORT)
    assert MADE[0].seen.tolist() == [192, 192] and MADE[0].temperature != 1

    def stop(epoch, clip, pools):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_by(mine("counting"), killed, pairs, SHORT, tmp_path / "c", stop)
    again = copy.deepcopy(clip)
    train_by(mine("counting"), again, pairs, SHORT, tmp_path / "c")
    assert MADE[2].seen.tolist() == [192, 192] and torch.equal(MADE[2].temperature, MADE[0].temperature)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
