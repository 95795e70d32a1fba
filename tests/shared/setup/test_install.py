"""The installer: what is whole is stamped, what is not is mended or built anew, what was not made here is left alone."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from shared.errors import UserError
from shared.setup import install, pins


@pytest.fixture
def steps(monkeypatch):
    """Stand-ins for examining, installing and building: `steps.faults` is answered in turn, `steps.done` notes the calls."""

    class Steps:
        faults: list = []  # noqa: RUF012 each test sets its own
        done: list = []  # noqa: RUF012

    steps = Steps()
    steps.done = []
    monkeypatch.setattr(install, "faults", lambda folder, *asked: steps.faults.pop(0))
    monkeypatch.setattr(install, "fill", lambda folder, torch: steps.done.append("fill" + torch))
    monkeypatch.setattr(install, "build", lambda folder, torch: steps.done.append("build"))
    return steps


@pytest.fixture
def place(tmp_path):
    """An environment that was made here."""
    folder = tmp_path / "other" / ".venv"
    folder.mkdir(parents=True)
    (folder / install.MARK).touch()
    (folder / "file").touch()
    (folder / pins.STAMP).touch()
    return folder


@pytest.mark.parametrize(("faults", "done"), [
    ([[]], []),  # whole, though without a stamp: adopted
    ([["tyro 1.0 is missing"], []], ["fill"]),
    ([["numpy is 1.0, not 2.0"], []], ["fill"]),
    ([["tyro 1.0 is missing"], ["tyro 1.0 is missing"], []], ["fill", "build", "fill"]),
    ([["torch is incomplete"], []], ["build", "fill"]),
    ([["its packages cannot be listed"], []], ["build", "fill"]),
    ([["it has no working Python"], []], ["build", "fill"]),
    ([["its Python is not 3.13"], []], ["build", "fill"]),
    ([["torch is not the build for CPUs", "tyro 1.0 is missing"], []], ["build", "fill"]),
])  # fmt: skip
def test_what_is_done_about_a_fault(steps, place, faults, done):
    steps.faults = faults
    install.install(place)
    assert steps.done == done
    assert (place / pins.STAMP).read_text().strip() == install.sha256_file(pins.LOCK)


def test_what_was_never_whole_is_built_anew(steps, place):
    """It may lack the installer itself."""
    (place / pins.STAMP).unlink()
    steps.faults = [["packaging is missing"], []]
    install.install(place)
    assert steps.done == ["build", "fill"]


def test_the_build_of_torch_is_remembered(steps, place):
    (place / install.MARK).write_text("cpu")
    steps.faults = [["tyro 1.0 is missing"], []]
    install.install(place)
    assert steps.done == ["fillcpu"]


def test_no_stamp_stays_where_the_installation_failed(steps, place, monkeypatch):
    (place / pins.STAMP).write_text("of an older lock")
    steps.faults = [["torch is incomplete"], ["torch is incomplete"]]
    with pytest.raises(UserError, match="not whole"):
        install.install(place)
    assert not (place / pins.STAMP).exists()

    def interrupted(folder, torch):
        raise KeyboardInterrupt

    (place / pins.STAMP).write_text("of an older lock")
    steps.faults = [["tyro 1.0 is missing"]]
    monkeypatch.setattr(install, "fill", interrupted)
    with pytest.raises(KeyboardInterrupt):
        install.install(place)
    assert not (place / pins.STAMP).exists()


@pytest.mark.parametrize("kind", ["environment", "stamped", "file", "link", "dangling link"])
def test_what_was_not_made_here_is_left_alone(tmp_path, kind):
    folder = tmp_path / "other" / ".venv"
    folder.parent.mkdir()
    if kind in ("environment", "stamped"):
        venv.create(folder, with_pip=False)
    if kind == "stamped":
        (folder / pins.STAMP).write_text("adopted once, when it was whole")
    if kind == "file":
        folder.write_text("kept")
    if kind == "link":
        folder.symlink_to(Path(sys.prefix).parent)
    if kind == "dangling link":
        folder.symlink_to("nowhere")
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(UserError, match=r"was not made by `make setup`.*(is missing|is not there|no working Python)"):
        install.install(folder)
    assert sorted(folder.parent.rglob("*")) == before


def test_building_clears_what_was_made_here_and_keeps_the_mark(place, tmp_path):
    (tmp_path / "kept").touch()
    (place / "lib").mkdir()
    (place / "lib" / "left").touch()
    (place / "lib64").symlink_to(tmp_path)
    install.build(place, "cpu")
    assert (tmp_path / "kept").exists()
    assert not (place / "lib" / "left").exists() and not (place / "file").exists()
    assert (place / install.MARK).read_text() == "cpu"
    assert install.faults(place) == ["packaging is missing"]
    assert install.faults(place, "--python", "3.10") == ["its Python is not 3.10"]
    (place / "bin" / "python").unlink()
    assert install.faults(place) == ["it has no working Python"]


def test_a_full_disk_is_seen_first(tmp_path, monkeypatch):
    monkeypatch.setitem(install.NEEDED_GB, "", 1e9)
    with pytest.raises(UserError, match="GB are free"):
        install.build(tmp_path / ".venv", "")


@pytest.mark.parametrize(("torch", "uv", "works"), [
    ("", False, True), ("", True, True), ("cpu", True, True), ("cpu", False, True), ("", True, False)])  # fmt: skip
def test_what_the_installers_are_told(tmp_path, monkeypatch, torch, uv, works):
    """Stand-ins for uv and the environment's Python write down their arguments and what they are given."""
    noted = tmp_path / "noted"
    script = f"""#!{sys.executable}
import json, sys
open({str(noted)!r}, "a").write(json.dumps([sys.argv, sys.stdin.read()]) + "\\n")
sys.exit({{}})
"""
    folder = tmp_path / "it's a venv ü"
    for path, code in ((folder / "bin" / "python", 0), *([(tmp_path / "uv", 0 if works else 1)] if uv else [])):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(script.format(code))
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    install.fill(folder, torch)
    calls = [json.loads(line) for line in noted.read_text().splitlines()]
    called = [os.path.basename(arguments[0]) for arguments, _ in calls]
    assert called == ["uv"] * uv + ["python"] * (not uv or not works)
    for arguments, given in calls:
        assert "sync" in arguments if arguments[0].endswith("uv") else "--no-deps" in arguments
        assert ("--torch-backend" in arguments) == (torch == "cpu" and arguments[0].endswith("uv"))
        if torch != "cpu":
            assert given == pins.LOCK.read_text()
        else:
            assert "nvidia" not in given and "triton" not in given and "\nnumpy==" in given
            assert ("+cpu" in given) == (sys.platform == "linux")


def test_an_installation_that_fails_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to("/bin/false")
    with pytest.raises(UserError, match=r"requirements\.lock could not be installed"):
        install.fill(tmp_path, "")


def test_which_versions_of_python_fit():
    versions = ((3, 10, 13), (3, 11, 2), (3, 14, 0), (3, 15, 0))
    assert [pins.unfit(version) is None for version in versions] == [False, True, True, False]


def package(site, name="thing", version="1.0", size=5, record=True):
    """A package as an installer leaves it: one module, its metadata, and the record with the module's size."""
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (site / f"{name}.py").write_text("x = 1")
    (info / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    if record:
        (info / "RECORD").write_text(f"{name}.py,sha256=x,{size}\n__pycache__/{name}.pyc,,\n{info.name}/RECORD,,\n")


@pytest.mark.parametrize(("how", "damaged"), [({}, []), ({"size": 6}, ["thing"]), ({"record": False}, ["thing"])])
def test_damage_is_seen_in_the_record(tmp_path, monkeypatch, how, damaged):
    package(tmp_path, **how)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert pins.damaged({"thing": "1.0"}) == damaged
    (tmp_path / "thing.py").unlink()
    assert pins.damaged({"thing": "1.0"}) == ["thing"]
    assert pins.damaged({}) == []


def test_differences_name_what_is_missing_and_what_is_other(tmp_path, monkeypatch):
    package(tmp_path)
    pins.differences()  # imports what reads the lock
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert pins.differences("thing==1.0") == []
    assert pins.differences("thing==2.0\nelse==3") == ["else 3 is missing", "thing is 1.0, not 2.0"]


def test_the_build_for_cpus_needs_no_cuda_packages(tmp_path, monkeypatch):
    lock = "torch==2.0\nnvidia-nccl-cu13==1\ntriton==3\ncuda-toolkit==13"
    package(tmp_path, "torch", "2.0")
    pins.differences()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "platform", "linux")
    assert len(pins.differences(lock)) == 3
    assert pins.differences(lock, torch="cpu")[-1] == "torch is not the build for CPUs"
    (tmp_path / "torch-2.0.dist-info").rename(tmp_path / "torch-2.0+cpu.dist-info")
    (tmp_path / "torch-2.0+cpu.dist-info" / "METADATA").write_text("Name: torch\nVersion: 2.0+cpu\n")
    assert pins.differences(lock) == pins.differences(lock, torch="cpu") == []


def test_a_stamp_of_another_lock_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert not pins.stamped()
    (tmp_path / pins.STAMP).write_text("of another lock")
    assert not pins.stamped()
    (tmp_path / pins.STAMP).write_text(install.sha256_file(pins.LOCK) + "\n")
    assert pins.stamped()


def test_a_place_that_cannot_be_written_is_one_sentence():
    command = [sys.executable, "-m", "shared.setup.install", "--venv", "/proc/none/.venv"]
    done = subprocess.run(command, cwd=pins.ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: /proc/none") and len(done.stderr.splitlines()) == 1


def test_installer_and_pins_need_the_standard_library_only():
    base = f"{sys.base_prefix}/bin/python3.{sys.version_info.minor}"
    done = subprocess.run([base, "-S", "-m", "shared.setup.install", "--help"], cwd=pins.ROOT, capture_output=True)
    assert done.returncode == 0
