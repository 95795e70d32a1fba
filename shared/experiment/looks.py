"""What looks at open claims measure beyond the plan (`BUDGET=`).

`shared.report.looks`, which judges, asks for them in the store; the scripts of a paper measure what is asked for. A
number at a look is the paper's own number under a configuration with twice the pictures (`Paper.examples`), or of
further seeds: one more step, with a key of its own. What was planned stays as it is, and so do tables and figures;
claims alone see more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING

from shared.claims.claims import Claim
from shared.claims.looks import LOOKS
from shared.claims.selection import matches
from shared.experiment.paper import Number, Paper
from shared.experiment.store import DOUBLED
from shared.options import changed

if TYPE_CHECKING:
    from shared.experiment.scale import Options

Paths = dict[str, list[str]]
More = dict[tuple[int, int], dict[str, Number]]  # how often pictures and seeds are doubled -> what is new then, by name


def doubled(config: "Options", options: Sequence[str], pictures: int, seeds: int) -> "Options":
    """The configuration with 2^pictures as many pictures, by the options that say how many, and 2^seeds as many
    seeds."""
    for option in options:
        config = changed(config, option, attrgetter(option)(config) << pictures)
    further = range(max(config.seeds) + 1, max(config.seeds) + 1 + len(config.seeds) * (2**seeds - 1))
    return replace(config, seeds=(*config.seeds, *further))


def numbers(
    paper: Paper, config: "Options", claims: Sequence[Claim], paths: Mapping[str, list[str]]
) -> tuple[Paths, More]:
    """(the looks that there are, what they measure beyond the plan and the looks before).

    Where one kind of doubling brings nothing new for a claim it is the other; where neither does, its looks have ended.
    """

    @cache
    def plan(pictures: int, seeds: int) -> list[Number]:
        return paper.plan(doubled(config, paper.examples, pictures, seeds))

    more: More = {}
    there: Paths = {}
    for claim in (claim for claim in claims if claim.id in paths):
        selectors = [selector for one in claim.variants.values() for selector in one.selectors]
        path: list[str] = []
        have = {n.step for n in plan(0, 0)}
        for wanted in paths[claim.id][: LOOKS - 1]:
            for kind in (wanted, *(other for other in DOUBLED if other != wanted)):
                at = tuple(map([*path, kind].count, DOUBLED))
                found = {n.name: n for n in plan(*at) if any(matches(s, n.tags) for s in selectors)}
                new = {name: n for name, n in found.items() if n.step not in have}
                if new:
                    break
            else:
                break
            path.append(kind)
            have.update(n.step for n in new.values())
            more.setdefault(at, {}).update(new)
        there[claim.id] = path
    return there, more
