"""newpaper: the method by hand, and the whole at SCALE=smoke."""

import torch

from papers.newpaper.method import Method
from shared.experiment.store import Store
from shared.rng import SampleRng


def test_the_method_is_the_mean_over_shifts():
    x = torch.zeros(1, 3, 5, 5)
    x[..., 2, 2] = 1
    found = Method(1)(x, SampleRng(0, [0]))
    cross = torch.tensor([[0, 1, 0], [1, 1, 1], [0, 1, 0]]) / 5
    assert torch.allclose(found[0, 0, 1:4, 1:4], cross)
    assert found.sum().isclose(x.sum())


def test_it_runs_from_end_to_end(script, measured, tmp_path):
    for name in ("train", "evaluate"):
        done = script(name, "--scale", "smoke", "--results", tmp_path)
        assert done.code == 0, done.err
    found = measured(tmp_path)
    assert set(found) == {f"score__{m}__{a}__seed0" for m in ("none", "blur", "newpaper") for a in ("clean", "pgd")}
    plan = Store(tmp_path / "smoke" / "newpaper").plan()
    assert plan["paper"] == "newpaper"
