"""Publish what a finished run drew as the record in figures/: `python -m shared.report.record [PAPER …] --scale cpu [--results results]`

Tables, figures and `record.json` go from `<results>/<scale>/<paper>/figures` to `figures/<paper>` (photos: `figures/<paper>/photos`) and the verdicts
on all claims to `figures/overview`; then the READMEs show them. A record is whole: a run that is partial, that failed a gate, whose page is
older than its measurements or whose code was not committed is refused, and nothing is published.
"""

import argparse
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from shared.errors import UserError, run_main
from shared.experiment.scales import papers_with, refuse_unreadable
from shared.experiment.store import Store
from shared.report import manifest, readme
from shared.report.data import Results
from shared.report.notebook import ROOT, figures_folder

SCALES = ("cpu", "photos")  # those whose record is kept


def place(name: str, scale: str) -> Path:
    """Where the record of a paper (or of the overview) at a scale is kept."""
    return ROOT / "figures" / name / ("photos" if scale == "photos" else "")


def complaint(paper: str, scale: str, results: Path) -> str:
    """Why what is drawn of a paper is no record, in one sentence; "" where it is one."""
    loaded, plan = Results.load(results, scale, paper), Store(results / scale / paper).plan()
    drawn = manifest.read(figures_folder(paper, scale, results))
    redraw = manifest.redraw_command(loaded)
    again = redraw.replace("make figures-", "make reproduce-")
    if own := plan.get("config", {}).get("yours"):
        return f"{paper}: a row of your own ({own}) is in it, which is no part of the record; run {again} without it."
    if plan.get("headline"):
        return f"{paper}: only the headline has been measured; run {again} first."
    if loaded.missing:
        return f"{paper}: {len(loaded.missing)} measurements are missing, the first is {loaded.missing[0]}; run {again} first."
    if loaded.failed_gates():
        return f"{paper}: a gate failed ({loaded.failed_gates()[0]}), so that no verdict may be given."
    behind = {k: v for output in drawn.get("outputs", {}) for k, v in manifest.behind(drawn, output).items()}
    keys = {m.slug: m.key for m in loaded.measurements}
    if not behind or any(not keys.get(name, "").startswith(key) for name, key in behind.items()):
        return f"{paper}: its tables and figures are not drawn from what is measured; run {redraw} first."
    unclean = [m.slug for m in loaded.measurements if m.provenance.get("modified", True)]
    if unclean:
        count = f"{len(unclean)} numbers were measured by code that was not committed"
        return f"{paper}: {count}, the first is {unclean[0]}; commit, then measure them again."
    return ""


def unfinished(paper: str, scale: str, results: Path) -> bool:
    """Whether a paper that has no record was not run either, which is said: a half-made one is in no other's way."""
    if place(paper, scale).is_dir() or (results / scale / paper / "plan.json").is_file():
        return False
    print(f"{paper} is left out: it has no record, and nothing has been measured of it at SCALE={scale}", flush=True)
    return True


def publish(names: Sequence[str], scale: str, results: Path) -> list[Path]:
    """Put the files of these folders into figures/, each folder whole; returns them. Files of the record before are
    removed."""
    out = []
    for name in names:
        target = place(name, scale)
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        shutil.copytree(figures_folder(name, scale, results), staged, dirs_exist_ok=True)
        if scale == "cpu" and (target / "photos").is_dir():
            os.replace(target / "photos", staged / "photos")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(staged, target)
        target.chmod(0o755)
        out.append(target)
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, refuse what is no record, publish the rest."""
    parser = argparse.ArgumentParser(
        prog="python -m shared.report.record", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("papers", nargs="*", help="folders under papers/; default: all that have this scale")
    parser.add_argument("--scale", default="cpu")
    parser.add_argument("--results", default=str(ROOT / "results"), help="the folder of all results")
    args = parser.parse_args(argv)
    if args.scale not in SCALES:
        raise UserError(f"a record is kept of {' and '.join(SCALES)}, not of SCALE={args.scale}.")
    results, everyone = Path(args.results).absolute(), papers_with(args.scale)
    names = args.papers or everyone
    unknown = [name for name in names if name not in everyone]
    if unknown:
        raise UserError(
            f"there is no paper {unknown[0]!r} with a scale {args.scale}: choose among {', '.join(everyone)}."
        )
    if not args.papers:
        names = [name for name in names if not unfinished(name, args.scale, results)]
        if not names:
            raise UserError(f"nothing is published: no paper has been run at SCALE={args.scale}.")
    wrong = [text for name in names if (text := complaint(name, args.scale, results))]
    if wrong:
        raise UserError("nothing is published: " + " ".join(wrong))
    if not args.papers or set(names) == set(everyone):  # the verdicts on all claims are of all papers
        if not manifest.read(figures_folder("overview", args.scale, results)):
            raise UserError("nothing is published: the overview is not drawn; run make overview first.")
        names = [*names, "overview"]
    for folder in publish(names, args.scale, results):
        print(f"published {os.path.relpath(folder, ROOT)}", flush=True)
    readme.main()
    if not args.papers:
        refuse_unreadable()


if __name__ == "__main__":
    run_main(main)
