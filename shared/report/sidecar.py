"""The record beside every file: which measurements, commit, configuration, seeds and machine are behind it."""

from pathlib import Path

from shared.files import sha256_file, write_json

_KEY = 16  # hex digits of a measurement's key: enough to identify it, and the files stay small
_LONGEST = 8  # distinct values of a provenance field that are still listed one by one


def record(results, slugs, producer: str, command: str | None = None) -> dict:
    """What `write` puts beside a file made from the measurements `slugs` of `results` by the function `producer`.

    No date and nothing else that changes when the same measurements are drawn again, so that redrawing changes no file.
    """
    used = sorted((m for m in results.measurements if m.slug in set(slugs)), key=lambda m: m.slug)
    names = sorted({name for m in used for name in m.provenance} - {"started"})
    provenance = {name: _common([m.provenance.get(name) for m in used]) for name in names}
    return {
        "producer": producer,
        "command": command or redraw_command(results),
        "paper": results.paper,
        "scale": results.scale,
        "config": results.config,
        "seeds": sorted({seed for m in used for seed in m.seeds}),
        "commit": provenance.pop("commit", "unknown"),
        "machine": provenance.pop("machine", "unknown"),
        "provenance": provenance,
        "measurements": {m.slug: m.key[:_KEY] for m in used},
    }


def redraw_command(results) -> str:
    """The command that draws the files again from the measurements."""
    return f"make figures-{results.paper}" + ("" if results.scale == "cpu" else f" SCALE={results.scale}")


def write(path: str | Path, content: dict) -> Path:
    """Write `<path>.json` with the record, the file's name and its sha256. The file must exist."""
    path = Path(path)
    sidecar = path.with_name(f"{path.name}.json")
    write_json(sidecar, {**content, "file": path.name, "sha256": sha256_file(path)})
    return sidecar


def _common(values: list):
    """The one value that all share, or the list of distinct ones (their number when there are many)."""
    distinct = []
    for value in values:
        if value is not None and value not in distinct:
            distinct.append(value)
    if len(distinct) == 1:
        return distinct[0]
    return distinct if len(distinct) <= _LONGEST else f"{len(distinct)} different values"
