"""A small paper: measurements of three methods on three sets, a notebook, a claims file and its own tables."""

from types import SimpleNamespace

import nbformat
import numpy as np
import pytest

from shared.experiment.store import Measurement, Store, gate, slug
from shared.report.data import Results

CLAIMS = """
paper: fake
title: "A fake & small paper"
claims:
- {id: gain, text: "Ours <beats> theirs.", where: abstract, source: abstract, mark: S, headline: true, value: 5, unit: points,
   quantity: {method: ours, attack: pgd10, role: zero_shot}, minus: {method: theirs}, predicate: greater, testable: [cpu, photos, paper]}
- {id: unread, text: "A number nobody read.", where: table, source: the paper, mark: U, value: unknown, unit: "%",
   quantity: {method: ours, attack: clean}, predicate: at_least, threshold: 1, testable: [cpu, photos, paper]}
- {id: memory, text: "It needs more memory.", where: third-party, source: a table, mark: S2, value: 1.4, unit: ratio,
   quantity: {method: ours, kind: memory}, ratio: {method: theirs}, predicate: greater, testable: [paper], why_not: "There is no GPU."}
- {id: later, text: "Not measured yet.", where: text, source: the paper, mark: I, value: none, unit: "%",
   quantity: {attack: square}, predicate: at_most, threshold: 3, testable: [cpu, photos, paper]}
reference_tables:
- {id: known, title: "PGD-100", where: third-party, source: a table, mark: S2, unit: "%", row_tag: method, column_tag: set,
   columns: [shape, colour], rows: {ours: [62, unknown], theirs: [10, 50]}, mean: {theirs: 30},
   quantity: {attack: pgd10}, tolerance: 15, why_not: "Other pictures."}
"""
TABLES = '''
from shared.report import figures, style, tables

METHODS = {"Theirs": {"method": "theirs"}, "Ours": {"method": "ours"}, "Base": {"method": "base"}}


def robust(results):
    columns = {"shape": {"set": "shape"}, "colour_x": {"set": "colour"}, "mean": {"role": "zero_shot"}}
    return tables.from_results(results, METHODS, columns, common={"attack": "pgd10"}, caption="Robust accuracy (%)", corner="method")


def absent(results):
    return tables.from_results(results, METHODS, {"all": {}}, common={"attack": "square"})


def bars(results):
    """Robust accuracy by set.

    Not part of the caption."""
    fig, ax = style.figure(style.COLUMN)
    sets = results.tags("set", attack="pgd10")
    series = {n: [results.estimate(t, attack="pgd10", set=s) for s in sets] for n, t in METHODS.items()}
    figures.bars(ax, sets, series, ylabel="robust accuracy (%)")
    figures.legend(fig, ax)
    return fig
'''


def write_measurements(root, seeds=(0, 1), gates_pass=True):
    """`root` = <results>/<scale>/fake, filled through the real store."""
    store, slugs, rng = Store(root), {}, np.random.default_rng(0)
    sets = {"shape": "zero_shot", "colour": "zero_shot", "scenes": "seen"}
    hardness = {name: rng.random(120) for name in sets}
    for method, clean, robust in (("base", 0.9, 0.02), ("theirs", 0.6, 0.4), ("ours", 0.7, 0.6)):
        for seed in (0,) if method == "base" else seeds:
            for name, role in sets.items():
                for attack, share in (("clean", clean), ("pgd10", robust)):
                    values = (hardness[name] < share + 0.01 * seed).astype(float)
                    tags = {
                        "kind": "accuracy",
                        "method": method,
                        "set": name,
                        "role": role,
                        "attack": attack,
                        "seed": seed,
                    }
                    sanity = (
                        {"gradients": {"passed": method != "base", "detail": "all zero"}} if attack != "clean" else None
                    )
                    provenance = {
                        "commit": "c" * 40,
                        "machine": {"cores": 2},
                        "command": "evaluate",
                        "started": str(len(slugs)),
                    }
                    name_, key, value = slug(*tags.values()), f"{len(slugs):064x}", float(values.mean())
                    m = Measurement(
                        name_, key, value, 0.0, 1.0, 120, (seed,), "share", 1.5, tags, provenance, sanity, given=values
                    )
                    store.save(m)
                    slugs[m.slug] = m.key
    config = {"attack": {"eps": 2 / 255}}
    store.write_plan({"paper": "fake", "scale": root.parent.name, "config": config, "headline": False, "keys": slugs})
    store.write_gates([gate("base model", 0.9 if gates_pass else 0.1, 0.8, ">=", "top-1")])


def write_notebook(
    path, *sources, parameters='scale = "cpu"\nresults = "results"\nfigures = ""\nclaims = ""\nextra = 1'
):
    """A notebook of a parameters cell and one cell per source; a source that begins with # is Markdown."""
    cells = [nbformat.v4.new_markdown_cell(s) if s.startswith("#") else nbformat.v4.new_code_cell(s) for s in sources]
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[first, *cells]), path)


@pytest.fixture
def fake_results(tmp_path):
    write_measurements(tmp_path / "results" / "cpu" / "fake")
    return Results.load(tmp_path / "results", "cpu", "fake")


@pytest.fixture
def fake_claims(tmp_path):
    path = tmp_path / "claims.yaml"
    path.write_text(CLAIMS)
    return path


@pytest.fixture(scope="session")
def write():
    """The writers above, for tests that need another variant (a conftest cannot be imported)."""
    return SimpleNamespace(measurements=write_measurements, notebook=write_notebook, claims=CLAIMS, tables=TABLES)
