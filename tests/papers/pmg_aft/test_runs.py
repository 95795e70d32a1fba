"""The experiment as data: which models are trained, what is measured, under which keys, and that claims, tables and notebook fit it."""

import ast
import json
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import pytest
from papers.pmg_aft.cells import CLIP, cells
from papers.pmg_aft.runs import AS_RELEASED, HEADLINE, MAIN, runs, sweep_name

from papers.pmg_aft import tables
from papers.pmg_aft.config import PRESETS, Attack, Config, check
from papers.pmg_aft.method import PMGLoss
from shared.errors import UserError
from shared.experiment.claims import load
from shared.experiment.selection import matches

PAPER = Path(tables.__file__).parent
CLAIMS = load(PAPER / "claims.yaml")
SCALES = ("smoke", "cpu", "photos", "paper")


def keys(config: Config, base: str = "base", data: str = "data") -> dict[str, str]:
    return {run.slug: run.key(config, base, f"{data} {run.train}") for run in runs(config)}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert before.keys() == after.keys()
    return {slug for slug in before if before[slug] != after[slug]}


def having(config: Config, wanted) -> set[str]:
    return {run.slug for run in runs(config) if wanted(run)}


def with_attack(config: Config, **changes) -> Config:
    return replace(config, attack=replace(config.attack, **changes))


# -- runs ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
def test_every_run_has_a_name_of_its_own(scale):
    everything = runs(PRESETS[scale])
    assert max(Counter(r.slug for r in everything).values()) == 1
    assert max(Counter(r.checkpoint(PRESETS[scale], scale) for r in everything).values()) == 1
    assert max(Counter(keys(PRESETS[scale]).values()).values()) == 1  # and none is trained twice under two names


@pytest.mark.parametrize("scale", SCALES)
def test_every_method_is_trained_on_every_seed(scale):
    config = PRESETS[scale]
    seeds = {name: {r.seed for r in runs(config) if r.name == name} for name in (*MAIN, "pmg_general", "pmg_clean", "pmg_released")}
    assert all(found == set(config.seeds) for found in seeds.values())
    for name in ("pmg_released_april", "pmg_adversarial_first", "pmg_detached"):
        assert {r.seed for r in runs(config) if r.name == name} == {config.seeds[0]}


def test_the_sweep_uses_the_main_runs_at_its_corners():
    config = replace(PRESETS["cpu"], sweeps=replace(PRESETS["cpu"].sweeps, alphas=(0.0, 0.5, 1.0), betas=(0.0, 1.0, 2.0)))
    by_slug = {r.slug: r for r in runs(config)}
    first = config.seeds[0]
    for a in config.sweeps.alphas:
        for b in config.sweeps.betas:
            run = by_slug[f"{sweep_name(a, b)}__seed{first}"]
            weights = (run.loss.alpha, run.loss.beta) if run.loss else (0.0, 0.0)
            assert weights == (a, b)
            assert run.loss in (None, PMGLoss(a, b))  # nothing but the weights differs
    assert (sweep_name(0, 0), sweep_name(1, 1), sweep_name(1, 0), sweep_name(0, 1)) == ("tecoa", "pmg_aft", "pmg_general", "pmg_clean")
    others = [r for r in by_slug.values() if r.name.startswith("pmg_a") and r.name[5].isdigit()]
    assert len(others) == 9 - 4


def test_what_each_run_is():
    config = PRESETS["cpu"]
    run = {r.name: r for r in runs(config) if r.seed == config.seeds[0]}
    assert run["pmg_aft"].loss == PMGLoss(1.0, 1.0, "target_first", "batchmean", False)
    assert run["pmg_released"].loss == PMGLoss(1.0, 1.0, "target_first", "sum", False)
    assert run["pmg_released_april"].loss == PMGLoss(1.0, 1.0, "adversarial_first", "sum", False)
    assert run["pmg_adversarial_first"].loss == PMGLoss(direction="adversarial_first")
    assert run["pmg_detached"].loss == PMGLoss(detach_clean=True)
    for name in ("pmg_released", "pmg_released_april"):
        face = run[name].face
        assert (face.name, face.temperature, face.norm, face.attack.autocast) == ("as_released", "one", "imagenet", "fp16")
    assert all(r.face.name == "as_written" for r in run.values() if "released" not in r.name)
    assert run["fare"].tuning == config.fare
    assert run["tecoa"].tuning == config.tuning
    assert {r.train for r in run.values()} == {config.data.train, *config.data.other_train}
    for last in config.sweeps.last:
        assert run[f"pmg_last{last}"].tuning == replace(config.tuning, last=last)


def test_steps_of_the_training_attack_reach_every_face():
    config = with_attack(PRESETS["cpu"], train_steps=5)
    assert {r.face.attack.steps for r in runs(config)} == {5}
    assert AS_RELEASED.attack.steps == 2  # the constant is not changed by it


# -- keys of trainings -----------------------------------------------------------------------------------------------------------------------


CPU = PRESETS["cpu"]
ALL = set(keys(CPU))


@pytest.mark.parametrize("change", [
    lambda c: with_attack(c, eps=2 / 255), lambda c: with_attack(c, train_steps=3)], ids=["eps", "train_steps"])  # fmt: skip
def test_the_attack_is_in_the_key_of_adversarial_trainings_only(change):
    assert changed(keys(CPU), keys(change(CPU))) == having(CPU, lambda r: r.objective != "ft_clean")


@pytest.mark.parametrize("field", ["steps", "ratio", "kappa", "multiples", "auto_n", "auto_steps", "sanity_n", "strong_steps", "batch", "seed"])
def test_the_attacks_of_the_evaluation_train_nothing_again(field):
    values = {"ratio": 0.5, "kappa": 1.0, "multiples": (1, 3)}
    assert not changed(keys(CPU), keys(with_attack(CPU, **{field: values.get(field, 77)})))


@pytest.mark.parametrize("field", [f.name for f in fields(CPU.tuning)])
def test_every_number_of_the_recipe_is_in_the_key_but_those_that_change_no_weight(field):
    value = {"optimizer": "adamw", "last": 5}.get(field, 0.123 if isinstance(getattr(CPU.tuning, field), float) else 1234)
    after = changed(keys(CPU), keys(replace(CPU, tuning=replace(CPU.tuning, **{field: value}))))
    if field in ("every", "workers"):
        assert not after
    elif field == "last":
        assert after == having(CPU, lambda r: r.objective != "fare" and not r.name.startswith("pmg_last"))
    else:
        assert after == having(CPU, lambda r: r.objective != "fare")
        assert changed(keys(CPU), keys(replace(CPU, fare=replace(CPU.fare, **{field: "sgd" if field == "optimizer" else value})))) == having(
            CPU, lambda r: r.objective == "fare")  # fmt: skip


def test_model_and_pictures_are_in_every_key():
    assert changed(keys(CPU), keys(CPU, base="another model")) == ALL
    assert changed(keys(CPU), keys(CPU, data="other pictures")) == ALL


def test_seed_loss_and_face_are_in_the_key():
    run = next(r for r in runs(CPU) if r.name == "pmg_aft")
    variants = [run, replace(run, seed=9), replace(run, face=AS_RELEASED), replace(run, objective="fare")]
    variants += [replace(run, face=replace(run.face, norm="imagenet")), replace(run, face=replace(run.face, temperature="one"))]
    variants += [replace(run, face=replace(run.face, attack=replace(run.face.attack, **c))) for c in (
        {"reduction": "mean"}, {"autocast": "fp16"}, {"ratio": 2.0})]  # fmt: skip
    variants += [replace(run, loss=replace(run.loss, **c)) for c in (
        {"alpha": 2.0}, {"beta": 2.0}, {"direction": "adversarial_first"}, {"reduction": "sum"}, {"detach_clean": True})]  # fmt: skip
    assert len({v.key(CPU, "base", "data") for v in variants}) == len(variants)


def test_names_and_curves_are_not_in_the_key():
    """The same training under another name, or with snapshots kept on the way, has the same weights."""
    run = next(r for r in runs(CPU) if r.name == "pmg_aft")
    assert run.key(CPU, "b", "d") == replace(run, name="other", curve=not run.curve).key(CPU, "b", "d")


@pytest.mark.parametrize("seeds", [(0, 1, 2, 3), (2, 1, 0), (0,)])
def test_more_seeds_leave_the_others_alone(seeds):
    before, after = keys(CPU), keys(replace(CPU, seeds=seeds))
    assert all(before[slug] == after[slug] for slug in before.keys() & after.keys())
    assert {f"{name}__seed{s}" for name in MAIN for s in seeds} <= after.keys()


# -- measurements -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("headline", [False, True])
def test_every_measurement_has_a_name_of_its_own(scale, headline):
    config = replace(PRESETS[scale], headline=headline)
    everything = cells(config)
    assert max(Counter(c.slug() for c in everything).values()) == 1
    # what a table selects by tells them apart too
    assert max(Counter(json.dumps(c.tags(config), sort_keys=True) for c in everything).values()) == 1
    assert {c.run.slug for c in everything if c.run} == {r.slug for r in runs(config)}  # what is trained is measured, and the reverse


@pytest.mark.parametrize("scale", SCALES)
def test_the_headline_is_a_part_of_the_whole(scale):
    full, part = PRESETS[scale], replace(PRESETS[scale], headline=True)
    runs_full, runs_part = keys(full), keys(part)
    assert runs_part.items() <= runs_full.items()
    assert {s.rpartition("__")[0] for s in runs_part} == set(HEADLINE)
    assert {c.slug(): c for c in cells(part)}.items() <= {c.slug(): c for c in cells(full)}.items()
    curves = {r.slug: r.curve for r in runs(full)}
    assert all(r.curve == curves[r.slug] for r in runs(part))  # else the full run would train it again for its snapshots


@pytest.mark.parametrize("scale", SCALES)
def test_the_undefended_model_comes_first_and_on_every_set(scale):
    config = PRESETS[scale]
    first = cells(config)[: 2 * (1 + len(config.data.zero_shot) + len(config.data.holdout))]
    assert {c.method for c in first} == {CLIP}
    sets = {config.data.seen, *config.data.zero_shot, *config.data.holdout}
    assert {(c.spec, c.strength.name) for c in first} == {(s, a) for s in sets for a in ("clean", "pgd")}


def test_no_more_pictures_than_the_preset_allows():
    config = replace(CPU, data=replace(CPU.data, n=10), attack=replace(CPU.attack, auto_n=24))
    assert {c.n for c in cells(config) if c.kind == "accuracy"} == {10}
    everything = replace(CPU, attack=replace(CPU.attack, auto_n=0))
    assert {c.n for c in cells(everything) if c.strength and c.strength.name in ("auto", "pgd_paired")} == {CPU.data.n}


def test_a_set_is_not_zero_shot_for_a_model_that_was_tuned_on_it():
    tuned = [c for c in cells(CPU) if c.run and c.run.train in CPU.data.zero_shot and c.kind == "accuracy"]
    assert tuned
    assert all((c.role == "seen") == (c.spec == c.run.train or c.spec == CPU.data.seen) for c in tuned)


@pytest.fixture(scope="module")
def cell_keys():
    """slug -> key of every measurement of a configuration, without trained models: their identity is taken from the run's key."""
    import torch
    from papers.pmg_aft.measure import Measurer
    from papers.pmg_aft.models import Bench

    class Untrained(Measurer):
        def _model(self, cell):
            return "base" if cell.run is None or cell.step == 0 else f"{cell.run.key(self.config, 'base', cell.run.train)} {cell.step}"

    def call(config: Config) -> dict[str, str]:
        measurer = Untrained(Bench(config, "smoke", torch.device("cpu")))
        return {c.slug(): measurer.key(c) for c in cells(config)}

    return call


SMOKE = PRESETS["smoke"]


@pytest.mark.parametrize(("change", "where"), [
    ({"kappa": 3.0}, lambda c: c.strength and c.strength.kind == "cw"),
    ({"auto_steps": 7}, lambda c: c.strength and c.strength.kind == "auto"),
    ({"auto_queries": 7}, lambda c: c.strength and c.strength.kind == "auto"),
    ({"auto_n": 6}, lambda c: c.strength and c.strength.name in ("auto", "pgd_paired")),
    ({"sanity_n": 3}, lambda c: c.kind == "accuracy" and c.robust),
    ({"steps": 4}, lambda c: c.robust), ({"ratio": 0.5}, lambda c: c.robust), ({"seed": 1}, lambda c: c.robust),
    ({"strong_steps": 5}, lambda c: False), ({"batch": 5}, lambda c: False)], ids=lambda x: str(x) if isinstance(x, dict) else "")  # fmt: skip
def test_one_number_measures_only_what_depends_on_it_again(cell_keys, change, where):
    after = with_attack(SMOKE, **change)
    assert changed(cell_keys(SMOKE), cell_keys(after)) == {c.slug() for c in cells(SMOKE) if where(c)}


def test_eps_measures_everything_again_but_clean_accuracy_of_models_that_do_not_depend_on_it(cell_keys):
    after = changed(cell_keys(SMOKE), cell_keys(with_attack(SMOKE, eps=2 / 255)))
    same = {c.slug() for c in cells(SMOKE) if not c.robust and (c.run is None or c.run.objective == "ft_clean" or c.step == 0)}
    assert after == set(cell_keys(SMOKE)) - same


def test_seeds_and_orders_measure_nothing_again(cell_keys):
    before, after = cell_keys(SMOKE), cell_keys(replace(SMOKE, seeds=(1, 0, 2)))
    assert all(before[slug] == after[slug] for slug in before.keys() & after.keys())


def test_numbers_of_pictures_and_updates(cell_keys):
    before = cell_keys(SMOKE)
    fewer = changed(before, cell_keys(replace(SMOKE, data=replace(SMOKE.data, n=15))))
    assert fewer == {c.slug() for c in cells(SMOKE) if c.kind == "accuracy" and c.strength.name not in ("auto", "pgd_paired")}
    cost = changed(before, cell_keys(replace(SMOKE, sweeps=replace(SMOKE.sweeps, cost_steps=2))))
    assert cost == {c.slug() for c in cells(SMOKE) if c.kind == "cost"}


# -- claims, tables, notebook ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["cpu", "photos", "paper"])
@pytest.mark.parametrize("claim", CLAIMS.claims, ids=lambda c: c.id)
def test_every_claim_has_a_measurement_or_says_why_not(claim, scale):
    if scale not in claim.testable:
        assert claim.reason_against(scale)
        return
    config = replace(PRESETS[scale], headline=claim.headline)  # a headline claim must be covered by the headline alone
    planned = [c.tags(config) for c in cells(config)]
    sides = []
    for selector in claim.selectors:
        found = [t for t in planned if matches(selector, t)]
        assert found, selector
        places = Counter((t["set"], t["seed"]) for t in found)
        assert max(places.values()) == 1, f"{selector} fits several measurements of one set and seed"
        sides.append({t["set"] for t in found})
    assert all(side == sides[0] for side in sides)  # paired picture by picture
    if claim.headline:
        assert {t["seed"] for t in planned if matches(claim.selectors[0], t)} == set(config.seeds)
        assert len(config.seeds) >= 3
        assert CLAIMS.wants(next(t for t in planned if matches(claim.selectors[0], t)), headline=True)


def test_there_are_headline_claims():
    assert [c.value for c in CLAIMS.claims if c.headline] == [4.99, 8.72]


@pytest.mark.parametrize("table", CLAIMS.reference_tables, ids=lambda t: t.id)
def test_reference_tables_are_measured_at_the_scale_they_are_held_against(table):
    config = PRESETS["paper"]
    planned = [c.tags(config) for c in cells(config)]
    for claim in table.claims():
        assert any(matches(claim.quantity, t) for t in planned), claim.id


def test_the_mean_of_the_paper_is_over_15_sets():
    assert all(len(PRESETS[scale].data.zero_shot) == 15 for scale in ("paper",))
    assert len(CPU.data.zero_shot) >= 15
    assert CPU.data.train not in CPU.data.zero_shot


def notebook() -> dict:
    return json.loads((PAPER / "notebook.ipynb").read_text())


def code(cell: dict) -> str:
    return "".join(cell["source"])


def test_every_table_and_figure_is_in_the_notebook():
    tree = ast.parse((PAPER / "tables.py").read_text())
    public = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")}
    used = [node.attr for cell in notebook()["cells"] if cell["cell_type"] == "code" for node in ast.walk(ast.parse(code(cell)))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tables"]  # fmt: skip
    assert sorted(used) == sorted(public)


def test_the_notebook_names_each_file_once_and_imports_no_model():
    sources = [code(cell) for cell in notebook()["cells"] if cell["cell_type"] == "code"]
    calls = [node for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    drawn = [c for c in calls if isinstance(c.func, ast.Attribute) and c.func.attr in ("table", "figure")]
    stems = [c.args[0].value for c in drawn]
    assert len(stems) == len(set(stems))
    assert all(("fig_" in c.args[1].attr) == (c.func.attr == "figure") for c in drawn)
    imported = {n.module for s in sources for n in ast.walk(ast.parse(s)) if isinstance(n, ast.ImportFrom)}
    assert imported == {"papers.pmg_aft", "shared.report"}
    assert not any(isinstance(n, ast.Import) for s in sources for n in ast.walk(ast.parse(s)))


def test_parameters_of_the_notebook_are_those_that_the_page_fills_in():
    cell = next(c for c in notebook()["cells"] if "parameters" in c["metadata"].get("tags", []))
    names = {node.targets[0].id for node in ast.parse(code(cell)).body}
    assert names == {"scale", "results", "figures"}
    assert not any(c.get("outputs") for c in notebook()["cells"])  # results live in the page, not in the repository's notebook


# -- mistakes ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
def test_presets_pass_their_own_check(scale):
    check(PRESETS[scale])


@pytest.mark.parametrize(("config", "said"), [
    (replace(CPU, seeds=()), "--seeds"), (replace(CPU, seeds=(1, 1)), "--seeds"), (with_attack(CPU, eps=8.0), "--attack.eps"),
    (with_attack(CPU, eps=0.0), "--attack.eps"), (with_attack(CPU, auto_n=-1), "--attack.auto-n"), (with_attack(CPU, steps=0), "--attack.steps"),
    (with_attack(CPU, batch=0), "--attack.batch"), (replace(CPU, data=replace(CPU.data, n=-2)), "--data.n"),
    (replace(CPU, tuning=replace(CPU.tuning, steps=0)), "--tuning.steps")], ids=lambda x: x if isinstance(x, str) else "")  # fmt: skip
def test_numbers_that_cannot_work_are_named(config, said):
    with pytest.raises(UserError, match=said):
        check(config)


def test_the_papers_own_numbers():
    """Facts §3: PGD-2 with ε = step = 1/255, SGD with momentum 0.9 and no decay, 10 epochs of 391 updates, warm-up of 1,000; PGD-10 in evaluation."""
    config, tuning = PRESETS["paper"], PRESETS["paper"].tuning
    assert (config.attack.eps, config.attack.train_steps, config.attack.steps, config.attack.ratio) == (1 / 255, 2, 10, 1.0)
    assert (tuning.steps, tuning.batch, tuning.warmup, tuning.lr) == (3910, 256, 1000, 5e-5)
    assert (tuning.optimizer, tuning.momentum, tuning.weight_decay, tuning.last) == ("sgd", 0.9, 0.0, -1)
    assert (config.model.name, config.model.pretrained) == ("ViT-B-32-quickgelu", "openai")
    assert config.attack.kappa == Attack().kappa == 50.0
    assert (config.attack.long_steps, config.attack.auto_steps) == (100, 100)
