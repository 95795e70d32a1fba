"""What holds of every paper that is written as steps (`papers/<paper>/paper.py`), at every scale, without a model."""

import ast
import copy
import dataclasses
import importlib
import json
from collections import Counter, defaultdict
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from shared.claims.claims import load
from shared.claims.selection import matches
from shared.claims.verdicts import shortfall
from shared.data.catalogue import Source
from shared.errors import UserError
from shared.experiment.lab import Lab
from shared.experiment.paper import Paper
from shared.experiment.scale import plain
from shared.experiment.step import Kept, Step, closure, content, counted, key, parts
from shared.experiment.store import Measurement
from shared.report.data import Results
from shared.report.tables import Table
from tests.papers.ends import configured, lab_of
from tests.papers.ends import load as load_file

ROOT = Path(__file__).resolve().parents[2]
PAPERS = sorted(path.parent.name for path in ROOT.glob("papers/*/paper.py"))
SCALES = ("smoke", "cpu", "photos", "evening", "paper")
WITHOUT_EVENING = ("roclip",)
SAME_POINT = (
    {"step": 0},  # at the beginning of a curve every method is the model that it starts from
    {"method": ["clean", "supervised"]},  # nobody has poisoned it, so without a trigger no attack has to do with it
    {
        "kind": "stop",
        "attack": "clean",
    },  # when DiffCAP stops for clean pictures has nothing to do with who looks at them
    {"kind": ["score", "sweep", "adversarial"]},  # a sweep goes through the settings of the tables
)
"""Numbers that may be another's under a second name."""
SHORT = {"diffcap": 0, "distshift": 0, "pmg_aft": 0, "roclip": 4, "rvpt": 3}
"""Headline claims whose plan at the cpu scale has fewer than 96 examples or 3 seeds: the goal is 0, and it only goes down."""


@pytest.fixture(scope="module", params=PAPERS)
def paper(request) -> Paper:
    return importlib.import_module(f"papers.{request.param}.paper").PAPER


@pytest.fixture(scope="module")
def plans(paper) -> dict[str, list]:
    """Scale -> the whole plan."""
    return {scale: paper.plan(preset) for scale, preset in paper.presets.items()}


@pytest.fixture(params=SCALES)
def scale(request, paper) -> str:
    """A scale that the paper has."""
    if request.param not in paper.presets:
        pytest.skip(f"{paper.name} has no such scale")
    return request.param


@pytest.fixture(scope="module")
def claims(paper):
    return load(ROOT / "papers" / paper.name / "claims.yaml")


def shape(x: object) -> object:
    """Everything about x that counts, without looking at what stands behind leaves."""
    if is_dataclass(x):
        return (type(x).__name__, *((name, shape(value)) for name, value in counted(x)))
    return tuple(map(shape, x)) if isinstance(x, list | tuple) else x


# -- plans -----------------------------------------------------------------------------------------------------------------------------------


def test_there_is_a_plan_for_every_scale(paper, plans):
    if paper.name not in SHORT:  # of the user's own
        assert plans and set(plans) <= set(SCALES) and all(plans.values())
        return
    assert tuple(plans) == tuple(s for s in SCALES if s != "evening" or paper.name not in WITHOUT_EVENING)
    assert all(len(plan) > 10 for plan in plans.values())


def test_names_and_tags_and_steps_tell_numbers_apart(plans, scale):
    plan = plans[scale]
    assert max(Counter(n.name for n in plan).values()) == 1
    assert max(Counter(json.dumps(dict(n.tags), sort_keys=True) for n in plan).values()) == 1
    twice = defaultdict(list)
    for n in plan:
        twice[shape(n.step)].append(n)
    for same in twice.values():
        kinds = {(n.tags["kind"], n.tags.get("sweep")) for n in same}  # sweeps meet where each has its default
        known = any(all(matches(selector, n.tags) for n in same) for selector in SAME_POINT)
        assert len(kinds) == len(same) or known, [n.name for n in same]


def test_nothing_is_made_twice_under_two_names(plans, scale):
    kept = [step for step in closure(n.step for n in plans[scale]) if isinstance(step, Kept)]
    assert len({shape(step) for step in kept}) == len(kept) == len({step.name for step in kept})
    assert all(len(set(step.parts)) == len(step.parts) and "" in step.parts for step in kept)


def test_the_headline_is_a_part_of_the_whole(paper, plans, scale):
    """With equal steps: what it makes, the whole does not make again."""
    whole = {n.name: n.step for n in plans[scale]}
    part = paper.plan(replace(paper.presets[scale], headline=True))
    assert 0 < len(part) < len(whole)
    assert all(whole[n.name] == n.step for n in part)


@pytest.mark.parametrize(
    "scale", ["smoke", *(pytest.param(other, marks=pytest.mark.slow) for other in ("cpu", "paper"))]
)
def test_more_seeds_leave_the_others_alone(paper, plans, scale):
    more = replace(paper.presets[scale], seeds=(*paper.presets[scale].seeds, 77))
    after = {n.name: shape(n.step) for n in paper.plan(more)}
    assert all(after[n.name] == shape(n.step) for n in plans[scale])


# -- steps -----------------------------------------------------------------------------------------------------------------------------------


def other(value: object) -> object:
    """A value of the same type that is not the same."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return f"{value}x"
    if isinstance(value, tuple):
        return (*value, value[-1]) if value else ("x",)
    if value is None:
        return 1
    return changed(value, next(name for name, _ in counted(value)))


def changed(one: object, name: str) -> object:
    """The same dataclass but for one field, whatever it says of values that go together."""
    out = copy.copy(one)
    object.__setattr__(out, name, other(getattr(one, name)))
    return out


class Told:
    """Enough of a Lab for keys: what a step left follows from its key."""

    def fingerprint(self, step: Step) -> str:
        return key(step, self)

    def identity(self, leaf: object) -> object:
        return leaf.identity(self)


def test_every_field_counts_unless_it_is_free(plans, monkeypatch):
    """Of every class of step, leaf and options that any plan has; a leaf is all of its fields here, in place of what stands behind them."""
    seen = {type(part): part for plan in plans.values() for n in plan for part in parts(n.step)}
    assert len(seen) > 5
    for kind in (kind for kind in seen if hasattr(kind, "identity")):
        monkeypatch.setattr(kind, "identity", lambda leaf, lab: repr(shape(leaf)))
    for kind, one in seen.items():
        before = content(one, Told())
        for f in fields(kind):
            after = content(changed(one, f.name), Told())
            assert (after == before) == bool(f.metadata.get("free")), f"{kind.__name__}.{f.name}"


def test_the_identity_of_a_leaf_follows_its_fields(plans, tmp_path):
    """With the data of the smoke scale, which are drawn on the spot. A value that cannot be is refused."""
    import torch

    process = type("P", (), {"device": torch.device("cpu"), "num_processes": 1, "is_main_process": True})
    lab = Lab(tmp_path, Source(), process)
    seen = {type(part): part for n in plans["smoke"] for part in parts(n.step) if hasattr(part, "identity")}
    assert seen
    for kind, leaf in seen.items():
        if any(isinstance(part, Step) for part in parts(leaf)):
            continue  # known once that is made
        before = leaf.identity(lab)
        assert json.dumps(before) == json.dumps(leaf.identity(lab))
        for f in (f for f in fields(kind) if not f.metadata.get("free") and getattr(leaf, f.name) is not None):
            try:
                after = changed(leaf, f.name).identity(lab)
            except (UserError, ValueError, AttributeError):
                continue
            assert after != before, f"{kind.__name__}.{f.name}"


LATER = {
    "distshift": (
        ("--models.first.t 4000", "--models.first.t is 4000, and the diffusion model has 1000 steps: use at most that"),
        ("--sweeps.t 25 1200", "--sweeps.t is 1200, and the"),
        (
            "--models.first.data digits:all --models.first.denoiser train --denoising.batch 1438",
            "--denoising.batch is 1438, more than the 1,437 pictures there are to train on",
        ),
    ),
    "diffcap": (("--choosing.times 150 1001", "--choosing.times is 1001, and the diffusion model has 1000"),),
    "pmg_aft": (("--data.train digits:all --fare.batch 1438", "--fare.batch is 1438, more than the 1,437 pictures"),),
    "rvpt": (
        ("--method.tuning.warmup 100000", r"--method.tuning.warmup is 100000, more than the \d+ updates of its"),
        ("--baselines.full.warmup 99999", r"--baselines.full.warmup is 99999, more than the \d+ updates of its"),
    ),
}


def test_what_data_and_models_tell_of_options_is_said_before_anything_is_made(paper, tmp_path):
    for given, said in LATER.get(paper.name, ()):
        config = configured(paper, "--scale", "smoke", *given.split())
        with pytest.raises(UserError, match=f"^{said}"):
            paper.look(lab_of(tmp_path), config)
    paper.look(lab_of(tmp_path), paper.presets["smoke"])


def test_steps_are_frozen_and_hold_no_functions(plans):
    for n in (n for plan in plans.values() for n in plan):
        for part in parts(n.step):
            assert type(part).__dataclass_params__.frozen
            assert not any(
                callable(getattr(part, f.name)) and not is_dataclass(getattr(part, f.name))
                for f in dataclasses.fields(part)
            )


# -- claims ----------------------------------------------------------------------------------------------------------------------------------


def test_every_claim_has_its_measurements_or_says_why_not(paper, plans, claims, scale):
    headline = [n.tags for n in paper.plan(replace(paper.presets[scale], headline=True))]
    claims.check_plan(scale, [n.tags for n in plans[scale]])  # under every reading
    for claim in claims.claims:
        if not claim.is_tested(scale):
            assert scale == "smoke" or claim.reason_against(scale), claim.id
            continue
        planned = headline if claim.headline else [n.tags for n in plans[scale]]
        for selector in claim.selectors:
            found = [t for t in planned if matches(selector, t)]
            assert found, (claim.id, selector)
            places = Counter((t.get("set"), t.get("seed")) for t in found)
            assert max(places.values()) == 1, f"{claim.id}: {selector} fits several numbers of one set and seed"


def test_reference_tables_are_measured_at_the_scale_they_are_held_against(plans, claims):
    for table in claims.reference_tables:
        for claim in table.claims():
            theirs = table.quantity == {"kind": "theirs"}  # shown only: of a run or an attack that is not made here
            assert theirs or any(matches(claim.quantity, n.tags) for n in plans["paper"]), claim.id


def test_what_only_claims_read_is_read_by_one(paper, plans, claims):
    selectors = [s for claim in claims.claims for s in claim.selectors] + [
        c.quantity for t in claims.reference_tables for c in t.claims()
    ]
    for grids in (f for f in paper.shown().values() if getattr(f, "grids", None) is f):  # marked `claimed`
        numbers = [n for preset in paper.presets.values() for n in paper.numbers(preset, grids(preset))]
        assert numbers and any(matches(s, n.tags) for s in selectors for n in numbers), grids.__name__


# -- what is shown ---------------------------------------------------------------------------------------------------------------------------


def arrays(kind: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What figures read beside the values, for kinds of number that have such."""

    def pictures() -> np.ndarray:
        return rng.integers(0, 255, (2, 3, 16, 16), np.uint8)

    steps = ("clean", "adversarial", "diffused", "diffpure", "purified")
    said = {f"{name} answers": np.array(["a red heart", "two blue rings"]) for name in steps}
    places = {"xy": rng.random((6, 2)), "reference": rng.random((6, 2))}
    strip = (
        {name: pictures() for name in steps}
        | said
        | {"difference": pictures() / 255, "truth": np.array(["a", "b"]), "t": np.array([50, 75])}
    )
    return {
        "distribution": places,
        "strip": strip,
        "recovery": {"time": np.array([-1, 0, 50]), "bound": np.array([-1, 0, 50])},
    }.get(kind, {})


def made_up(paper: Paper, scale: str, plan: list, gates: list[dict] = ()) -> Results:
    """Results with made-up values, the configuration as a page reads it."""
    rng, own = (
        np.random.default_rng(0),
        Path(__file__).parent / paper.name / "made_up.py",
    )  # arrays of its own, where it has many
    extra = load_file(f"papers/{paper.name}/made_up.py").arrays if own.is_file() else arrays
    claimed = [c for c in load(ROOT / "papers" / paper.name / "claims.yaml").claims if c.unit not in ("%", "points")]

    def unit(tags: dict) -> str:
        """As the claims that read it have it; rates are shares."""
        return next(
            (c.unit for c in claimed if c.ratio is None and any(matches(s, tags) for s in c.selectors)), "share"
        )

    def one(n) -> Measurement:
        values = rng.random(6)
        seed = n.asked.get("seed")
        facts = {"n": 6, "unit": unit(n.tags), "seconds": 1.0, "tags": dict(n.tags), "provenance": {}}
        more = extra(n.tags["kind"], rng)
        return Measurement(
            n.name,
            "0" * 64,
            values.mean(),
            0.0,
            1.0,
            seeds=() if seed is None else (seed,),
            given=values,
            given_extra=more,
            **facts,
        )

    config = json.loads(json.dumps(plain(paper.presets[scale])))
    asked = {n.name: list(n.asked) for n in plan}
    return Results(
        paper.name, scale, map(one, plan), config, gates, {n.name: dict(n.tags) for n in plan}, tuple(asked), asked
    )


@pytest.mark.parametrize("scale", ["smoke", pytest.param("paper", marks=pytest.mark.slow)])  # half a minute a paper
def test_every_table_and_figure_draws_and_nothing_where_nothing_is_measured(paper, plans, scale):
    """What shows the numbers set apart draws where those have failed a gate of their own."""
    results, nothing = made_up(paper, scale, plans[scale]), made_up(paper, scale, [])
    shown = {name: f for name, f in paper.shown().items() if f.grids is not f}
    assert len(shown) > 4 or paper.name not in SHORT
    for name, f in shown.items():
        grids = f.grids(paper.presets[scale])
        wanted = {n.name for n in paper.numbers(paper.presets[scale], grids)}
        shows = results
        if wanted and all(grid.apart for grid in grids):
            assert f(results) is None, name
            failed = [{"name": "own", "passed": False, "of": {"kind": "score"}}]
            shows = made_up(paper, scale, plans[scale], failed)
        with shows.tracking() as used:
            drawn = f(shows)
        if not wanted:  # settings that this scale does not choose
            assert drawn is None, name
            continue
        assert isinstance(drawn, Figure if name.startswith("fig_") else Table), name
        assert set(used) == wanted, name
        assert f(nothing) is None, name
        assert f.__doc__ or isinstance(drawn, Table), f"{name} has no caption"


def test_the_notebook_shows_everything_once(paper):
    cells = json.loads((ROOT / "papers" / paper.name / "notebook.ipynb").read_text())["cells"]
    calls = [node for cell in cells if cell["cell_type"] == "code" for node in ast.walk(ast.parse("".join(cell["source"])))
             if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("table", "figure")]  # fmt: skip
    drawn = [call.args[1].attr for call in calls]
    assert sorted(drawn) == sorted(name for name, f in paper.shown().items() if f.grids is not f)
    assert all(name.startswith("fig_") == (call.func.attr == "figure") for name, call in zip(drawn, calls, strict=True))
    assert len({(call.func.attr, call.args[0].value) for call in calls}) == len(calls)
    assert not any(cell.get("outputs") for cell in cells)  # results live in the page, not in the repository's notebook


def test_presets_pass_their_own_check(paper, scale):
    paper.check(paper.presets[scale])


# -- evidence --------------------------------------------------------------------------------------------------------------------------------


def examples(step: Step) -> int:
    """How many examples a number is planned to have: the nearest `n` among the parts of its step; 1 where there is none."""
    level: list = [step]
    while level:
        found = [(x.n, getattr(getattr(x, "data", None), "n", 0)) for x in level if getattr(x, "n", 0)]
        if found:
            return min(n for n in found[0] if n)
        inside = [getattr(x, f.name) for x in level if is_dataclass(x) for f in fields(x)]
        level = [y for x in inside for y in (x if isinstance(x, tuple) else [x]) if is_dataclass(y)]
    return 1


def test_the_evidence_planned_for_headline_claims(paper, plans, claims):
    short = {}
    for claim in claims.claims:
        if not (claim.headline and claim.is_testable("cpu")):
            continue
        sides = [[n for n in plans["cpu"] if matches(selector, n.tags)] for selector in claim.selectors]
        seeds = max(len({n.tags.get("seed") for n in side}) for side in sides)
        count = min(sum({n.tags.get("set"): examples(n.step) for n in side}.values()) for side in sides)
        if shortfall(count, seeds):
            short[claim.id] = count, seeds
    assert len(short) <= SHORT.get(paper.name, len(short)), short
