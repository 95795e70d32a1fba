"""A plan counts what runs: against closed formulas, without a GPU, weights or data."""

import importlib
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from shared.data.catalogue import Source
from shared.diffusion import Sampler
from shared.errors import UserError
from shared.experiment.machines import NAMED, machine
from shared.experiment.plan import Stage, misfits, names, plan, price, stages
from shared.experiment.planned import PlanLab, planning
from shared.experiment.step import Measured, Trained, Values, closure
from shared.experiment.tally import Cost
from shared.models import clip
from shared.repeat import joined, most, repeated

L, M = 50, 768  # tokens and width of a ViT-B/32


def closed(n: int) -> int:
    """A ViT-B/32 on n pictures of 224 pixels, products alone: patches, 12 blocks of 12·L·w² + 2·L²·w, the projection.
    The last block of the lean tower, which open_clip's own attention does not make cheaper, is whole here."""
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


def test_training_has_the_flops_of_the_closed_formula(lab):
    """Three times those of evaluation, without the gradient of the pictures."""

    def run() -> None:
        visual = clip.create_clip("ViT-B-32-quickgelu").visual.train()
        lab.tally.cost.operations.clear()
        visual(torch.empty(4, 3, 224, 224)).sum().backward()

    patches = 4 * 2 * 49 * 3 * 32 * 32 * M
    attention = 4 * 12 * 4 * L * L * M // 2  # the fused backward pass computes q kᵀ once more
    last = 3 * 4 * 2 * 11 * (L - 1) * M * M
    assert 3 * closed(4) - patches - last <= cost_of(lab, run).flops <= 3 * closed(4) - patches + attention


def test_a_way_back_through_a_loop_counts_as_often_as_its_passes(lab):
    def run() -> None:
        x, w = torch.empty(8, 8, requires_grad=True), torch.empty(8, 8, requires_grad=True)
        for _ in repeated(range(10)):
            x = checkpoint(lambda x: x @ w @ w, x, use_reentrant=False)
        (x @ w).sum().backward()

    # of two products, forward: two; on the way back: the first again, and four gradients
    assert cost_of(lab, run).flops == 2 * 8**3 * (10 * (2 + 1 + 4) + 1 + 2)


def test_what_follows_from_constants_keeps_its_numbers(lab):
    with planning(lab):
        times = Sampler(steps=4).times(torch.full((2,), 8))
        assert times.tolist() == [[8, 6, 4, 2, 0]] * 2
        falling = (times[:, 0] > times[:, 1]).nonzero().flatten()
        assert falling.tolist() == [0, 1] and int(times[falling, 2][1]) == 4
        t = torch.full((3,), 5)
        t[torch.empty(3, dtype=torch.int64)] = 7  # nobody knows where
        assert t.tolist() == [5, 5, 5]


@dataclass(frozen=True)
class Misplaced(Measured):
    """A step that leaves a tensor where it was made."""

    right: bool

    def make(self, lab: PlanLab) -> Values:
        x, mean = torch.empty(2, 3, device=lab.device), torch.ones(3)
        return Values((x - (mean.to(lab.device) if self.right else mean)).cpu().numpy(), "share")


def test_a_tensor_on_the_wrong_device_is_found():
    lab = PlanLab(torch.device("meta"), Source())
    with planning(lab):
        lab.trace(Misplaced(True))
        with pytest.raises(UserError, match="device"):
            lab.trace(Misplaced(False))


PRESETS = [
    (paper, scale)
    for paper in ("diffcap", "distshift", "pmg_aft", "roclip", "rvpt")
    for scale in ("smoke", "cpu", "photos", "paper")
]


@pytest.mark.slow
@pytest.mark.parametrize("paper, scale", PRESETS)
def test_no_step_of_a_preset_leaves_a_tensor_on_the_wrong_device(paper, scale):
    """Every step on fake tensors of a device that is not the CPU: torch runs backward passes there without a GPU, and
    refuses operations between the two, as with a GPU."""
    made = importlib.import_module(f"papers.{paper}.paper").PAPER
    if scale not in made.presets:
        pytest.skip("there is no such scale")
    config = made.presets[scale]
    lab = PlanLab(torch.device("meta"), config.source)
    wrong = {}
    with planning(lab):
        for step, name in names(made.plan(config)).items():
            try:
                lab.trace(step)
            except UserError as error:
                wrong[name] = str(error)
    assert not wrong


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


@pytest.mark.slow
def test_what_does_not_fit_names_the_option_that_makes_it_fit():
    made = importlib.import_module("papers.pmg_aft.paper").PAPER
    config = made.presets["paper"]
    lab = PlanLab(torch.device("cpu"), config.source)
    step = importlib.import_module("papers.pmg_aft.steps").methods(config)["pmg_aft"]
    with planning(lab):
        peak = lab.trace(step).cost.peak
        small = replace(NAMED["rtx4090"], memory=0.7 * peak)
        (said,) = misfits({"Tuned": Stage(1, Cost(peak=peak), largest=step)}, made, config, lab, small)
    assert "use --tuning.batch 64 (" in said


@pytest.mark.slow
def test_a_plan_is_a_table():
    said = "\n".join(plan("pmg_aft", "a100-80", ["--scale", "smoke", "--headline"]))
    lines = said.splitlines()
    assert lines[2].split()[:2] == ["stage", "steps"] and any(line.startswith("all ") for line in lines)
    assert "not estimated" not in said


@pytest.mark.slow
@pytest.mark.parametrize("paper", ["pmg_aft", "rvpt"])
def test_every_training_has_an_estimate(paper):
    made = importlib.import_module(f"papers.{paper}.paper").PAPER
    config = made.presets["smoke"]
    lab = PlanLab(torch.device("cpu"), config.source)
    with planning(lab):
        found = stages(made.plan(config), lab)
    seconds = price(found, lab, NAMED["cpu2"])
    kinds = {type(step).__name__ for step in closure(n.step for n in made.plan(config)) if isinstance(step, Trained)}
    trained = {name: stage for name, stage in found.items() if name.split()[0] in kinds}
    assert trained and not [name for name, stage in trained.items() if stage.why]
    assert all(seconds[name] > 0 for name in trained)
