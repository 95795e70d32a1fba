"""How a cell is measured: the released test-batch attack, independence of batch size, gates, sanity checks, costs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from papers.pmg_aft.cells import Cell, Strength, cells
from papers.pmg_aft.costs import activation_megabytes, step_seconds
from papers.pmg_aft.measure import Measurer
from papers.pmg_aft.models import Bench
from papers.pmg_aft.runs import AS_RELEASED, runs

from papers.pmg_aft import measure
from papers.pmg_aft.config import PRESETS, Model
from shared.attacks import Threat, pgd
from shared.models.victim import ZeroShot
from shared.rng import SampleRng

N, SET = 16, "scenes:surface_shape"
SMOKE = PRESETS["smoke"]
ZOO = replace(SMOKE, attack=replace(SMOKE.attack, eps=1.5 / 255, steps=3, auto_n=0), data=replace(SMOKE.data, n=64))
RANDOM = replace(SMOKE, model=Model(SMOKE.model.name, "random"))


def measurer(config, folder=Path("nowhere")) -> Measurer:
    state = torch.get_rng_state()
    out = Measurer(Bench(replace(config, results=folder), "smoke", torch.device("cpu")))
    _ = out.bench.clip  # random weights come from the global generator
    torch.set_rng_state(state)
    return out


@pytest.fixture(scope="module")
def zoo() -> Measurer:
    """The shipped model at an ε that breaks some of its predictions and not all."""
    return measurer(ZOO)


def run_named(config, name):
    return next(r for r in runs(config) if r.name == name)


# -- the defect of the released evaluation ---------------------------------------------------------------------------------------------------


def released(zoo: Measurer, batch: int, part: slice = slice(None), kind: str = "released") -> torch.Tensor:
    """Adversarial pictures of the emulated test-batch attack, on the pre-trained model."""
    cell = Cell("test_batch", "pmg_released", run_named(ZOO, "pmg_released"), Strength(kind, kind), SET, "seen", N, point=batch)
    x, y, indices = zoo.pictures(SET, N)
    victim = zoo.bench.victim(zoo.bench.labelled(SET), None, "imagenet")
    rng = SampleRng(0, indices[part], "evaluation")
    return zoo._test_batch_attack(cell, victim, x[part], y[part], Threat("linf", ZOO.attack.eps), rng)


def on_a_real_batch(zoo: Measurer, autocast: str | None, scale: float = 1.0, reduction: str = "mean") -> torch.Tensor:
    """What the released code does: the loss of one whole test batch, averaged."""
    x, y, indices = zoo.pictures(SET, N)
    bench = zoo.bench
    victim = ZeroShot(bench.clip.visual, bench.text(bench.labelled(SET)), scale, "imagenet").eval()
    return pgd(victim, x, y, Threat("linf", ZOO.attack.eps), steps=ZOO.attack.steps, step_size=ZOO.attack.ratio * ZOO.attack.eps,
               rng=SampleRng(0, indices, "evaluation"), keep="last", reduction=reduction, autocast=autocast)


def test_the_mean_over_a_batch_is_the_loss_of_each_picture_divided_by_its_size(zoo, monkeypatch):
    """In half precision, where it matters, and in single precision, where it must not."""
    assert torch.equal(released(zoo, N), on_a_real_batch(zoo, "fp16"))

    def single(*args, **options):
        return pgd(*args, **options | {"autocast": None})

    monkeypatch.setattr(measure, "pgd", single)
    assert torch.equal(released(zoo, N), on_a_real_batch(zoo, None))
    agree = (released(zoo, N) == on_a_real_batch(zoo, None, reduction="sum")).float().mean()
    assert agree > 0.999  # a factor changes no sign, but where the gradient is almost 0


def test_the_size_of_the_batch_in_memory_does_not_matter(zoo):
    """A test batch of 1,024 need not fit into memory: pieces of it are attacked as if they were the whole."""
    whole = released(zoo, 64)
    pieces = torch.cat([released(zoo, 64, slice(k, k + 9)) for k in range(0, N, 9)])
    assert (whole == pieces).float().mean() > 0.98  # products of other shapes round differently


def test_a_large_test_batch_blinds_the_released_attack(zoo):
    x, y, indices = zoo.pictures(SET, N)
    victim = zoo.bench.victim(zoo.bench.labelled(SET), None, "imagenet")

    def left(x_adv) -> float:
        with torch.no_grad():
            return victim(x_adv).argmax(1).eq(y).float().mean().item()

    correct, small, huge = left(released(zoo, 0, kind="correct")), left(released(zoo, 16)), left(released(zoo, 2**20))
    assert huge > correct + 0.1, "with gradients below the smallest half-precision number nothing is left but the random start"
    assert small <= huge
    start = pgd(victim, x, y, Threat("linf", ZOO.attack.eps), steps=0, step_size=0.1, rng=SampleRng(0, indices, "evaluation"), keep="last")
    assert torch.equal(released(zoo, 2**20), start)


def test_the_correct_attack_has_the_models_own_temperature(zoo):
    scale = zoo.bench.clip.logit_scale.exp().item()
    assert scale > 5
    assert torch.equal(released(zoo, 0, kind="correct"), on_a_real_batch(zoo, None, scale, "sum"))


# -- honest attacks ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [Strength("clean", "clean"), Strength("pgd", "pgd"), Strength("cw", "cw"), Strength("auto", "auto")], ids=str)
def test_accuracy_does_not_depend_on_the_batch_size(zoo, strength):
    small = measurer(replace(ZOO, attack=replace(ZOO.attack, batch=16)))
    large = measurer(replace(ZOO, attack=replace(ZOO.attack, batch=64)))
    small.bench.clip, large.bench.clip = zoo.bench.clip, zoo.bench.clip
    cell = Cell("accuracy", "clip", None, strength, SET, "zero_shot", 64)
    a, b = (m._correct(cell, zoo.bench.clip.visual) for m in (small, large))
    assert a.shape == (64,)
    assert set(np.unique(a)) == {0.0, 1.0}, "an accuracy of 0 or 1 would show nothing"
    assert np.abs(a - b).sum() <= 1  # a picture on the edge may fall to either side
    assert small.key(cell) == large.key(cell)


def test_stronger_is_not_weaker_and_values_are_those_of_a_plain_loop(zoo):
    def correct(strength):
        return zoo._correct(Cell("accuracy", "clip", None, strength, "scenes:shape", "zero_shot", 64), zoo.bench.clip.visual)

    clean, one, two = correct(Strength("clean", "clean")), correct(Strength("pgd", "pgd")), correct(Strength("pgd_x2", "pgd", 2.0))
    assert clean.mean() >= one.mean() >= two.mean()
    assert not (one > clean).any()  # a picture that is wrong to begin with stays wrong
    x, y, indices = zoo.pictures("scenes:shape", 64)
    victim = zoo.bench.victim(zoo.bench.labelled("scenes:shape"))
    with torch.no_grad():
        np.testing.assert_array_equal(clean, victim(x).argmax(1).eq(y).float().numpy())
    assert len(set(indices)) == 64
    counts = torch.bincount(y, minlength=zoo.bench.labelled("scenes:shape").num_classes)
    assert counts.max() - counts.min() <= 1


def test_each_kind_of_attack_is_the_one_it_says(zoo, monkeypatch):
    """Loss, steps, step size, ε and random numbers that reach the attack."""
    seen = {}

    def spy(victim, x, y, threat, **options):
        seen.update(options, eps=threat.eps, norm=threat.norm)
        return x

    monkeypatch.setattr(measure, "pgd", spy)
    monkeypatch.setattr(measure, "cascade", lambda *args, **options: type("R", (), {"x_adv": spy(*args, **options)}))
    visual, a = zoo.bench.clip.visual, ZOO.attack

    def attack(strength) -> dict:
        seen.clear()
        zoo._correct(Cell("accuracy", "clip", None, strength, "scenes:shape", "seen", 8), visual)
        return dict(seen)

    assert attack(Strength("clean", "clean")) == {}
    found = attack(Strength("pgd", "pgd"))
    assert (found["eps"], found["norm"], found["steps"], found["step_size"], found["loss"]) == (a.eps, "linf", a.steps, a.ratio * a.eps, "ce")
    assert (found["rng"].seed, found["rng"].indices) == (a.seed, tuple(zoo.pictures("scenes:shape", 8)[2]))
    assert attack(Strength("cw", "cw"))["loss"] == "cw"
    assert attack(Strength("cw", "cw"))["kappa"] == a.kappa
    assert attack(Strength("pgd_x4", "pgd", 4.0))["eps"] == pytest.approx(4 * a.eps)
    assert attack(Strength("pgd_long", "pgd", steps=33))["steps"] == 33
    auto = attack(Strength("auto", "auto"))
    assert (auto["steps"], auto["targets"], auto["queries"]) == (a.auto_steps, a.auto_targets, a.auto_queries)


def test_a_fine_tuned_model_is_judged_with_its_own_pixels_and_the_pretrained_temperature(zoo):
    for name, norm in (("pmg_aft", "clip"), ("pmg_released", "imagenet")):
        cell = Cell("accuracy", name, run_named(ZOO, name), Strength("pgd", "pgd"), "scenes:shape", "seen", 8)
        victim = zoo._victim(cell, zoo.bench.fresh_visual())
        assert victim.scale == pytest.approx(zoo.bench.clip.logit_scale.exp().item())
        expected = ZeroShot(victim.visual, victim.text, 1.0, norm).pixels
        assert torch.equal(victim.pixels.scale, expected.scale)
        assert torch.equal(victim.pixels.shift, expected.shift)
    assert zoo.bench.scale_of(AS_RELEASED) == 1.0


# -- gates ------------------------------------------------------------------------------------------------------------------------------------


ENFORCED = ("--scale", "smoke", "--model.pretrained", "random", "--gates.enforce", "--data.zero-shot", "scenes:shape", "--data.n", 8)


def test_a_model_that_knows_nothing_stops_the_evaluation(script, tmp_path):
    options = (*ENFORCED, "--headline", "--seeds", 0, "--tuning.steps", 1, "--results", tmp_path)
    assert script("train", *options).code == 0
    outcome = script("evaluate", *options)
    assert outcome.code == 2
    assert outcome.err.startswith("error: no defence is measured, because the undefended model does not pass its gates:")
    assert "zero-shot accuracy on the seen classes is " in outcome.err
    assert "Use a better pre-trained model" in outcome.err
    assert outcome.err.count("\n") == 1
    folder = tmp_path / "smoke" / "pmg_aft"
    assert (folder / "gates.json").is_file()
    measured = {p.stem.split("__")[1] for p in (folder / "measurements").glob("*.json")}
    assert measured == {"clip"}
    assert script("evaluate", *options).code == 2  # and it does not pass by asking twice


def test_gates_are_measured_again_when_what_they_depend_on_changes(tmp_path):
    config = replace(RANDOM, results=tmp_path, data=replace(RANDOM.data, n=8))

    def gates(config):
        own = measurer(config, tmp_path)
        for cell in cells(config):
            if cell.method == "clip" and cell.kind == "accuracy" and cell.strength.name == "clean":
                own.measure([cell])
        return own.gates(write=True)

    before = gates(config)
    assert gates(config) == before
    for changed in (replace(config, data=replace(config.data, n=7)), replace(config, gates=replace(config.gates, clean=0.7)),
                    replace(config, attack=replace(config.attack, strong_steps=2))):  # fmt: skip
        assert {g["key"] for g in gates(changed)}.isdisjoint({g["key"] for g in before})


def test_the_least_accuracy_is_the_lower_of_both_bars(zoo, tmp_path, monkeypatch):
    """80 %, or 20 times chance where that is less (64 classes: 31 %)."""
    own = measurer(replace(RANDOM, data=replace(RANDOM.data, n=8)), tmp_path)
    monkeypatch.setattr(type(own.store), "load", lambda self, slug: type("M", (), {"value": 0.5}))
    gates = {g["name"]: g for g in own.gates(write=False)}
    seen = gates["zero-shot accuracy on the seen classes"]
    classes = own.bench.labelled(RANDOM.data.seen).num_classes
    assert classes >= 40
    assert seen["threshold"] == pytest.approx(min(0.8, 20 / classes))
    assert seen["passed"] is (seen["threshold"] <= 0.5)
    shape = gates["zero-shot accuracy on shape"]
    assert shape["threshold"] == pytest.approx(1 / own.bench.labelled("scenes:shape").num_classes + RANDOM.gates.zero_shot_margin)


# -- sanity checks and costs -------------------------------------------------------------------------------------------------------------------


def test_every_robust_cell_carries_the_checks_of_its_model(tmp_path):
    own = measurer(RANDOM, tmp_path)
    wanted = [c for c in cells(RANDOM) if c.method == "clip" and c.spec == "scenes:shape" and c.kind == "accuracy"]
    own.measure(wanted)
    for cell in wanted:
        found = own.store.load(cell.slug())
        assert (found.sanity is not None) == cell.robust
        if cell.robust:
            assert {"in_ball", "iterative", "unbounded", "batch_size", "passed"} <= set(found.sanity)
            assert "transfer" not in found.sanity  # the pre-trained model has no other one to be compared with
        assert found.tags == cell.tags(RANDOM)
        assert found.n == len(found.values)
        assert found.value == pytest.approx(found.values.mean())
        assert found.low <= found.value <= found.high
    assert len(own._sanity) == 1  # made once per model


def test_costs(zoo):
    config = replace(SMOKE, tuning=replace(SMOKE.tuning, batch=16), sweeps=replace(SMOKE.sweeps, cost_steps=3))
    bench = Bench(config, "smoke", torch.device("cpu"))
    bench.clip = zoo.bench.clip
    before = {k: v.clone() for k, v in bench.clip.visual.state_dict().items()}
    kept = {name: float(activation_megabytes(bench, run_named(config, name))[0]) for name in ("ft_clean", "tecoa", "pmg_aft")}
    seconds = step_seconds(bench, run_named(config, "tecoa"))
    assert seconds.shape == (3,)
    assert (seconds > 0).all()
    assert all(torch.equal(v, before[k]) for k, v in bench.clip.visual.state_dict().items())  # measured on a copy
    assert kept["pmg_aft"] == pytest.approx(2 * kept["tecoa"], rel=0.35)  # twice the pictures are in its backward pass
    assert kept["ft_clean"] == pytest.approx(kept["tecoa"], rel=0.35)


def test_memory_is_counted_once_per_storage_and_forgotten_after_the_backward_pass(zoo, monkeypatch):
    from papers.pmg_aft import costs

    def two_updates(bench, run, steps, after):
        for _ in range(2):
            x = torch.ones(1_000_000, requires_grad=True)  # 4 MB
            y = x.view(1000, 1000)
            z = (y * y).sum() + F.relu(x).sum()  # x kept three times in one storage; relu keeps its result, another 4 MB
            z.backward()

    monkeypatch.setattr(costs, "_steps", two_updates)
    assert activation_megabytes(zoo.bench, None)[0] == pytest.approx(8.0, rel=0.01)
