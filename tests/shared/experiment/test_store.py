"""The store: what is written is read back, what is stale or damaged is measured again, and nothing damaged stops a run."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from shared.errors import UserError
from shared.experiment.store import Measurement, Store, gate, slug

K1, K2 = "1" * 64, "2" * 64
NAME = f"accuracy__tecoa-{K1[:12]}"
VALUES = np.array([1.0, 0.0, 1.0, 1.0], np.float32)
TAGS = {"kind": "accuracy", "method": "tecoa", "set": "shape", "seed": 0}


def measurement(name: str = "accuracy__tecoa", key: str = K1, values=VALUES, **changes) -> Measurement:
    facts = {
        "value": float(np.mean(values)),
        "low": 0.3,
        "high": 0.9,
        "n": len(values),
        "seeds": (0, 1),
        "unit": "share",
        "seconds": 1.25,
        "tags": TAGS,
        "provenance": {"commit": "c" * 40},
        "sanity": {"passed": True},
    }
    return Measurement(name, key, **{**facts, **changes}, given=np.asarray(values))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "cpu" / "fake")


def test_round_trip(store):
    store.save(measurement())
    found = store.load("accuracy__tecoa", K1)
    assert found == measurement()  # every field but the values, whose place is not part of what a measurement is
    assert found.values.dtype == VALUES.dtype
    np.testing.assert_array_equal(found.values, VALUES)
    assert found.seeds == (0, 1)


def test_only_whole_files_are_left(store):
    store.save(measurement())
    assert sorted(p.name for p in (store.root / "measurements").iterdir()) == [f"{NAME}.json", f"{NAME}.npz"]


def test_nothing_there_is_not_fresh(store):
    assert store.load("accuracy__tecoa", K1) is None
    assert not store.fresh("accuracy__tecoa", K1)


def test_a_stale_key_is_measured_again(store):
    store.save(measurement())
    assert store.fresh("accuracy__tecoa", K1)
    assert not store.fresh("accuracy__tecoa", K2)


def test_saving_again_replaces_and_other_settings_stay_beside_it(store):
    store.save(measurement())
    store.save(measurement(key=K2))
    store.save(measurement(key=K2, values=np.zeros(6)))
    np.testing.assert_array_equal(store.load("accuracy__tecoa", K1).values, VALUES)
    np.testing.assert_array_equal(store.load("accuracy__tecoa", K2).values, np.zeros(6))


def damage(path, how: str) -> None:
    whole = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "truncated": whole[: len(whole) // 2],
            "noise": bytes(range(256)) * 3,
            "other": b"[1, 2]",
            "null": b"null",
        }[how]
    )


@pytest.mark.parametrize("how", ["empty", "truncated", "noise", "other", "null"])
@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_a_damaged_file_is_measured_again(store, suffix, how):
    store.save(measurement())
    damage(store.root / "measurements" / f"{NAME}{suffix}", how)
    assert not store.fresh("accuracy__tecoa", K1)
    store.save(measurement())
    assert store.fresh("accuracy__tecoa", K1)


def test_a_flipped_bit_in_the_values_is_noticed(store):
    store.save(measurement(values=np.arange(64.0)))
    path = store.root / "measurements" / f"{NAME}.npz"
    content = bytearray(path.read_bytes())
    content[content.index(np.float64(40.0).tobytes())] ^= 1
    path.write_bytes(content)
    assert not store.fresh("accuracy__tecoa", K1)


def test_a_json_with_other_fields_is_measured_again(store):
    """As an older or newer version of the project would have written it."""
    store.save(measurement())
    path = store.root / "measurements" / f"{NAME}.json"
    facts = json.loads(path.read_text())
    for changed in (
        {**facts, "colour": "red"},
        {k: v for k, v in facts.items() if k != "value"},
        {**facts, "seeds": None},
    ):
        path.write_text(json.dumps(changed))
        assert not store.fresh("accuracy__tecoa", K1)


def test_an_interrupted_save_is_not_fresh(store, monkeypatch):
    """Killed after the new values were written and before the new JSON was: the old one must not vouch for the new values."""
    store.save(measurement())
    monkeypatch.setattr("shared.experiment.store.write_json", lambda *_: sys.exit("killed"))
    with pytest.raises(SystemExit):
        store.save(measurement(values=np.zeros(4)))
    assert not store.fresh("accuracy__tecoa", K1)


def test_what_vanishes_while_it_is_wanted_is_one_sentence(store):
    """What was left of a killed run saved the same measurement and took the old one away first: all one saw was `None.value`."""
    store.save(measurement())
    assert store.read("accuracy__tecoa", K1) == store.load("accuracy__tecoa", K1) == measurement()
    for path in (store.root / "measurements").glob("*.json"):
        path.unlink()
    with pytest.raises(UserError, match=r"was in .* a moment ago and is gone"):
        store.read("accuracy__tecoa", K1)


def test_values_without_their_file_are_one_sentence(store):
    store.save(measurement())
    found = store.load("accuracy__tecoa", K1)
    (store.root / "measurements" / f"{NAME}.npz").unlink()
    with pytest.raises(UserError, match=r"accuracy__tecoa.*\.npz.*measure again"):
        _ = found.values


def test_pickles_are_not_read(store):
    store.save(measurement())
    np.savez(store.root / "measurements" / f"{NAME}.npz", values=np.array([{"a": 1}], dtype=object))
    assert not store.fresh("accuracy__tecoa", K1)


def test_not_a_number_is_refused(store):
    with pytest.raises(ValueError, match="JSON"):
        store.save(measurement(value=float("nan")))
    assert not store.fresh("accuracy__tecoa", K1)


def plan(slugs: dict, **more) -> dict:
    return {
        "paper": "fake",
        "scale": "cpu",
        "config": {"attack": {"eps": 0.1}},
        "headline": False,
        "keys": slugs,
        **more,
    }


def test_planned_are_those_of_the_last_plan_under_its_keys(store):
    for name, key in (("a", K1), ("b", K1), ("c", K1)):
        store.save(measurement(name, key))
    store.write_plan(plan({"a": K1, "b": K2, "d": K1}))
    assert [m.slug for m in store.planned()] == ["a"]
    assert store.plan()["config"] == {"attack": {"eps": 0.1}}


def test_the_plan_says_what_a_measurement_is(store):
    """The same numbers may have been measured for another configuration, which gave them another place in its tables."""
    store.save(measurement("a"))
    store.save(measurement("b"))
    store.write_plan(plan({"a": K1, "b": K1}, tags={"a": {**TAGS, "seed": 5}}))
    first, second = store.planned()
    assert first.tags["seed"] == 5
    assert second.tags == TAGS
    np.testing.assert_array_equal(first.values, VALUES)


@pytest.mark.parametrize("content", [None, "", "{"])
def test_without_a_plan_the_sentence_names_the_command(store, content):
    if content is not None:
        store.root.mkdir(parents=True)
        (store.root / "plan.json").write_text(content)
    with pytest.raises(UserError, match="make reproduce-fake SCALE=cpu"):
        store.plan()


def test_gates(store):
    assert store.gates() == []
    gates = [gate("clean", 0.8, 0.8, ">="), gate("robust", 0.06, 0.05, "<=", "PGD-20")]
    assert [g["passed"] for g in gates] == [True, False]
    store.write_gates(gates)
    assert store.gates() == gates
    (store.root / "gates.json").write_text('[{"name": ')
    assert store.gates() == []


@pytest.mark.parametrize(("value", "threshold", "sense", "passed"), [
    (0.5, 0.4, ">=", True), (0.4, 0.5, ">=", False), (0.4, 0.4, "<=", True), (0.5, 0.4, "<=", False)])  # fmt: skip
def test_a_gate_passes_on_its_own_side(value, threshold, sense, passed):
    assert gate("name", value, threshold, sense)["passed"] is passed


@pytest.mark.parametrize(("parts", "expected"), [
    (("Accuracy", "TeCoA", "seed0"), "accuracy__tecoa__seed0"), (("FGVC-Aircraft", "x 4/255"), "fgvc-aircraft__x-4-255"),
    (("pgd_x0.5", 64, 1.5), "pgd_x0.5__64__1.5"), (("a/../b", "ü%"), "a-..-b__"), (("-x-",), "x")])  # fmt: skip
def test_slugs_are_file_names(parts, expected):
    assert slug(*parts) == expected
    assert "/" not in slug(*parts)


def test_stores_do_not_mix(tmp_path):
    a, b = Store(tmp_path / "cpu" / "x"), Store(str(tmp_path / "smoke" / "x"))
    a.save(measurement())
    assert b.load("accuracy__tecoa", K1) is None
    b.save(replace(measurement(), key=K2))
    assert a.load("accuracy__tecoa", K1).key == K1


def test_further_arrays_are_kept_beside_the_values(store):
    extra = {"pictures": np.arange(6, dtype=np.uint8).reshape(2, 3), "answers": np.array(["a red star", "nothing"])}
    store.save(replace(measurement(), given_extra=extra))
    found = store.load("accuracy__tecoa", K1)
    assert found.extra.keys() == extra.keys() and found.extra["answers"].tolist() == ["a red star", "nothing"]
    np.testing.assert_array_equal(found.extra["pictures"], extra["pictures"])
    np.testing.assert_array_equal(found.values, VALUES)
    assert store.fresh("accuracy__tecoa", K1)
    store.save(measurement())
    assert store.load("accuracy__tecoa", K1).extra == {}
