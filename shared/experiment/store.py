"""The store of measurements: one JSON and one .npz per measurement, kept under the key of everything that produced it.

    <root>/measurements/<slug>.json + .npz    root = results/<scale>/<paper>
    <root>/plan.json                          what the last run set out to measure: {"paper", "scale", "config", "headline", "slugs": {slug: key}}
    <root>/gates.json                         what had to hold before any defence was measured

A measurement whose key is the wanted one is not measured again; so a run continues where it was, and a changed number re-measures only what
depends on it. Nothing here imports torch: reports read the store in a second.
"""

import json
import re
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from shared.errors import UserError
from shared.files import atomic_path, write_json


@dataclass(frozen=True)
class Measurement:
    """One number with what it was made from.

    value, low, high: the mean over examples and its 95 % interval; n: examples; seeds: of training; unit: e.g. "share", "s"; seconds: how long it
    took; sanity: outcome of the attack's sanity checks (robust cells only); tags: what it is a measurement of; values: per-example numbers;
    extra: further named arrays that a figure draws (pictures, curves, texts as arrays of strings), kept beside the values.
    """

    slug: str
    key: str
    value: float
    low: float
    high: float
    n: int
    seeds: tuple[int, ...]
    unit: str
    seconds: float
    tags: dict
    provenance: dict
    sanity: dict | None = None
    path: Path | None = field(default=None, compare=False, repr=False)
    given: np.ndarray | None = field(default=None, compare=False, repr=False)
    given_extra: dict | None = field(default=None, compare=False, repr=False)

    @cached_property
    def values(self) -> np.ndarray:
        """Per-example values (n,), read from disk when first asked for."""
        return self.given if self.given is not None else self._read()["values"]

    @cached_property
    def extra(self) -> dict[str, np.ndarray]:
        """The further arrays by name, {} if there are none."""
        return self.given_extra or {} if self.given is not None else {k: v for k, v in self._read().items() if k != "values"}

    def _read(self) -> dict[str, np.ndarray]:
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except Exception as error:
            raise UserError(f"the values of a measurement, {self.path}, cannot be read: delete its .json and measure again.") from error


def slug(*parts: object) -> str:
    """A file name made of parts: lower case, other characters become '-', parts joined by '__'."""
    return "__".join(re.sub(r"[^a-z0-9.+_]+", "-", str(p).lower()).strip("-") for p in parts)


class Store:
    """The measurements of one paper at one scale."""

    def __init__(self, root: str | Path):
        self.root = Path(root)

    def _path(self, name: str, suffix: str) -> Path:
        return self.root / "measurements" / f"{name}{suffix}"

    def load(self, name: str) -> Measurement | None:
        """The measurement of that slug, or None if there is none or its file is damaged (it is then measured again)."""
        path = self._path(name, ".json")
        try:
            facts = json.loads(path.read_text())
            return Measurement(**{**facts, "seeds": tuple(facts["seeds"])}, path=self._path(name, ".npz"))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def read(self, name: str) -> Measurement:
        """A measurement that was there a moment ago. Raises UserError if it no longer is: another run is replacing it."""
        found = self.load(name)
        if found is None:
            raise UserError(f"the measurement {self._path(name, '.json')} is gone or cut short, so another run is writing in "
                            f"{self.root}: wait for its end and run the same command again.")
        return found

    def fresh(self, name: str, key: str) -> bool:
        """Whether the measurement exists, was made under `key`, and its per-example values can be read."""
        found = self.load(name)
        if found is None or found.key != key:
            return False
        try:
            return len(found.values) == found.n
        except UserError:  # missing or damaged: measured again
            return False

    def save(self, measurement: Measurement) -> None:
        """Write values first, then the JSON that vouches for them: an interrupt between the two leaves the old key, so it is measured again."""
        name = measurement.slug
        self._path(name, ".json").unlink(missing_ok=True)
        with atomic_path(self._path(name, ".npz")) as temporary:
            np.savez(temporary, values=measurement.values, **measurement.extra)
        hidden = ("path", "given", "given_extra")
        facts = {k: v for k, v in asdict(replace(measurement, path=None, given=None, given_extra=None)).items() if k not in hidden}
        write_json(self._path(name, ".json"), facts)

    def write_plan(self, plan: dict) -> None:
        """Record what a run sets out to measure; readers then ignore what other configurations left behind."""
        write_json(self.root / "plan.json", plan)

    def plan(self) -> dict:
        """The last plan. Raises UserError if nothing was run here."""
        try:
            return json.loads((self.root / "plan.json").read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"there are no measurements in {self.root}: run `make reproduce-{self.root.name} SCALE={self.root.parent.name}` "
                            "first.") from error

    def planned(self) -> list[Measurement]:
        """Those measurements of the last plan that exist under the planned key, with the tags that the plan gives them: a measurement that
        another configuration left behind may be the same number in another place."""
        plan = self.plan()
        found = ((self.load(name), name, key) for name, key in plan["slugs"].items())
        tags = plan.get("tags", {})
        return [replace(m, slug=name, tags=tags.get(name, m.tags)) for m, name, key in found if m is not None and m.key == key]

    def write_gates(self, gates: list[dict]) -> None:
        """Record gates: [{"name", "value", "threshold", "sense": ">=" or "<=", "passed", "detail"}]."""
        write_json(self.root / "gates.json", gates)

    def gates(self) -> list[dict]:
        """The recorded gates, [] if there are none (or their file is damaged: they are then measured again)."""
        try:
            return json.loads((self.root / "gates.json").read_text())
        except (OSError, ValueError):
            return []


def gate(name: str, value: float, threshold: float, sense: str, detail: str = "") -> dict:
    """One gate: passed if value >= threshold (sense ">=") or value <= threshold (sense "<=")."""
    passed = value >= threshold - 1e-9 if sense == ">=" else value <= threshold + 1e-9  # 1 − 0.95 is a little more than 0.05
    return {"name": name, "value": float(value), "threshold": float(threshold), "sense": sense, "passed": bool(passed), "detail": detail}
