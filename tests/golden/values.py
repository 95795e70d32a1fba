"""Golden values: what every number of SCALE=smoke came out as, example by example, in values/<paper>.json.

    python -m tests.golden.values RESULTS PAPER                          compare what lies under RESULTS with values/<paper>.json, as any CPU may
    python -m tests.golden.values RESULTS PAPER --exact OTHER_RESULTS    compare two results folders bit by bit: values, arrays, gates, weights
    python -m tests.golden.values RESULTS PAPER --write                  keep what lies under RESULTS

Numbers are found by their tags, so that names of files, keys and the order of a plan may differ. Times and memory are those of a machine: only
their unit and number of examples are kept. Bits: whether each example was a hit; other values are kept to five digits.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from tests.golden.plan import PAPERS, written

FOLDER = Path(__file__).with_name("values")
OF_A_MACHINE = ("s", "MB")  # units of what is never the same twice


@dataclass(frozen=True)
class Number:
    """What was measured under one name. arrays: everything kept with it, `values` among them."""

    name: str
    tags: Mapping[str, object]
    unit: str
    sanity: dict | None
    arrays: Mapping[str, np.ndarray]


def numbers(results: Path, paper: str, scale: str = "smoke") -> dict[str, Number]:
    """Tags as text -> number, of everything that the last run planned and measured. Leaves with one sentence where nothing was run."""
    root = results / scale / paper
    if not (root / "plan.json").is_file():
        sys.exit(f"nothing was evaluated in {root}.")
    plan = json.loads((root / "plan.json").read_text())
    old = {slug: path for slug in plan["tags"] if (path := root / "measurements" / f"{slug}.json").is_file()}
    if old:  # files as they were named when values/*.json were made, which today's store does not read
        found = [_read(path, slug, plan["tags"][slug]) for slug, path in old.items()]
    else:
        from shared.experiment.store import Store

        found = [
            Number(m.slug, m.tags, m.unit, m.sanity, {"values": m.values, **m.extra}) for m in Store(root).planned()
        ]
    return {written(number.tags): number for number in found}


def _read(path: Path, name: str, tags: Mapping[str, object]) -> Number:
    facts = json.loads(path.read_text())
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as archive:
        return Number(name, tags, facts["unit"], facts["sanity"], {k: archive[k] for k in archive.files})


def entry(number: Number) -> list:
    """[unit, values] as they are kept: a text of bits, a list of rounded values, or how many there are."""
    values = number.arrays["values"]
    if number.unit in OF_A_MACHINE:
        return [number.unit, len(values)]
    if np.isin(values, (0, 1)).all():
        return [number.unit, "".join("01"[int(v)] for v in values)]
    return [number.unit, [float(f"{v:.5g}") for v in values]]


def values_of(kept: str | list) -> np.ndarray:
    """The inverse of `entry`, up to rounding."""
    return np.array([float(v) for v in kept])


def near(kept: list, now: list, flips: int, share: float, least: float) -> str:
    """Why two entries cannot be the same number measured on two machines, or "".

    Each machine rounds otherwise, which can turn a near tie: up to `flips` hits may differ. Of other values the mean may differ by `share` of
    it, or by `least` where it is small.
    """
    if kept[0] != now[0]:
        return f"unit {kept[0]} -> {now[0]}"
    if kept[0] in OF_A_MACHINE:
        return "" if kept == now else f"n {kept[1]} -> {now[1]}"
    a, b = values_of(kept[1]), values_of(now[1])
    if len(a) != len(b):
        return f"n {len(a)} -> {len(b)}"
    if np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all():
        return "" if (a != b).sum() <= flips else f"{kept[1]} -> {now[1]}"
    return (
        ""
        if abs(a.mean() - b.mean()) <= max(share * abs(a.mean()), least)
        else f"mean {a.mean():.5g} -> {b.mean():.5g}"
    )


def tensors(results: Path, paper: str, scale: str = "smoke") -> dict[str, str]:
    """SHA-256 of the tensors of each weight file (not of its metadata, which holds a key) -> the file."""
    from safetensors.numpy import load_file

    out = {}
    for path in sorted((results / scale / paper).rglob("*.safetensors")):
        held = load_file(path)
        digest = sha256(
            b"".join(f"{k}{held[k].dtype}{held[k].shape}".encode() + held[k].tobytes() for k in sorted(held))
        ).hexdigest()
        out[digest] = str(path.relative_to(results / scale / paper))
    return out


def exact(golden: Path, results: Path, paper: str) -> list[str]:
    """A line for every number, array, gate and weight file of `golden` that `results` does not have bit by bit."""
    before, after = numbers(golden, paper), numbers(results, paper)
    lines = [f"missing {n.name} {tags}" for tags, n in before.items() if tags not in after]
    lines += [f"new     {n.name} {tags}" for tags, n in after.items() if tags not in before]
    for tags in (t for t in before if t in after and before[t].unit not in OF_A_MACHINE):
        a, b = before[tags], after[tags]
        if (a.unit, a.sanity) != (b.unit, b.sanity):
            lines.append(f"differs {a.name} unit or sanity: {a.unit} {a.sanity} -> {b.unit} {b.sanity}")
        for key in {**a.arrays, **b.arrays}:
            if key not in a.arrays or key not in b.arrays or a.arrays[key].shape != b.arrays[key].shape:
                lines.append(f"differs {a.name} array {key}: in one of the two only, or of another shape")
            elif not np.array_equal(a.arrays[key], b.arrays[key]):
                numeric = a.arrays[key].dtype.kind in "fiu"
                most = (
                    f"by up to {abs(a.arrays[key].astype(float) - b.arrays[key].astype(float)).max():.3g}"
                    if numeric
                    else "in its words"
                )
                lines.append(f"differs {a.name} array {key}: {most}")
    made = tensors(results, paper)
    lines += [
        f"differs weights {path}: no file holds the same tensors"
        for digest, path in tensors(golden, paper).items()
        if digest not in made
    ]
    gates = [
        {g["name"]: g["value"] for g in json.loads((r / "smoke" / paper / "gates.json").read_text())}
        for r in (golden, results)
    ]
    lines += [f"differs gate {k}: {v} -> {gates[1].get(k)}" for k, v in gates[0].items() if v != gates[1].get(k)]
    return lines


# Twice what was seen between a machine's own instructions and those of one without AVX2: one hit in 24, and 0.1 % of a mean.
FLIPS, SHARE, LEAST = 2, 0.01, 0.01


def portable(results: Path, paper: str) -> list[str]:
    """A line for every measured number that is not, within what another CPU may change, the one in values/<paper>.json."""
    kept = json.loads((FOLDER / f"{paper}.json").read_text())
    now = {n.name: entry(n) for n in numbers(results, paper).values()}
    why = {name: near(kept[name], found, FLIPS, SHARE, LEAST) if name in kept else "new" for name, found in now.items()}
    return [f"differs {name}: {said}" for name, said in why.items() if said]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("paper", choices=PAPERS)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--exact", type=Path, metavar="OTHER_RESULTS")
    what.add_argument("--write", action="store_true")
    args = parser.parse_args()
    if args.write:
        found = {n.name: entry(n) for n in numbers(args.results, args.paper).values()}
        FOLDER.mkdir(exist_ok=True)
        lines = ",\n".join(
            f"{json.dumps(name)}: {json.dumps(kept, separators=(',', ':'))}" for name, kept in sorted(found.items())
        )
        (FOLDER / f"{args.paper}.json").write_text(f"{{\n{lines}\n}}\n")
        return
    lines = exact(args.exact, args.results, args.paper) if args.exact else portable(args.results, args.paper)
    print("\n".join(lines) or f"{len(numbers(args.results, args.paper))} numbers as they were")
    sys.exit(1 if lines else 0)


if __name__ == "__main__":
    main()
