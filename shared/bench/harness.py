"""Run cases, print their table, keep it in results/bench.json."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from shared.bench.timing import Case, Outcome, Spread, measure
from shared.experiment.provenance import provenance
from shared.files import write_json
from shared.options import Workers, check_bounds


@dataclass(frozen=True)
class Options:
    """Measure speeds side by side."""

    quick: bool = False
    """Tiny sizes and hardly a repetition: shows that it works. The numbers mean nothing and go to a file of their own
    (bench-quick.json)."""
    threads: Workers = 0
    """Threads of torch (0: one per core)."""
    only: str = ""
    """Only cases with this text in their name."""
    out: Path = Path("results/bench.json")
    """Where the results are kept; cases measured by other commands stay in it."""


Cases = dict[str, Callable[[], Case]]
"""Cases by name, each made when its turn comes, so that models live only while they are used."""


def run(groups: Sequence[Callable[[bool], Cases]], options: Options) -> dict[str, dict]:
    """Measure, print and keep the cases that the groups give for `quick`; returns what was kept. Raises UserError for
    bad options."""
    check_bounds(options)
    named = {name: make for group in groups for name, make in group(options.quick).items()}
    chosen = {name: make for name, make in named.items() if options.only in name}
    if not chosen:  # no error: `make bench` asks every bench for it
        print(f"no case here has {options.only!r} in its name; there are: {'; '.join(named)}")
        return {}
    torch.set_num_threads(options.threads or os.cpu_count() or 1)
    out = options.out.with_stem(f"{options.out.stem}-quick") if options.quick else options.out
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; times are medians of interleaved repetitions",
        flush=True,
    )
    records = {}
    for name, make in chosen.items():
        outcome = measure(make())
        print(*lines(name, outcome, judge=not options.quick), sep="\n", flush=True)
        records[name] = record(outcome)
        keep(records, out)
        del outcome  # it holds the models
    rates = [r["rate"]["median"] / 1e9 for r in records.values()]
    print(f"fp32 matrix products: {min(rates):.0f} to {max(rates):.0f} GFLOP/s along the run; kept in {out}")
    return records


def lines(name: str, outcome: Outcome, judge: bool = True) -> list[str]:
    """One outcome for the terminal; `judge`: say whether the aims are met."""
    case, r = outcome.case, outcome.ratio
    aim = "" if case.aim is None else f", aim {'≥' if case.kind == 'speed-up' else '≤'} {case.aim}"
    share_aim = "" if case.share_aim is None else f" (aim ≥ {case.share_aim:.0%})"
    word = "times as fast" if case.kind == "speed-up" else "of the time"
    missed = outcome.missed()
    out = [
        f"{name}\n  against {case.against}",
        f"  {r.median:.2f} {word} ({r.low:.2f} to {r.high:.2f} over {case.repetitions}{aim}): {seconds(outcome.ours)} "
        f"against {seconds(outcome.reference)}",
        f"  share of the matrix-multiplication rate: {outcome.share_ours.median:.0%}{share_aim} against "
        f"{outcome.share_reference.median:.0%}",
        f"  tensors at the peak: {outcome.peak_ours / 1e6:.0f} MB against {outcome.peak_reference / 1e6:.0f} MB",
    ]
    out += [
        f"  {fact}: {value:.4g} against {outcome.facts_reference[fact]:.4g}"
        for fact, value in outcome.facts_ours.items()
    ]
    if case.aim is not None and judge:
        out.append("  MISSED: " + "; ".join(missed) if missed else "  met")
    return out


def seconds(spread: Spread) -> str:
    """A median time with its unit."""
    return f"{spread.median:.2f} s" if spread.median >= 1 else f"{1000 * spread.median:.1f} ms"


def record(outcome: Outcome) -> dict:
    """One outcome for the file, with its provenance."""
    case = outcome.case
    return {
        "against": case.against, "aim": case.aim, "kind": case.kind, "share_aim": case.share_aim, "repetitions": case.repetitions,
        "missed": outcome.missed(), "threads": torch.get_num_threads(), "provenance": provenance(),
        "facts": {"ours": outcome.facts_ours, "reference": outcome.facts_reference},
        "peak": {"ours": outcome.peak_ours, "reference": outcome.peak_reference},
        **{name: asdict(getattr(outcome, name)) for name in ("ours", "reference", "ratio", "rate", "share_ours", "share_reference")},
    }  # fmt: skip


def keep(records: dict[str, dict], path: Path) -> None:
    """Put the records into the file by name, beside those that other commands left; a damaged file is replaced."""
    try:
        there = json.loads(path.read_text())
    except (OSError, ValueError):
        there = {}
    write_json(path, {**there, **records})
