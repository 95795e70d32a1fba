"""Which open claims are measured further: the cheapest first, within the time; and how that is asked for."""

from types import SimpleNamespace

import numpy as np
import pytest

from shared.claims.claims import Claim, ClaimsFile
from shared.claims.verdicts import judge
from shared.experiment import looks as asking
from shared.report import looks
from shared.report.data import Results

HALF = (np.arange(200) < 100).astype(float)


def cell(method: str, seconds: float, share: float = 0.5, seeds: int = 1):
    """Measurements that differ by pictures only, or by seeds only."""
    return [
        SimpleNamespace(
            slug=f"{method}-{seed}", tags={"method": method, "set": "s", "seed": seed}, unit="share", seeds=(seed,), seconds=seconds,
            values=(np.arange(200) < 200 * (share + (0.2 * (seed % 2) if seeds > 1 else 0))).astype(float),
        )
        for seed in range(seeds)
    ]  # fmt: skip


def claim(method: str) -> Claim:
    return Claim(id=method, text="t", where="ours", source="s", mark="D", value=None, unit="points", predicate="greater",
                 quantity={"method": method}, minus={"method": "base"}, testable=("cpu", "photos", "paper"))  # fmt: skip


CLAIMS = [claim(m) for m in ("dear", "cheap", "sure", "seeds")]
CELLS = [*cell("base", 1), *cell("dear", 30), *cell("cheap", 2), *cell("sure", 1, 0.9), *cell("seeds", 5, 0.4, seeds=4)]


def asked(seconds: float, wanted: dict, paths: dict) -> dict:
    results = Results("p", "cpu", CELLS, paths=paths)
    return looks.chosen(judge(ClaimsFile(None, "p", "P", tuple(CLAIMS)), results), results, wanted, seconds)


def test_open_claims_are_chosen_the_cheapest_first():
    assert asked(1, {}, {}) == {}
    assert asked(6, {}, {}) == {"cheap": ["pictures"]}  # twice 2 + 1
    assert asked(30, {}, {}) == {"cheap": ["pictures"], "seeds": ["seeds"]}  # and 4 × 5; the base is counted once
    everything = asked(1000, {}, {})
    assert everything == {"cheap": ["pictures"], "seeds": ["seeds"], "dear": ["pictures"]}  # `sure` is decided


def test_a_path_goes_on_from_where_it_is_and_ends():
    there = {"cheap": ["pictures"], "seeds": ["seeds"] * 3}
    paths = asked(1000, there, there)
    assert paths["cheap"] == ["pictures", "pictures"] and paths["seeds"] == there["seeds"]  # all looks are used
    ended = {"cheap": ["pictures", "pictures"]}  # asked for, and nothing more was there to measure
    assert asked(6, ended, {"cheap": ["pictures"]}) == ended


def test_with_no_time_it_is_only_said_that_there_are_looks(tmp_path):
    looks.main(["p", "--results", str(tmp_path)])
    assert asking.asked(tmp_path / "cpu" / "p") == {}


def test_it_judges_what_is_measured(tmp_path, write, monkeypatch, capsys):
    (tmp_path / "papers" / "fake").mkdir(parents=True)
    bar = write.claims.replace("threshold: 1,", "threshold: 70.5,")  # within the interval
    (tmp_path / "papers" / "fake" / "claims.yaml").write_text(bar)
    monkeypatch.setattr(looks, "ROOT", tmp_path)
    write.measurements(tmp_path / "r" / "cpu" / "fake")
    looks.main(["fake", "--results", str(tmp_path / "r"), "--seconds", "600"])
    assert asking.asked(tmp_path / "r" / "cpu" / "fake").keys() == {"unread"}
    assert "further looks at 1 open claims" in capsys.readouterr().out


def test_what_the_store_noted_of_looks_is_read(tmp_path, write):
    from shared.experiment.store import Measurement, Store

    root = tmp_path / "r" / "cpu" / "fake"
    write.measurements(root)
    store = Store(root)
    tags = {"kind": "accuracy", "method": "ours", "set": "shape", "attack": "clean", "seed": 0, "role": "zero_shot"}
    name = store.planned()[0].slug
    store.save(Measurement(name, "f" * 64, 0.5, 0, 1, 200, (0,), "share", 1.0, tags, {}, given=HALF))
    plan = store.plan()
    store.write_plan({**plan, "looks": {"gain": ["pictures"]}, "more": [[1, 0, name, "f" * 64, tags]]})
    results = Results.load(tmp_path / "r", "cpu", "fake")
    planned, doubled = results.views("gain")
    assert results.looks == doubled.looks == 4 and results.views("other") == [results] and planned is results
    assert [m.n for m in doubled.measurements if m.slug == name] == [200]
    assert len(doubled.measurements) == len(results.measurements)
    assert Results("p", "cpu", []).looks == 1 and pytest.approx(0.5) == doubled.measurements[0].value
