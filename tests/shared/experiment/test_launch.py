"""The launcher: threads, exit codes, clean ends, no orphans; its config files."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from shared.errors import UserError
from shared.experiment.launch import __main__ as launch
from shared.setup.pins import ROOT

CONFIGS = ROOT / "shared" / "experiment" / "launch"


@pytest.mark.parametrize(("cores", "processes", "threads"), [(8, 1, "8"), (8, 2, "4"), (2, 2, "1"), (2, 4, "1"), (7, 2, "3")])
def test_cores_are_divided_among_the_processes(monkeypatch, cores, processes, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert launch.environment(False, processes, {})["OMP_NUM_THREADS"] == threads


def test_the_users_environment_wins():
    added = launch.environment(True, 1, {"OMP_NUM_THREADS": "3", "DO_NOT_TRACK": "0"})
    assert "OMP_NUM_THREADS" not in added
    assert "DO_NOT_TRACK" not in added
    assert added["ACCELERATE_USE_CPU"] == "true"
    assert "ACCELERATE_USE_CPU" not in launch.environment(False, 1, {})


@pytest.mark.parametrize(("name", "processes", "cpu", "kind"), [
    ("cpu", 1, True, "NO"), ("cpu2", 2, True, "MULTI_GPU"), ("gpu", 1, False, "NO"), ("gpus", 2, False, "MULTI_GPU")])  # fmt: skip
def test_config_files(name, processes, cpu, kind):
    config = launch.read_config(str(CONFIGS / f"{name}.yaml"))
    assert (config["num_processes"], config["use_cpu"], config["distributed_type"]) == (processes, cpu, kind)
    assert config["mixed_precision"] == "no"  # half precision makes attacks partly blind
    # Several processes meet at a port: a fixed one would let two runs on a machine collide.
    assert processes == 1 or config["main_process_port"] == 0


def test_every_config_file_is_documented():
    files = {path.stem for path in CONFIGS.glob("*.yaml")}
    assert files == {"cpu", "cpu2", "gpu", "gpus"}
    assert all(f"`{name}.yaml`" in (CONFIGS / "README.md").read_text() for name in files)
    assert all(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in files)


def test_a_missing_or_broken_config_is_one_sentence(tmp_path):
    (tmp_path / "broken.yaml").write_text("a: [")
    for path in (tmp_path / "none.yaml", tmp_path / "broken.yaml"):
        with pytest.raises(UserError, match="cannot be read"):
            launch.read_config(str(path))


def test_exit_codes_pass_through():
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    failures = {1: ProcessFailure(local_rank=1, pid=9, exitcode=2, error_file="none")}

    def fail(error):
        def call():
            raise error

        return launch.run_quietly(call)

    assert launch.run_quietly(lambda: None) == 0
    assert fail(subprocess.CalledProcessError(2, "script")) == 2
    assert fail(subprocess.CalledProcessError(-signal.SIGKILL, "script")) == 137
    assert fail(ChildFailedError("script", failures)) == 2
    assert fail(SignalException("stopped", signal.SIGTERM)) == 143
    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError())


CHILD = "import time; from shared.lifeline import tie_to_launcher; print(tie_to_launcher(), flush=True); time.sleep(60)"
PARENT = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], start_new_session=True, stdout=subprocess.PIPE, text=True)
print(child.stdout.readline().strip(), child.pid, flush=True)
time.sleep(60)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal at a parent's death is Linux'")
@pytest.mark.parametrize("mark", ["TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"])
def test_a_killed_launcher_takes_its_scripts_along(mark):
    launcher = subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, env=os.environ | {mark: "x"}, stdout=subprocess.PIPE, text=True)
    tied, pid = launcher.stdout.readline().split()
    assert tied == "True"
    assert alive(int(pid))
    launcher.kill()
    launcher.wait()
    launcher.stdout.close()
    assert gone(int(pid))


def test_a_script_started_by_hand_outlives_its_shell():
    unmarked = {name: value for name, value in os.environ.items() if name not in ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")}
    shell = subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, env=unmarked, stdout=subprocess.PIPE, text=True)
    tied, pid = shell.stdout.readline().split()
    shell.kill()
    shell.wait()
    shell.stdout.close()
    try:
        assert tied == "False"
        assert not gone(int(pid), 0.5)
    finally:
        os.kill(int(pid), signal.SIGKILL)


SCRIPT = """
import sys, time
from accelerate import Accelerator
from shared.errors import UserError, run_main
from shared.lifeline import tie_to_launcher

def main():
    tie_to_launcher()
    state = Accelerator()
    sys.stdout.write(f"up {state.process_index} {state.num_processes}\\n")  # one write, so that two processes do not mix their lines
    sys.stdout.flush()
    if sys.argv[1] == "bad":
        raise UserError("bad input.")
    try:
        time.sleep(100 if sys.argv[1] == "wait" else 0)
    finally:
        print("put away", flush=True)

run_main(main)
"""


@pytest.fixture
def start(tmp_path):
    """Start the real launcher on a script, in a process group of its own, and wait until `up` scripts are running."""
    (tmp_path / "script.py").write_text(SCRIPT)

    def call(config: str, what: str, up: int) -> tuple[subprocess.Popen, Path]:
        command = [sys.executable, "-m", "shared.experiment.launch", "--config_file", str(CONFIGS / f"{config}.yaml"), "-m", "script", what]
        environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}", "OMP_NUM_THREADS": "1"}
        said = tmp_path / f"{config}-{what}.txt"
        with open(said, "w") as out:
            process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=out, stderr=out, start_new_session=True)
        while said.read_text().count("\nup ") + said.read_text().startswith("up ") < up:
            assert process.poll() is None, said.read_text()
            time.sleep(0.05)
        return process, said

    return call


def scripts_of(tmp_path: Path) -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _works_in(entry, tmp_path)]


def _works_in(entry: Path, folder: Path) -> bool:
    try:
        return os.readlink(entry / "cwd") == str(folder)
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("config", ["cpu", "cpu2"])
@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_group_leaves_no_orphan(start, tmp_path, config, signal_):
    process, said = start(config, "wait", 2 if config == "cpu2" else 1)
    os.killpg(process.pid, signal_)
    process.wait(60)
    assert all(gone(pid) for pid in scripts_of(tmp_path))
    assert "Traceback" not in said.read_text()
    if signal_ == signal.SIGINT:
        assert process.returncode == 130
        assert "put away" in said.read_text()
        assert "run the same command again to continue" in said.read_text()


@pytest.mark.slow
def test_two_processes_find_each_other_and_a_mistake_is_one_sentence(start):
    process, said = start("cpu2", "go", 2)
    assert process.wait(60) == 0
    assert sorted(line for line in said.read_text().splitlines() if line.startswith("up ")) == ["up 0 2", "up 1 2"]
    process, said = start("cpu", "bad", 1)
    assert process.wait(60) == 2
    assert said.read_text() == "up 0 1\nerror: bad input.\n"
