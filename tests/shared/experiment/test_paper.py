"""Grids are read as the tags of numbers, each number once."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from shared.experiment.paper import Gate, Grid, Paper, named
from shared.experiment.step import Measured
from shared.report.shown import Shown, claimed, figure, table

NAME = named("kind", "method", "seed{}", "set", "point{:g}")


@dataclass(frozen=True)
class Level(Measured):
    method: str
    seed: int | None
    set: str


def test_rows_columns_means_and_seeds():
    rows = {"CLIP": {"method": "clip", "seed": None}, "both": [{"method": "a"}, {"method": "b"}]}
    grid = Grid(rows, {"mean": [{"set": "x"}, {"set": "y"}], "first": {"set": "x", "seed": 7}}, {"kind": "k"}, (0, 1))
    assert list(grid.cell("CLIP", "mean")) == [{"kind": "k", "method": "clip", "set": s} for s in "xy"]
    assert len(list(grid.cell("both", "mean"))) == 2 * 2 * 2
    assert [t["seed"] for t in grid.cell("both", "first")] == [7, 7]
    assert len(list(grid)) == 2 + 1 + 8 + 2


def test_rows_and_columns_joined_by_a_rule_of_their_own():
    grid = Grid(
        {"1": {"a": 1}},
        {"2": {"b": 2}, "none": {"b": 0}},
        seeds=(0,),
        joined=lambda row, column: {"method": f"{row['a']}{column['b']}"} if column["b"] else None,
    )
    assert list(grid) == [{"method": "12", "seed": 0}]


def test_names():
    assert NAME({"set": "Scenes", "kind": "clean", "point": 0.5, "seed": 1}) == "clean__seed1__scenes__point0.5"


def paper(**changes) -> Paper:
    @table
    def both(c):
        return Shown({m: {"method": m} for m in "ab"}, {"x": {"set": "x"}}, {"kind": "k"}, c.seeds)

    @figure(lambda c: Grid({"a": {"method": "a"}}, {s: {"set": s} for s in "xy"}, {"kind": "k"}, c.seeds))
    def fig_a(filled):
        raise AssertionError("a plan draws nothing")

    @claimed
    def others(c):
        return [Grid({"none": {"method": "none"}, "c": {"method": "c"}}, {"x": {"set": "x"}}, {"kind": "k"}, (0,))]

    shows = SimpleNamespace(
        both=both,
        fig_a=fig_a,
        others=others,
        headline=lambda c: [Grid({"a": {"method": "a"}}, {"x": {"set": "x"}}, {"kind": "k"}, c.seeds)],
    )

    def number(c, kind, method, seed=None, set=""):
        return None if method == "none" else Level(method, seed, set)

    return Paper("toy", {}, lambda c: None, [shows], number, changes.pop("number_name", NAME), **changes)


@dataclass(frozen=True)
class Config:
    seeds: tuple[int, ...] = (0, 1)
    headline: bool = False


def test_the_plan_is_what_is_shown_each_number_once():
    plan = paper(describe=lambda c, method, **_: {"role": method.upper()}).plan(Config())
    assert [n.name for n in plan] == [
        f"k__{m}__seed{s}__{x}"
        for m, s, x in (
            ("a", 0, "x"),
            ("a", 1, "x"),
            ("b", 0, "x"),
            ("b", 1, "x"),
            ("a", 0, "y"),
            ("a", 1, "y"),
            ("c", 0, "x"),
        )
    ]
    assert plan[0].step == Level("a", 0, "x")
    assert (plan[0].asked, plan[0].tags["role"]) == ({"kind": "k", "method": "a", "set": "x", "seed": 0}, "A")


def test_the_headline_is_a_part_and_gates_come_first():
    gate = Gate("g", Grid({"c": {"method": "c", "seed": None}}, {"y": {"set": "y"}}, {"kind": "gate"}), ">=", 0.5)
    toy = paper(gates=lambda c: [gate])
    assert [n.name for n in toy.plan(Config(headline=True))] == ["gate__c__y", "k__a__seed0__x", "k__a__seed1__x"]
    assert {n.name for n in toy.plan(Config(headline=True))} <= {n.name for n in toy.everything(Config(headline=True))}


def test_two_numbers_of_one_name_are_a_mistake():
    with pytest.raises(ValueError, match="two numbers are named k__a"):
        paper(number_name=named("kind", "method")).plan(Config())
