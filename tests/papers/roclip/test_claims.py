"""Claims, known numbers, tables and plan fit together: every claim finds its measurements, every measurement is looked at by somebody."""

import inspect
import json
import sys
from dataclasses import replace
from functools import cache
from html import escape
from pathlib import Path

import numpy as np
import pytest

from papers.roclip import figures, tables
from papers.roclip.cells import cells
from papers.roclip.config import PRESETS
from shared.claims.claims import UNKNOWN, load
from shared.claims.selection import matches
from shared.claims.verdicts import judge
from shared.experiment.scale import plain
from shared.experiment.store import Measurement
from shared.report.claims_page import html_reference
from shared.report.data import Results

ROOT = Path(__file__).parents[3]
CLAIMS = load(ROOT / "papers/roclip/claims.yaml")
HELPERS = ("backdoors",)
TABLES = {name: f for name, f in vars(tables).items() if inspect.isfunction(f) and f.__module__ == tables.__name__
          and list(inspect.signature(f).parameters) == ["results"] and name not in HELPERS}
UNITS = {"similarity": "cosine", "cosine": "cosine", "seconds": "s"}
ONE_SEED = "cpu, one seed"
CONFIGS = {name: PRESETS[name] for name in ("cpu", "paper", "smoke")} | {ONE_SEED: replace(PRESETS["cpu"], seeds=(0,))}
PLANS = {(scale, headline): (config := replace(whole, headline=headline), [(c, c.tags(config)) for c in cells(config)])
         for scale, whole in CONFIGS.items() for headline in (False, True)}


def found(selector, scale, headline=False):
    return [(c, t) for c, t in PLANS[scale, headline][1] if matches(selector, t)]


@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_a_claim_finds_what_it_needs(scale):
    for claim in CLAIMS.claims:
        for selector in claim.selectors if scale in claim.testable else ():
            matched = found(selector, scale, claim.headline)
            assert matched, (claim.id, selector)
            places = [(t["set"], t["seed"]) for _, t in matched]
            assert len(set(places)) == len(places), f"{claim.id}: the selector is not precise enough"
            seeds = {s: {t["seed"] for _, t in matched if t["set"] == s} for s in {t["set"] for _, t in matched}}
            assert len(set(map(frozenset, seeds.values()))) == 1, f"{claim.id}: the sets of the selector have different seeds"
            named = selector.get("attack")
            assert not isinstance(named, list) or {t["attack"] for _, t in matched} == set(named) == set(PRESETS[scale].gates.attacks)


def test_the_headline_measures_all_that_a_headline_claim_will_read():
    for claim in CLAIMS.claims:
        for selector in claim.selectors if claim.headline else ():
            assert {c for c, _ in found(selector, "cpu", True)} == {c for c, _ in found(selector, "cpu")}, claim.id


def test_every_claim_of_success_has_its_control_with_the_same_augmentation():
    headline = [c for c in CLAIMS.claims if c.headline]
    assert {c.where for c in headline} == {"abstract", "ours"}
    over_clip = [c for c in headline if c.where == "abstract" and c.minus and c.minus.get("method") == "clip" and c.quantity["regime"] == "pretrain"]
    for claim in over_clip:
        assert any(c.quantity == claim.quantity and c.minus == {**claim.minus, "method": "clip_aug"} for c in headline), claim.id
    for regime in ("pretrain", "finetune"):
        for measure in ("psr", "bsr"):
            assert any(c.quantity["measure"] == measure and c.quantity["regime"] == regime and c.quantity["method"] == "clip_aug" for c in headline)


def test_numbers_are_those_of_the_fact_sheet_and_unknown_ones_stay_unknown():
    value = {c.id: c.value for c in CLAIMS.claims}
    assert (value["abstract-pretrain-targets"], value["abstract-pretrain-backdoors"]) == (0, 0)
    assert value["abstract-finetune-targets"] == value["abstract-finetune-backdoors"] == (1 + 4) / 2
    assert (value["later-clip"], value["later-targets"], value["later-backdoors"], value["later-probe"]) == (93.75, 12.5, 0, 10)
    assert value["later-gain"] == 93.75 - 12.5 and value["strong-targets"] == 12.5
    unread = ("abstract-zero-shot", "abstract-probe", "abstract-finetune-accuracy", "strong-often", "strong-accuracy", "every-rarer",
              "safeclip-ahead")
    assert {value[name] for name in unread} == {UNKNOWN}
    assert all(c.value is None for c in CLAIMS.claims if c.where == "ours")
    cell = {t.id: t.cell for t in CLAIMS.reference_tables}
    assert cell["main"]("clip", "bsr") is None and cell["main"]("released", "psr") == 12.5
    assert (cell["par"]("RoCLIP", "BadNet, stripes"), cell["toxic-text"]("single target", "ToxicTextCLIP")) == (82.0, 70.83)
    assert [cell["by-epoch"]("one-sided RoCLIP", e) for e in ("1", "2", "13", "14")] == [75, 0, 100, 0]


def test_a_known_number_has_one_place_among_the_measurements_or_is_not_compared():
    for table in CLAIMS.reference_tables:
        for claim in table.claims():
            matched = found(claim.quantity, "paper")
            assert matched or table.quantity == {"kind": "theirs"}, claim.id
            assert len({(t["set"], t["seed"]) for _, t in matched}) == len(matched)


# ---- made-up measurements --------------------------------------------------------------------------------------------------


@cache
def made_up(scale, headline=False):
    """Results of a whole plan with random values in the units that measuring functions give."""
    config, plan = PLANS[scale, headline]
    out = []
    for k, (cell, tags) in enumerate(plan):
        values = np.random.default_rng(k).integers(0, 2, 9).astype(float) + (2.0 if cell.measure == "seconds" else 0.0)
        out.append(Measurement(cell.slug(), "k", float(values.mean()), 0.0, 1.0, 9, (cell.seed,), UNITS.get(cell.measure, "share"), 0.1, tags, {},
                               None, given=values))
    return Results("roclip", scale, out, plain(config), planned={c.slug(): t for c, t in plan}, slugs=[c.slug() for c, _ in plan])


class Asked(Results):
    """Results that remember which measurements were read."""

    def _note(self, slugs):
        self.read = getattr(self, "read", set()) | set(slugs)


@pytest.mark.parametrize("scale", [ONE_SEED, "smoke", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cpu", "paper"))])
def test_tables_can_be_drawn_and_hold_all_that_is_planned(scale):
    whole = made_up(scale)
    results = Asked("roclip", scale, whole.measurements, whole.config)  # all is measured: what is planned says no more, and takes its time
    made = {name: f(results) for name, f in TABLES.items()}
    assert len(made) == 11 and all(made.values())
    assert not [name for name, t in made.items() if any("Incomplete" in note for note in t.notes)]
    for name, table in made.items():
        empty = [(label, c) for label, row in table.rows for c, cell in zip(table.columns, row, strict=True) if cell is None]
        assert all(name in ("ablation", "strong") and "K" in label and "1" in label for label, _ in empty), (name, empty)  # no plain epoch
    for f in (figures.fig_epochs, figures.fig_similarity):
        f(results)
    assert [c.slug() for c, _ in PLANS[scale, False][1] if c.slug() not in results.read] == []


def test_the_headline_has_the_tables_that_it_measures():
    made = {name for name, f in TABLES.items() if f(made_up(ONE_SEED, True))}
    assert made == {"pretrain", "finetune", "zero_shot", "probe"}


def test_every_number_stands_under_its_own_heading():
    results = made_up("cpu")
    table = tables.pretrain(results)
    row = dict(table.rows)["RoCLIP, released, plain epoch"]
    common = {"kind": "score", "regime": "pretrain", "method": "released", "scored": "plain_epoch"}
    taken = PRESETS["cpu"].gates.attacks
    assert row[table.columns.index(f"BSR, mean of {len(taken)}")] == results.estimate(common, measure="bsr", attack=taken)
    assert row[table.columns.index("BSR, SIG")] == results.estimate(common, measure="bsr", attack="sig")
    assert row[table.columns.index("cosine, clean pairs")] == results.estimate(common, measure="similarity", attack="none")
    table = tables.ablation(results)
    row = dict(table.rows)["pool: 2 % (default)"]
    assert row[3] == results.estimate(kind="ablation", sweep="pool", value=0.02, measure="psr", scored="plain_epoch")
    swept = [name for sweep, name in tables.SWEEPS.items() if getattr(PRESETS["cpu"].sweeps, sweep)]
    marked = [label for label, _ in table.rows if label.endswith("(default)")]
    assert [label.partition(":")[0] for label in marked] == swept
    assert marked[:3] == ["pool: 2 % (default)", "K: 2 (default)", "matched: both sides (default)"]


@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_claims_can_be_judged_in_their_units(scale):
    verdicts = judge(CLAIMS, made_up(scale))
    assert [v.claim.id for v in verdicts if not v.estimates and scale in v.claim.testable] == []
    for table in CLAIMS.reference_tables:
        assert escape(table.title) in html_reference(CLAIMS, table, Results("roclip", scale, []))


def test_the_notebook_draws_every_table_and_figure_and_needs_no_torch():
    source = "".join("".join(c["source"]) for c in json.loads((ROOT / "papers/roclip/notebook.ipynb").read_text())["cells"])
    for name in TABLES:
        assert f"tables.{name})" in source, name
    for name, f in vars(figures).items():
        if name.startswith("fig_") and inspect.isfunction(f):
            assert f"drawn.{name})" in source, name
    import subprocess

    light = "import sys, papers.roclip.tables, papers.roclip.figures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", light], cwd=ROOT, check=False).returncode == 0


def test_the_readme_names_both_versions_and_has_its_claims():
    text = (ROOT / "papers/roclip/README.md").read_text()
    assert "## Gates" in text and "<!-- from figures/roclip/claims.md -->" in text
    assert "two-sided" in text and "as released" in text and "plain epoch" in text
