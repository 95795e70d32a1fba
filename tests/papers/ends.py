"""What the tests of papers from end to end share: both scripts in turn, which files a run has written, and whether two runs measured the same."""

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from shared.experiment.store import Store
from shared.report import Report

ROOT = Path(__file__).resolve().parents[2]


def load(path: str):
    """A file under tests/, for what it makes, such as tiny copies of data sets; `--import-mode=importlib` lets no test import a conftest."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / "tests" / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stamps(results: Path, *suffixes: str) -> dict[str, int]:
    """When each file was written last, but for the plan and the gates, which every run writes."""
    return {str(p.relative_to(results)): p.stat().st_mtime_ns for p in results.rglob("*")
            if p.suffix in suffixes and not p.name.startswith(".") and p.name not in ("plan.json", "gates.json")}


def run(script, results: Path, *options: object) -> str:
    """Training and evaluation, which both succeed; returns what they printed."""
    out = ""
    for name in ("train", "evaluate"):
        outcome = script(name, *options, "--results", results)
        assert outcome.code == 0, outcome.err
        out += outcome.out
    return out


def assert_equal(a: dict, b: dict, exact: bool = False) -> None:
    """Same measurements: names, keys and the value of every example, but for seconds, as a machine is never the same twice."""
    assert a.keys() == b.keys()
    for slug, (key, values) in a.items():
        assert b[slug][0] == key, slug
        if "seconds" not in slug:
            np.testing.assert_allclose(values, b[slug][1], rtol=0 if exact else 1e-7, atol=0 if exact else 1e-6, err_msg=slug)


def check_continues(paper: str, script, folder: Path, monkeypatch, *options: object) -> None:
    """An evaluation that is interrupted at its fifth measurement of quality, and started again, keeps what it has. folder: without measurements."""
    measure = importlib.import_module(f"papers.{paper}.measure")
    made, whole = [], measure.KINDS["quality"]

    def interrupted(m, cell):
        made.append(cell)
        if len(made) == 5:
            raise KeyboardInterrupt
        return whole(m, cell)

    monkeypatch.setitem(measure.KINDS, "quality", interrupted)
    assert script("evaluate", *options).code == 130
    monkeypatch.setitem(measure.KINDS, "quality", whole)
    before = len(list((folder / "measurements").glob("*.json")))
    outcome = script("evaluate", *options)
    assert outcome.code == 0 and f"{before} already there" in outcome.out


def launch(paper: str, *options: object) -> None:
    """Training and evaluation on two processes, by the launcher."""
    command = [sys.executable, "-m", "shared.experiment.launch", "--config_file", "shared/experiment/launch/cpu2.yaml", "--num_processes", "2"]
    for name in ("train", "evaluate"):
        subprocess.run([*command, "-m", f"papers.{paper}.{name}", *map(str, options)], cwd=ROOT, check=True, timeout=600,
                       env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)


def check_page(paper: str, results: Path, helpers: set[str], absent: tuple[str, ...] = ()) -> None:
    """Every table and figure of the notebook can be drawn from `results`, and every public function of both modules is in the notebook.

    helpers: functions that draw nothing themselves. absent: figures that may have nothing to show at this scale.
    """
    tables, figures = (importlib.import_module(f"papers.{paper}.{name}") for name in ("tables", "figures"))
    report = Report(paper, "smoke", str(results))
    notebook = json.loads((ROOT / "papers" / paper / "notebook.ipynb").read_text())
    source = "".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
    assert "not measured" not in repr(report.claims())
    for kind, module, prefix in (("table", tables, ""), ("figure", figures, "fig_")):
        shown = re.findall(rf'report\.{kind}\("(\w+)"', source)
        for name in shown:
            assert getattr(module, prefix + name)(report.results) is not None or name in absent, name
        own = {n for n, f in vars(module).items() if callable(f) and getattr(f, "__module__", "") == module.__name__ and not n.startswith("_")}
        assert own - helpers <= {prefix + name for name in shown}, "drawn nowhere"


def everything_measured(folder: Path) -> Store:
    """The store of a run that has measured what it planned, all of it finite."""
    store = Store(folder)
    found = store.planned()
    assert {m.slug for m in found} == set(store.plan()["slugs"])
    assert all(np.isfinite(m.values).all() for m in found)
    return store


def rehearse(paper: str, script, results: Path, *options: object) -> Store:
    """SCALE=paper from training to the page: everything planned is measured and finite, and nothing is missing on the page."""
    from shared.report import page

    run(script, results, *options)
    store = everything_measured(results / "paper" / paper)
    page.main([paper, "--scale", "paper", "--results", str(results)])
    assert not re.findall(r"<code>\w+</code>: not measured|class='absent'", (store.root / "page.html").read_text())
    return store
