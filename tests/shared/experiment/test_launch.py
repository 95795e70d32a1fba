"""The launcher: devices, threads, exit codes, clean ends, no orphans, one message."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.errors import UserError
from shared.experiment.launch import __main__ as launch
from shared.lifeline import STARTED, Interrupted, supervise

ROOT = Path(__file__).resolve().parents[3]
LEFT = {
    "RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "PMI_SIZE": "4",
    "OMPI_COMM_WORLD_SIZE": "4",
    "ACCELERATE_MIXED_PRECISION": "fp16",
}


def machine(monkeypatch, cores: int, gpus: int) -> None:
    monkeypatch.setattr(launch, "cores", lambda: cores)
    monkeypatch.setattr(launch, "gpus", lambda: gpus)


@pytest.mark.parametrize(
    ("cores", "processes", "threads"), [(8, 1, "8"), (8, 2, "4"), (2, 2, "1"), (2, 4, "1"), (7, 2, "3")]
)
def test_cores_are_divided_among_the_processes(monkeypatch, cores, processes, threads):
    machine(monkeypatch, cores, 0)
    monkeypatch.delenv("OMP_NUM_THREADS")
    made = launch.environments(False, processes)
    assert [one["OMP_NUM_THREADS"] for one in made] == [threads] * processes
    assert processes == 1 or [one["RANK"] for one in made] == [str(rank) for rank in range(processes)]


def test_the_users_environment_wins_but_what_launchers_left_is_dropped(monkeypatch):
    for name, value in {**LEFT, "OMP_NUM_THREADS": "3", "DO_NOT_TRACK": "0"}.items():
        monkeypatch.setenv(name, value)
    (made,) = launch.environments(False, 1)
    assert (made["OMP_NUM_THREADS"], made["DO_NOT_TRACK"], made["ACCELERATE_USE_CPU"]) == ("3", "0", "true")
    assert made["ACCELERATE_MIXED_PRECISION"] == "no"
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"} & set(made)
    first, second = launch.environments(True, 2)
    assert (first["RANK"], second["RANK"], second["WORLD_SIZE"], second["ACCELERATE_USE_CPU"]) == (
        "0",
        "1",
        "2",
        "false",
    )
    assert first["MASTER_PORT"] == second["MASTER_PORT"] and "PMI_SIZE" not in first


@pytest.mark.parametrize(("gpus", "device", "wanted", "chosen"), [
    (0, None, None, (False, 4)), (0, "cpus", None, (False, 4)), (0, "cpu", None, (False, 1)), (0, "cpu2", None, (False, 2)),
    (1, None, None, (True, 1)), (3, None, None, (True, 1)), (3, "gpu", None, (True, 1)), (3, "gpus", None, (True, 3)),
    (3, "gpus", 2, (True, 2)), (3, None, 2, (True, 2)), (3, "gpu", 1, (True, 1)), (1, None, 1, (True, 1)), (3, "cpu", None, (False, 1))])  # fmt: skip
def test_a_device_names_processes(monkeypatch, gpus, device, wanted, chosen):
    machine(monkeypatch, 4, gpus)
    assert launch.choose(device, wanted) == chosen


@pytest.mark.parametrize(("gpus", "device", "wanted", "said"), [
    (0, "gpu", None, "DEVICE=gpu needs a GPU and none can be seen"), (0, "gpus", None, "DEVICE=gpus needs 2 GPUs and none can be seen"),
    (0, None, 2, "needs 2 GPUs and none can be seen"), (1, "gpus", None, "needs 2 GPUs and 1 can be seen"),
    (3, "gpus", 4, "needs 4 GPUs and 3 can be seen"), (3, "gpu", 2, "use DEVICE=gpus"), (3, "cpus", 2, "contradict each other"),
    (3, None, 0, "at least one is needed")])  # fmt: skip
def test_what_is_not_there_is_refused(monkeypatch, gpus, device, wanted, said):
    machine(monkeypatch, 4, gpus)
    with pytest.raises(UserError, match=said):
        launch.choose(device, wanted)


def test_more_than_eight_processes_do_not_help(monkeypatch):
    machine(monkeypatch, 64, 0)
    assert launch.choose("cpus") == (False, 8)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_exit_codes_pass_through():
    assert supervise([python("")], [os.environ]) == 0
    assert supervise([python("raise SystemExit(2)")], [os.environ]) == 2
    assert supervise([python("import os; os.kill(os.getpid(), 9)")], [os.environ]) == 137
    began = time.monotonic()
    assert supervise([python("import time; time.sleep(60)"), python("raise SystemExit(3)")], [os.environ] * 2) == 3
    assert time.monotonic() - began < 5


def test_several_processes_have_one_stderr(capfd):
    warn = "import sys, time; print('same', file=sys.stderr, flush=True); print({!r}, file=sys.stderr, flush=True)"
    assert supervise([python(warn.format("one")), python(warn.format("two"))], [os.environ] * 2) == 0
    assert sorted(capfd.readouterr().err.split()) == ["one", "same", "two"]


def test_who_fails_first_is_heard_and_those_who_fail_for_it_are_not(capfd):
    """The second complains as soon as the first is gone, as of a lost connection."""
    first = ("import time; from shared.errors import UserError, run_main\n"
             "def main(): time.sleep(1); raise UserError('bad input.')\n"
             "run_main(main)")  # fmt: skip
    second = ("import os, signal, sys, time\n"
              "def lost(*_): print('connection lost', file=sys.stderr, flush=True); sys.exit(1)\n"
              "signal.signal(signal.SIGTERM, lost); time.sleep(60)")  # fmt: skip
    assert supervise([python(second), python(first)], [os.environ] * 2) == 2
    assert capfd.readouterr().err == "error: bad input.\n"


def test_all_that_a_script_started_ends_with_it(tmp_path):
    """Such as the processes that read pictures: they are not told, and would wait for seconds."""
    code = ("import subprocess, sys; from pathlib import Path\n"
            "child = subprocess.Popen([sys.executable, '-c', 'import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)'])\n"
            f"Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid))")  # fmt: skip
    assert supervise([python(code)], [os.environ]) == 0
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_signal_ends_all_within_two_seconds_even_what_does_not_listen():
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
    before = signal.getsignal(signal.SIGTERM)
    here = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, under which these tests may run, ignores it
    try:
        subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -HUP {os.getpid()}"])
        began = time.monotonic()
        with pytest.raises(Interrupted) as stopped:
            supervise([python(deaf), python(deaf)], [os.environ] * 2)
    finally:
        signal.signal(signal.SIGHUP, here)
    assert time.monotonic() - began < 2.5 and stopped.value.number == signal.SIGHUP
    assert signal.getsignal(signal.SIGTERM) is before


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
@pytest.mark.parametrize("mark", [STARTED, "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"])
def test_a_killed_launcher_takes_its_scripts_along(mark):
    launcher = subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=ROOT, env=os.environ | {mark: "x"}, stdout=subprocess.PIPE, text=True
    )
    tied, pid = launcher.stdout.readline().split()
    assert tied == "True"
    assert alive(int(pid))
    launcher.kill()
    launcher.wait()
    launcher.stdout.close()
    assert gone(int(pid))


def test_a_script_started_by_hand_outlives_its_shell():
    unmarked = {
        name: value
        for name, value in os.environ.items()
        if name not in (STARTED, "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")
    }
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
from shared.errors import UserError, run_main
from shared.lifeline import tie_to_launcher
from shared.processes import accelerator

def main():
    tie_to_launcher()
    state = accelerator()
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

    def call(device: str, what: str, up: int) -> tuple[subprocess.Popen, Path]:
        command = [sys.executable, "-m", "shared.experiment.launch", "--device", device, "-m", "script", what]
        environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}", "OMP_NUM_THREADS": "1"}
        said = tmp_path / f"{device}-{what}.txt"
        with open(said, "w") as out:
            process = subprocess.Popen(
                command, cwd=tmp_path, env=environment, stdout=out, stderr=out, start_new_session=True
            )
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
@pytest.mark.parametrize("device", ["cpu", "cpu2"])
@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_group_leaves_no_orphan(start, tmp_path, device, signal_):
    process, said = start(device, "wait", 2 if device == "cpu2" else 1)
    os.killpg(process.pid, signal_)
    process.wait(60)
    assert all(gone(pid) for pid in scripts_of(tmp_path))
    assert "Traceback" not in said.read_text()
    if signal_ != signal.SIGKILL:
        assert process.returncode == 128 + signal_
        assert said.read_text().count("put away") == (2 if device == "cpu2" else 1)
        assert said.read_text().splitlines()[-1].startswith("interrupted: everything finished so far is saved")


@pytest.mark.slow
def test_two_processes_find_each_other_and_a_mistake_is_one_sentence(start):
    process, said = start("cpu2", "go", 2)
    assert process.wait(60) == 0
    assert sorted(line for line in said.read_text().splitlines() if line.startswith("up ")) == ["up 0 2", "up 1 2"]
    for device, up in (("cpu", ["up 0 1"]), ("cpu2", ["up 0 2", "up 1 2"])):
        process, said = start(device, "bad", len(up))
        assert process.wait(60) == 2
        assert sorted(said.read_text().splitlines()) == ["error: bad input.", *up]
