"""Prompts of a place: the set's own, or one of the paper's, for it and for the sets that are shifted from it."""

from dataclasses import replace

import pytest
import torch

from papers.rvpt import models
from papers.rvpt.cells import Cell
from papers.rvpt.config import PRESETS, check
from papers.rvpt.models import Bench
from shared.attacks.triggers import at_test
from shared.errors import UserError

CPU = PRESETS["cpu"]


def with_template(template):
    return replace(CPU, data=replace(CPU.data, main=replace(CPU.data.main, template=template)))


def test_a_place_may_have_a_prompt_of_its_own():
    own, other = (Bench(config, "cpu", torch.device("cpu")) for config in (CPU, with_template("a photo of a {}.")))
    assert own.prompts("main") == list(own.labelled("scenes:colour").prompts)
    assert other.prompts("main")[0] == f"a photo of a {other.labelled('scenes:colour').classes[0]}."
    assert other.prompts("shift1")[0] == f"a photo of a {other.labelled(CPU.data.shifted[0]).classes[0]}."
    assert other.prompts("second") == own.prompts("second") and other.prompts("main", 0.0) == own.prompts("main", 0.0)


def test_a_prompt_without_a_place_for_the_name_is_refused():
    with pytest.raises(UserError, match=r"--data\.<place>\.template"):
        check(with_template("a photo"))


def test_pictures_are_triggered_once_for_all_models_where_there_is_room(monkeypatch):
    bench = Bench(replace(CPU, data=replace(CPU.data, n=8)), "cpu", torch.device("cpu"))
    badnet, rvpt, blended = (Cell("score", method, attack, "asr") for method, attack in (("none", "badnet"), ("rvpt", "badnet"), ("none", "blended")))
    kept, world = bench.triggered(badnet), bench.world("scenes:colour")
    assert bench.triggered(rvpt) is kept and bench.triggered(replace(rvpt, seed=1)) is kept
    assert torch.equal(kept, at_test(bench.trigger("badnet"), world.x, world.indices)) and not torch.equal(kept, bench.triggered(blended))
    assert bench.triggered(replace(badnet, at="shift1")) is not kept and bench.triggered(badnet) is kept
    monkeypatch.setattr(models, "ROOM", kept.nbytes - 1)
    assert bench.triggered(badnet) is not kept and torch.equal(bench.triggered(badnet), kept)
    monkeypatch.setattr(models, "ROOM", kept.nbytes)
    bench.triggered(replace(badnet, at="shift2"))
    assert bench.triggered(badnet) is not kept, "only the latest fits"
