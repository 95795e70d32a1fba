"""The training loop: schedule by hand, and a run that was killed and continued ends with the very weights of one that was not."""

import math
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from shared import processes
from shared.attacks.gradient import input_gradient
from shared.errors import UserError
from shared.training.loop import Fit, cosine_schedule
from tests.accuracy import assert_within_rounding

X = torch.linspace(-1, 1, 64).view(16, 4).sin()


def make(optimizer="sgd", **settings):
    """A small regression whose data are a function of the step."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    torch.set_rng_state(state)
    parameters = model.parameters()
    chosen = (
        torch.optim.SGD(parameters, momentum=0.9)
        if optimizer == "sgd"
        else torch.optim.AdamW(parameters, weight_decay=0.1)
    )
    return model, Fit(
        model, chosen, **{"steps": 12, "lr": 0.1, "warmup": 3, "step_fn": lambda step: loss_of(model, step), **settings}
    )


def loss_of(model, step):
    x = X[[step % 16, (3 * step + 1) % 16, (5 * step + 2) % 16]]
    return (model(x) - x.sum(1, keepdim=True)).square().mean()


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# ---- schedule --------------------------------------------------------------------------------------------------------------


def test_schedule_by_hand():
    values = [cosine_schedule(step, 12, 4) for step in range(12)]
    assert values[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert values[8] == pytest.approx(0.5) and values[6] == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert values[11] == pytest.approx(0.5 * (1 + math.cos(7 * math.pi / 8)))
    assert sorted(values[4:], reverse=True) == values[4:] and min(values) > 0


def test_schedule_without_warm_up_and_all_warm_up():
    assert [cosine_schedule(s, 10, 0) for s in (0, 5, 10)] == pytest.approx([1, 0.5, 0])
    assert [cosine_schedule(s, 4, 4) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert cosine_schedule(0, 2, 1000) == 0.001


# ---- one run ---------------------------------------------------------------------------------------------------------------


def test_bf16_is_of_the_forward_passes_alone_and_leaves_nothing_behind(monkeypatch):
    seen = []

    def ran(precision: str) -> torch.Tensor:
        AcceleratorState._reset_state(True)
        accelerator = processes.accelerator(precision)
        model, fit = make(accelerator=accelerator)
        fit.model = prepared = accelerator.prepare(nn.Sequential(model))
        model[0].register_forward_hook(lambda module, given, out: seen.append(out.dtype))

        def step_fn(step: int) -> torch.Tensor:
            grad = input_gradient(lambda x: model(x)[:, 0], X[:2])[1]  # an attack
            return loss_of(prepared, step) + 0 * grad.sum()

        fit.step_fn = step_fn
        fit.run()
        assert not {"forward", "_original_forward"} & vars(prepared).keys()
        return weights(model)

    try:
        exact, half = ran("fp32"), ran("bf16")
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
        with pytest.raises(UserError, match="asks for fp16"):
            processes.accelerator("bf16")
    finally:
        AcceleratorState._reset_state(True)
    # every second pass is the attack's
    assert set(seen[:24]) == {torch.float32} and seen[24:] == [torch.float32, torch.bfloat16] * 12
    assert not torch.equal(exact, half) and (exact - half).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_a_run_is_the_plain_loop(clip_norm, quiet_generators):
    model, fit = make(clip_norm=clip_norm)
    loss = fit.run()
    plain, _ = make()
    velocity = [torch.zeros_like(p) for p in plain.parameters()]
    for step in range(12):
        value = loss_of(plain, step)
        grads = torch.autograd.grad(value, list(plain.parameters()))
        norm = torch.sqrt(sum(g.square().sum() for g in grads))
        factor = 1 if clip_norm is None else min(1, clip_norm / (norm.item() + 1e-6))
        rate = 0.1 * ((step + 1) / 3 if step < 3 else 0.5 * (1 + math.cos(math.pi * (step - 3) / 9)))
        with torch.no_grad():
            for p, v, g in zip(plain.parameters(), velocity, grads, strict=True):
                v.mul_(0.9).add_(factor * g)
                p.sub_(rate * v)
    assert_within_rounding(weights(model), weights(plain), terms=12 * 8)  # twelve steps
    assert_within_rounding(torch.tensor(loss), value, terms=12 * 8, scale=1.0)  # of the squares before the mean


def test_steps_are_reported_and_no_gradient_is_left():
    seen = []
    model, fit = make(after_step=seen.append)
    fit.run()
    assert seen == list(range(1, 13))
    assert all(p.grad is None for p in model.parameters())


def test_a_loss_that_is_no_number_is_an_error():
    model, fit = make()
    fit.step_fn = lambda step: loss_of(model, step) / (0 if step == 11 else 1)
    with pytest.raises(UserError, match="the loss became inf after 12 steps: lower the learning rate"):
        fit.run()


# ---- killed and continued --------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def run_until(step, path, optimizer, every):
    """Run, and stop dead in the middle of update `step` (0-based)."""
    model, fit = make(optimizer, checkpoint=path, every=every)

    def step_fn(s):
        if s == step:
            raise Killed
        return loss_of(model, s)

    fit.step_fn = step_fn
    with pytest.raises(Killed):
        fit.run()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("every, kills", [(1, (5,)), (4, (4,)), (4, (7, 9)), (5, (3,)), (3, (4, 6, 11))])
def test_killed_and_continued_is_bit_equal(tmp_path, optimizer, every, kills, quiet_generators):
    straight, fit = make(optimizer)
    expected = fit.run()
    for kill in kills:
        run_until(kill, tmp_path / "run.ckpt", optimizer, every)
    began = []
    model, fit = make(optimizer, checkpoint=tmp_path / "run.ckpt", every=every)
    fit.step_fn = lambda step: began.append(step) or loss_of(model, step)
    assert fit.run() == expected and torch.equal(weights(model), weights(straight))
    assert began[0] == kills[-1] // every * every and began[-1] == 11
    assert [p.name for p in tmp_path.iterdir()] in (["run.ckpt"], [])


def test_checkpoints_are_written_when_asked_and_not_at_the_end(tmp_path):
    _, fit = make(checkpoint=tmp_path / "a.ckpt", every=0)
    fit.run()
    assert not (tmp_path / "a.ckpt").exists()
    _, fit = make(checkpoint=tmp_path / "b.ckpt", every=12)
    fit.run()
    assert not (tmp_path / "b.ckpt").exists()  # the result is saved by the caller
    _, fit = make(checkpoint=tmp_path / "c.ckpt", every=5)
    fit.run()
    assert torch.load(tmp_path / "c.ckpt", weights_only=True)["step"] == 10
    _, fit = make(every=5)
    fit.run()


KILLED = """
import os, signal, sys
import torch
sys.path.insert(0, "tests/shared/training")
import test_loop

class Half:
    def __init__(self, save): self.save, self.calls = save, 0
    def __call__(self, state, path):
        self.calls += 1
        if self.calls == 2:  # the second checkpoint is being written
            open(path, "wb").write(b"half of it")
            os.kill(os.getpid(), signal.SIGKILL)
        self.save(state, path)

torch.save = Half(torch.save)
test_loop.make("adamw", checkpoint=sys.argv[1], every=3)[1].run()
"""


def test_kill_9_while_a_checkpoint_is_written(tmp_path):
    root = Path(__file__).parents[3]
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "run.ckpt")],
        cwd=root,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert process.returncode == -signal.SIGKILL
    straight, fit = make("adamw")
    fit.run()
    model, fit = make("adamw", checkpoint=tmp_path / "run.ckpt", every=3)
    begun, original = [], fit.step_fn
    fit.step_fn = lambda step: begun.append(step) or original(step)
    fit.run()
    assert begun[0] == 3  # the first checkpoint is whole
    assert torch.equal(weights(model), weights(straight))


class Bomb:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return exec, (f"open({self.marker!r}, 'w').close()",)


def spoil(path, how, marker):
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "code":
        torch.save({**torch.load(path, weights_only=True), "bomb": Bomb(marker)}, path)
    elif how == "pickle":
        path.write_bytes(pickle.dumps({"step": 3, "bomb": Bomb(marker)}, protocol=2))
    elif how == "other model":
        state = torch.load(path, weights_only=True)
        state["model"]["0.weight"] = torch.zeros(2, 2)
        torch.save(state, path)
    elif how == "no step":
        state = torch.load(path, weights_only=True)
        del state["step"]
        torch.save(state, path)
    elif how == "a list":
        torch.save([1, 2], path)


@pytest.mark.parametrize("how", ["truncated", "empty", "code", "pickle", "other model", "no step", "a list"])
def test_a_damaged_checkpoint_is_a_sentence(tmp_path, how):
    run_until(9, tmp_path / "run.ckpt", "adamw", 4)
    spoil(tmp_path / "run.ckpt", how, tmp_path / "ran")
    _, fit = make("adamw", checkpoint=tmp_path / "run.ckpt", every=4)
    with pytest.raises(
        UserError, match=r"cannot be continued from .*delete it to train again from the start\.$"
    ) as error:
        fit.run()
    assert "\n" not in str(error.value) and not (tmp_path / "ran").exists()
