"""What is installed is what is here: the wheel's files, the command and the public names, from any folder."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from shared.attacks.threat import Threat
from shared.experiment import source
from tests.test_setup_files import PROJECT, ROOT

ROOMS = ("shared", "papers", "vlm_robust")
SMALL = {"n": 8, "part": 8, "steps": 2, "queries": 2, "targets": 1, "sanity-n": 4, "device": "cpu"}
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


def run(*command: object, cwd: Path) -> str:
    """What it prints; fails with what it says on stderr."""
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def copy(tmp_path_factory):
    """What a build reads, elsewhere: building leaves folders behind, and takes what it finds in them."""
    folder = tmp_path_factory.mktemp("source") / "copy"
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__", "*.tmp-*", ".*"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="session")
def wheel(copy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-c", BUILD, folder, cwd=copy)
    return next(folder.glob("vlm_robust-*-py3-none-any.whl"))


def test_the_wheel_holds_every_file_of_the_packages(copy, wheel):
    there = {str(path.relative_to(copy)) for room in ROOMS for path in (copy / room).rglob("*") if path.is_file()}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        about = next(name for name in names if name.endswith(".dist-info/METADATA"))
        said = Parser().parsestr(archive.read(about).decode())
    assert {name for name in names if ".dist-info/" not in name} == there
    assert (said["Name"], said["Version"]) == (PROJECT["project"]["name"], PROJECT["project"]["version"])


def test_every_public_name_is_listed_and_in_the_overview():
    tree = ast.parse((ROOT / "vlm_robust" / "__init__.py").read_text())
    modules = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module.startswith("shared.")]
    names = {alias.asname or alias.name for node in modules for alias in node.names}
    listed = next(ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign))
    assert names == set(listed)
    assert names <= set(re.findall(r"`(\w+)`", ast.get_docstring(tree)))


def test_a_package_of_the_same_name_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "__init__.py").touch()
    code = f"import sys; sys.path.append({str(ROOT)!r}); import vlm_robust"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert f"another package named shared, {tmp_path}" in done.stderr.splitlines()[-1]
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from shared.judge.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: the folder {tmp_path} has a package named shared,")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_installed_it_runs_from_anywhere(kind, copy, wheel, tmp_path):
    """In an environment of its own that sees the packages of this one."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    programs = tmp_path / "venv" / "bin"
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(programs / "python", "-c", asked, cwd=tmp_path).strip())
    (site / "these.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    what = [wheel] if kind == "wheel" else ["--no-build-isolation", "-e", copy]
    pip = [sys.executable, "-m", "pip", "--python", programs / "python", "install", "--no-index", "--no-deps", "-q"]
    run(*pip, *what, cwd=tmp_path)

    asked = "import vlm_robust, shared, papers.rvpt.paper; print(vlm_robust.pgd, shared.__file__, papers.__file__)"
    where = run(programs / "python", "-c", asked, cwd=tmp_path)
    assert where.count(str(site if kind == "wheel" else copy)) == 2
    assert "--defence" in run(programs / "vlm-robust", "judge", "--help", cwd=tmp_path)
    if kind == "editable":  # the rest is the repository's code
        return
    few = [word for name, value in SMALL.items() for word in (f"--{name}", value)]
    page = run(programs / "vlm-robust", "judge", *few, "--out", "out", cwd=tmp_path)
    assert "accuracy" in page and (tmp_path / "out" / "page.html").is_file()
    asked = "from shared.experiment import source; from shared.attacks.threat import Threat; print(source.of(Threat))"
    same = run(programs / "python", "-c", asked, cwd=tmp_path).strip() == source.of(Threat)
    assert same, "what it measures is known by its source, as in the repository"
