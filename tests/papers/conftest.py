"""What the tests of every paper use: its scripts run in this process, and what they measured."""

import contextlib
import importlib
import io
import shutil
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from shared.errors import run_main
from shared.experiment import scripts
from shared.experiment.store import Store

pytest.register_assert_rewrite("tests.papers.ends")  # the asserts of a helper say as much as those of a test


@dataclass(frozen=True)
class Outcome:
    """What a script left behind: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


def _run_here(paper: str, script: str, *options: object) -> Outcome:
    """`python -m papers.<paper>.<script> <options>` without a process of its own: the imports cost more than a small run."""
    module = importlib.import_module(f"papers.{paper}.{script}")
    main = getattr(module, "main", None) or partial(scripts.run, paper, script, module.__doc__)
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", [script, *map(str, options)])
        try:
            run_main(main)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
    return Outcome(code, out.getvalue(), err.getvalue())


def _contents(paper: str, results: Path, scale: str = "smoke") -> dict[str, tuple[str, np.ndarray]]:
    """slug -> (key, values) of every planned measurement that is there."""
    return {m.slug: (m.key, m.values) for m in Store(results / scale / paper).planned()}


@pytest.fixture(scope="module")
def paper(request) -> str:
    """The paper whose tests these are, by their folder."""
    return request.path.parent.name


@pytest.fixture(scope="module")
def script(paper):
    """script(name, *options): one of the paper's scripts, see `_run_here`."""
    return partial(_run_here, paper)


@pytest.fixture(scope="module")
def measured(paper):
    """measured(results): see `_contents`."""
    return partial(_contents, paper)


@pytest.fixture(scope="module")
def reference(request, script, tmp_path_factory) -> Path:
    """The results of an uninterrupted run on one process with the options SMALL of the test's module. Read only."""
    from tests.papers.ends import run

    results = tmp_path_factory.mktemp("reference")
    run(script, results, *request.module.SMALL)
    return results


@pytest.fixture
def copy(reference, tmp_path) -> Path:
    """A copy of these results to spoil."""
    return Path(shutil.copytree(reference, tmp_path / "copy"))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
