"""The plan: every measurement its own file and an unambiguous place, headline and complete run fit together, nothing is trained twice."""

from dataclasses import replace

import pytest

from papers.roclip.cells import PLAIN, REGIMES, Run, cells, gate_cells, runs
from papers.roclip.config import BACKDOORS, PRESETS, Recipe, Targets, check
from papers.roclip.evaluate import groups
from papers.roclip.training import Training
from shared.errors import UserError

CPU = PRESETS["cpu"]


@pytest.mark.parametrize("scale", PRESETS)
@pytest.mark.parametrize("headline", [False, True])
def test_every_measurement_has_its_own_file_and_place(scale, headline):
    config = replace(PRESETS[scale], headline=headline)
    check(config)
    found = cells(config)
    assert len({c.slug() for c in found}) == len(found) == len(set(found))
    assert set(gate_cells(config)) <= set(found)
    tags = [c.tags(config) for c in found]
    place = ("kind", "method", "set", "scored", "sweep", "value", "every", "seed")  # what a selector has to name
    assert len({tuple(map(t.get, place)) for t in tags}) == len(tags)
    trained = runs(found)
    assert len({r.slug for r in trained}) == len(trained)
    assert sum(map(len, groups(found))) == len(found)


def test_the_complete_run_continues_from_the_headline():
    part, whole = cells(replace(CPU, headline=True)), cells(CPU)
    assert set(part) < set(whole) and set(runs(part)) < set(runs(whole))
    assert {(r.regime, r.method) for r in runs(part)} == {(g, m) for g in REGIMES for m in (*PLAIN, "roclip")}


def test_gates_are_read_off_plain_clip_alone():
    read = gate_cells(CPU)
    assert {c.method for c in read} == set(PLAIN) and {c.regime for c in read} == set(REGIMES)
    assert {c.attack for c in read if c.measure == "bsr"} == set(BACKDOORS) and {c.measure for c in read} == {"psr", "bsr", "accuracy"}
    assert all(r.method in PLAIN for r in runs(read))


def test_both_kinds_of_epochs_are_scored_and_seen():
    run = Run("pretrain", "roclip", 0)
    assert run.epochs(CPU) == {"plain_epoch": 5, "roclip_epoch": 6} and Run("pretrain", "clip", 0).epochs(CPU) == {"last": 6}
    assert Run("pretrain", "roclip", 0, changes=(("every", 1),)).epochs(CPU) == {"roclip_epoch": 6}
    for method in ("roclip", "released"):
        for kind in ("score", "downstream"):
            assert {c.scored for c in cells(CPU) if c.kind == kind and c.method == method} == {"plain_epoch", "roclip_epoch"}
    by_epoch = [c for c in cells(CPU) if c.kind == "epoch" and c.run == run and c.measure == "psr"]
    assert [(c.epoch, c.scored) for c in by_epoch] == [(e, "plain_epoch" if e % 2 else "roclip_epoch") for e in range(1, 7)]


def test_a_change_of_the_method_is_its_fields():
    assert Run("pretrain", "roclip", 0, changes=(("pool", 0.1),)).matching(CPU) == replace(CPU.methods.roclip, share=0.1, size=None)
    assert Run("pretrain", "roclip", 0, changes=(("augment", "none"),)).matching(CPU) == CPU.methods.roclip
    assert Run("pretrain", "roclip", 0, changes=(("query", "cross"),)).matching(CPU).query == "cross"
    assert Run("pretrain", "clip_aug", 0).matching(CPU) is None


def test_the_defaults_are_points_of_the_sweeps_and_not_trained_again():
    run, found = Run("pretrain", "roclip", 0), cells(CPU)
    for name in {c.tags(CPU).get("sweep") for c in found} - {None}:
        assert any(c.run == run for c in found if c.tags(CPU).get("sweep") == name)
    assert sum(r.regime == "pretrain" and r.method == "roclip" and r.seed == 0 and not r.changes and not r.m for r in runs(found)) == 1


def test_strong_poisoning_has_its_share_and_k():
    tags = [c.tags(CPU) for c in cells(CPU) if c.kind == "strong" and c.measure == "psr"]
    n, clean, strong = CPU.attacks.targets.n, CPU.data.pretrain_n, CPU.sweeps.strong
    assert {t["m"] for t in tags} == set(strong) and {t["rate"] for t in tags} == {round(n * m / (n * m + clean), 5) for m in strong}
    for method, every in (("roclip", {1, 2}), ("released", {1, 2}), ("clip_aug", {0})):
        assert {t["every"] for t in tags if t["method"] == method} == every


def test_cleanclip_begins_with_what_fine_tuning_has_poisoned():
    only = [c for c in cells(CPU) if c.method == "cleanclip" and c.kind == "score"]
    assert [r.method for r in runs(only)] == ["clip"] * len(CPU.seeds) + ["cleanclip"] * len(CPU.seeds)


@pytest.mark.parametrize(("changed", "message"), [
    ({"seeds": ()}, "--seeds must be"), ({"data": replace(CPU.data, downstream=())}, "--data.downstream"),
    ({"attacks": replace(CPU.attacks, badnet=Recipe("red"))}, "classes of their own"),
    ({"attacks": replace(CPU.attacks, badnet=Recipe("blue", rate=0.95))}, "less than 1"),
    ({"attacks": replace(CPU.attacks, targets=Targets(m=7))}, "--sweeps.strong"),
    ({"gates": replace(CPU.gates, attacks=("trojvqa",))}, "no attack 'trojvqa'"),
    ({"methods": replace(CPU.methods, roclip=replace(CPU.methods.roclip, every=3))}, "--sweeps.every"),
    ({"finetuning": Training(epochs=1)}, "RoCLIP epoch"), ({"pretraining": Training(epochs=3)}, "SafeCLIP needs more epochs"),
])  # fmt: skip
def test_settings_that_cannot_work_are_refused(changed, message):
    with pytest.raises(UserError, match=message):
        check(replace(CPU, **changed))
