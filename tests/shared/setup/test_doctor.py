"""Each thing that can be wrong with a machine, faked, and what the doctor says about it."""

import subprocess
import sys
from pathlib import Path

import pytest

from shared.setup import doctor
from shared.setup.pins import ROOT

WELL = {"torch": "2.14.1+cu130", "torchvision": "0.29.1", "operators": True, "threads": 2, "cuda": "13.0", "gpus": [],
        "accelerate": "1.15.0", "kernel": True}  # fmt: skip
CARD = {"name": "H100", "gib": 79.2}
DRIVER = ["GPU 0: H100"]
BASE = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"


def without(*names: str, **changed) -> dict:
    return {name: value for name, value in (WELL | changed).items() if name not in names}


@pytest.mark.parametrize(("line", "level", "said"), [
    (doctor.python((3, 11, 7)), "ok", "3.11.7"),
    (doctor.python((3, 14, 2)), "ok", "3.14.2"),
    (doctor.python((3, 15, 0)), "problem", "Python 3.11 to 3.14 is needed and this is 3.15.0: install one"),
    (doctor.packages([], []), "ok", "at its version"),
    (doctor.packages(["numpy is 1.0, not 2.0"], []), "warning", "requirements.lock (numpy is 1.0, not 2.0): run `make setup`"),
    (doctor.packages(["tyro 1 is missing", "numpy is 1.0, not 2.0"], []), "problem", "2 differ"),
    (doctor.packages([], ["torch"]), "problem", "files of torch are missing or cut short: delete .venv"),
    (doctor.pairing(WELL), "ok", "torch 2.14.1+cu130 and torchvision 0.29.1 work together, 2 threads"),
    (doctor.pairing({"error": "No module named 'torch'"}), "problem", "(No module named 'torch'): run `make setup`"),
    (doctor.pairing({"error": "libcudart.so: no such file"}), "problem", "(libcudart.so: no such file): delete .venv"),
    (doctor.pairing(without("torchvision", error="no file")), "problem", "torch 2.14.1+cu130 works, torchvision does not (no file)"),
    (doctor.pairing(WELL | {"torchvision": "0.28.0"}), "problem", "not a pair (torchvision 0.29 is the one for this torch)"),
    (doctor.pairing(without("operators", error="operator torchvision::nms does not exist")), "problem", "do not work together (operator"),
    (doctor.gpu(WELL, []), "ok", "SCALE=evening and paper need one"),
    (doctor.gpu(WELL | {"gpus": [CARD, CARD]}, DRIVER), "ok", "2 can compute: H100 79 GiB, H100 79 GiB"),
    (doctor.gpu(WELL | {"gpus": [CARD | {"error": "no kernel image"}]}, DRIVER), "problem", "cannot compute: H100 (no kernel image)"),
    (doctor.gpu(WELL, DRIVER, {}), "problem", "the driver may be too old for CUDA 13.0"),
    (doctor.gpu(WELL | {"cuda": None}, DRIVER, {}), "problem", "this torch has no CUDA"),
    (doctor.gpu(WELL, DRIVER, {"CUDA_VISIBLE_DEVICES": ""}), "warning", "CUDA_VISIBLE_DEVICES='' hides 1 from torch"),
    (doctor.gpu({}, DRIVER, {}), "warning", "torch has to be importable"),
    (doctor.launcher(WELL), "ok", "accelerate 1.15.0"),
    (doctor.launcher({"accelerate_error": "No module named 'accelerate'"}), "problem", "accelerate cannot be imported (No module"),
    (doctor.kernel(WELL), "ok", "kernel"),
    (doctor.kernel({"kernel_error": "No such kernel named python3"}), "problem", "(No such kernel named python3): run `make setup`"),
    (doctor.memory(1e9), "problem", "1.0 GB available, too little"),
    (doctor.memory(3e9), "warning", "tight for DEVICE=cpu2"),
    (doctor.memory(16e9), "ok", "16.0 GB"),
    (doctor.threads(4, {"OMP_NUM_THREADS": "4"}), "ok", "4 cores"),
    (doctor.threads(4, {"OMP_NUM_THREADS": "1"}), "warning", "leaves 3 of 4 cores idle: unset it"),
    (doctor.threads(4, {"OMP_NUM_THREADS": "64"}), "warning", "is too many: set it to 4"),
    (doctor.threads(4, {"OMP_NUM_THREADS": "all"}), "problem", "'all' is not a number of threads"),
    (doctor.threads(0.25, {}), "warning", "a quota of 0.25 cores"),
    (doctor.readers({"pictures": 300}, 4), "ok", "3 processes can read ahead for each that trains (900 JPEGs"),
    (doctor.readers({"pictures": 300, "gpus": [CARD, CARD]}, 16), "warning", "7 processes can read ahead"),
    (doctor.readers({"pictures": 300, "gpus": [CARD]}, 16), "ok", "15 processes"),
    (doctor.readers({"pictures_error": "no decoder"}, 4), "problem", "none can be read (no decoder): delete .venv"),
    (doctor.disk(Path("/r"), 5e8), "problem", "0.5 GB free for /r"),
    (doctor.disk(Path("/r"), 5e9), "warning", "enough for SCALE=cpu"),
    (doctor.disk(Path("/r"), 5e10), "ok", "50.0 GB"),
    (doctor.tools(lambda name: None), "warning", "git and make not found"),
    (doctor.tools(lambda name: f"/bin/{name}"), "ok", "git and make"),
])  # fmt: skip
def test_finding(line, level, said):
    assert (line.level, said in line.text) == (level, True), line
    assert level == "ok" or any(word in line.text for word in ("run `", "delete", "set it", "unset", "use ", "install", "free", "restore",
                                                               "set OMP", "enough", "has to", "mend"))  # fmt: skip


def test_results_that_cannot_be_written(tmp_path, monkeypatch):
    assert doctor.results(tmp_path / "not" / "yet").level == "ok"
    assert not (tmp_path / "not").exists()
    (tmp_path / "file").touch()
    assert "is a file" in doctor.results(tmp_path / "file").text

    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    line = doctor.results(tmp_path)
    assert (line.level, "cannot be written (Permission denied)" in line.text) == ("problem", True)


def test_probe_that_crashes_hangs_or_babbles():
    python = sys.executable
    assert "killed by signal 4" in doctor.run_probe((python, "-c", "import os; os.kill(os.getpid(), 4)"))["error"]
    assert "more than 0 s" in doctor.run_probe((python, "-c", "import time; time.sleep(9)"), seconds=0.2)["error"]
    assert doctor.run_probe((python, "-c", "raise OSError('disk on fire')"))["error"] == "OSError: disk on fire"
    assert doctor.run_probe((python, "-c", "print('a warning'); print('{\"torch\": \"2.0\"}')")) == {"torch": "2.0"}


def test_memory_counts_the_containers_limit(monkeypatch):
    files = {"/proc/meminfo": "MemAvailable:  16000000 kB\n", "/sys/fs/cgroup/memory.max": "3000000000\n",
             "/sys/fs/cgroup/memory.current": "1500000000\n", "/sys/fs/cgroup/cpu.max": "150000 100000\n"}  # fmt: skip
    monkeypatch.setattr(doctor, "_read", lambda path: files.get(path, ""))
    monkeypatch.setattr(doctor, "_affinity", lambda: 8)
    assert doctor.memory().level == "problem"
    assert doctor.threads(given={}).text == "a quota of 1.5 cores while 8 are seen: set OMP_NUM_THREADS=2"
    files.update({"/sys/fs/cgroup/memory.max": "max\n", "/sys/fs/cgroup/cpu.max": "max 100000\n"})
    assert doctor.memory().text == "16.4 GB available"
    assert doctor.threads(given={}).level == "ok"


def test_exit_code_and_closing_line(monkeypatch, capsys):
    for levels, code, closing in (["ok"], 0, "nothing wrong was found"), (["ok", "warning"], 0, "1 warning"), (
        ["problem", "warning", "problem"], 1, "2 problems, 1 warning"):  # fmt: skip
        monkeypatch.setattr(
            doctor, "examine", lambda folder, levels=levels: [doctor.Line(level, "topic", "text") for level in levels]
        )
        monkeypatch.setattr(sys, "argv", ["doctor"])
        with pytest.raises(SystemExit) as left:
            doctor.main()
        assert left.value.code == code
        assert capsys.readouterr().out.splitlines()[-1] == closing


def test_works_where_nothing_is_installed():
    """-S: a Python without site-packages, as on a fresh machine."""
    done = subprocess.run([BASE, "-S", "-m", "shared.setup.doctor"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "torch cannot be imported (No module named 'torch'): run `make setup`" in done.stdout
    assert done.stderr == ""


def test_this_machine_passes_the_probe():
    """The real probe, once: the pair works, accelerate reads every launch configuration, the kernel is there."""
    probe = doctor.run_probe()
    assert [
        line for line in (doctor.pairing(probe), doctor.launcher(probe), doctor.kernel(probe)) if line.level != "ok"
    ] == []
