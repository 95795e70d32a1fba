"""From training to measurements at SCALE=smoke: everything planned is measured, nothing twice, damage is mended.

CLIPs are trained for a few updates: what is tested is the machinery.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from papers.roclip import kinds
from papers.roclip.cells import Run
from papers.roclip.config import PRESETS
from papers.roclip.models import Bench
from papers.roclip.training import last_of_either
from shared.data.manifest import read_manifest
from shared.experiment.store import Store
from tests.papers.ends import assert_equal, check_second_run, everything_measured, launch, run, stamps

# Smaller than smoke itself; a set of scenes in the place of the digits, whose library takes long to import.
SMALL = ("--scale", "smoke", "--seeds", 0, "--data.probed", "scenes:count", "--sweeps.augment", "images", "both", "--sweeps.pool", 0.1,
         "--sweeps.every", 2, "--sweeps.sides", "both", "--sweeps.query", "own", "--sweeps.start", "pairs", "--sweeps.refresh", "matched",
         "--sweeps.strong-every", 2)
RUN = Run("pretrain", "roclip", 0)


def folder(results: Path) -> Path:
    return results / "smoke" / "roclip"


def bench(results: Path) -> Bench:
    return Bench(replace(PRESETS["smoke"], seeds=(0,), results=results), "smoke", torch.device("cpu"))


@pytest.fixture(scope="module", autouse=True)
def few_repeats():
    """Timed trainings are for real machines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kinds, "REPEATS", 1)
        yield


def test_everything_planned_is_there(reference, measured):
    store = everything_measured(folder(reference))
    found = store.planned()
    assert {m.slug for m in found} == measured(reference).keys()
    for m in found:
        assert (m.sanity is not None) == (m.tags["measure"] == "bsr" and m.tags["kind"] != "epoch")
        if m.sanity:
            assert m.sanity["independent of the batch"]["passed"]
        assert m.tags["measure"] != "psr" or m.n == 4
    assert {m.tags["kind"] for m in found} == {"score", "epoch", "downstream", "strong", "ablation", "returned", "cost"}
    assert len(store.gates()) == 4 * 7


def test_history_and_tables_agree_on_the_last_epochs(reference):
    """The targets are the same; what was said of them while training is what the kept weights say."""
    b = bench(reference)
    matched, plain = last_of_either(b.history(RUN))
    values = {m.tags["scored"]: m for m in Store(folder(reference)).planned()
              if m.tags["kind"] == "score" and m.tags["method"] == "roclip" and m.tags["measure"] == "psr" and m.tags["regime"] == "pretrain"}
    assert matched["epoch"] == 4 and plain["epoch"] == 3
    assert values["roclip_epoch"].values.tolist() == matched["psr"] and values["plain_epoch"].values.tolist() == plain["psr"]
    scored = {m.tags["scored"]: m.values for m in Store(folder(reference)).planned()
              if m.tags["kind"] == "score" and m.slug.startswith("score__pretrain__roclip__similarity__targets")}
    np.testing.assert_allclose(scored["plain_epoch"], plain["similarity_targets"], atol=1e-4)
    by_epoch = [m for m in Store(folder(reference)).planned() if m.slug.startswith("epoch__pretrain__roclip__psr")]
    assert sorted((m.tags["epoch"], m.tags["scored"]) for m in by_epoch) == [(1, "plain_epoch"), (2, "roclip_epoch"), (3, "plain_epoch"),
                                                                               (4, "roclip_epoch")]


def test_what_the_pools_return_is_kept_with_its_pictures(reference):
    found = {(m.tags["method"], m.tags["attack"]): m for m in Store(folder(reference)).planned()
             if m.tags["kind"] == "returned" and m.tags["measure"] == "same_class" and m.tags["regime"] == "pretrain"}
    both, one = found["roclip", "targets"].extra, found["released", "none"].extra
    assert both["pictures"].shape == both["image_pictures"].shape == both["text_pictures"].shape == (2, 3, 32, 32)
    assert "text_pictures" not in one and one["image_captions"].shape == one["captions"].shape == (2,)
    assert (np.abs(both["image_cosine"]) <= 1 + 1e-5).all()


def test_no_pair_is_poisoned_twice_and_manifests_say_all(reference):
    poison = folder(reference) / "poison"
    found = {p.stem.rpartition("__")[2]: read_manifest(p) for p in poison.glob("pretrain__seed0__*.jsonl") if "__m" not in p.stem.removesuffix(
        p.stem.rpartition("__")[2])}
    assert set(found) == {"badnet", "blended", "wanet", "sig", "label_consistent", "targets"}
    indices = [row.index for manifest in found.values() for row in manifest.rows]
    assert len(set(indices)) == len(indices) and len(found["targets"].rows) == 8 and min(r.index for r in found["targets"].rows) == 96
    b = bench(reference)
    pairs, clean = b.poisons(RUN), b.clean("pretrain", 0)
    for name in ("badnet", "label_consistent"):
        row = found[name].rows[0]
        (x,), (said,) = pairs.__getitems__([row.index])
        (before,), (own,) = clean.__getitems__([row.index])
        assert not torch.equal(x, before) and said == row.caption and (name != "label_consistent" or said == own)
    untouched = next(i for i in range(96) if i not in indices)
    assert torch.equal(pairs.__getitems__([untouched])[0], clean.__getitems__([untouched])[0])
    everything = list(range(len(pairs)))
    assert pairs.captions(everything) == pairs.__getitems__(everything)[1]
    assert {row.target for row in found["badnet"].rows} == {"blue"}


def test_a_second_run_makes_nothing(reference, script):
    check_second_run(script, reference, 300, *SMALL)


def test_other_test_pictures_train_nothing_and_another_pool_only_its_runs(reference, copy, script):
    weights = stamps(reference, ".safetensors")
    options = ("--results", copy)
    out = script("train", *SMALL, *options, "--data.n", 8).out
    assert {k: v for k, v in stamps(copy, ".safetensors").items() if k not in weights} == {}
    assert "plain CLIPs: 4, 4 already there" in out
    changed = script("train", *SMALL, *options, "--headline", "--methods.roclip.start", "unit", "--sweeps.start", "unit")
    assert changed.code == 0 and "defences: 2, 0 already there" in changed.out, changed.err


def test_damage_is_mended(copy, script, measured, reference):
    """Weights, a history, a manifest and a measurement that a full disk or a careless hand has spoilt."""
    made = folder(copy) / "checkpoints"
    (made / f"{RUN.slug}__plain_epoch.safetensors").write_bytes(b"{")
    history = made / "pretrain__released__seed0.history.json"
    history.write_text(history.read_text()[:100])
    next((folder(copy) / "measurements").glob("score__pretrain__clip__psr*.json")).write_bytes(b"{")
    out = run(script, copy, *SMALL)
    assert re.search(r"defences: (\d+), ", out)
    a, b = measured(reference), measured(copy)
    assert_equal({k: v for k, v in a.items() if not k.startswith("cost")}, {k: v for k, v in b.items() if not k.startswith("cost")})


def test_a_failed_gate_stops_before_any_defence(copy, script):
    for path in (folder(copy) / "checkpoints").iterdir():
        if not re.match("(pretrain|finetune)__clip(_aug)?__seed0(__last|\\.history)", path.name):
            path.unlink()
    outcome = script("train", *SMALL, "--headline", "--results", copy, "--gates.enforce", "--gates.psr", 1.1)
    assert outcome.code == 2 and "plain CLIP does not learn the poison" in outcome.err and "defences" not in outcome.out
    assert len(list((folder(copy) / "checkpoints").iterdir())) == 2 * 4
    gates = json.loads((folder(copy) / "gates.json").read_text())
    assert any(not g["passed"] for g in gates)


def test_an_interrupted_training_continues_to_the_same_weights(reference, tmp_path, monkeypatch):
    """Killed in the last epoch, after the weights of the last plain epoch were kept."""
    from papers.roclip import runs
    from shared.models.clip import read_weights

    whole = bench(reference)
    b = Bench(replace(whole.config, results=tmp_path, pretraining=replace(whole.config.pretraining, every=1)), "smoke", torch.device("cpu"))
    real, calls = runs.train_clip, []

    def killed(clip, pairs, method, training, accelerator, partial, after_epoch, name):
        def until(epoch, *args):
            calls.append(epoch)
            if epoch == 4 and calls.count(4) == 1:
                raise KeyboardInterrupt
            return after_epoch(epoch, *args)

        return real(clip, pairs, method, training, accelerator, partial, until, name=name)

    monkeypatch.setattr(runs, "train_clip", killed)
    assert b.key(RUN) == whole.key(RUN)
    with pytest.raises(KeyboardInterrupt):
        runs.train(b, RUN)
    assert not runs.is_done(b, RUN)
    runs.train(b, RUN)
    assert runs.is_done(b, RUN) and calls == [1, 2, 3, 4, 4] and b.history(RUN) == whole.history(RUN)
    for what in ("plain_epoch", "roclip_epoch", "pools"):
        one, other = (read_weights(runs.checkpoint(x.config, "smoke", RUN, what)) for x in (whole, b))
        assert all(torch.equal(one[k], other[k]) for k in one)
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.slow
def test_two_processes_measure_what_one_does(reference, measured, tmp_path):
    launch("roclip", *SMALL, "--results", tmp_path)
    assert_equal(measured(reference), measured(tmp_path))


@pytest.mark.slow
def test_two_processes_can_share_one_training(tmp_path):
    """Sums in another order: the values need not be those of one process, but everything is there."""
    launch("roclip", *SMALL, "--together", "--results", tmp_path)
    everything_measured(folder(tmp_path))
