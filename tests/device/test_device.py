"""What a GPU computes is what a CPU computes. Without a GPU the CPU stands in for it, so that these tests are known to run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shared.attacks import Threat, pgd
from shared.bench.plain import random_clip
from shared.models.victim import ZeroShot
from shared.rng import SampleRng, set_draws

pytestmark = pytest.mark.slow
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def on_device():
    set_draws("device")
    yield
    set_draws("auto")


@pytest.mark.parametrize("shape", [(), (7,), (3, 224, 224)])
def test_a_gpu_draws_what_the_same_generator_draws_on_a_cpu(on_device, shape):
    rng = SampleRng(3, range(5, 12), "noise")
    assert torch.equal(rng.uniform(shape, -0.1, 0.3, DEVICE).cpu(), rng.uniform(shape, -0.1, 0.3, "cpu"))
    there, here = rng.normal(shape, DEVICE).cpu(), rng.normal(shape, "cpu")
    assert torch.allclose(there, here, rtol=1e-5, atol=2e-6)  # the logarithm and the cosine are each device's own
    few = torch.tensor([6, 2])
    assert torch.equal(rng.subset(few).normal(shape, DEVICE).cpu(), there[few])


def test_a_gpu_attacks_as_a_cpu_does():
    clip = random_clip("scenes-vit-s8").requires_grad_(False)
    text = torch.nn.functional.normalize(torch.randn(10, clip.visual.output_dim), dim=1)
    x, threat = torch.rand(16, 3, 32, 32), Threat("linf", 4 / 255)
    here = ZeroShot(clip.visual, text, 10.0)
    y = here(x).argmax(dim=1)
    losses = []
    set_draws("cpu")
    for device in ("cpu", DEVICE):
        victim, at, labels = here.to(device), x.to(device), y.to(device)
        how = {"steps": 10, "step_size": 1 / 255, "rng": SampleRng(0, range(16)), "keep": "last"}
        x_adv = pgd(victim, at, labels, threat, **how)
        assert x_adv.device.type == device and (x_adv - at).abs().max() <= threat.eps + 1e-6
        losses.append(torch.nn.functional.cross_entropy(victim(x_adv), labels).item())
    set_draws("auto")
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_the_check_works_where_there_is_no_gpu(tmp_path):
    done = subprocess.run(
        ["sh", "tests/device/check.sh", sys.executable, tmp_path / "device.json", "--quick"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "device.json").read_text())
    assert (
        not found["wrong"]
        and found["machine"]["device"]
        and found["figures"]["noise_and_pgd"]["PGD step in fp32, s"] > 0
    )
