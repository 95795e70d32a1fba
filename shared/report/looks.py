"""Ask for the next looks at open claims: `python -m shared.report.looks PAPER --scale cpu --results results --seconds 600`

Every claim that is open and has looks left (`shared.claims.looks`) is to be measured on twice the seeds, where most of its
variance is between seeds, else on twice the pictures; the cheapest first, as long as what they are expected to take fits
into the time. Then `train` and `evaluate` measure them, and this is asked again (`shared.experiment.make` does so). What a
look takes is foreseen from what its numbers took before, trainings not among them. With no time, nothing is asked for,
and verdicts are judged as at the first of several looks.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from shared.claims.claims import load
from shared.claims.looks import LOOKS
from shared.claims.verdicts import Verdict, judge
from shared.errors import run_main
from shared.experiment.looks import Paths
from shared.experiment.store import Store
from shared.report.data import Results
from shared.report.notebook import ROOT


def chosen(verdicts: Sequence[Verdict], results: Results, wanted: Paths, seconds: float) -> Paths:
    """What looks to ask for now: `wanted`, and as many further ones as fit. wanted: those that were asked for
    before."""
    paths = dict(wanted)
    open_ = [v for v in verdicts if v.p is not None and not v.decided and v.look < LOOKS]
    left = [v for v in open_ if len(wanted.get(v.claim.id, ())) <= len(results.paths.get(v.claim.id, ()))]
    spent, counted = 0.0, set()
    for verdict, costs in sorted(((v, _costs(v, results)) for v in left), key=lambda pair: sum(pair[1].values())):
        more = sum(cost for slug, cost in costs.items() if slug not in counted)
        if spent + more <= seconds:
            spent += more
            counted.update(costs)
            paths[verdict.claim.id] = [*results.paths.get(verdict.claim.id, ()), _kind(verdict)]
    return paths


def _kind(verdict: Verdict) -> str:
    return "seeds" if verdict.estimate.of_seeds > 0.5 else "pictures"


def _costs(verdict: Verdict, results: Results) -> dict[str, float]:
    """The seconds that a look is expected to take, by number: as long as before for other seeds, twice for all
    pictures."""
    behind = {slug for one in (verdict, *verdict.readings.values()) for slug in one.slugs}
    times = 1 if _kind(verdict) == "seeds" else 2
    last = results.views(verdict.claim.id)[-1]
    return {m.slug: times * m.seconds for m in last.measurements if m.slug in behind}


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, judge, ask, and say for how many claims."""
    parser = argparse.ArgumentParser(
        prog="python -m shared.report.looks", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("paper", help="folder under papers/")
    parser.add_argument("--scale", default="cpu")
    parser.add_argument("--results", default="results", help="the folder of all results")
    parser.add_argument("--seconds", type=float, default=0.0, help="that looks may take")
    args = parser.parse_args(argv)
    store = Store(Path(args.results) / args.scale / args.paper)
    wanted = store.asked() or {}
    paths = wanted
    if args.seconds > 0:
        results = Results.load(args.results, args.scale, args.paper)
        verdicts = judge(load(ROOT / "papers" / args.paper / "claims.yaml"), results)
        paths = chosen(verdicts, results, wanted, args.seconds)
        further = [claim for claim, path in paths.items() if path != wanted.get(claim)]
        print(f"{args.paper}: further looks at {len(further)} open claims, {args.seconds:.0f} s are left", flush=True)
    store.ask(paths)


if __name__ == "__main__":
    run_main(main)
