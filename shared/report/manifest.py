"""The record of a folder of tables and figures, `record.json`: what is behind each of them, and what its files are.

paper, scale, command          the command that draws the folder again from the measurements
config                         of the run
commit, machine, provenance    of all its measurements (a list where they differ)
measurements: name -> beginning of the key, in the order of names
outputs: first file -> producer      the function that made it
                       measurements  those it read, as places in that list from 0: "0-17 20" (`behind` has their names)
                       commit, seeds of these
                       files         name -> sha256
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from shared.experiment.store import Measurement
from shared.files import sha256_file, write_json
from shared.report.data import Results

NAME = "record.json"
_KEY = 16  # hex digits of a measurement's key: enough to identify it, and the record stays small
_LONGEST = 8  # distinct values of a provenance field that are still listed one by one


def origin(results: Results, names: Iterable[str], producer: str) -> dict:
    """What `write` records of an output made from the measurements `names` of `results` by the function `producer`.

    No date and nothing else that changes when the same measurements are drawn again, so that redrawing changes no file.
    """
    wanted = set(names)
    everything = sorted(results.measurements, key=lambda m: m.slug)
    places = [k for k, m in enumerate(everything) if m.slug in wanted]
    used = [everything[k] for k in places]
    fields = sorted({name for m in results.measurements for name in m.provenance} - {"started"})
    provenance = {name: _common(results.measurements, name) for name in fields}
    folder = {
        "paper": results.paper,
        "scale": results.scale,
        "command": redraw_command(results),
        "config": results.config,
        "commit": provenance.pop("commit", "unknown"),
        "machine": provenance.pop("machine", "unknown"),
        "provenance": provenance,
        "measurements": {m.slug: m.key[:_KEY] for m in everything},
    }
    output = {
        "producer": producer,
        "commit": _common(used, "commit"),
        "seeds": sorted({seed for m in used for seed in m.seeds}),
        "measurements": _ranges(places),
    }
    return {"folder": folder, "output": output}


def redraw_command(results: Results) -> str:
    """The command that draws the files again from the measurements."""
    return f"make figures-{results.paper}" + ("" if results.scale == "cpu" else f" SCALE={results.scale}")


def write(paths: Sequence[Path], made_of: dict) -> Path:
    """Put an output into the record of the folder that holds its files, which must exist. made_of: as `origin` returns
    it.

    Outputs of other runs, and those whose files are gone, leave the record.
    """
    file = paths[0].parent / NAME
    before = read(file.parent)
    same = all(before.get(field) == value for field, value in made_of["folder"].items())
    outputs = dict(before.get("outputs", {})) if same else {}
    outputs[paths[0].name] = {**made_of["output"], "files": {path.name: sha256_file(path) for path in paths}}
    kept = {k: v for k, v in outputs.items() if all((file.parent / f).is_file() for f in v["files"])}
    write_json(file, {**made_of["folder"], "outputs": kept})
    return file


def read(folder: Path) -> dict:
    """The record of a folder; {} where there is none that can be read."""
    try:
        found = json.loads((folder / NAME).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def behind(record: dict, output: str) -> dict[str, str]:
    """The measurements that an output of a record, by its first file, was drawn from: name -> beginning of the key."""
    everything = list(record.get("measurements", {}).items())
    said = record["outputs"][output].get("measurements", "")
    spans = (span.partition("-") for span in said.split())
    return dict(pair for first, _, last in spans for pair in everything[int(first) : int(last or first) + 1])


def _ranges(places: Sequence[int]) -> str:
    """0, 1, 2, 5 -> "0-2 5"."""
    spans: list[list[int]] = []
    for k in places:
        if spans and spans[-1][1] == k - 1:
            spans[-1][1] = k
        else:
            spans.append([k, k])
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def _common(measurements: Sequence[Measurement], field: str) -> object:
    """The one value that all share, or the list of distinct ones (their number when there are many)."""
    distinct: list[object] = []
    for m in measurements:
        value = m.provenance.get(field)
        if value is not None and value not in distinct:
            distinct.append(value)
    if len(distinct) == 1:
        return distinct[0]
    return distinct if len(distinct) <= _LONGEST else f"{len(distinct)} different values"
