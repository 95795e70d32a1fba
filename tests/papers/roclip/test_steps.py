"""What the tags of a number mean: which epochs are kept, what differs in a sweep, what gates read, settings that cannot work."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest

from papers.roclip import steps
from papers.roclip.config import BACKDOORS, PRESETS, Recipe, Targets, check
from papers.roclip.paper import PAPER
from papers.roclip.steps import Cleaned, Contrastive, model, said_once
from papers.roclip.tables import PLAIN, REGIMES, SWEEPS, default
from papers.roclip.training import Training
from shared.errors import UserError
from shared.experiment.step import Trained, closure

CPU = PRESETS["cpu"]
WHOLE = PAPER.plan(CPU)


def trained(numbers: list) -> list[Trained]:
    return [step for step in closure(n.step for n in numbers) if isinstance(step, Trained)]


def test_the_headline_trains_plain_clip_and_the_first_version_in_both_regimes():
    names = {step.name for step in trained(PAPER.plan(replace(CPU, headline=True)))}
    methods = (*PLAIN, "roclip")
    assert names == {f"{regime}__{m}__seed{seed}" for regime in REGIMES for m in methods for seed in CPU.seeds}


def test_gates_are_read_off_plain_clip_alone():
    found = PAPER.gates(CPU)
    read = PAPER.numbers(CPU, [gate.grid for gate in found])
    assert {n.tags["method"] for n in read} == set(PLAIN)
    assert {n.tags["regime"] for n in read} == set(REGIMES)
    assert {n.tags["attack"] for n in read if n.tags["measure"] == "bsr"} == set(BACKDOORS)
    assert {n.tags["measure"] for n in read} == {"psr", "bsr", "accuracy"}
    assert {step.name.split("__")[1] for step in trained(read)} == set(PLAIN)
    assert [gate.threshold for gate in found if "label_consistent" in gate.name] == [0.0] * 4


def test_both_kinds_of_epochs_are_kept_and_shown():
    run = model(CPU, "pretrain", "roclip", 0)
    assert run.epochs == {"plain_epoch": 5, "roclip_epoch": 6}
    assert run.parts == ("", "plain_epoch", "pools")
    assert (run.part("roclip_epoch"), run.part("plain_epoch"), run.part("last")) == ("", "plain_epoch", None)
    always = model(CPU, "pretrain", "roclip", 0, 0, "every", 1)
    assert always.epochs == {"roclip_epoch": 6}
    assert always.parts == ("", "pools")
    assert model(CPU, "pretrain", "clip", 0).parts == model(CPU, "pretrain", "safeclip", 0).parts == ("",)
    for method in ("roclip", "released"):
        for kind in ("score", "downstream"):
            seen = {n.tags["scored"] for n in WHOLE if n.tags["kind"] == kind and n.tags["method"] == method}
            assert seen == {"plain_epoch", "roclip_epoch"}
    by_epoch = [n.tags for n in WHOLE if n.name.startswith("epoch__pretrain__roclip__psr") and n.tags["seed"] == 0]
    found = sorted((t["epoch"], t["scored"]) for t in by_epoch)
    assert found == [(e, "plain_epoch" if e % 2 else "roclip_epoch") for e in range(1, 7)]


def test_a_change_of_the_method_is_its_fields():
    usual = model(CPU, "pretrain", "roclip", 0).method

    def of(sweep: str, value: object):
        return model(CPU, "pretrain", "roclip", 0, 0, sweep, value).method

    assert of("pool", 0.1) == replace(usual, matching=replace(usual.matching, share=0.1, size=None))
    assert of("query", "cross") == replace(usual, matching=replace(usual.matching, query="cross"))
    assert of("augment", "none") == replace(usual, images=None)
    assert of("augment", "both").captions.alpha == CPU.sweeps.alpha
    assert model(CPU, "pretrain", "clip_aug", 0).method == replace(usual, matching=None)
    assert model(CPU, "pretrain", "roclip", 1).method != usual  # draws of its own


def test_the_defaults_are_points_of_the_sweeps_and_not_trained_again():
    run = model(CPU, "pretrain", "roclip", 0)
    swept = [n for n in WHOLE if n.tags["kind"] == "ablation"]
    for sweep in (s for s in SWEEPS if getattr(CPU.sweeps, s)):
        at = [n for n in swept if n.tags["sweep"] == sweep and n.tags["value"] == default(CPU, sweep)]
        assert at
        assert all(run in closure([n.step]) for n in at)
    counted = Counter(step.name for step in trained(WHOLE))
    assert max(counted.values()) == 1
    assert len(counted) == 3 * (4 + 4) + 1 + 5 + 2 + 6  # both regimes; SafeCLIP; strong poison; K = 1; other sweeps


def test_strong_poisoning_has_its_share_and_k():
    tags = [n.tags for n in WHOLE if n.tags["kind"] == "strong" and n.tags["measure"] == "psr"]
    n, clean = CPU.attacks.targets.n, CPU.data.pretrain_n
    assert {t["m"] for t in tags} == set(CPU.sweeps.strong)
    assert {t["rate"] for t in tags} == {round(n * m / (n * m + clean), 5) for m in CPU.sweeps.strong}
    for method, every in (("roclip", {1, 2}), ("released", {1, 2}), ("clip_aug", {0})):
        assert {t["every"] for t in tags if t["method"] == method} == every
    assert {
        step.poisons.m for step in trained(WHOLE) if isinstance(step, Contrastive) and step.poisons.row.endswith("m66")
    } == {66}


def test_cleanclip_begins_with_what_fine_tuning_has_poisoned_and_has_other_pairs():
    for step in (s for s in trained(WHOLE) if isinstance(s, Cleaned)):
        seed = step.poisoned.seed
        assert step.poisoned == model(CPU, "finetune", "clip", seed)
        seeds = {
            step.clean.seed,
            step.poisoned.poisons.clean.seed,
            model(CPU, "pretrain", "clip", seed).poisons.clean.seed,
        }
        assert len(seeds) == 3


def test_imagenet_is_said_once_after_an_epoch_and_other_sets_as_in_the_tables(monkeypatch):
    """80,000 sentences per epoch are for the end."""
    lab = SimpleNamespace(data=lambda spec: SimpleNamespace(classes=("mushroom", "kit fox")))
    monkeypatch.setattr(steps, "sentences", lambda lab, spec: [["as always"]])
    assert said_once(lab, "named:ImageNet") == [["a photo of a mushroom."], ["a photo of a kit fox."]]
    assert said_once(lab, "scenes:colour") == said_once(lab, "named:DTD") == [["as always"]]


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
