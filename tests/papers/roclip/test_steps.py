"""What the tags of a number mean: which epochs are kept, what differs in a sweep, what gates read, settings that cannot work."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from papers.roclip import steps
from papers.roclip.config import BACKDOORS, PRESETS, Choosing, Recipe, check
from papers.roclip.paper import PAPER
from papers.roclip.steps import Cleaned, Contrastive, choice_of, model, said_once
from papers.roclip.tables import CHOSEN, PLAIN, REGIMES, SWEEPS, default
from papers.roclip.training import Training
from shared.errors import UserError
from shared.experiment.step import Trained, closure
from shared.steps.choice import Choice
from shared.training.loop import Diverged

CPU = PRESETS["cpu"]
SMOKE = PRESETS["smoke"]
WHOLE = PAPER.plan(CPU)


def trained(numbers: list) -> list[Trained]:
    return [step for step in closure(n.step for n in numbers) if isinstance(step, Trained)]


def rows(numbers: list) -> list[Contrastive | Cleaned]:
    """What is trained but for candidates and choices."""
    return [step for step in trained(numbers) if isinstance(step, Contrastive | Cleaned) and not step.nth]


def test_the_headline_trains_plain_clip_and_the_first_version_in_both_regimes():
    names = {step.name for step in rows(PAPER.plan(replace(CPU, headline=True)))}
    methods = (*PLAIN, "roclip")
    assert names == {f"{regime}__{m}__seed{seed}" for regime in REGIMES for m in methods for seed in CPU.seeds}


def test_gates_are_read_off_plain_clip_alone():
    found = PAPER.gates(CPU)
    read = PAPER.numbers(CPU, [gate.grid for gate in found])
    assert {n.tags["method"] for n in read} == set(PLAIN)
    assert {n.tags["regime"] for n in read} == {*REGIMES, "few"}
    assert not any(n.tags["regime"] == "few" for n in PAPER.plan(replace(CPU, headline=True)))
    assert {n.tags["attack"] for n in read if n.tags["measure"] == "bsr"} == set(BACKDOORS)
    assert {n.tags["measure"] for n in read} == {"psr", "bsr", "accuracy"}
    assert {step.name.split("__")[1] for step in trained(read) if isinstance(step, Contrastive)} == set(PLAIN)
    assert [gate.threshold for gate in found if "label_consistent" in gate.name] == [0.0] * 4


def test_both_kinds_of_epochs_are_kept_and_shown():
    run = model(CPU, "pretrain", "roclip", 0)
    assert run.epochs == {"plain_epoch": 5, "roclip_epoch": 6}
    assert run.parts == ("", "plain_epoch", "pools")
    assert (run.part("roclip_epoch"), run.part("plain_epoch"), run.part("last")) == ("", "plain_epoch", "")
    assert model(CPU, "pretrain", "clip", 0).part("plain_epoch") is None
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
    paper = PRESETS["paper"]
    run = model(paper, "pretrain", "roclip", 0)
    swept = [n for n in PAPER.plan(paper) if n.tags["kind"] == "ablation"]
    for sweep in SWEEPS:
        at = [n for n in swept if n.tags["sweep"] == sweep and n.tags["value"] == default(paper, sweep)]
        assert at
        assert all(run in closure([n.step]) for n in at)
    assert max(Counter(step.name for step in trained(WHOLE)).values()) == 1
    few = 3 * 5 + 2  # five methods; the cross-modal variant and the larger bank
    assert len(rows(WHOLE)) == 3 * (4 + 4) + 1 + 3 + few  # both regimes; SafeCLIP; strong poison


def test_strong_poisoning_has_its_share_and_k():
    tags = [n.tags for n in WHOLE if n.tags["kind"] == "strong" and n.tags["measure"] == "psr"]
    n, clean = CPU.attacks.targets.n, CPU.data.pretrain_n
    assert {t["m"] for t in tags} == set(CPU.sweeps.strong)
    assert {t["rate"] for t in tags} == {round(n * m / (n * m + clean), 5) for m in CPU.sweeps.strong}
    for method, every in (("roclip", set()), ("released", {1, 2}), ("clip_aug", {0})):
        assert {t["every"] for t in tags if t["method"] == method} == every
    strong = [step for step in rows(WHOLE) if isinstance(step, Contrastive) and step.poisons.row.endswith("m66")]
    assert {step.poisons.m for step in strong} == {66}


FEW = {n.step.snapshot.model for n in WHOLE if n.tags["kind"] == "few"}


def test_the_world_of_few_targets_has_one_dose_and_no_backdoor():
    """All seeds and methods train on the dose that plain CLIP has settled on; no defence takes part in that."""
    (choice,) = (step for step in trained(WHOLE) if isinstance(step, steps.DoseChoice))
    assert {run.poisons.m for run in FEW} == {choice} and not any(run.poisons.backdoors for run in FEW)
    assert list(choice.candidates) == list(CPU.few.doses)
    assert all(method.matching is None for method in choice.rule.methods) and len(choice.rule.methods) == 2
    assert choice.rule.least == pytest.approx(CPU.gates.psr + CPU.few.margin)
    for run in FEW:
        pools_alone = run.matching is None or run.method.images is None
        assert pools_alone and run.training == replace(CPU.few.training, seed=run.seed)
    assert {run.seed for run in FEW if "__before_v1__" in run.name} == set(CPU.seeds)
    # the dose is settled by plain CLIPs as the rows have them
    assert choice.rule.tunings == tuple(model(CPU, "few", m, CPU.seeds[0]).tuning for m in ("clip_aug", "clip"))


CHOICES = {
    **{("pretrain", m): CPU.pretraining.lr for m in (*PLAIN, "roclip", "released", "safeclip")},
    **{("finetune", m): CPU.finetuning.lr for m in (*PLAIN, "roclip")},
    ("finetune", "cleanclip"): CPU.methods.cleanclip.lr,
    **{("few", m): CPU.few.training.lr for m in (*PLAIN, "roclip", "before_v1", "cross_modal")},
}


def test_every_method_chooses_among_as_many_rates_by_clean_pictures_on_the_first_seed():
    asked = {(n.tags["regime"], n.tags["method"]) for n in WHOLE if n.tags["kind"] == "choice"}
    assert asked == CHOICES.keys()
    rules = set()
    for (regime, method), usual in CHOICES.items():
        choice = choice_of(CPU, regime, method)
        rules.add(choice.rule)
        given = model(CPU, regime, method, 0).tuning.given
        tried = [step.tuning.given for step in choice.candidates]
        assert tried == [replace(given, lr=usual * m) for m in CPU.choosing.multiples] and given.lr == usual
        assert all(step.tuning.choice is None for step in choice.candidates)
        assert {step.nth for step in choice.candidates} == {CPU.choosing.part}
        assert not any(getattr(step, "stop", None) for step in choice.candidates)
    (rule,) = rules
    # neither target images, which are of the validation split, nor test pictures
    assert rule.data.split == "train" and model(CPU, "few", "clip", 0).poisons.images.spec == rule.data.spec


def test_all_seeds_and_variants_of_a_method_have_what_it_has_chosen(tmp_path):
    for step in rows(WHOLE):
        regime, method = step.name.split("__")[:2]
        assert step.tuning.choice is choice_of(CPU, regime, CHOSEN.get(method, method))
        assert dict(step.tuning.changes) == {"seed": step.tuning.given.seed}
    assert not any(
        isinstance(step, Choice) and not isinstance(step, steps.DoseChoice)
        for step in trained(PAPER.plan(PRESETS["paper"]))
    )
    third = model(CPU, "pretrain", "clip", 2)
    fast = choice_of(CPU, "pretrain", "clip").candidates[-1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Choice, "settle", lambda choice, lab: choice.candidates[-1])
        assert third.tuning.open(None) == replace(CPU.pretraining, lr=fast.tuning.given.lr, seed=2)


@pytest.mark.parametrize("method", ["clip", "safeclip", "cleanclip"])
def test_a_candidate_has_a_part_of_the_pairs_and_of_the_updates(method, monkeypatch):
    regime = "finetune" if method == "cleanclip" else "pretrain"
    candidate = choice_of(CPU, regime, method).candidates[0]
    seen = {}

    def look(clip, pairs, *options, **named) -> None:
        seen.update(pairs=len(pairs), schedule=next(o for o in options if hasattr(o, "warmup")))

    for name in ("train", "safeclip", "cleanclip"):
        monkeypatch.setattr(steps, name, look)
    monkeypatch.setattr(steps, "start", lambda *_: torch.nn.Linear(1, 1))
    for kind, names in ((steps.Poisons, ("open", "held")), (steps.Pairs, ("open",))):
        for name in names:
            monkeypatch.setattr(kind, name, lambda *_: range(100))
    monkeypatch.setattr(Contrastive, "open", lambda *_: torch.nn.Linear(1, 1))
    lab = SimpleNamespace(partial=lambda step: None)
    tensors, facts = candidate.make(lab)
    usual = candidate.tuning.given
    assert seen["pairs"] == 34 and set(tensors) == {"weight", "bias"} and not facts
    assert seen["schedule"].warmup == usual.warmup // 3 and seen["schedule"].lr == usual.lr
    assert candidate.parts == ("",)
    if method == "cleanclip":
        assert seen["schedule"].steps == usual.steps // 3
    else:
        assert seen["schedule"].epochs == usual.epochs


def test_a_candidate_that_diverges_scores_nothing(monkeypatch):
    clip = torch.nn.Linear(2, 1)
    before = clip.weight.detach().clone()

    def diverges() -> None:
        with torch.no_grad():
            clip.weight.add_(1)
        raise Diverged("the loss is no number")

    left, facts = steps.attempted(clip, diverges)
    assert torch.equal(left["weight"], before) and facts == {"diverged": "yes"}
    right = SimpleNamespace(values=np.array([1.0, 0.0, 1.0]))
    monkeypatch.setattr(steps.Accuracy, "make", lambda *_: right)
    rule, candidate = choice_of(CPU, "few", "clip").rule, model(CPU, "few", "clip", 0)
    for said, mean in ((facts, 0.0), ({}, 2 / 3)):
        lab = SimpleNamespace(facts=lambda step, said=said: said)
        assert float(rule.score(lab, candidate).mean()) == pytest.approx(mean)


def dosed(shares: dict[tuple[int, bool], float], least: float = 0.85) -> tuple[int, list[tuple[int, bool]]]:
    """What is chosen where plain CLIP without and with augmentation is deceived so often, and what was trained for it."""
    choice, tried, cache = steps.dose_of(CPU), [], {}

    def train(clip, pairs, method, training, name: str) -> None:
        tried.append((int(name.split()[0]), method.images is not None))

    def said(*_) -> torch.Tensor:
        return (torch.arange(32) < 32 * shares[tried[-1]]).long()

    lab = SimpleNamespace(once=lambda key, make: cache[key] if key in cache else cache.setdefault(key, make()))
    with pytest.MonkeyPatch.context() as patch:
        for name, stub in {"train": train, "predict": said}.items():
            patch.setattr(steps, name, stub)
        for name in ("start", "classifier", "ensemble", "sentences"):
            patch.setattr(steps, name, lambda *_: None)
        patch.setattr(steps.Settings, "open", lambda tuning, lab: tuning.given)
        patch.setattr(steps.Poisons, "target_images", lambda *_: (None, [1] * 32, []))
        patch.setattr(steps.Poisons, "held", lambda *_: None)
        scores, facts = choice.make(lab)
    assert scores["scores"].shape == (len(CPU.few.doses), 32)
    return CPU.few.doses[int(facts["chosen"])], tried


def test_the_dose_is_the_first_that_takes_with_and_without_augmentation():
    taken, tried = dosed({(8, True): 0.5, (16, True): 1.0, (16, False): 0.75, (24, True): 0.9, (24, False): 1.0})
    assert taken == 24
    assert tried == [(8, True), (16, True), (16, False), (24, True), (24, False)]  # nothing that would change nothing
    never = {(m, True): 0.7 if m == 32 else 0.1 for m in CPU.few.doses}
    assert dosed(never)[0] == 32  # its gate fails then, and says so


def test_early_stopping_reads_accuracy_alone_and_takes_the_last_clear_improvement():
    def ended(accuracy: list[float]) -> int:
        best = (1, accuracy[0])
        for epoch, one in enumerate(accuracy, 1):
            if CPU.few.stop.better(epoch, one, *best):
                best = (epoch, one)
        return best[0]

    assert ended([0.5, 0.8, 0.9, 0.905, 0.908, 0.99]) == 3  # two epochs without a point more: it was stopped then
    assert ended([0.5, 0.8, 0.9, 0.905, 0.92, 0.99]) == 6
    assert ended([0.9] * 4) == 1


def test_cleanclip_begins_with_what_fine_tuning_has_poisoned_and_has_other_pairs():
    for step in (s for s in rows(WHOLE) if isinstance(s, Cleaned)):
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
    ({"choosing": Choosing((0.5, 2.0))}, "--choosing.multiples"), ({"choosing": Choosing((3.0, 1.0))}, "--choosing.multiples"),
    ({"few": replace(CPU.few, doses=(8, 8))}, "--few.doses"), ({"few": replace(CPU.few, training=Training(epochs=5))}, "--few.training"),
    ({"gates": replace(CPU.gates, attacks=("trojvqa",))}, "no attack 'trojvqa'"),
    ({"methods": replace(CPU.methods, roclip=replace(CPU.methods.roclip, every=3)), "sweeps": SMOKE.sweeps}, "--sweeps.every"),
    ({"finetuning": Training(epochs=1)}, "RoCLIP epoch"), ({"pretraining": Training(epochs=3)}, "SafeCLIP needs more epochs"),
])  # fmt: skip
def test_settings_that_cannot_work_are_refused(changed, message):
    with pytest.raises(UserError, match=message):
        check(replace(CPU, **changed))
