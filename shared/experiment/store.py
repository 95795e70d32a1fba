"""The store of measurements: one JSON and one .npz per measurement, kept under the key of everything that produced it.

    <root>/measurements/<slug>-<key>.json + .npz    root = results/<scale>/<paper>; of the key, the first 12 digits
    <root>/plan.json                                what is shown: {"paper", "scale", "config", "headline", "keys": {slug: key}, "tags", "asked",
                                                    "steps": {slug: class}}
                                                    and, after looks at open claims, "looks" and "more"
    <root>/looks.json                               claim -> what each of its looks after the first doubles, in turn: ["pictures", "seeds", …]
    <root>/gates.json                               what had to hold before any defence was measured

A measurement whose key is the wanted one is not measured again; so a run continues where it was, and a changed number
re-measures only what depends on it. Measurements of several settings stand side by side. Each file is known by its
sha256: one that was damaged or changed by hand is reported and counts as missing. Nothing here imports torch: reports
read the store in a second.
"""

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from shared.errors import UserError
from shared.files import atomic_path, digest, look_at, sha256_file, write_changed, write_json


@dataclass(frozen=True)
class Measurement:
    """One number with what it was made from.

    value, low, high: the mean over examples and its 95 % interval (None: an end without bound); n: examples; seeds: of
    training; unit: e.g. "share", "s"; seconds: how long it took; sanity: outcome of the attack's sanity checks (robust
    cells only); tags: what it is a measurement of; values: per-example numbers; extra: further named arrays that a
    figure draws (pictures, curves, texts as arrays of strings), kept beside the values.
    """

    slug: str
    key: str
    value: float
    low: float | None
    high: float | None
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
        return (
            self.given_extra or {}
            if self.given is not None
            else {k: v for k, v in self._read().items() if k != "values"}
        )

    def _read(self) -> dict[str, np.ndarray]:
        try:
            with np.load(self.path, allow_pickle=False) as archive:  # type: ignore[arg-type]
                return {name: archive[name] for name in archive.files}
        except Exception as error:
            raise UserError(
                f"the values of a measurement, {self.path}, cannot be read: delete its .json and measure again."
            ) from error


DOUBLED = ("pictures", "seeds")  # of what a look takes twice as much
Look = tuple[int, int, Measurement]  # how often each was doubled, and what was measured then


def slug(*parts: object) -> str:
    """A file name made of parts: lower case, other characters become '-', parts joined by '__'."""
    return "__".join(re.sub(r"[^a-z0-9.+_]+", "-", str(p).lower()).strip("-") for p in parts)


class Store:
    """The measurements of one paper at one scale."""

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self._noted: set[Path] = set()

    def _path(self, name: str, key: str) -> Path:
        return self.root / "measurements" / f"{name}-{key[:12]}.json"

    def load(self, name: str, key: str) -> Measurement | None:
        """The measurement of that name and key; None if there is none, or it is not as it was written."""
        path = self._path(name, key)
        try:
            facts = json.loads(Path(look_at(path)).read_text())
            said, values = facts.pop("sha256"), facts.pop("sha256_values")
            found = Measurement(**{**facts, "seeds": tuple(facts["seeds"])}, path=path.with_suffix(".npz"))
            if (
                said == digest([facts, values])
                and sha256_file(found.path) == values  # type: ignore[arg-type]
                and (found.slug, found.key) == (name, key)
            ):
                return found
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            if not path.is_file():
                return None
        if path not in self._noted:
            self._noted.add(path)
            print(
                f"note: the measurement {path} is not as it was written (damaged or changed by hand); it counts as "
                "missing.",
                file=sys.stderr,
            )
        return None

    def read(self, name: str, key: str) -> Measurement:
        """A measurement that was there a moment ago. Raises UserError if it no longer is: somebody else is at work in
        the folder."""
        found = self.load(name, key)
        if found is None:
            raise UserError(
                f"the measurement {name} was in {self.root} a moment ago and is gone: something else changes files "
                "there; run the same command again when it has ended."
            )
        return found

    def fresh(self, name: str, key: str) -> bool:
        """Whether the measurement exists under `key`, whole."""
        return self.load(name, key) is not None

    def save(self, measurement: Measurement) -> None:
        """Write values first, then the JSON that vouches for them: of an interrupt between the two nothing counts."""
        path = self._path(measurement.slug, measurement.key)
        path.unlink(missing_ok=True)
        with atomic_path(path.with_suffix(".npz")) as temporary:
            np.savez(temporary, values=measurement.values, **measurement.extra)  # type: ignore[arg-type]
        hidden = ("path", "given", "given_extra")
        facts = {
            k: v
            for k, v in asdict(replace(measurement, path=None, given=None, given_extra=None)).items()
            if k not in hidden
        }
        facts, values = json.loads(json.dumps(facts)), sha256_file(path.with_suffix(".npz"))
        write_json(path, {**facts, "sha256_values": values, "sha256": digest([facts, values])})

    def write_plan(self, plan: dict) -> None:
        """Record what is shown; readers then ignore what other configurations left behind."""
        write_changed(self.root / "plan.json", plan)

    def plan(self) -> dict:
        """The last plan. Raises UserError if nothing was run here, or what is there is not a plan of this paper at this
        scale."""
        paper, scale, path = self.root.name, self.root.parent.name, self.root / "plan.json"
        try:
            plan = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise UserError(
                f"there are no measurements in {self.root}: run `make reproduce-{paper} SCALE={scale}` first."
            ) from error
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} cannot be read (damaged or cut short): run `make reproduce-{paper} SCALE={scale}` again; what "
                "is measured is kept."
            ) from error
        if not isinstance(plan, dict) or not isinstance(plan.get("keys"), dict) or plan.get("paper", paper) != paper:
            raise UserError(
                f"{path} is not a plan of {paper}: run `make reproduce-{paper} SCALE={scale}` again; what is measured "
                "is kept."
            )
        return plan

    def planned(self) -> list[Measurement]:
        """Those measurements of the last plan that exist under the planned key, with the tags that the plan gives them:
        a measurement that another configuration left behind may be the same number in another place."""
        plan = self.plan()
        tags = plan.get("tags", {})
        found = {name: self.load(name, key) for name, key in plan["keys"].items() if key}
        return [replace(m, slug=name, tags=tags.get(name, m.tags)) for name, m in found.items() if m is not None]

    def asked(self) -> dict[str, list[str]] | None:
        """What looks at open claims are asked for; None where no budget was ever given."""
        try:
            return json.loads(Path(look_at(self.root / "looks.json")).read_text())
        except (OSError, ValueError):
            return None

    def ask(self, paths: dict[str, list[str]]) -> None:
        """Ask for looks, of an empty mapping for none yet: from then on verdicts are judged as at one of several."""
        write_changed(self.root / "looks.json", paths)

    def looked(self) -> list[Look]:
        """What was measured beyond the plan, at open claims, the least first."""
        numbers = self.plan().get("more", [])
        found = ((n, s, name, self.load(name, key), tags) for n, s, name, key, tags in numbers)
        return sorted(
            ((n, s, replace(m, slug=name, tags=tags)) for n, s, name, m, tags in found if m is not None),
            key=lambda look: look[:2],
        )

    def write_gates(self, gates: list[dict]) -> None:
        """Record gates: [{"name", "value", "threshold", "sense": ">=" or "<=", "passed", "detail", "of"}]."""
        write_changed(self.root / "gates.json", gates)

    def gates(self) -> list[dict]:
        """The recorded gates, [] if there are none (or their file is damaged: they are then measured again)."""
        try:
            return json.loads((self.root / "gates.json").read_text())
        except (OSError, ValueError):
            return []


def gate(
    name: str, value: float, threshold: float, sense: str, detail: str = "", of: Mapping[str, object] | None = None
) -> dict:
    """One gate: passed if value >= threshold (sense ">=") or value <= threshold (sense "<="). of: see `paper.Gate`."""
    passed = (
        value >= threshold - 1e-9 if sense == ">=" else value <= threshold + 1e-9
    )  # 1 − 0.95 is a little more than 0.05
    return {
        "name": name,
        "value": float(value),
        "threshold": float(threshold),
        "sense": sense,
        "passed": bool(passed),
        "detail": detail,
        "of": dict(of or {}),
    }
