"""SCALE=smoke measures what it measured when values/*.json were made, within what another CPU changes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden import plan, values

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("paper", plan.PAPERS)
def test_every_planned_number_has_a_golden_value(paper):
    assert plan.plans(paper)["smoke"].keys() <= json.loads((values.FOLDER / f"{paper}.json").read_text()).keys()


@pytest.mark.slow
@pytest.mark.parametrize("paper", plan.PAPERS)
def test_smoke_measures_the_golden_values(paper, tmp_path):
    for script in ("train", "evaluate"):
        command = ["shared.experiment.launch", "--device", "cpu", "-m", f"papers.{paper}.{script}"]
        subprocess.run(
            [sys.executable, "-m", *command, "--scale", "smoke", "--results", str(tmp_path)], cwd=ROOT, check=True
        )
    assert not values.portable(tmp_path, paper)


def test_what_another_machine_cannot_explain_is_reported():
    def differs(a: list, b: list) -> str:
        return values.near(a, b, flips=1, share=0.1, least=0.01)

    assert not differs(["share", "0110"], ["share", "0111"])
    assert differs(["share", "0110"], ["share", "1001"])
    assert differs(["share", "0110"], ["share", "01101"])
    assert differs(["share", "0110"], ["pixels", "0110"])
    assert not differs(["dB", [20.0, 30.0]], ["dB", [21.0, 31.0]])
    assert differs(["dB", [20.0, 30.0]], ["dB", [26.0, 30.0]])
    assert not differs(["share", "11"], ["share", [1.0, 0.99]])
    assert differs(["s", 4], ["s", 5])
