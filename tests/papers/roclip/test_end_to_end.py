"""From training to measurements at SCALE=smoke: everything planned is measured, nothing twice, damage is mended.

CLIPs are trained for a few updates: what is tested is the machinery.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from papers.roclip import steps
from papers.roclip.paper import PAPER
from papers.roclip.steps import Contrastive, model
from shared.data.manifest import read_manifest
from shared.experiment.store import Store
from shared.files import sha256_file
from tests.papers.ends import (
    assert_equal,
    check_drawn,
    check_second_run,
    configured,
    everything_measured,
    lab_of,
    launch,
    run,
    stamps,
)

# Smaller than smoke itself; a set of scenes in the place of the digits, whose library takes long to import.
SMALL = ("--scale", "smoke", "--seeds", 0, "--data.probed", "scenes:count", "--sweeps.augment", "images", "both", "--sweeps.pool", 0.1,
         "--sweeps.every", 2, "--sweeps.sides", "both", "--sweeps.query", "own", "--sweeps.start", "pairs", "--sweeps.refresh", "matched",
         "--sweeps.strong-every", 2)  # fmt: skip


def folder(results: Path) -> Path:
    return results / "smoke" / "roclip"


def the_run() -> Contrastive:
    """The two-sided RoCLIP."""
    return model(configured(PAPER, *SMALL), "pretrain", "roclip", 0)


def weights(results: Path) -> dict[str, str]:
    return {p.name: sha256_file(p) for p in (folder(results) / "checkpoints").glob("*.safetensors")}


@pytest.fixture(scope="module", autouse=True)
def few_repeats():
    """Timed trainings are for real machines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "REPEATS", 1)
        yield


def test_everything_planned_is_there(reference, measured):
    store = everything_measured(folder(reference))
    found = store.planned()
    assert {m.slug for m in found} == measured(reference).keys()
    for m in found:
        assert (m.sanity is not None) == (m.tags["measure"] == "bsr" and m.tags["kind"] != "epoch")
        if m.sanity:
            assert m.sanity["independent of the batch"]["passed"]
        assert m.tags["measure"] != "psr" or m.n == (2 if m.tags["regime"] == "few" else 4)
    kinds = {"score", "epoch", "downstream", "strong", "ablation", "returned", "cost", "few", "dose", "choice"}
    assert {m.tags["kind"] for m in found} == kinds
    assert len(store.gates()) == 4 * 7 + 2 * 2


def test_history_and_tables_agree_on_the_last_epochs(reference):
    """The targets are the same; what was said of them while training is what the kept weights say."""
    *_, plain, matched = the_run().history(lab_of(folder(reference)))
    assert (plain["epoch"], plain["matched"]) == (3, False)
    assert (matched["epoch"], matched["matched"]) == (4, True)
    found = Store(folder(reference)).planned()

    def of(start: str) -> dict[str, np.ndarray]:
        return {m.tags["scored"]: m.values for m in found if m.slug.startswith(start)}

    success = of("score__pretrain__roclip__psr")
    assert success["roclip_epoch"].tolist() == matched["psr"]
    assert success["plain_epoch"].tolist() == plain["psr"]
    cosine = of("score__pretrain__roclip__similarity__targets")
    np.testing.assert_allclose(cosine["plain_epoch"], plain["similarity_targets"], atol=1e-4)


def test_early_stopping_left_the_weights_of_the_epoch_that_it_names(reference):
    """What was measured on them is what was measured in training after that epoch, and the rule names no other."""
    run = model(configured(PAPER, *SMALL), "few", "clip", 0)
    history = run.history(lab_of(folder(reference)))
    accuracy = [sum(row["accuracy"]) / len(row["accuracy"]) for row in history]
    best = 1 + (len(history) > 1 and run.stop.better(2, accuracy[1], 1, accuracy[0]))
    tags = {"method": "clip_stopped", "regime": "few"}
    found = {m.tags["measure"]: m.values for m in Store(folder(reference)).planned() if tags.items() <= m.tags.items()}
    assert found["epochs"].tolist() == [best]
    assert found["psr"].tolist() == history[best - 1]["psr"]


def test_what_the_pools_return_is_kept_with_its_pictures(reference):
    found = {
        (m.tags["method"], m.tags["attack"]): m
        for m in Store(folder(reference)).planned()
        if m.tags["kind"] == "returned" and m.tags["measure"] == "same_class" and m.tags["regime"] == "pretrain"
    }
    both, one = found["roclip", "targets"].extra, found["released", "none"].extra
    assert both["pictures"].shape == both["image_pictures"].shape == both["text_pictures"].shape == (2, 3, 32, 32)
    assert "text_pictures" not in one and one["image_captions"].shape == one["captions"].shape == (2,)
    assert (np.abs(both["image_cosine"]) <= 1 + 1e-5).all()


def test_no_pair_is_poisoned_twice_and_manifests_say_all(reference):
    lab, poisons = lab_of(folder(reference)), the_run().poisons
    pairs, clean = poisons.open(lab), poisons.clean.open(lab)
    files = (folder(reference) / "poison").glob(f"pretrain__seed0-{pairs.version[:12]}__*.jsonl")
    found = {path.stem.rpartition("__")[2]: read_manifest(path) for path in files}
    assert set(found) == {"badnet", "blended", "wanet", "sig", "label_consistent", "targets"}
    assert found == pairs.manifests
    indices = [row.index for manifest in found.values() for row in manifest.rows]
    assert len(set(indices)) == len(indices)
    assert len(found["targets"].rows) == 8
    assert min(r.index for r in found["targets"].rows) == 96
    for name in ("badnet", "label_consistent"):
        row = found[name].rows[0]
        (x,), (said,) = pairs.__getitems__([row.index])
        (before,), (own,) = clean.__getitems__([row.index])
        assert not torch.equal(x, before)
        assert said == row.caption
        assert name != "label_consistent" or said == own
    untouched = next(i for i in range(96) if i not in indices)
    assert torch.equal(pairs.__getitems__([untouched])[0], clean.__getitems__([untouched])[0])
    everything = list(range(len(pairs)))
    assert pairs.captions(everything) == pairs.__getitems__(everything)[1]
    assert {row.target for row in found["badnet"].rows} == {"blue"}


def test_a_second_run_makes_nothing(reference, script):
    check_second_run(script, reference, 300, *SMALL)


@pytest.mark.slow
def test_the_page_draws_everything(reference):
    check_drawn(PAPER, reference)


def test_other_test_pictures_train_nothing_and_another_pool_only_its_runs(copy, script):
    before = stamps(copy, ".safetensors")
    assert re.search(r"(\d+) runs, \1 already there", script("train", *SMALL, "--results", copy, "--data.n", 8).out)
    assert stamps(copy, ".safetensors") == before
    changed = script(
        "train", *SMALL, "--results", copy, "--headline", "--methods.roclip.start", "unit", "--sweeps.start", "unit"
    )
    assert changed.code == 0, changed.err
    # each of six rows, its choice, and two candidates; of the two of RoCLIP nothing is there
    assert "24 runs, 16 already there" in changed.out


@pytest.mark.slow
def test_damage_is_mended(copy, script, measured, reference):
    """Weights, facts, pools and a measurement that a full disk or a careless hand has spoilt."""
    made = folder(copy) / "checkpoints"
    key = "?" * 12
    for pattern in (f"pretrain__roclip__seed0-{key}__plain_epoch.safetensors", f"pretrain__released__seed0-{key}.json",
                    f"finetune__roclip__seed0-{key}__pools.safetensors"):  # fmt: skip
        (path,) = made.glob(pattern)
        path.write_bytes(path.read_bytes()[:100])
    next((folder(copy) / "measurements").glob("score__pretrain__clip__psr*.json")).write_bytes(b"{")
    assert len(re.findall(r"training: \S+ \(", run(script, copy, *SMALL))) == 3
    assert weights(copy) == weights(reference)
    a, b = measured(reference), measured(copy)
    assert_equal(
        {k: v for k, v in a.items() if not k.startswith("cost")},
        {k: v for k, v in b.items() if not k.startswith("cost")},
    )


def test_a_failed_gate_stops_before_any_defence(script, tmp_path):
    options = ("--headline", "--results", tmp_path, "--gates.enforce", "--gates.psr", 1)
    outcome = script("train", *SMALL, *options)
    assert outcome.code == 2
    assert "CLIP without augmentation: poison success (targets) is" in outcome.err
    plain = {f"{regime}__{m}__seed0" for regime in ("pretrain", "finetune") for m in ("clip", "clip_aug")}
    made = {name.partition("-")[0].removesuffix("__lr") for name in weights(tmp_path)}
    assert made == plain | {"choice__learning"}  # with the candidates of plain CLIP
    assert not all(g["passed"] for g in json.loads((folder(tmp_path) / "gates.json").read_text()))


@pytest.mark.slow
def test_an_interrupted_training_continues_to_the_same_weights(reference, script, tmp_path, monkeypatch):
    """Killed in the last epoch, after the weights of the last plain epoch were kept."""
    options = (*SMALL, "--headline", "--pretraining.every", 1, "--results", tmp_path)
    real, calls = steps.train, []

    def killed(clip, pairs, method, *rest, name, **more):
        after_epoch = more.get("after_epoch")

        def until(epoch: int, *args):
            calls.append(epoch)
            if calls == [1, 2, 3, 4]:
                raise KeyboardInterrupt
            return after_epoch(epoch, *args)

        if name == "pretrain__roclip__seed0":
            more["after_epoch"] = until
        return real(clip, pairs, method, *rest, name=name, **more)

    monkeypatch.setattr(steps, "train", killed)
    assert script("train", *options).code == 130
    assert len(list(folder(tmp_path).rglob("*.ckpt"))) == 1
    assert script("train", *options).code == 0
    assert calls == [1, 2, 3, 4, 4]
    assert weights(tmp_path).items() <= weights(reference).items()
    assert len(weights(tmp_path)) == 4 + 2 * 3 + 6 * (1 + 2)  # six choices among two candidates each
    assert the_run().history(lab_of(folder(tmp_path))) == the_run().history(lab_of(folder(reference)))
    assert not list(folder(tmp_path).rglob("*.ckpt"))


@pytest.mark.slow
def test_two_processes_measure_what_one_does(reference, measured, tmp_path):
    launch("roclip", *SMALL, "--results", tmp_path)
    assert_equal(measured(reference), measured(tmp_path))


@pytest.mark.slow
def test_two_processes_can_share_one_training(tmp_path):
    """Sums in another order: the values need not be those of one process, but everything is there."""
    launch("roclip", *SMALL, "--together", "--results", tmp_path)
    everything_measured(folder(tmp_path))
