"""What a defence costs: the beginning of its own training, and parameters counted by hand."""

import numpy as np
import pytest
import torch

from papers.rvpt import costs
from papers.rvpt.baselines import VPT
from papers.rvpt.costs import Cost
from papers.rvpt.defences import Cleaned, Model, Prompts, Shots
from papers.rvpt.method import DeepPrompts
from papers.rvpt.tuning import PromptTuning
from shared.experiment.leaves import Pictures
from shared.steps.backdoor import Pairs
from shared.steps.choice import Settings
from shared.training.cleanclip import CleanClipConfig
from tests.papers.ends import lab_of, load

made = load("papers/rvpt/nursery.py")


@pytest.fixture
def lab(tmp_path):
    return lab_of(tmp_path)


def cleaned(clip, **options) -> Cleaned:
    tuning = CleanClipConfig(**{"steps": 20, "batch": 8, "warmup": 1, **options})
    return Cleaned(
        clip=made.Given(clip), seed=0, pairs=Pairs("scenes", 32, 2000, "scenes:colour"), tuning=Settings(tuning)
    )


def tuned(clip, length=2, epochs=10, repulsion=VPT) -> Prompts:
    shots = Shots(Pictures("scenes:colour", "train"), "", 2)
    settings = {
        "first": 1,
        "std": 0.02,
        "repulsion": repulsion,
        "tuning": Settings(PromptTuning(epochs=epochs, batch=8, lr=0.02, length=length)),
    }
    return Prompts(clip=made.Given(clip), seed=0, shots=shots, **settings)


def test_parameters_and_samples_by_hand(lab, clip, monkeypatch):
    whole, table = sum(p.numel() for p in clip.parameters()), clip.token_embedding.weight.numel()
    monkeypatch.setattr(costs, "model_of", lambda lab, defence: Model(clip, DeepPrompts(clip.visual, 1, 2)))
    trained = (3 - 1) * 2 * len(clip.visual.class_embedding)
    for measure, value in {
        "trained": trained,
        "share": trained / (whole - table),
        "share_whole": trained / whole,
        "samples": 16,
    }.items():
        assert Cost(tuned(clip), measure, 1).make(lab).values.tolist() == [value]
    for measure, value in {"trained": whole, "samples": 32}.items():
        assert Cost(cleaned(clip), measure, 1).make(lab).values.tolist() == [value]


@pytest.mark.parametrize("defence", [cleaned, tuned])
def test_the_beginning_of_the_training_and_nothing_is_left_of_it(lab, clip, defence):
    cost = Cost(defence(clip), "seconds", 2)
    before = {k: v.clone() for k, v in clip.state_dict().items()}
    for steps in (1, 4):
        marks = []
        copied = cost._copy(lab)
        assert (
            cost._begin(lab, steps, copied, lambda marks=marks: marks.append(0)) == 20
        )  # 10 epochs of 16 in batches of 8; 20 updates
        assert len(marks) == 1 + steps
    assert all(torch.equal(v, before[k]) for k, v in clip.state_dict().items())
    assert not any(p.requires_grad for p in clip.parameters())
    seconds = cost.make(lab)
    assert len(seconds.values) == 2 and (seconds.values > 0).all() and seconds.unit == "s"


def test_a_training_shorter_than_what_is_watched(lab, clip):
    for defence in (cleaned(clip, steps=2), tuned(clip, epochs=1)):
        marks, cost = [], Cost(defence, "seconds", 1)
        assert cost._begin(lab, 7, cost._copy(lab), lambda marks=marks: marks.append(0)) == 2
        assert len(marks) == 3 and cost.make(lab).values > 0


def test_seconds_are_scaled_from_the_first_updates(lab, clip, monkeypatch):
    now = [0.0]

    def begun(self, lab, steps, clip, mark):
        for t in (0.0, 5.0, *(5.0 + 2.0 * k for k in range(1, steps))):
            now[0] = t
            mark()
        return 100

    monkeypatch.setattr(Cost, "_begin", begun)
    monkeypatch.setattr(costs, "clock", lambda device: now[0])
    assert Cost(tuned(clip), "seconds", 2).make(lab).values.tolist() == [5.0 + 99 * 2.0] * 2


def test_memory_is_of_the_activations(lab, clip):
    """Twice the batch takes about twice the memory, and the weights are not in it: they would hide that."""

    def megabytes(defence) -> float:
        values = Cost(defence, "memory", 1).make(lab)
        assert values.unit == "MB" and np.isfinite(values.values).all()
        return float(values.values[0])

    small, large = (megabytes(cleaned(clip, batch=n)) for n in (8, 16))
    assert 1.8 < large / small < 2.2
    few, many = (megabytes(tuned(clip, length=n)) for n in (2, 34))
    assert 1.5 < many / few < 4  # 19 and 51 tokens in two blocks
    assert few < small  # one tower, the later blocks
