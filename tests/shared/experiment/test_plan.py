"""A plan counts what runs: against closed formulas, without a GPU, weights or data."""

import importlib
from dataclasses import replace

import pytest
import torch
from torch import nn

from shared.data.catalogue import Source
from shared.errors import UserError
from shared.experiment.machines import NAMED, machine
from shared.experiment.plan import Stage, misfits, plan, price, stages
from shared.experiment.planned import PlanLab, planning
from shared.experiment.step import Trained, closure
from shared.experiment.tally import Cost
from shared.models import clip
from shared.repeat import joined, most, repeated

L, M = 50, 768  # tokens and width of a ViT-B/32


def closed(n: int) -> int:
    """A ViT-B/32 on n pictures of 224 pixels, products alone: patches, 12 blocks of 12·L·w² + 2·L²·w, the projection. The last block
    of the lean tower, which open_clip's own attention does not make cheaper, is whole here."""
    block = 2 * 12 * L * M * M + 4 * L * L * M
    return n * (2 * 49 * 3 * 32 * 32 * M + 12 * block + 2 * M * 512)


@pytest.fixture
def lab():
    return PlanLab(torch.device("cpu"), Source())


def cost_of(lab: PlanLab, run) -> Cost:
    with planning(lab), lab.tally.apart() as cost:
        run()
    return cost


def test_evaluation_without_gradients_has_the_flops_of_the_closed_formula(lab):
    def run() -> None:
        visual = clip.create_clip("ViT-B-32-quickgelu").visual
        lab.tally.cost.operations.clear()
        with torch.no_grad():
            visual(torch.empty(4, 3, 224, 224))

    last = (
        4 * 2 * (L - 1) * M * M * 10 + 4 * 4 * (L - 1) * L * M
    )  # of the last block, all but the class token's queries
    assert closed(4) - last <= cost_of(lab, run).flops <= closed(4) * 1.001


def test_memory_is_of_what_a_backward_pass_needs_at_once(lab):
    def run() -> None:
        x = torch.empty(1000, 1000, requires_grad=True)
        for _ in range(5):
            x = x.sigmoid()
        x.sum().backward()

    assert 7 * 4e6 <= cost_of(lab, run).peak <= 9 * 4e6  # x, five activations, a gradient or three


def test_loops_run_once_and_count_for_all(lab):
    seen: list[int] = []

    def run() -> None:
        for k in repeated(range(10)):
            for _ in repeated(range(6), 0.5):
                seen.append(k)
                torch.ones(3, 3) @ torch.ones(3, 3)
        assert joined(lambda part: part * 2, torch.ones(10, 2).split(4)).shape == (10, 2)
        assert [k for k, _ in zip(most(9), range(3), strict=False)] == [0]
        assert list(repeated(range(9), alike=lambda k: k % 4 == 0)) == [0, 1]

    assert cost_of(lab, run).flops == 10 * 3 * 2 * 27 and seen == [0]


def test_outside_of_a_plan_they_are_the_plain_loops():
    assert list(repeated(range(4), 0.5)) == [0, 1, 2, 3]
    assert torch.equal(joined(lambda part: part * 2, torch.arange(10).split(4)), 2 * torch.arange(10))
    assert [k for k, _ in zip(most(2), range(5), strict=False)] == [0, 1, 2, 3, 4]


def test_whoever_plans_leaves_nothing_behind(lab):
    cost_of(lab, lambda: None)
    assert nn.Linear(2, 2).double()(torch.ones(1, 2).double()).dtype == torch.float64
    assert type(clip.create_clip("scenes-vit-s8").visual.proj) is nn.Parameter


def test_an_unknown_machine_is_named():
    with pytest.raises(UserError, match="a100-80"):
        machine("a100")


def test_what_does_not_fit_names_the_option():
    config = importlib.import_module("papers.pmg_aft.config").PRESETS["paper"]
    step = importlib.import_module("papers.pmg_aft.steps").methods(config)["pmg_aft"]
    small = replace(NAMED["rtx4090"], memory=10e9)
    (said,) = misfits({"Tuned pmg_aft": Stage(1, Cost(peak=20e9), largest=step)}, config, small)
    assert said == "Tuned pmg_aft needs 20 GB, rtx4090 has 10: use --tuning.batch 64"


@pytest.mark.slow
def test_a_plan_is_a_table():
    said = plan("pmg_aft", "a100-80", ["--scale", "smoke", "--headline"])
    lines = said.splitlines()
    assert lines[1].split()[:2] == ["stage", "steps"] and any(line.startswith("all ") for line in lines)
    assert "not estimated" not in said


@pytest.mark.slow
@pytest.mark.parametrize("paper", ["pmg_aft", "rvpt"])
def test_every_training_has_an_estimate(paper):
    made = importlib.import_module(f"papers.{paper}.paper").PAPER
    config = made.presets["smoke"]
    lab = PlanLab(torch.device("cpu"), config.source)
    with planning(lab):
        found = stages(made.plan(config), lab)
    price(found, lab, NAMED["cpu2"])
    kinds = {type(step).__name__ for step in closure(n.step for n in made.plan(config)) if isinstance(step, Trained)}
    trained = {name: stage for name, stage in found.items() if name.split()[0] in kinds}
    assert trained and not [name for name, stage in trained.items() if stage.why]
    assert all(stage.seconds > 0 for stage in trained.values())
