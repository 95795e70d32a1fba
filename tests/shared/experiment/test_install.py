"""The installer: what is whole is stamped, what is not is mended or built anew, and no other folder is touched."""

import subprocess
import sys
import venv

import pytest

from shared.errors import UserError
from shared.experiment import install, pins


@pytest.fixture
def steps(monkeypatch):
    """Replace examining, pip and building by stand-ins: `steps.faults` is answered in turn, `steps.done` notes what was called."""

    class Steps:
        faults: list = []  # noqa: RUF012 each test sets its own
        done: list = []  # noqa: RUF012
        pip_fails = False

    steps = Steps()
    steps.done = []

    def fill(folder):
        steps.done.append("pip")
        if steps.pip_fails:
            raise UserError("pip could not")

    monkeypatch.setattr(install, "faults", lambda folder: steps.faults.pop(0))
    monkeypatch.setattr(install, "fill", fill)
    monkeypatch.setattr(install, "build", lambda folder: (steps.done.append("build"), folder.mkdir(exist_ok=True)))
    return steps


@pytest.fixture
def place(tmp_path):
    (tmp_path / ".venv").mkdir()
    return tmp_path / ".venv"


@pytest.mark.parametrize(("faults", "pip_fails", "done"), [
    ([[]], False, []),  # whole, though without a stamp: adopted
    ([["tyro 1.0 is missing"], []], False, ["pip"]),
    ([["numpy is 1.0, not 2.0"], []], False, ["pip"]),
    ([["tyro 1.0 is missing"], ["tyro 1.0 is missing"], []], True, ["pip", "build"]),
    ([["torch is incomplete"], []], False, ["build"]),
    ([["its packages cannot be listed"], []], False, ["build"]),
    ([[install.NO_PYTHON], []], False, ["build"]),
])  # fmt: skip
def test_what_is_done_about_a_fault(steps, place, faults, pip_fails, done):
    steps.faults, steps.pip_fails = faults, pip_fails
    install.install(place)
    assert steps.done == done
    assert (place / install.STAMP).read_text().strip() == install.sha256_file(install.LOCK)


def test_no_stamp_stays_where_the_installation_failed(steps, place):
    (place / install.STAMP).write_text("of an older lock")
    steps.faults = [["torch is incomplete"], ["torch is incomplete"]]
    with pytest.raises(UserError, match="not whole"):
        install.install(place)
    assert not (place / install.STAMP).exists()


def test_an_interrupt_leaves_no_stamp(steps, place, monkeypatch):
    (place / install.STAMP).write_text("of an older lock")
    steps.faults = [["tyro 1.0 is missing"]]

    def interrupted(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(install, "fill", interrupted)
    with pytest.raises(KeyboardInterrupt):
        install.install(place)
    assert not (place / install.STAMP).exists()


def test_another_environment_is_never_deleted(steps, tmp_path):
    steps.faults = [["torch is incomplete"]]
    with pytest.raises(UserError, match=r"differs from requirements\.lock"):
        install.install(tmp_path / "conda")
    assert steps.done == []


def test_a_link_or_a_full_disk_is_refused(tmp_path, monkeypatch):
    target = tmp_path / "kept"
    target.mkdir()
    (tmp_path / ".venv").symlink_to(target)
    with pytest.raises(UserError, match="is a link"):
        install.build(tmp_path / ".venv")
    (tmp_path / ".venv").unlink()
    monkeypatch.setattr(install, "NEEDED_GB", 1e9)
    with pytest.raises(UserError, match="GB are free"):
        install.build(tmp_path / ".venv")


def test_python_must_be_311():
    install.check_python((3, 11))
    with pytest.raises(UserError, match=r"Python 3\.11 is needed and this is 3\.12"):
        install.check_python((3, 12))


def test_faults_of_real_environments(tmp_path):
    assert install.faults(tmp_path / "none") == [install.NO_PYTHON]
    venv.create(tmp_path / "empty", with_pip=False)
    found = install.faults(tmp_path / "empty")
    assert f"torch {pins.parse_pins(pins.LOCK.read_text())['torch']} is missing" in found
    (tmp_path / "empty" / "bin" / "python").unlink()
    assert install.faults(tmp_path / "empty") == [install.NO_PYTHON]


def package(site, name="thing", size=5, record=True):
    """A package as an installer leaves it: one module, its metadata, and the record with the module's size."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (site / f"{name}.py").write_text("x = 1")
    (info / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\n")
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
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert pins.differences({"thing": "1.0"}) == []
    assert pins.differences({"thing": "2.0", "else": "3"}) == ["else 3 is missing", "thing is 1.0, not 2.0"]
    monkeypatch.setattr(sys, "platform", "darwin")
    assert pins.differences({"triton": "3", "nvidia-nccl-cu13": "1", "cuda-toolkit": "13"}) == []


def test_installer_and_pins_need_the_standard_library_only():
    code = "import sys; sys.argv = ['x', '--help']; import runpy; runpy.run_module('shared.experiment.install', run_name='__main__')"
    base = f"{sys.base_prefix}/bin/python3.11"
    assert subprocess.run([base, "-S", "-c", code], cwd=pins.ROOT, capture_output=True, text=True).returncode == 0
