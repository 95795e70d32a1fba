"""Golden plan: which numbers each paper sets out to measure, at every scale, in full and with --headline.

    python -m tests.golden.plan                       compare the plans of this working tree with plan.txt
    python -m tests.golden.plan rvpt --diff [COMMIT]  name every number and tag that differs from those of COMMIT (default: the one plan.txt is of)
    python -m tests.golden.plan rvpt --list cpu       name every number with its tags
    python -m tests.golden.plan --write               keep the plans as they are now; git diff then shows which groups changed

plan.txt holds, for every paper, scale and kind of measurement, how many numbers each method has, with a digest of their names and tags.
"""

import argparse
import hashlib
import importlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path

GOLDEN = Path(__file__).with_name("plan.txt")
PAPERS = ("diffcap", "distshift", "pmg_aft", "roclip", "rvpt")


def plans(paper: str) -> dict[str, dict[str, dict]]:
    """ "<scale>" and "<scale> --headline" -> name of a number -> its tags."""
    presets = importlib.import_module(f"papers.{paper}.config").PRESETS
    configs = {
        scale + option: replace(preset, headline=bool(option))
        for scale, preset in presets.items()
        for option in ("", " --headline")
    }
    return {title: planned(paper, config) for title, config in configs.items()}


def planned(paper: str, config: object) -> dict[str, dict]:
    """Name -> tags of every number that a configuration plans."""
    try:
        plan = importlib.import_module(f"papers.{paper}.paper").PAPER.plan(config)
    except ModuleNotFoundError as error:
        if error.name != f"papers.{paper}.paper":
            raise
        cells = importlib.import_module(f"papers.{paper}.cells").cells(config)  # a paper that is still written as cells
        return {cell.slug(): cell.tags(config) for cell in cells}
    return {number.name: dict(number.tags) for number in plan}


def written(tags: Mapping[str, object]) -> str:
    """Tags as text that is the same for equal tags: sorted, numbers as floats of ten digits."""
    return json.dumps(
        {k: v if isinstance(v, str | bool | None) else f"{float(v):.10g}" for k, v in sorted(tags.items())}
    )


def digest(lines: Iterable[str]) -> str:
    """The first digits of the SHA-256 of some lines, in whatever order they come."""
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:8]


def summary(plan: Mapping[str, Mapping]) -> list[str]:
    """One line per kind: each method with the count and the digest of its numbers."""
    groups: dict[str, dict[str, list[str]]] = {}
    for name, tags in plan.items():
        groups.setdefault(str(tags["kind"]), {}).setdefault(str(tags["method"]), []).append(f"{name} {written(tags)}")
    return [
        f"{kind}: " + ", ".join(f"{method} {len(lines)} {digest(lines)}" for method, lines in sorted(methods.items()))
        for kind, methods in sorted(groups.items())
    ]


def listing(paper: str) -> dict[str, list[str]]:
    """The part of plan.txt that is about one paper: title of a plan -> its lines."""
    return {f"{paper} {title}: {len(plan)}": summary(plan) for title, plan in plans(paper).items()}


def golden() -> dict[str, list[str]]:
    """plan.txt: title -> lines."""
    blocks = [block.splitlines() for block in GOLDEN.read_text().strip().split("\n\n")]
    return {title.removeprefix("# "): lines for title, *lines in blocks}


def plans_of_commit(paper: str, commit: str | None) -> dict[str, dict[str, dict]]:
    """What `plans` gives in another commit of this repository."""
    root = GOLDEN.parents[2]
    commit = (
        commit
        or subprocess.run(
            ["git", "log", "-1", "--format=%H", "--", str(GOLDEN)], cwd=root, check=True, capture_output=True, text=True
        ).stdout.strip()
    )
    archive = subprocess.run(
        ["git", "archive", commit, "shared", "papers", ":!*.safetensors"], cwd=root, check=True, capture_output=True
    ).stdout
    with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
        out = subprocess.run(
            [sys.executable, __file__, paper, "--json"],
            cwd=folder,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"},
        ).stdout
    return json.loads(out)


def differences(before: Mapping[str, Mapping], after: Mapping[str, Mapping]) -> list[str]:
    """A line for every number that vanished, is new, or has other tags; a number that has only another name counts as renamed."""
    by_tags = {written(tags): name for name, tags in after.items()}
    renamed = {
        name: by_tags[written(tags)] for name, tags in before.items() if name not in after and written(tags) in by_tags
    }
    lines = [
        f"renamed  {name} -> {renamed[name]}" if name in renamed else f"vanished {name} {written(before[name])}"
        for name in before
        if name not in after
    ]
    lines += [
        f"new      {name} {written(after[name])}"
        for name in after
        if name not in before and name not in renamed.values()
    ]
    for name in before:
        was, now = before[name], after.get(name, before[name])
        if written(was) != written(now):
            changed = [
                f"{k}: {was.get(k, '(absent)')} -> {now.get(k, '(absent)')}"
                for k in {**was, **now}
                if was.get(k) != now.get(k)
            ]
            lines.append(f"tags     {name} {', '.join(changed)}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("papers", nargs="*", default=list(PAPERS), metavar="PAPER")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--diff", nargs="?", const="", metavar="COMMIT")
    what.add_argument("--list", metavar="SCALE")
    what.add_argument("--write", action="store_true")
    what.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.json:
        print(json.dumps(plans(args.papers[0])))
    elif args.list:
        for paper in args.papers:
            for name, tags in plans(paper)[args.list].items():
                print(name, written(tags))
    elif args.diff is not None:
        lines = []
        for paper in args.papers:
            before, after = plans_of_commit(paper, args.diff or None), plans(paper)
            for title in sorted({*before, *after}):
                found = differences(before.get(title, {}), after.get(title, {}))
                lines += (
                    [f"# {paper} {title}: {len(before.get(title, {}))} -> {len(after.get(title, {}))}", *found]
                    if found
                    else []
                )
        print("\n".join(lines) or "the same numbers, with the same names and tags")
        sys.exit(1 if lines else 0)
    elif args.write:
        kept = {} if set(args.papers) == set(PAPERS) else golden()
        kept = {title: lines for title, lines in kept.items() if title.split()[0] not in args.papers}
        kept.update({title: lines for paper in args.papers for title, lines in listing(paper).items()})
        GOLDEN.write_text(
            "\n\n".join("\n".join([f"# {title}", *lines]) for title, lines in sorted(kept.items())) + "\n"
        )
    else:
        kept, now = golden(), {title: lines for paper in args.papers for title, lines in listing(paper).items()}
        kept = {title: lines for title, lines in kept.items() if title.split()[0] in args.papers}
        wrong = [title for title in sorted({*kept, *now}) if kept.get(title) != now.get(title)]
        print("\n".join(f"differs: {title}" for title in wrong) or f"{len(now)} plans as in plan.txt")
        sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
