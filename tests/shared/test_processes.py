"""This process among others: what a launcher has left behind counts for nothing, and who waits for somebody that never comes says so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared.lifeline import STARTED

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
from datetime import timedelta
from shared import processes
from shared.errors import run_main
processes.MEET = timedelta(seconds=2)
def main():
    state = processes.accelerator()
    print(state.num_processes, state.process_index, state.device.type)
run_main(main)
"""


def run(**environment: str) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if name != STARTED}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env=kept | environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
@pytest.mark.parametrize("left", [
    {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, {"PMI_RANK": "1", "PMI_SIZE": "4"},
    {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "MASTER_ADDR": "elsewhere"}])  # fmt: skip
def test_what_a_launcher_left_behind_counts_for_nothing(left):
    done = run(**left)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 0 ")
    assert (
        done.stderr
        == f"note: {', '.join(name for name in os.environ | left if name in left)} in the environment count for nothing: "
        "no launcher started this process.\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_who_waits_in_vain_says_so(rank):
    done = run(
        TORCHELASTIC_RUN_ID="x", RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="1"
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("error: the processes of this run did not find each other in")


@pytest.mark.slow
def test_a_gpu_that_was_asked_for_and_is_not_there_is_refused():
    done = run(**{STARTED: "1", "ACCELERATE_USE_CPU": "false", "CUDA_VISIBLE_DEVICES": ""})
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: a GPU was asked for and torch cannot use one")
