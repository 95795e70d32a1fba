"""The page for the whole: `python -m shared.report.overview --scale cpu [--results results] [--figures DIR]`

Every claim of every paper beside what was measured at one scale, a row each; a few lines of script in the page itself
filter the rows. Below: what each paper's runs cost. A paper that was not run at this scale is listed as such, and its
claims as not measured.

    <results>/<scale>/overview/page.html + notebook.ipynb      the page, from notebooks/overview.ipynb
    <figures>/verdicts.md, claims.csv                          the counts by paper, and all rows; see `shared.report.notebook.figures_folder`

`make reproduce` and `make headline` end with it; how long they took is read by `overview_times`.
"""

import argparse
import csv
import io
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from shared.claims import claims as claims_module
from shared.claims.claims import ClaimsFile
from shared.claims.verdicts import FURTHER, Verdict, by_chance, judge
from shared.errors import UserError, run_main
from shared.experiment.scales import scales
from shared.experiment.store import Store
from shared.files import write_atomic
from shared.report import manifest
from shared.report.claims_page import (
    SCALE_WORDS,
    html_claims,
    measured,
    named,
    paper_value,
    short,
    source,
    statuses,
)
from shared.report.data import Results
from shared.report.notebook import ROOT, Html, figures_folder
from shared.report.overview_times import Run, clock, read_runs
from shared.report.page import make_page
from shared.report.rendering import render

TITLE = "All claims of all papers"


@dataclass(frozen=True)
class Paper:
    """A paper with its verdicts at one scale. results: None where it was not run."""

    name: str
    file: ClaimsFile
    results: Results | None
    verdicts: tuple[Verdict, ...]
    runs: tuple[Run, ...]
    headline: bool = False
    has_scale: bool = True

    @cached_property
    def counts(self) -> Counter:
        """Verdicts by their status."""
        return Counter(short(v) for v in self.verdicts)

    @property
    def state(self) -> str:
        """How far it has been run."""
        if not self.has_scale:
            return "has no such scale"
        if self.results is None:
            return "not run"
        if self.results.missing:
            return f"{len(self.results.missing)} of {len(self.results.missing) + len(self.results.measurements)} measurements missing"
        return "headline only" if self.headline else "complete"

    def provenance(self, field: str) -> list[str]:
        """The distinct values of a field of the measurements' provenance, in words."""
        found = (
            [m.provenance[field] for m in self.results.measurements if m.provenance.get(field)] if self.results else []
        )
        return list(dict.fromkeys(_words(value) for value in found))

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for m in self.results.measurements for seed in m.seeds}) if self.results else []

    @property
    def measuring(self) -> float:
        """Seconds, of all processes together, that the measurements took."""
        return sum(m.seconds or 0 for m in self.results.measurements) if self.results else 0.0

    def measuring_further(self, times: int) -> float:
        """The seconds that measuring would take, of all processes together, to decide the open claims that need no more
        than so many times their evidence."""
        needed: Counter = Counter()
        for v in self.verdicts:
            if v.needs is not None and v.needs <= times:
                needed |= Counter(dict.fromkeys((s for one in (v, *v.readings.values()) for s in one.slugs), v.needs))
        return (
            sum((needed[m.slug] - 1) * m.seconds for m in self.results.measurements if m.slug in needed)
            if needed
            else 0.0
        )


class Overview:
    """All papers at one scale. Each method returns something that shows itself in the notebook and on the page."""

    def __init__(
        self,
        scale: str = "cpu",
        results: str | Path = "results",
        figures: str | Path = "",
        papers: str | Path = ROOT / "papers",
    ):
        self.scale, self.folder = scale, ROOT / results
        self.figures = ROOT / figures if figures else figures_folder("overview", scale, self.folder)
        names = sorted(path.parent.name for path in Path(papers).glob("*/train.py"))
        if not names:
            raise UserError(f"there is no paper in {papers}: a paper is a folder with a train.py and a claims.yaml.")
        self.papers = []
        for name in names:
            try:
                self.papers.append(read(Path(papers) / name, self.folder, scale))
            except UserError as error:  # one that is half made, say
                print(f"note: {name} is left out of the overview: {error}", file=sys.stderr, flush=True)
        if not self.papers:
            raise UserError(f"no paper in {papers} can be shown: see the notes above.")

    @property
    def counts(self) -> Counter:
        return sum((paper.counts for paper in self.papers), Counter())

    @property
    def by_chance(self) -> str:
        return by_chance([v for paper in self.papers for v in paper.verdicts])

    @property
    def further(self) -> str:
        """What the claims that are open would need, in words; "" where none is."""
        open_ = [(p, v) for p in self.papers for v in p.verdicts if v.p is not None and not v.decided]
        if not open_:
            return ""
        steps, within = [], 0
        for times in FURTHER:
            reached = [(p, v) for p, v in open_ if v.needs is not None and v.needs <= times]
            if len(reached) > within:
                within = len(reached)
                steps.append(f"{within} up to ×{times} ({clock(sum(p.measuring_further(times) for p in self.papers))})")
        said = "; ".join(steps) or "none"
        return (
            f"{len(open_)} claims are open. How many a multiple of the evidence behind them would decide if their "
            "estimates stayed as they are, and what measuring it takes of one processor (trainings, and what is made "
            f"once for several numbers, not in it): {said}. "
            f"For the other {len(open_) - within} there is hardly an effect to find."
        )

    def verdicts(self) -> Html:
        """How many claims of each paper fared how, saved as `verdicts.md`."""
        found = statuses(self.counts)
        rows = [(p.name, p.state, p.counts, len(p.verdicts)) for p in self.papers]
        rows.append(("together", "", self.counts, sum(len(p.verdicts) for p in self.papers)))
        lines = [
            f"| paper | run at this scale | claims | {' | '.join(found)} |",
            "|---|---|" + "---:|" * (1 + len(found)),
        ]
        lines += [
            f"| {name} | {state} | {n} | {' | '.join(str(c[s] or '') for s in found)} |" for name, state, c, n in rows
        ]
        notes = [text for text in (self.by_chance, self.further) if text]
        lines += [line for text in notes for line in ("", text)]
        self._save("verdicts.md", "\n".join(lines) + "\n", "verdicts")
        shown = render("counts", statuses=found, rows=rows, notes=notes)
        return Html(shown, self.text())

    def claims(self) -> Html:
        """Every claim, one row each, with what filters them; saved as `claims.csv`."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(
            (
                "paper",
                "claim",
                "headline",
                "text",
                "where",
                "mark",
                "published",
                "measured",
                "behind",
                "n",
                "seeds",
                "would show",
                "short of",
                "needs",
                "verdict",
                "p",
                "survives",
                "readings",
                "sentence",
            )
        )
        for paper in self.papers:
            for v in paper.verdicts:
                c = v.claim
                writer.writerow(
                    (
                        paper.name,
                        c.id,
                        "yes" if c.headline else "",
                        c.text,
                        source(c),
                        c.mark,
                        paper_value(c),
                        *measured(v),
                        v.estimate and v.estimate.n,
                        v.estimate and v.estimate.seeds,
                        v.seen,
                        v.short_of,
                        v.needs and f"×{v.needs}",
                        v.status,
                        "" if v.p is None else f"{v.p:.2g}",
                        "yes" if v.survives else "",
                        "; ".join(f"{name}: {one.status}" for name, one in named(v)),
                        v.sentence,
                    )
                )
        self._save("claims.csv", out.getvalue(), "claims")
        rows = [(paper.name, v) for paper in self.papers for v in paper.verdicts]
        there = {p.name: (self.folder / self.scale / p.name / "page.html").is_file() for p in self.papers}
        pages = {name: f"../{name}/page.html" if page else "" for name, page in there.items()}
        return Html(html_claims(rows, pages=pages), self.text())

    def runs(self) -> Html:
        """What the runs of each paper cost, and where they were made."""
        total = sum(run.total for paper in self.papers for run in paper.runs)
        shown = render(
            "costs",
            labels=("last run", "all runs", "measuring", "measurements", "commit and machine"),
            rows=[(p, self._command(p), self._failed(p), self._cost(p)) for p in self.papers],
            runs=clock(total) if total else "–",
            measuring=clock(sum(p.measuring for p in self.papers)),
        )
        return Html(shown, self.text())

    def text(self) -> str:
        """The counts for a terminal."""
        width = max(len(p.name) for p in self.papers) + 2
        lines = [f"verdicts at SCALE={self.scale}"]
        for p in self.papers:
            how_far = "" if p.state == "complete" else f" ({p.state})"
            absent = ": ".join(filter(None, (p.state, self._command(p))))
            lines.append(f"  {p.name:<{width}}" + (f"{_counted(p.counts)}{how_far}" if p.results else absent))
        ran = [p for p in self.papers if p.results]
        if len(ran) > 1:
            lines.append(f"  {'together':<{width}}{_counted(sum((p.counts for p in ran), Counter()))}")
        for note in (self.by_chance, self.further):
            lines += textwrap.wrap(note, 110, initial_indent="  ", subsequent_indent="  ")
        return "\n".join(lines)

    def _failed(self, p: Paper) -> str:
        return ", ".join(p.results.failed_gates()) if p.results else ""

    def _cost(self, p: Paper) -> tuple[str, ...]:
        behind = ""
        if p.results:
            commits, machines = p.provenance("commit"), p.provenance("machine")
            behind = "; ".join(f"{v[0]}{f' and {len(v) - 1} more' if v[1:] else ''}" for v in (commits, machines) if v)
        return (
            p.runs[-1].text() if p.runs else "–",
            f"{clock(sum(r.total for r in p.runs))} in {len(p.runs)}" if p.runs else "–",
            clock(p.measuring) if p.results else "–",
            f"{len(p.results.measurements):,}; seeds {', '.join(map(str, p.seeds))}" if p.results else "–",
            behind or "–",
        )

    def _command(self, paper: Paper) -> str:
        """What measures what is missing; "" where nothing is, or nothing can be."""
        if not paper.has_scale or paper.state == "complete":
            return ""
        return f"make reproduce-{paper.name}" + ("" if self.scale == "cpu" else f" SCALE={self.scale}")

    def _save(self, name: str, text: str, method: str) -> None:
        """A file with its record, which has nothing that changes when the same measurements are read again."""
        path = self.figures / name
        write_atomic(path, text)
        behind = {
            p.name: {
                "state": p.state,
                "measurements": len(p.results.measurements),
                "seeds": p.seeds,
                "commit": p.provenance("commit"),
                "machine": p.provenance("machine"),
            }
            if p.results
            else {"state": p.state}
            for p in self.papers
        }
        command = "make overview" + ("" if self.scale == "cpu" else f" SCALE={self.scale}")
        folder = {"scale": self.scale, "command": command, "papers": behind}
        manifest.write([path], {"folder": folder, "output": {"producer": f"shared.report.overview.Overview.{method}"}})


def read(folder: Path, results: Path, scale: str) -> Paper:
    """The paper in `folder` with what was measured of it at `scale`. Raises UserError for a claims file that is not
    there or not right."""
    file, found, headline = claims_module.load(folder / "claims.yaml"), None, False
    if (results / scale / folder.name / "plan.json").is_file():
        found = Results.load(results, scale, folder.name)
        headline = bool(Store(results / scale / folder.name).plan().get("headline"))
    verdicts = judge(file, found or Results(folder.name, scale, []))
    return Paper(
        folder.name,
        file,
        found,
        tuple(verdicts),
        tuple(read_runs(results / scale / folder.name / "times.txt")),
        headline,
        scale in scales(folder.name, folder.parent),
    )


def _counted(counts: Counter) -> str:
    return ", ".join(f"{counts[s]} {s}" for s in statuses(counts))


def _words(value: object) -> str:
    """A commit, short; a machine as a list."""
    if isinstance(value, dict):
        return ", ".join(f"{v} {k}" if isinstance(v, int) else str(v) for k, v in value.items())
    return str(value)[:12]


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, make the page, print the counts and where it is."""
    parser = argparse.ArgumentParser(
        prog="python -m shared.report.overview", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--scale", default="cpu", choices=list(SCALE_WORDS))
    parser.add_argument("--results", default=str(ROOT / "results"), help="the folder of all results")
    parser.add_argument("--figures", default="", help="where verdicts.md and claims.csv go")
    parser.add_argument("--notebook", default=str(ROOT / "notebooks" / "overview.ipynb"), help="another notebook")
    args = parser.parse_args(argv)
    results = Path(args.results).absolute()
    figures = Path(args.figures).absolute() if args.figures else figures_folder("overview", args.scale, results)
    overview = Overview(args.scale, results, figures)  # before the notebook, so that a mistake is one sentence
    given = {"scale": args.scale, "results": str(results), "figures": str(figures)}
    files = {"README.md": ROOT / "README.md", **{name: figures / name for name in ("claims.csv", "verdicts.md")}}
    page = make_page(Path(args.notebook), given, results / args.scale / "overview", TITLE, files=files)
    print(
        f"\n{overview.text()}\n\noverview {page.relative_to(Path.cwd()) if page.is_relative_to(Path.cwd()) else page}",
        flush=True,
    )


if __name__ == "__main__":
    run_main(main)
