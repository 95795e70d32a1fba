"""What a defence costs: the beginning of its own training, and parameters counted by hand."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from papers.rvpt import costs
from papers.rvpt.cells import COSTS, Cell, Poison
from papers.rvpt.config import PRESETS, Backbone, Place
from papers.rvpt.models import Bench
from papers.rvpt.runs import Defended
from papers.rvpt.tuning import Tuning
from shared.errors import UserError
from shared.training.cleanclip import CleanClipConfig


class Rehearsal(Bench):
    """A bench whose CLIP is random and poisoned by nobody."""

    random_clip = None

    def clip(self, poison):
        return self.random_clip


@pytest.fixture
def room(clip):
    def make(method=None, cleaning=None, **sweeps):
        config = PRESETS["smoke"]
        config = replace(config, data=replace(config.data, main=Place("scenes:colour", "red"), n=16),
                         models=replace(config.models, first=Backbone("scenes-vit-xs8", "random")),
                         method=replace(config.method, **{"shots": 2, "length": 2, "tuning": Tuning(epochs=10, batch=8, lr=0.02), **(method or {})}),
                         baselines=replace(config.baselines, cleanclip=CleanClipConfig(**{"steps": 20, "batch": 8, "warmup": 1, **(cleaning or {})}),
                                           cleanclip_pairs=32),
                         sweeps=replace(config.sweeps, cost_repeats=2, **sweeps))
        bench = Rehearsal(config, "smoke", torch.device("cpu"))
        bench.random_clip = clip.requires_grad_(False).eval()
        return SimpleNamespace(bench=bench, config=config, held={})
    return make


def cell(method, measure):
    return Cell("cost", method, "badnet", measure)


def run_of(method):
    c = cell(method, "seconds")
    return Defended(Poison("first", "badnet", "main", 0), c.defence)


def test_parameters_and_samples_by_hand(room):
    m = room()
    clip = m.bench.random_clip
    whole, table = sum(p.numel() for p in clip.parameters()), clip.token_embedding.weight.numel()
    trained = (3 - m.config.method.first) * 2 * len(clip.visual.class_embedding)
    expected = {("rvpt", "trained"): trained, ("rvpt", "share"): trained / (whole - table), ("rvpt", "share_whole"): trained / whole,
                ("rvpt", "samples"): 16, ("cleanclip", "trained"): whole, ("cleanclip", "samples"): 32}
    for (method, measure), value in expected.items():
        assert costs.cost(m, cell(method, measure)).values.tolist() == [value]


@pytest.mark.parametrize("method", ["cleanclip", "rvpt", "vpt"])
def test_the_beginning_of_the_training_and_nothing_is_left_of_it(room, method):
    m = room()
    before = {k: v.clone() for k, v in m.bench.random_clip.state_dict().items()}
    for steps in (1, 4):
        marks = []
        assert costs.train_a_little(m.bench, run_of(method), steps, marks.append) == 20  # 10 epochs of 16 pictures in batches of 8; 20 updates
        assert len(marks) == 1 + steps
    assert all(torch.equal(v, before[k]) for k, v in m.bench.random_clip.state_dict().items())
    assert not any(p.requires_grad for p in m.bench.random_clip.parameters())


@pytest.mark.parametrize("method", ["cleanclip", "rvpt"])
def test_a_training_shorter_than_what_is_watched(room, method):
    m = room(method={"tuning": Tuning(epochs=1, batch=8, lr=0.02)}, cleaning={"steps": 2})
    marks = []
    assert costs.train_a_little(m.bench, run_of(method), 7, marks.append) == 2
    assert len(marks) == 3
    assert costs.seconds(m.bench, run_of(method)) > 0


def test_seconds_are_scaled_from_the_first_updates(room, monkeypatch):
    m, now = room(), [0.0]

    def begun(bench, run, steps, mark):
        for t in (0.0, 5.0, *(5.0 + 2.0 * k for k in range(1, steps))):
            now[0] = t
            mark(None)
        return 100

    monkeypatch.setattr(costs, "train_a_little", begun)
    monkeypatch.setattr(costs, "_clock", lambda bench: now[0])
    got = costs.cost(m, cell("rvpt", "seconds"))
    assert got.values.tolist() == [5.0 + 99 * 2.0] * 2 and got.unit == "s"


@pytest.mark.parametrize("method", ["cleanclip", "rvpt"])
def test_every_cost_is_a_number_above_zero(room, method):
    m = room()
    for measure in COSTS:
        if not (method == "cleanclip" and "share" in measure):
            got = costs.cost(m, cell(method, measure))
            assert np.isfinite(got.values).all() and (got.values > 0).all() and got.unit == costs.UNITS[measure]
    assert len(costs.cost(m, cell(method, "seconds")).values) == 2


def test_memory_is_of_the_activations(room):
    """Twice the batch takes about twice the memory, and the weights are not in it: they would hide that."""
    small, large = (costs.megabytes(room(cleaning={"batch": n}).bench, run_of("cleanclip")) for n in (8, 16))
    assert 1.8 < large / small < 2.2
    few, many = (costs.megabytes(room(method={"length": n}).bench, run_of("rvpt")) for n in (2, 34))
    assert 1.5 < many / few < 4  # 19 and 51 tokens in two blocks
    assert few < small  # one tower, the later blocks


def test_other_defences_are_refused(room):
    with pytest.raises(UserError, match="is not measured"):
        costs.cost(room(), cell("linear_probe", "seconds"))
