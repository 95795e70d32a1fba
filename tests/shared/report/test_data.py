import hashlib
import json
import subprocess
import sys

import pytest

from shared.claims.claims import load
from shared.claims.verdicts import judge
from shared.errors import UserError
from shared.experiment.paper import Grid
from shared.experiment.store import Store, gate
from shared.metrics.intervals import mean, paired_difference
from shared.report import manifest
from shared.report.data import Results
from shared.report.shown import Filled


def test_nothing_measured_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="make reproduce-fake"):
        Results.load(tmp_path, "cpu", "fake")


def test_select_and_aggregate(fake_results):
    r = fake_results
    assert len(r.select(method="ours")) == 12 and len(r.select({"method": "ours"}, seed=1, attack="clean")) == 3
    assert len(r.select(seed=lambda s: s > 0)) == 12 and len(r.select(set=["shape", "colour"], method="base")) == 4
    assert r.tags("set", method="base") == ["colour", "scenes", "shape"]
    ours, theirs = (r.values(method=m, attack="pgd10", role="zero_shot") for m in ("ours", "theirs"))
    assert set(ours.sets) == {"shape", "colour"} and ours.sets["shape"].shape == (2, 120) and ours.seeds == (0, 1)
    assert r.estimate(method="ours", attack="pgd10", role="zero_shot") == mean(ours.sets)
    difference = r.difference({"method": "ours", "attack": "pgd10", "role": "zero_shot"}, {"method": "theirs"})
    assert difference == paired_difference(ours.sets, theirs.sets)
    single = r.values(method="base", attack="clean", set="shape")
    assert single.mean() == mean([single.sets["shape"]]) and single.mean().n == 120
    assert r.estimate(method="nobody") is None and r.values(method="nobody") is None
    assert r.difference({"method": "ours", "attack": "clean"}, {"method": "nobody"}) is None


def test_what_was_read_is_tracked(fake_results):
    with fake_results.tracking() as outer:
        fake_results.estimate(method="base", attack="clean", set="shape")
        with fake_results.tracking() as inner:
            fake_results.estimate(method="base", attack="clean", set="colour")
    assert [len(outer), len(inner)] == [2, 1]


def test_planned_but_missing_is_known(tmp_path, fake_results):
    gone, key = fake_results.measurements[3].slug, fake_results.measurements[3].key
    (tmp_path / "results/cpu/fake/measurements" / f"{gone}-{key[:12]}.json").unlink()
    assert Results.load(tmp_path / "results", "cpu", "fake").missing == (gone,)


def test_the_record_is_complete_and_stable(tmp_path, fake_results):
    for name in ("x.csv", "y.csv"):
        (tmp_path / name).write_text("a\n")
    used = [m.slug for m in fake_results.select(method="ours", attack="clean")]
    made_of = manifest.origin(fake_results, used, "papers.fake.tables.x")
    file = manifest.write([tmp_path / "x.csv"], made_of)
    names = sorted(m.slug for m in fake_results.measurements)
    x = {
        "producer": "papers.fake.tables.x",
        "seeds": [0, 1],
        "commit": "c" * 40,
        "files": {"x.csv": hashlib.sha256(b"a\n").hexdigest()},
    }
    whole = {
        "command": "make figures-fake",
        "paper": "fake",
        "scale": "cpu",
        "config": {"attack": {"eps": 2 / 255}},
        "commit": "c" * 40,
        "machine": {"cores": 2},
        "provenance": {"command": "evaluate"},
        "measurements": {m.slug: m.key[:16] for m in sorted(fake_results.measurements, key=lambda m: m.slug)},
        "outputs": {"x.csv": x},
    }
    said = json.loads(file.read_text())
    ranges = said["outputs"]["x.csv"].pop("measurements")
    assert file.name == "record.json" and said == whole
    assert manifest.behind(manifest.read(tmp_path), "x.csv") == {
        m.slug: m.key[:16] for m in fake_results.select(method="ours", attack="clean")
    }
    assert len(ranges.split()) < len(used) and list(whole["measurements"]) == names
    first = file.read_bytes()
    manifest.write([tmp_path / "x.csv"], made_of)
    assert file.read_bytes() == first
    manifest.write([tmp_path / "y.csv"], made_of)
    assert list(manifest.read(tmp_path)["outputs"]) == ["x.csv", "y.csv"]
    (tmp_path / "x.csv").unlink()
    manifest.write([tmp_path / "y.csv"], made_of)
    assert list(manifest.read(tmp_path)["outputs"]) == ["y.csv"], "what has no file leaves the record"
    fake_results.config["attack"]["eps"] = 0.5
    (tmp_path / "z.csv").write_text("b\n")
    manifest.write([tmp_path / "z.csv"], manifest.origin(fake_results, used, "papers.fake.tables.z"))
    assert list(manifest.read(tmp_path)["outputs"]) == ["z.csv"], "another run begins another record"


def test_the_report_imports_no_torch_and_no_matplotlib_before_it_draws():
    code = "import sys, shared.report.page; sys.exit(bool({'torch', 'matplotlib', 'scipy.stats', 'papermill', 'nbconvert'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_fails_a_gate_of_its_own_is_in_no_estimate_and_stops_nothing_else(tmp_path, fake_results, fake_claims):
    store = Store(tmp_path / "results" / "cpu" / "fake")
    failed = gate("theirs took", 0.5, 0.8, ">=", of={"method": "theirs"})
    store.write_gates([gate("base model", 0.9, 0.8, ">="), failed])
    r, file = Results.load(tmp_path / "results", "cpu", "fake"), load(fake_claims)
    assert r.failed_gates() == [] and {m.slug for m in r.measurements if m.slug in r.apart} == {
        m.slug for m in fake_results.select(method="theirs")
    }
    assert r.values(method="theirs") is None and r.values(method=["ours", "theirs"], attack="clean") is not None
    assert r.left_out([{"method": ["ours", "theirs"]}]) == ["theirs took"] and r.left_out([{"method": "ours"}]) == []
    verdicts = {v.claim.id: v for v in judge(file, r)}
    touched = {c.id for c in file.claims if r.left_out(c.selectors) and "cpu" in c.testable}
    assert touched and all(verdicts[c].status == "gate failed: theirs took" for c in touched)
    assert any(v.p is not None for c, v in verdicts.items() if c not in touched)
    rows = {m: {"method": m} for m in ("ours", "theirs")}
    asked = {m.slug: ["method", "set", "attack", "seed"] for m in r.measurements}
    shown = Results("fake", "cpu", r.measurements, {}, r.gates, asked=asked)
    columns, common = {"clean": {"attack": "clean", "set": "shape"}}, {}
    parts = {apart: Filled(shown, Grid(rows, columns, common, (0, 1), apart=apart)).series() for apart in (False, True)}
    assert list(parts[False]) == ["ours"] and list(parts[True]) == ["theirs"]
