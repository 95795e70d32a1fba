"""Claims, numbers of the paper, tables and plan fit together: every claim finds its measurements, every measurement is looked at by somebody."""

import inspect
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from papers.rvpt import figures, tables
from papers.rvpt.cells import cells
from papers.rvpt.config import FURTHER, MORE, PLACES, PRESETS, SIX, THREE
from shared.claims.claims import load
from shared.claims.selection import matches
from shared.claims.verdicts import judge, unit_factor
from shared.experiment.scale import plain
from shared.experiment.store import Measurement
from shared.report.data import Results

ROOT = Path(__file__).parents[3]
CLAIMS = load(ROOT / "papers/rvpt/claims.yaml")
DRAWN = {"perturbed", "triggers"}  # pictures alone: figures 6 and 9
TABLES = [getattr(tables, name) for name, f in vars(tables).items()
          if inspect.isfunction(f) and f.__module__ == tables.__name__ and list(inspect.signature(f).parameters) == ["results"]
          and name not in ("shift_names",)]
UNITS = {"pr": "cosine", "seconds": "s", "memory": "MB", "trained": "parameters", "samples": "pictures", "cider": "CIDEr", "pictures": "dB"}
PLANS = {(scale, headline): (config := replace(PRESETS[scale], headline=headline), [(c, c.tags(config)) for c in cells(config)])
         for scale in ("cpu", "paper", "smoke") for headline in (False, True)}


def found(selector, scale, headline=False):
    return [(c, t) for c, t in PLANS[scale, headline][1] if matches(selector, t)]


@pytest.mark.parametrize("scale", ["cpu", "paper"])
@pytest.mark.parametrize("claim", CLAIMS.claims, ids=lambda c: c.id)
def test_a_claim_finds_what_it_needs(claim, scale):
    if scale not in claim.testable:
        return
    for selector in claim.selectors:
        matched = found(selector, scale, claim.headline)
        assert matched, selector
        places = [(t["set"], t["seed"]) for _, t in matched]
        assert len(set(places)) == len(places), "the selector is not precise enough"
        seeds = {s: {t["seed"] for _, t in matched if t["set"] == s} for s in {t["set"] for _, t in matched}}
        assert len(set(map(frozenset, seeds.values()))) == 1, "the sets of the selector have different seeds"
        named = selector.get("attack")
        assert not isinstance(named, list) or {t["attack"] for _, t in matched} == set(named)


@pytest.mark.parametrize("claim", [c for c in CLAIMS.claims if c.headline and "cpu" in c.testable], ids=lambda c: c.id)
def test_the_headline_measures_all_that_a_headline_claim_will_read(claim):
    for selector in claim.selectors:
        assert {c for c, _ in found(selector, "cpu", True)} == {c for c, _ in found(selector, "cpu")}


def test_both_sides_of_a_difference_are_of_the_same_pictures_or_of_none_in_common():
    for claim in CLAIMS.claims:
        if "cpu" in claim.testable and claim.ratio is None:
            sides = [{t["set"] for _, t in found(s, "cpu")} for s in claim.selectors]
            assert all(sides[0] == other or not sides[0] & other for other in sides[1:]), claim.id


def test_every_table_of_the_paper_is_there():
    for number in range(1, 13):
        assert any(t.id == f"t{number}" or t.id.startswith(f"t{number}-") for t in CLAIMS.reference_tables), number
    assert sum(n is not None for t in CLAIMS.reference_tables for row in t.rows.values() for n in row) == 351


@pytest.mark.parametrize("table", CLAIMS.reference_tables, ids=lambda t: t.id)
def test_a_printed_number_has_one_place_among_the_measurements(table):
    for claim in table.claims():
        matched = found(claim.quantity, "paper")
        assert matched, claim.id
        assert len({t["set"] for _, t in matched}) == 1 and len({t["seed"] for _, t in matched}) == len(matched)


def test_numbers_are_those_of_the_fact_sheet():
    cell = {t.id: t.cell for t in CLAIMS.reference_tables}
    assert (cell["t1-asr"]("cleanclip", "badclip"), cell["t1-asr"]("rvpt", "badclip")) == (89.70, 2.76)
    assert cell["t1-asr"]("linear_probe", "trojvqa") is None and cell["t1-ca"]("none", "issba") == 61.72
    assert (cell["t2-caltech101-ca"]("rvpt", "blended"), cell["t2-oxfordpets-asr"]("linear_probe", "badnet")) == (94.34, 16.05)
    assert (cell["t3-ta"]("clean", "blended"), cell["t3-ta"]("cleanclip", "badclip")) == (54.16, 4.25)
    assert (cell["t4-without-asr"]("badclip", "main"), cell["t4-without-ca"]("wanet", "third")) == (3.39, 86.17)
    assert (cell["t5-oxfordpets-rvpt-asr"]("rvpt", "wanet"), cell["t5-caltech101-cleanclip-asr"]("cleanclip", "badnet")) == (2.49, 36.87)
    assert (cell["t6-imagenet-a-asr"]("rvpt", "badclip"), cell["t6-imagenet-sketch-ca"]("cleanclip", "blended")) == (12.84, 34.82)
    assert (cell["t7-retrieval-rank-ratio"]("rvpt", "rank_ratio"), cell["t7-caption-bleu"]("vpt", "bleu")) == (82.12, 4.64)
    assert (cell["t8"]("infonce_fr", "asr"), cell["t8"]("full_fr", "ca")) == (18.23, 59.22)
    assert cell["t9-cleanclip-main-seconds"]("cleanclip", "seconds") == 3 * 3600 + 53 * 60 + 2
    assert (cell["t10-asr"]("1", "badclip"), cell["t10-ca"]("0", "badnet")) == (3.78, 62.28)
    assert (cell["t11-vit-l14-asr"]("linear_probe", "badnet"), cell["t11-vit-b16-ca"]("rvpt", "badclip")) == (23.48, 68.42)
    assert cell["t12"]("words", "robust") == 13.97


def test_derived_values_follow_from_the_printed_cells():
    cell = {t.id: t.cell for t in CLAIMS.reference_tables}

    def difference(table, a, b, attacks):
        return np.mean([cell[table](a, x) - cell[table](b, x) for x in attacks])

    expected = {
        "abstract-badclip": difference("t1-asr", "cleanclip", "rvpt", ["badclip"]),
        "abstract-ahead-probe": difference("t1-asr", "linear_probe", "rvpt", THREE),
        "abstract-ahead-cleanclip": difference("t1-asr", "cleanclip", "rvpt", THREE),
        "abstract-clean-kept": difference("t1-ca", "rvpt", "none", THREE), "t1-wanet": difference("t1-asr", "cleanclip", "rvpt", ["wanet"]),
        "t1-probe-holds": np.mean([cell["t1-asr"]("linear_probe", a) for a in SIX[:4]]),
        "t2-third-cleanclip": difference("t2-oxfordpets-asr", "cleanclip", "rvpt", FURTHER),
        "t3-restored": difference("t3-ta", "rvpt", "clean", THREE), "t6-shift2": difference("t6-imagenet-a-asr", "cleanclip", "rvpt", THREE),
        "t11-third": difference("t11-vit-l14-asr", "linear_probe", "rvpt", THREE),
        "t10-1-asr": np.mean([cell["t10-asr"]("1", a) - cell["t1-asr"]("rvpt", a) for a in THREE]), "t9-time": 13982 / 2705,
        "t4-second": np.mean([cell["t4-without-asr"](a, "second") - cell["t4-with-asr"](a, "second") for a in FURTHER]),
        "abstract-generalises": np.mean([cell["t2-caltech101-asr"]("cleanclip", a) - cell["t5-caltech101-rvpt-asr"]("rvpt", a) for a in FURTHER])}
    for id, value in expected.items():
        assert CLAIMS.claim(id).value == pytest.approx(value, rel=2e-3, abs=1e-3), id


# ---- made-up measurements --------------------------------------------------------------------------------------------------


def made_up(scale, headline=False):
    """Results of a whole plan with random values in the units that measuring functions give."""
    config, plan = PLANS[scale, headline]
    out = []
    for k, (cell, tags) in enumerate(plan):
        unit = UNITS.get(cell.measure, "share")
        values = np.random.default_rng(k).integers(0, 2, 9).astype(float) + (2.0 if unit not in ("share", "cosine") else 0.0)
        out.append(Measurement(cell.slug(), "k", float(values.mean()), 0.0, 1.0, 9, (cell.seed,), unit, 0.1, tags, {}, None, given=values))
    return Results("rvpt", scale, out, {**plain(config)}, planned={c.slug(): t for c, t in plan}, slugs=[c.slug() for c, _ in plan])


class Asked(Results):
    """Results that remember which kinds were read."""

    def _note(self, slugs):
        self.kinds = getattr(self, "kinds", set()) | {self.by_slug[s] for s in slugs}


@pytest.mark.parametrize("scale", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("paper", marks=pytest.mark.slow), "smoke"])
def test_tables_can_be_drawn_and_hold_what_is_planned(scale):
    whole = made_up(scale)
    results = Asked("rvpt", scale, whole.measurements, whole.config, planned=whole.planned)
    results.by_slug = {m.slug: m.tags["kind"] for m in whole.measurements}
    made = {f.__name__: f(results) for f in TABLES}
    assert len(made) == 16 and all(made.values())
    assert not [name for name, t in made.items() if any("Incomplete" in note for note in t.notes)]
    for name, table in made.items():
        empty = [(label, c) for label, row in table.rows for c, cell in zip(table.columns, row, strict=True) if cell is None]
        dashes = {"t1": "TrojVQA", "all_pictures": "TrojVQA", "triggered": "TrojVQA", "t4": "BadCLIP", "t9": "CleanCLIP"}
        assert all(name in dashes and dashes[name] in f"{label} {c}" for label, c in empty), (name, empty)
    claimed = {c.kind for c, t in PLANS[scale, False][1] if CLAIMS.wants(t)}
    assert {c.kind for c, _ in PLANS[scale, False][1]} == claimed | results.kinds | DRAWN
    assert all(f'"{kind}"' in inspect.getsource(figures) for kind in DRAWN)


def test_the_headline_has_the_tables_that_it_measures():
    made = {f.__name__: f(made_up("cpu", True)) for f in TABLES}
    assert {name for name, table in made.items() if table} >= {"t1", "t2", "t3", "t5", "t9", "all_pictures"}
    assert made["t12"] is None and made["t8"] is None and made["more"] is None


def test_tables_and_plan_mean_the_same_attacks_and_places():
    assert (tables.SIX, tables.FURTHER, tables.THREE, tables.MORE, tables.PLACES) == (SIX, FURTHER, THREE, MORE, PLACES)
    assert {m for scale in ("cpu", "paper") for c, _ in PLANS[scale, False][1] if c.kind == "score" for m in [c.method]} == set(tables.METHODS)


def test_every_number_stands_under_its_own_heading():
    results = made_up("cpu")
    table = tables.t2(results)
    column, (label, row) = table.columns.index(f"{tables.place_name(results, 'third')}, WaNet: CA"), table.rows[-1]
    wanted = {"kind": "score", "place": "third", "attack": "wanet", "method": "rvpt", "measure": "ca", "backbone": "first"}
    assert label == "RVPT" and row[column] == results.estimate(wanted)
    table = tables.t8(results)
    assert table.rows[1][1][2] == results.estimate(kind="tuning", method="infonce_fr", measure="asr")
    assert table.rows[2][1][1] == results.estimate(kind="score", method="vpt", measure="ca", attack="badclip", place="main", backbone="first", seed=0)


def test_the_best_is_the_lowest_success_and_the_highest_accuracy_among_defences():
    results = made_up("cpu")
    good = [float((m.tags["method"] in ("clean", "vpt")) != (m.tags["measure"] == "asr")) for m in results.measurements]
    sharp = [replace(m, given=np.full(400, value)) for m, value in zip(results.measurements, good, strict=True)]
    table = tables.t1(Results("rvpt", "cpu", sharp, results.config))
    labels = [label for label, _ in table.rows]
    assert table.bold == {(labels.index("VPT"), k) for k in range(len(table.columns))}


@pytest.mark.parametrize("scale", ["cpu", pytest.param("paper", marks=pytest.mark.slow)])
def test_claims_can_be_judged_in_their_units(scale):
    results = made_up(scale)
    verdicts = judge(CLAIMS, results)
    assert all(v.estimates for v in verdicts if scale in v.claim.testable and v.status != "inconclusive")
    for t in CLAIMS.reference_tables:
        for claim in t.claims():
            unit_factor(results.select(claim.quantity)[0].unit, claim) if results.select(claim.quantity) else None


def test_the_notebook_draws_every_table_and_figure():
    source = "".join("".join(c["source"]) for c in json.loads((ROOT / "papers/rvpt/notebook.ipynb").read_text())["cells"])
    for f in TABLES:
        assert f"tables.{f.__name__})" in source, f.__name__
    for name, f in vars(figures).items():
        if name.startswith("fig_") and inspect.isfunction(f) and f.__module__ == figures.__name__:
            assert f"drawn.{name})" in source, name


def test_the_readme_decides_every_open_question():
    text = (ROOT / "papers/rvpt/README.md").read_text()
    assert asdict(PRESETS["paper"].method)["std"] == 0.02 and "0.02" in text
    assert "## Gates" in text and "<!-- from figures/rvpt/claims.md -->" in text
