"""What `make` does once the environment is there: its variables checked, then the scripts of a target in turn.

    python -m shared.experiment.make check NAME=value …                one line on stdout for the first mistake
    python -m shared.experiment.make reproduce-pmg_aft NAME=value …    or headline-, figures-, status-, plan-, bench-; of all without a paper
    python -m shared.experiment.make new-paper NAME=x                  see `new_paper`

Standard library only. Notes when each stage begins in <results>/<scale>/<paper>/times.txt, which the overview reads.
"""

import argparse
import contextlib
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.errors import DONE, UserError, run_main
from shared.experiment.launch.__main__ import DEVICES, choose, start
from shared.experiment.new_paper import begin
from shared.experiment.scales import ROOT, SCALES, check_scale, refuse_unreadable, scales
from shared.files import check_folder
from shared.lifeline import supervise, tie_to_launcher

YOURS = ("DEFENCE", "OBJECTIVE", "METHOD")  # a method of the user's own, by what a paper's are called


@dataclass(frozen=True)
class Dials:
    """The variables of make that matter here, by their names in small letters."""

    scale: str = "cpu"
    seeds: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    data_root: str = ""
    results: str = "results"
    set: tuple[str, ...] = ()
    device: str | None = None
    gpus: int | None = None
    launch: tuple[str, ...] = ()
    budget: int = 0
    gpu: str = "measure"
    yours: str = ""
    name: str = ""

    @property
    def options(self) -> list[str]:
        """What every script of a paper is given."""
        seeds = ["--seeds", *self.seeds] if self.seeds else []
        return [
            "--scale",
            self.scale,
            *seeds,
            *(["--data-root", self.data_root] if self.data_root else []),
            *(["--yours", self.yours] if self.yours else []),
            "--results",
            self.results,
        ]


def dials(words: Sequence[str]) -> Dials:
    """Variables from NAME=value. Raises `UserError` for a value that cannot be meant."""
    given = {name: value.strip() for name, _, value in (word.partition("=") for word in words)}
    scale, device, gpus = given.get("SCALE", "cpu"), given.get("DEVICE", ""), given.get("GPUS", "")
    if scale not in SCALES:
        raise UserError(f"there is no SCALE={scale}; choose one of: {' '.join(SCALES)}")
    if device and device not in DEVICES:
        raise UserError(f"there is no DEVICE={device}; choose one of: {' '.join(DEVICES)}")
    seeds = tuple(given.get("SEEDS", "").split())
    if not all(_is_number(seed) for seed in seeds):
        raise UserError(f'SEEDS takes whole numbers separated by blanks, not "{given["SEEDS"]}"')
    if gpus and not (_is_number(gpus) and int(gpus)):
        raise UserError(f'GPUS takes a whole number from 1, not "{gpus}"')
    budget = given.get("BUDGET", "")
    if budget and not _is_number(budget):
        raise UserError(f'BUDGET takes a whole number of minutes, not "{budget}"')
    if not given.get("RESULTS", "results"):
        raise UserError("RESULTS is empty; name a folder or leave it out")
    if given.get("TORCH", "") not in ("", "cpu"):
        raise UserError(f"there is no TORCH={given['TORCH']}; choose cpu or leave it out")
    yours = [f"{word}={given[word]}" for word in YOURS if given.get(word)]
    if len(yours) > 1:
        raise UserError(f"{' and '.join(yours)}: a run has one row of your own, so give one of them")
    if yours and not all(yours[0].partition("=")[2].partition(":")):
        raise UserError(f"{yours[0]}: write module:name, as in {yours[0].partition('=')[0]}=my_module:Mine")
    launch = _words("LAUNCH", given)
    if launch and (device or gpus):
        raise UserError(
            "LAUNCH starts the scripts in another way, so DEVICE and GPUS would count for nothing: leave them out"
        )
    settings = _words("SET", given)
    for pair in settings:
        if "=" not in pair:
            raise UserError(f'SET takes name=value, not "{pair}"')
    # ARGS="--results X" is RESULTS=X, so that pages are drawn from where the scripts measure
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    own.add_argument("--results", default=given.get("RESULTS", "results"))
    own.add_argument("--scale", default=scale)
    try:
        known, args = own.parse_known_args(_words("ARGS", given))
    except argparse.ArgumentError as error:
        raise UserError(f"ARGS={given['ARGS']}: {error}") from None
    if known.scale != scale:
        raise UserError(
            f"ARGS says --scale {known.scale}, and pages are drawn of SCALE={scale}: say SCALE={known.scale}"
        )
    return Dials(
        scale=scale,
        seeds=seeds,
        args=tuple(args),
        data_root=given.get("DATA_ROOT", ""),
        results=known.results,
        set=settings,
        device=device or None,
        gpus=int(gpus) if gpus else None,
        launch=launch,
        budget=int(budget or 0),
        gpu=given.get("GPU") or "measure",
        yours=yours[0].partition("=")[2] if yours else "",
        name=given.get("NAME", ""),
    )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) < 2**63


def _words(name: str, given: dict[str, str]) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(given.get(name, "")))
    except ValueError as error:
        raise UserError(f"{name}={given[name]} is not closed: {error}") from None


class Target:
    """What a target of make does to one paper after another. kind: reproduce, headline or figures."""

    def __init__(self, kind: str, given: Dials):
        self.kind, self.given = kind, given

    def run(self, papers: Sequence[str]) -> None:
        """Raises `UserError`; ends the process with the code of a script that fails."""
        for paper in papers:
            # where a run has left something, what is finished can be shown without writing
            if not Path(self.given.results, self.given.scale, paper, "plan.json").is_file():
                check_folder(self.given.results, "RESULTS")
        if self.given.launch:
            if not shutil.which(self.given.launch[0]):
                raise UserError(f"LAUNCH={shlex.join(self.given.launch)}: there is no program {self.given.launch[0]}")
        elif self.kind != "figures":
            choose(self.given.device, self.given.gpus)
        for paper in papers if self.given.set and self.kind != "figures" else ():
            self.report("page", paper, "--check", *self._settings)  # before what takes hours
        until = time.monotonic() + 60 * self.given.budget
        goes_on = self.given.budget and self.kind != "figures"
        for paper in papers:
            if goes_on:
                self._look(paper, 0)
            if self.kind != "figures":
                self._measure(paper)
            if not goes_on:
                self._page(paper)
        for left, paper in zip(range(len(papers), 0, -1), papers if goes_on else (), strict=False):
            end = time.monotonic() + (until - time.monotonic()) / left
            while time.monotonic() < end and self._look(paper, end - time.monotonic()):
                self._measure(paper)
            self._page(paper)

    def _measure(self, paper: str) -> None:
        for stage in ("train", "evaluate"):
            self._note(paper, stage)
            self._script(f"papers.{paper}.{stage}")

    def _look(self, paper: str, seconds: float) -> bool:
        """Ask for the next looks at open claims, as far as they fit into this time; whether there are any."""
        path = Path(self.given.results, self.given.scale, paper, "looks.json")
        before = path.read_bytes() if path.is_file() else b""
        self.report("looks", paper, "--seconds", f"{seconds:.0f}")
        return path.read_bytes() != before

    def _page(self, paper: str) -> None:
        if self.kind != "figures":
            self._note(paper, "page")
        self.report("page", paper, *self._settings)
        if self.kind != "figures":
            self._note(paper, "end")

    @property
    def _settings(self) -> list[str]:
        return [word for pair in self.given.set for word in ("--set", pair)]

    def report(self, what: str, *options: str) -> None:
        """A page is drawn."""
        _run(f"shared.report.{what}", *options, "--scale", self.given.scale, "--results", self.given.results)

    def _script(self, module: str) -> None:
        """A script of a paper, on the processes that the variables ask for."""
        headline = ["--headline"] if self.kind == "headline" else []
        command = ["-m", module, *self.given.options, *headline, *self.given.args]
        print(shlex.join([*(self.given.launch or ["python"]), *command]), flush=True)
        if not self.given.launch:
            _leave(start(command, self.given.device, self.given.gpus))
            return
        # Whatever it starts and wherever: that the script came to its end shows in a file. A launcher may end with 0
        # before.
        with tempfile.TemporaryDirectory(dir=self.given.results, prefix=".launch-") as folder:
            note = Path(folder).absolute() / "done"
            _leave(supervise([[*self.given.launch, *command]], [{**os.environ, DONE: str(note)}]))
            if not note.exists():
                raise UserError(
                    f"LAUNCH={shlex.join(self.given.launch)} ended well, and {module} did not come to its end: it must "
                    "start what follows it (-m, the script and its options) and hand on the environment."
                )

    def _note(self, paper: str, stage: str) -> None:
        folder = Path(self.given.results, self.given.scale, paper)
        with contextlib.suppress(OSError):  # whoever has something to write is refused there
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / "times.txt", "a", encoding="utf-8") as notes:
                notes.write(f"{time.time():.0f} {self.kind} {stage}\n")


def with_file(name: str) -> list[str]:
    """The papers that have such a file."""
    return sorted(path.parent.name for path in (ROOT / "papers").glob(f"*/{name}"))


def with_scale(papers: Sequence[str], scale: str) -> list[str]:
    """The papers that have this scale; those that have not are named before anything runs."""
    for paper in papers:
        if scale not in scales(paper):
            there = ", ".join(scales(paper)) or "none that can be read"
            print(f"{paper} is left out: it has no SCALE={scale}, only {there}", flush=True)
    return [paper for paper in papers if scale in scales(paper)]


def smoke(papers: Sequence[str]) -> None:
    """One paper end to end at SCALE=smoke, in a folder of its own, so that nothing measured before is skipped."""
    folder = tempfile.mkdtemp()
    try:
        Target("reproduce", Dials(scale="smoke", results=folder)).run(["pmg_aft" if "pmg_aft" in papers else papers[0]])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def bench(paper: str, given: Dials) -> None:
    """The benchmarks of a paper, or all."""
    there = with_file("bench.py")
    if paper and paper not in there:
        raise UserError(f"{paper} has no benchmarks of its own; {', '.join(there)} have")
    for package in [f"papers.{paper}"] if paper else ["shared", *(f"papers.{name}" for name in there)]:
        _run(f"{package}.bench", *given.args)


def _code(module: str, *options: str) -> int:
    return supervise([[sys.executable, "-m", module, *options]], [dict(os.environ)])


def _run(module: str, *options: str) -> None:
    _leave(_code(module, *options))


def _leave(code: int) -> None:
    """End with the code of a script that failed; it has said why."""
    if code:
        sys.exit(code)


def main() -> None:
    tie_to_launcher(("MAKELEVEL",))
    goal, *words = sys.argv[1:]
    if goal == "check":
        try:
            dials(words)
        except UserError as mistake:
            print(mistake)
        return
    papers = with_file("train.py")
    kind, _, paper = goal.partition("-")
    given = dials(words)
    if goal == "new-paper":
        for folder in begin(given.name):
            print(f"made {folder.relative_to(ROOT)}")
        print(f"next: make reproduce-{given.name} SCALE=smoke")
        return
    if given.yours and not (paper and kind in ("reproduce", "headline", "status")):
        raise UserError(
            f"a method of your own ({given.yours}) is a row of one paper: give it to make reproduce-<paper>, "
            "headline-<paper> or status-<paper>"
        )
    if paper and paper not in papers:
        raise UserError(f"there is no paper '{paper}' with a train.py; there is: {' '.join(papers) or 'none yet'}")
    if kind == "record":
        Target(kind, given).report("record", *([paper] if paper else []))
    elif kind in ("status", "plan"):
        asked = [paper] if paper else with_scale(papers, given.scale)
        on = [given.gpu] if kind == "plan" else []
        codes = [_code(f"shared.experiment.{kind}", name, *on, *given.options, *given.args) for name in asked]
        _leave(next(filter(None, codes), 0))  # one that is half made is in no other's way
    elif kind == "bench":
        bench(paper, given)
    elif not papers:
        print("no paper yet")
    elif kind == "smoke":
        smoke(papers)
    elif paper:
        check_scale(paper, given.scale)
        Target(kind, given).run([paper])
    else:
        if kind != "overview":
            Target(kind, given).run(with_scale(papers, given.scale))
        Target(kind, given).report("overview")
    if not paper and kind in ("reproduce", "headline", "figures", "status"):
        refuse_unreadable()


if __name__ == "__main__":
    run_main(main)
