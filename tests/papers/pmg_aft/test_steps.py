"""What is trained for each row and how a number is measured: the released test-batch attack, independence of batch size, sanity checks, costs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from papers.pmg_aft import steps
from papers.pmg_aft.config import PRESETS, Attack, Choosing, Config, check
from papers.pmg_aft.method import PMGLoss
from papers.pmg_aft.paper import PAPER
from papers.pmg_aft.steps import ONE, RELEASED, Accuracy, Face, Tower, UpdateCost, base, methods, number
from papers.pmg_aft.tables import CHOSEN, CLIP, METHODS, SWEPT
from shared.attacks import Threat, pgd
from shared.claims.claims import load
from shared.data.catalogue import Source
from shared.errors import UserError
from shared.experiment.lab import Lab
from shared.models.victim import ZeroShot
from shared.rng import SampleRng
from shared.training.loop import Diverged
from tests.papers.ends import ROOT

CPU, SMOKE = PRESETS["cpu"], PRESETS["smoke"]
N, SET = 16, "surface_shape"
ZOO = replace(
    SMOKE,
    attack=replace(SMOKE.attack, eps=1.5 / 255, steps=3, auto_n=0),
    data=replace(SMOKE.data, n=64, zero_shot=("scenes:shape", f"scenes:{SET}")),
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    """The shipped model; ZOO has an ε that breaks some of its predictions and not all."""
    alone = {"num_processes": 1, "is_main_process": True, "wait_for_everyone": staticmethod(lambda: None)}
    process = type("P", (), {"device": torch.device("cpu"), **alone})
    return Lab(tmp_path_factory.mktemp("lab"), Source(), process)


def with_attack(config: Config, **changes) -> Config:
    return replace(config, attack=replace(config.attack, **changes))


# -- what is trained ---------------------------------------------------------------------------------------------------------------------------


def test_the_sweep_uses_the_main_rows_at_its_corners():
    config = replace(CPU, sweeps=replace(CPU.sweeps, alphas=(0.0, 0.5, 1.0), betas=(0.0, 1.0, 2.0)))
    tuned = methods(config)
    for a in config.sweeps.alphas:
        for b in config.sweeps.betas:
            loss = tuned[SWEPT(a, b)].loss
            assert loss == (PMGLoss(a, b) if loss else None)  # nothing but the weights differs
            assert loss or (a, b) == (0, 0)
    assert (SWEPT(0, 0), SWEPT(1, 1), SWEPT(1, 0), SWEPT(0, 1)) == ("tecoa", "pmg_aft", "pmg_general", "pmg_clean")
    assert len([name for name in tuned if name.startswith("pmg_a") and name[5].isdigit()]) == 9 - 4


def test_what_each_row_is():
    tuned = methods(CPU)
    assert tuned["pmg_aft"].loss == PMGLoss(1.0, 1.0, "target_first", "batchmean", False)
    assert tuned["pmg_released"].loss == PMGLoss(1.0, 1.0, "target_first", "sum", False)
    assert tuned["pmg_released_april"].loss == PMGLoss(1.0, 1.0, "adversarial_first", "sum", False)
    assert tuned["pmg_adversarial_first"].loss == PMGLoss(direction="adversarial_first")
    assert tuned["pmg_detached"].loss == PMGLoss(detach_clean=True)
    faces = {"released": RELEASED, "one": ONE}
    assert all(
        step.face == faces.get(name.split("_")[1] if "_" in name else "", Face()) for name, step in tuned.items()
    )
    assert tuned["pmg_one"].loss == tuned["pmg_released"].loss
    assert (tuned["fare"].tuning.given, tuned["tecoa"].tuning.given) == (CPU.fare, CPU.tuning)
    assert {step.data.spec for step in tuned.values()} == {CPU.data.train, *CPU.data.other_train}
    assert all(tuned[f"pmg_last{k}"].tuning.changes == (("last", k),) for k in CPU.sweeps.last)
    assert {step.attack.steps for step in methods(with_attack(CPU, train_steps=5)).values()} == {5}


@pytest.mark.parametrize("scale", PRESETS)
def test_every_method_is_trained_on_every_seed(scale):
    config = PRESETS[scale]
    seeds: dict[str, set] = {}
    for n in PAPER.plan(config):
        seeds.setdefault(n.tags["method"], set()).add(n.asked.get("seed"))
    assert all(
        seeds[name] == set(config.seeds) for name in (*list(METHODS)[1:], "pmg_general", "pmg_clean", "pmg_released")
    )
    for name in ("pmg_released_april", "pmg_adversarial_first", "pmg_detached"):
        assert seeds[name] == {config.seeds[0]}
    assert seeds[CLIP] == {None}


def test_the_papers_own_numbers():
    """Facts §3: PGD-2 with ε = step = 1/255, SGD with momentum 0.9 and no decay, 10 epochs of 391 updates, warm-up of 1,000; PGD-10 in evaluation."""
    config, tuning = PRESETS["paper"], PRESETS["paper"].tuning
    assert (config.attack.eps, config.attack.train_steps, config.attack.steps, config.attack.ratio) == (
        1 / 255,
        2,
        10,
        1.0,
    )
    assert (tuning.steps, tuning.batch, tuning.warmup, tuning.lr) == (3910, 256, 1000, 5e-5)
    assert (tuning.optimizer, tuning.momentum, tuning.weight_decay, tuning.last) == ("sgd", 0.9, 0.0, -1)
    assert (config.model.name, config.model.pretrained) == ("ViT-B-32-quickgelu", "openai")
    assert config.attack.kappa == Attack().kappa == 50.0
    assert (config.attack.long_steps, config.attack.auto_steps) == (100, 100)
    assert len(config.data.zero_shot) == 15 <= len(CPU.data.zero_shot)


def test_there_are_headline_claims():
    claims = load(ROOT / "papers" / "pmg_aft" / "claims.yaml").claims
    assert [c.value for c in claims if c.headline] == [4.99, 8.72]
    assert len(CPU.seeds) >= 3


# -- what a number depends on -------------------------------------------------------------------------------------------------------------------


def changed(config: Config) -> set[str]:
    """Names of the numbers of SMOKE whose step is another one with this configuration."""
    before, after = ({n.name: n.step for n in PAPER.plan(c)} for c in (SMOKE, config))
    return {name for name in before if before[name] != after[name]}


def having(wanted) -> set[str]:
    return {n.name for n in PAPER.plan(SMOKE) if wanted(n.tags.get("attack", ""), n.tags)}


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"kappa": 3.0}, lambda a, t: a == "cw"),
        ({"auto_steps": 7}, lambda a, t: a == "auto"),
        ({"auto_queries": 7}, lambda a, t: a == "auto"),
        ({"auto_n": 6}, lambda a, t: a in ("auto", "pgd_paired")),
        ({"strong_steps": 5}, lambda a, t: t["kind"] == "gate"),
        ({"sanity_n": 3}, lambda a, t: t["kind"] == "accuracy" and a != "clean"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_one_number_measures_only_what_depends_on_it_again(change, where):
    assert changed(with_attack(SMOKE, **change)) == having(where)


def test_no_more_pictures_than_the_preset_allows():
    def pictures(config: Config, *attacks: str) -> set[int]:
        return {
            n.step.data.n for n in PAPER.plan(config) if n.tags["kind"] == "accuracy" and n.tags["attack"] in attacks
        }

    assert pictures(with_attack(replace(CPU, data=replace(CPU.data, n=10)), auto_n=24), "clean", "pgd", "auto") == {10}
    assert pictures(with_attack(CPU, auto_n=0), "auto", "pgd_paired") == {CPU.data.n}


def test_a_set_is_not_zero_shot_for_a_model_that_was_tuned_on_it():
    own = {(n.tags["method"], n.tags["set"]): n.tags["role"] for n in PAPER.plan(CPU) if n.tags["kind"] == "accuracy"}
    train = {
        name: step.data.spec.partition(":")[2]
        for name, step in methods(CPU).items()
        if step.data.spec in CPU.data.zero_shot
    }
    assert train
    assert all(
        (role == "seen") == (name == train[method] or f"scenes:{name}" == CPU.data.seen)
        for (method, name), role in own.items()
        if method in train
    )


# -- the defect of the released evaluation ---------------------------------------------------------------------------------------------------


def released(lab: Lab, batch: int, part: slice = slice(None), attack: str = "released") -> torch.Tensor:
    """Adversarial pictures of the emulated test-batch attack, on the pre-trained model with the pixels of the released code."""
    config = replace(ZOO, data=replace(ZOO.data, seen=f"scenes:{SET}"), sweeps=replace(ZOO.sweeps, test_batch_n=N))
    step = number(config, "test_batch", "pmg_released", 0, attack, SET, point=batch)
    rows = step.data.rows(lab)
    x, y = step.data.read(lab, rows)
    victim = steps.classifier(lab, base(ZOO), base(ZOO).open(lab).visual, f"scenes:{SET}", "imagenet")
    return step.attacked(lab, victim, x[part], y[part], rows[part])


def on_a_real_batch(lab: Lab, autocast: str | None, scale: float = 1.0, reduction: str = "mean") -> torch.Tensor:
    """What the released code does: the loss of one whole test batch, averaged."""
    data = number(ZOO, "accuracy", CLIP, attack="clean", set=SET).data
    rows = replace(data, n=N).rows(lab)
    x, y = data.read(lab, rows)
    victim = replace_scale(lab, scale)
    return pgd(
        victim,
        x,
        y,
        Threat("linf", ZOO.attack.eps),
        steps=ZOO.attack.steps,
        step_size=ZOO.attack.ratio * ZOO.attack.eps,
        rng=SampleRng(0, rows, "evaluation"),
        keep="last",
        reduction=reduction,
        autocast=autocast,
    )


def replace_scale(lab: Lab, scale: float) -> ZeroShot:
    whole = steps.classifier(lab, base(ZOO), base(ZOO).open(lab).visual, f"scenes:{SET}", "imagenet")
    return ZeroShot(whole.visual, whole.text, scale, "imagenet").eval()


def test_the_mean_over_a_batch_is_the_loss_of_each_picture_divided_by_its_size(lab, monkeypatch):
    """In half precision, where it matters, and in single precision, where it must not."""
    assert torch.equal(released(lab, N), on_a_real_batch(lab, "fp16"))

    def single(*args, **options):
        return pgd(*args, **options | {"autocast": None})

    monkeypatch.setattr(steps, "pgd", single)
    assert torch.equal(released(lab, N), on_a_real_batch(lab, None))
    agree = (released(lab, N) == on_a_real_batch(lab, None, reduction="sum")).float().mean()
    assert agree > 0.999  # a factor changes no sign, but where the gradient is almost 0


def test_the_size_of_the_batch_in_memory_does_not_matter(lab):
    """A test batch of 1,024 need not fit into memory: pieces of it are attacked as if they were the whole."""
    whole = released(lab, 64)
    pieces = torch.cat([released(lab, 64, slice(k, k + 9)) for k in range(0, N, 9)])
    assert (whole == pieces).float().mean() > 0.98  # products of other shapes round differently


def test_a_large_test_batch_blinds_the_released_attack(lab):
    data = replace(number(ZOO, "accuracy", CLIP, attack="clean", set=SET).data, n=N)
    rows = data.rows(lab)
    x, y = data.read(lab, rows)
    victim = replace_scale(lab, base(ZOO).open(lab).logit_scale.exp().item())

    def left(x_adv: torch.Tensor) -> float:
        with torch.no_grad():
            return victim(x_adv).argmax(1).eq(y).float().mean().item()

    correct, small, huge = left(released(lab, 0, attack="correct")), left(released(lab, 16)), left(released(lab, 2**20))
    assert huge > correct + 0.1, (
        "with gradients below the smallest half-precision number nothing is left but the random start"
    )
    assert small <= huge
    start = pgd(
        victim,
        x,
        y,
        Threat("linf", ZOO.attack.eps),
        steps=0,
        step_size=0.1,
        rng=SampleRng(0, rows, "evaluation"),
        keep="last",
    )
    assert torch.equal(released(lab, 2**20), start)


def test_the_correct_attack_has_the_models_own_temperature(lab):
    scale = base(ZOO).open(lab).logit_scale.exp().item()
    assert scale > 5
    assert torch.equal(released(lab, 0, attack="correct"), on_a_real_batch(lab, None, scale, "sum"))


# -- honest attacks ---------------------------------------------------------------------------------------------------------------------------


def accuracy(attack: str, config: Config = ZOO, name: str = SET) -> Accuracy:
    return number(config, "accuracy", CLIP, attack=attack, set=name)


@pytest.mark.parametrize("attack", ["clean", "pgd", "cw", "auto"])
def test_accuracy_does_not_depend_on_the_batch_size(lab, attack):
    small, large = (replace(accuracy(attack, with_attack(ZOO, batch=b)), checks=None) for b in (16, 64))
    a, b = (step.make(lab).values for step in (small, large))
    assert a.shape == (64,)
    assert set(np.unique(a)) == {0.0, 1.0}, "an accuracy of 0 or 1 would show nothing"
    assert np.abs(a - b).sum() <= 1  # a picture on the edge may fall to either side
    assert lab.key(small) == lab.key(large)


def test_stronger_is_not_weaker_and_values_are_those_of_a_plain_loop(lab):
    found = [replace(accuracy(a, name="shape"), checks=None) for a in ("clean", "pgd", "pgd_x2")]
    clean, one, two = (step.make(lab).values for step in found)
    assert clean.mean() >= one.mean() >= two.mean()
    assert not (one > clean).any()  # a picture that is wrong to begin with stays wrong
    rows = found[0].data.rows(lab)
    x, y = found[0].data.read(lab, rows)
    with torch.no_grad():
        np.testing.assert_array_equal(clean, found[0].tower.on(lab, "scenes:shape")(x).argmax(1).eq(y).float().numpy())
    assert len(set(rows)) == 64
    counts = torch.bincount(y, minlength=lab.data("scenes:shape").num_classes)
    assert counts.max() - counts.min() <= 1


def test_each_kind_of_attack_is_the_one_it_says(lab, monkeypatch):
    """Loss, steps, step size, ε and random numbers that reach the attack."""
    seen = {}

    def spy(victim, x, y, threat, **options):
        seen.update(options, eps=threat.eps, norm=threat.norm)
        return x

    monkeypatch.setattr(steps, "pgd", spy)
    monkeypatch.setattr(steps, "cascade", lambda *args, **options: type("R", (), {"x_adv": spy(*args, **options)}))
    a = ZOO.attack

    def attack(name: str) -> dict:
        seen.clear()
        step = accuracy(name, replace(with_attack(ZOO, long_steps=33), data=replace(ZOO.data, n=8)), "shape")
        replace(step, checks=None).make(lab)
        return dict(seen, rows=step.data.rows(lab)) if seen else {}

    assert attack("clean") == {}
    found = attack("pgd")
    assert (found["eps"], found["norm"], found["steps"], found["step_size"], found["loss"]) == (
        a.eps,
        "linf",
        a.steps,
        a.ratio * a.eps,
        "ce",
    )
    assert (found["rng"].seed, list(found["rng"].indices)) == (a.seed, found["rows"])
    found = attack("cw")
    assert (found["loss"], found["kappa"]) == ("cw", a.kappa)
    assert attack("pgd_x4")["eps"] == pytest.approx(4 * a.eps)
    assert attack("pgd_long")["steps"] == 33
    auto = attack("auto")
    assert (auto["steps"], auto["targets"], auto["queries"]) == (a.auto_steps, a.auto_targets, a.auto_queries)


def test_a_fine_tuned_model_is_judged_with_its_own_pixels_and_the_pretrained_temperature(lab):
    tuned = methods(ZOO)
    visual = base(ZOO).open(lab).visual
    for name, norm in (("pmg_aft", "clip"), ("pmg_released", "imagenet")):
        tower = Tower(base(ZOO), tuned[name])
        victim = steps.classifier(lab, tower.clip, visual, "scenes:shape", tower.norm)
        assert victim.scale == pytest.approx(base(ZOO).open(lab).logit_scale.exp().item())
        expected = ZeroShot(visual, victim.text, 1.0, norm).pixels
        assert torch.equal(victim.pixels.scale, expected.scale)
        assert torch.equal(victim.pixels.shift, expected.shift)


def test_a_model_of_numbers_that_are_none_is_refused(lab):
    """Not counted as right or robust, under no attack."""

    class Broken(Tower):
        def on(self, lab: Lab, spec: str) -> ZeroShot:
            whole = super().on(lab, spec)
            return ZeroShot(whole.visual, whole.text * float("nan"), whole.scale)

    for attack in ("clean", "pgd", "auto"):
        with pytest.raises(UserError, match=r"outputs are not finite for \d+ of \d+ pictures"):
            replace(accuracy(attack), tower=Broken(base(ZOO)), checks=None).make(lab)


def test_every_robust_number_carries_the_checks_of_its_model(lab):
    config = replace(SMOKE, data=replace(SMOKE.data, n=4))
    for attack in ("clean", "pgd", "cw"):
        sanity = number(config, "accuracy", CLIP, attack=attack, set="shape").make(lab).sanity
        assert (sanity is not None) == (attack != "clean")
        if sanity:
            assert {"in_ball", "iterative", "unbounded", "batch_size", "passed"} <= set(sanity)
            assert "transfer" not in sanity  # the pre-trained model has no other one to be compared with


# -- gates and costs -------------------------------------------------------------------------------------------------------------------------


def test_the_least_accuracy_is_the_lower_of_both_bars(lab):
    """80 %, or 20 times chance where that is less (64 classes: 31 %)."""
    gates = {gate.name: gate for gate in PAPER.gates(SMOKE)}
    classes = lab.data(SMOKE.data.seen).num_classes
    assert classes >= 40
    assert gates["zero-shot accuracy on the seen classes"].threshold(lab) == pytest.approx(min(0.8, 20 / classes))
    chance = 1 / lab.data("scenes:shape").num_classes
    assert gates["zero-shot accuracy on shape"].threshold(lab) == pytest.approx(chance + SMOKE.gates.zero_shot_margin)


def test_costs(lab):
    config = replace(SMOKE, tuning=replace(SMOKE.tuning, batch=16), sweeps=replace(SMOKE.sweeps, cost_steps=3))
    visual = base(config).open(lab).visual
    before = {k: v.clone() for k, v in visual.state_dict().items()}

    def cost(name: str, quantity: str) -> np.ndarray:
        return UpdateCost(methods(config)[name], quantity, 3).make(lab).values

    kept = {name: float(cost(name, "megabytes")[0]) for name in ("ft_clean", "tecoa", "pmg_aft")}
    seconds = cost("tecoa", "seconds")
    assert seconds.shape == (3,)
    assert (seconds > 0).all()
    assert all(torch.equal(v, before[k]) for k, v in visual.state_dict().items())  # measured on a copy
    assert kept["pmg_aft"] == pytest.approx(2 * kept["tecoa"], rel=0.35)  # twice the pictures are in its backward pass
    assert kept["ft_clean"] == pytest.approx(kept["tecoa"], rel=0.35)


# -- mistakes ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "said"), [
    (replace(CPU, seeds=()), "--seeds"), (replace(CPU, seeds=(1, 1)), "--seeds"),
    (with_attack(CPU, multiples=(1, 40)), "--attack.multiples")], ids=lambda x: x if isinstance(x, str) else "")  # fmt: skip
def test_numbers_that_cannot_work_are_named(config, said):
    with pytest.raises(UserError, match=said):
        check(config)


# -- how settings are chosen ------------------------------------------------------------------------------------------------------------


def test_every_method_has_as_many_candidates_and_the_preset_is_one_of_them():
    for c in (CPU, PRESETS["photos"]):
        made = {name: steps.choice(c, name) for name in CHOSEN}
        for name, choice in made.items():
            preset = c.fare.lr if name == "fare" else c.tuning.lr
            assert [x.tuning.given.lr for x in choice.candidates] == [preset * m for m in c.choosing.multiples]
            assert {x.seed for x in choice.candidates} == {c.seeds[0]}
            assert {choice.rule.data.split, *(x.data.split for x in choice.candidates)} <= {
                "validation",
                "fit",
                "train",
            }
            assert choice.rule.data.spec == c.data.train
    assert {x.data.split for x in made["pmg_aft"].candidates} == {
        "fit"
    }  # whose validation pictures are of the training's


def test_rows_that_vary_one_thing_have_the_rate_of_the_row_they_vary():
    rows = methods(CPU, seed=2)
    assert {name: rows[name].tuning.choice for name in CHOSEN} == {name: steps.choice(CPU, name) for name in CHOSEN}
    assert rows["pmg_released_april"].tuning.choice == rows["pmg_released"].tuning.choice
    assert rows["tecoa_on_colour_shape"].tuning.choice == rows["tecoa"].tuning.choice
    assert (
        rows["pmg_general"].tuning.choice
        == rows["pmg_last2"].tuning.choice
        == rows[SWEPT(4, 4)].tuning.choice
        == rows["pmg_aft"].tuning.choice
    )
    one = steps.choice(PRESETS["paper"], "pmg_aft").candidates  # nothing to choose: it is what the row would be
    assert [(x.data.split, x.tuning.given) for x in one] == [("train", PRESETS["paper"].tuning)]


def test_the_seed_that_chose_keeps_the_candidate_and_others_train_with_its_rate(lab):
    c = replace(ZOO, seeds=(0, 1), choosing=Choosing((1.0, 8.0), n=16))
    first, second = methods(c)["tecoa"], methods(c, 1)["tecoa"]
    lab.make([first, second])
    best = first.tuning.choice.settle(lab)
    assert all(map(torch.equal, lab.weights(first).values(), lab.weights(best).values()))
    assert set(first.parts) == {"", "step1"}  # of the curve
    assert all(map(torch.equal, lab.weights(first, "step1").values(), lab.weights(best, "step1").values()))
    alone = replace(second, tuning=best.tuning).make(lab)
    assert all(torch.equal(w, alone[name]) for name, w in lab.weights(second).items())


def test_a_candidate_that_diverges_scores_nothing_and_a_method_that_does_is_an_error(lab, monkeypatch):
    def diverge(*args, **kwargs):
        raise Diverged("the loss became nan")

    choice = steps.choice(replace(ZOO, choosing=Choosing((1.0, 9.0), n=16)), "ft_adv")
    monkeypatch.setattr(steps, "finetune", diverge)
    lab.make([choice])
    assert not lab.weights(choice)["scores"].any()
    with pytest.raises(Diverged):
        replace(choice.candidates[0], candidate=False).make(lab)
