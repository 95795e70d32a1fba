"""What a run measured, ready to be selected from: `Results.load("results", "cpu", "pmg_aft")`."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from shared.claims.looks import LOOKS
from shared.claims.selection import Selected, Selector, gather, matches
from shared.experiment.store import DOUBLED, Look, Store
from shared.metrics.intervals import Estimate


class Results:
    """The planned measurements of one paper at one scale, its configuration and its gates.

    Selectors are given as a mapping, as keywords, or both: `results.estimate(method="tecoa", role="zero_shot")`.
    """

    def __init__(self, paper: str, scale: str, measurements: Sequence, config: dict | None = None, gates: Sequence[dict] = (),
                 planned: dict[str, Selector] | None = None, slugs: Sequence[str] = (), asked: dict[str, list[str]] | None = None,
                 paths: dict[str, list[str]] | None = None, more: Sequence[Look] = (), steps: dict[str, str] | None = None):  # fmt: skip
        self.paper, self.scale, self.measurements = paper, scale, list(measurements)
        self.config, self.gates, self.planned = dict(config or {}), list(gates), dict(planned or {})
        have = {m.slug for m in self.measurements}
        self._tags = {**self.planned, **{m.slug: m.tags for m in self.measurements}}
        failed = [gate for gate in self.gates if not gate["passed"] and gate.get("of")]
        # slug -> the gates of its own that it has failed: it is in no claim, and shown apart
        self.apart = {
            slug: [gate["name"] for gate in failed if matches(gate["of"], tags)]
            for slug, tags in self._tags.items()
            if any(matches(gate["of"], tags) for gate in failed)
        }
        self.missing = tuple(slug for slug in slugs if slug not in have)  # planned and not measured (yet)
        self.looks = 1 if paths is None else LOOKS
        self.paths, self._more = paths or {}, more
        self.steps = steps or {}  # slug -> the class that measures it
        self._trackers: list[dict[str, None]] = []
        self._asked = dict(asked or {})  # slug -> the tags that tables ask for it by
        self._of_kind: dict[
            object, tuple[list, dict[str, Selector]]
        ] = {}  # a page asks some 10,000 times, mostly for one of a dozen kinds
        claimed, expected = self._in_claims()
        for m in claimed:
            self._of_kind.setdefault(m.tags.get("kind"), ([], {}))[0].append(m)
        for slug, kind_tags in expected.items():
            self._of_kind.setdefault(kind_tags.get("kind"), ([], {}))[1][slug] = kind_tags

    @classmethod
    def load(cls, results: str | Path, scale: str, paper: str) -> "Results":
        """Read `<results>/<scale>/<paper>`. Raises UserError when nothing has been measured there."""
        store = Store(Path(results) / scale / paper)
        plan = store.plan()
        return cls(
            paper,
            scale,
            store.planned(),
            plan.get("config"),
            store.gates(),
            plan.get("tags"),
            tuple(plan["keys"]),
            plan.get("asked"),
            plan.get("looks"),
            store.looked(),
            plan.get("steps"),
        )

    def views(self, claim: str) -> list["Results"]:
        """What a claim is judged by at each of its looks: the planned measurements, then with each doubling of its path
        those that there are of twice the pictures, or of further seeds."""
        path = self.paths.get(claim, [])
        return [self, *(self._after(*map(path[:k].count, DOUBLED)) for k in range(1, len(path) + 1))]

    def _after(self, pictures: int, seeds: int) -> "Results":
        newest = {m.slug: m for m in self.measurements}
        newest |= {m.slug: m for n, s, m in self._more if n <= pictures and s <= seeds}
        view = Results(self.paper, self.scale, list(newest.values()), self.config, self.gates, self.planned)
        view.looks, view._trackers = self.looks, self._trackers
        return view

    @cached_property
    def by_tags(self) -> dict[frozenset, object]:
        """Measurements by the very tags that a grid asks for them by; see `shared.report.shown`."""
        return {
            frozenset((k, m.tags[k]) for k in self._asked[m.slug]): m
            for m in self.measurements
            if m.slug in self._asked
        }

    def select(self, selector: Selector | None = None, /, **tags) -> list:
        """The measurements whose tags match."""
        wanted = {**(selector or {}), **tags}
        found = [m for m in self._among(wanted)[0] if matches(wanted, m.tags)]
        self.note(m.slug for m in found)
        return found

    def values(self, selector: Selector | None = None, /, **tags) -> Selected | None:
        """The matching measurements as one (seeds, examples) matrix per set; None when nothing matches."""
        wanted = {**(selector or {}), **tags}
        measurements, planned = self._among(wanted)
        selected = gather(measurements, wanted, planned)
        if selected is not None:
            self.note(selected.slugs)
        return selected

    def estimate(self, selector: Selector | None = None, /, **tags) -> Estimate | None:
        """Mean over the matching sets of the mean over examples and seeds, with its interval; None when nothing
        matches."""
        selected = self.values(selector, **tags)
        return None if selected is None else selected.mean()

    def difference(self, a: Selector, b: Selector) -> Estimate | None:
        """Estimate of a − b; the tags that `b` does not name are those of `a`. Paired where the sets are the same."""
        left, right = self.values(a), self.values({**a, **b})
        return None if left is None or right is None else left.minus(right)

    def tags(self, name: str, selector: Selector | None = None, /, **tags) -> list:
        """The distinct values of a tag among the matching measurements, sorted."""
        return sorted({m.tags[name] for m in self.select(selector, **tags) if m.tags.get(name) is not None})

    def failed_gates(self) -> list[str]:
        """Names of the gates that the experiment as a whole did not pass."""
        return [gate["name"] for gate in self.gates if not gate["passed"] and not gate.get("of")]

    def left_out(self, selectors: Iterable[Selector]) -> list[str]:
        """Names of the gates for whose failure something that fits one of these is left out."""
        wanted = list(selectors)
        failed = [names for slug, names in self.apart.items() if any(matches(s, self._tags[slug]) for s in wanted)]
        return list(dict.fromkeys(name for names in failed for name in names))

    @contextlib.contextmanager
    def tracking(self) -> Iterator[dict[str, None]]:
        """Collect, in order, the slugs of the measurements that are read inside the block: they go into the sidecar."""
        used: dict[str, None] = {}
        self._trackers.append(used)
        try:
            yield used
        finally:
            self._trackers.remove(used)

    def _among(self, wanted: Selector) -> tuple[list, dict[str, Selector]]:
        """What may match: measurements, and the tags of planned ones."""
        kind = wanted.get("kind")
        return self._of_kind.get(kind, ([], {})) if isinstance(kind, str) else self._in_claims()

    def _in_claims(self) -> tuple[list, dict[str, Selector]]:
        """What has passed its gates: measurements, and the tags of planned ones."""
        planned = {slug: tags for slug, tags in self.planned.items() if slug not in self.apart}
        return [m for m in self.measurements if m.slug not in self.apart], planned

    def note(self, slugs: Iterable[str]) -> None:
        """Say that these measurements are read, for whoever is `tracking`."""
        for slug in slugs:
            for tracker in self._trackers:
                tracker[slug] = None
