"""The choice of defaults: one line per candidate, on validation pictures, with noise that belongs to the pictures."""

from dataclasses import replace

import pytest
import torch

from papers.diffcap import choose
from papers.diffcap.config import PRESETS
from papers.diffcap.models import Bench


@pytest.mark.slow
def test_every_candidate_has_a_line(monkeypatch):
    monkeypatch.setattr(choose, "N", 8)
    monkeypatch.setattr(choose, "DTS", (50,))
    monkeypatch.setattr(choose, "TIMES", (50, 100))
    asked, whole = [], Bench._world
    monkeypatch.setattr(Bench, "_world", lambda self, spec, task, split, n: asked.append(split) or whole(self, spec, task, split, n))
    config = replace(PRESETS["smoke"], models=replace(PRESETS["smoke"].models, denoiser="random:scenes"))
    lines = list(choose.choose(Bench(config, "smoke", torch.device("cpu"))))
    names = [line.split("  ")[0].strip() for line in lines]
    assert names == ["no defence", "DiffPure, t* = 50", "DiffPure, t* = 100", "DiffCAP, φ small, Δt = 50", "DiffCAP, φ tower, Δt = 50",
                     *(f"CLIPure, η = {size:g}" for size in choose.STEP_SIZES)]
    assert set(asked) == {"validation"}
    assert float(lines[0].split("clean")[1].split()[0]) >= 75 and float(lines[0].split("attacked")[1].split()[0]) <= 25
