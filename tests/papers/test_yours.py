"""A row of the user's own (docs/yours.md): the examples of that page in every paper, and what bad input gets."""

import importlib
import json
import random
import re
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from shared.claims.claims import load
from shared.claims.selection import matches
from shared.data.catalogue import Source
from shared.errors import UserError
from shared.experiment.lab import Lab
from shared.experiment.paper import Paper
from shared.experiment.status import status
from shared.experiment.step import Kept, closure, parts
from shared.processes import accelerator
from shared.report.data import Results
from shared.report.record import complaint
from shared.report.shown import YOURS
from shared.rng import SampleRng
from shared.steps.choice import Settings
from shared.steps.yours import Code, Shield
from tests.papers.ends import load as load_file
from tests.papers.test_contract import made_up

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = {
    "diffcap": "NoisyBlur",
    "distshift": "NoisyBlur",
    "rvpt": "ShortTuning",
    "pmg_aft": "SmoothedTeCoA",
    "roclip": "HardNegatives",
}
PLAIN = {"classes", "first", "clean", "pretrain", "t1"}  # the main table of each paper
ADAPTIVE = {"adaptive", "fig_adaptive", "adaptive_captions"}


def module(folder: Path, name: str, text: str) -> str:
    """A module of the user's own; returns its name."""
    (folder / f"{name}.py").write_text(text)
    return name


@pytest.fixture(scope="module", autouse=True)
def mine(tmp_path_factory):
    """`my_module`: the code of docs/yours.md, block after block."""
    folder = tmp_path_factory.mktemp("mine")
    blocks = re.findall(r"```python\n# my_module.py\n(.*?)```", (ROOT / "docs" / "yours.md").read_text(), re.S)
    assert len(blocks) == len(set(EXAMPLES.values()))
    module(folder, "my_module", "\n".join(blocks))
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(params=EXAMPLES)
def paper(request) -> Paper:
    return importlib.import_module(f"papers.{request.param}.paper").PAPER


@cache
def plans(name: str) -> tuple[object, list, list]:
    """(configuration, the plan without, the plan with a row of one's own), smoke."""
    found = importlib.import_module(f"papers.{name}.paper").PAPER
    config = replace(found.presets["smoke"], yours=f"my_module:{EXAMPLES[name]}")
    return config, found.plan(found.presets["smoke"]), found.plan(config)


def own(plan: list) -> list:
    return [n for n in plan if str(n.tags["method"]).startswith(YOURS)]


def lab_of(config: object, folder: Path) -> Lab:
    return Lab(folder, Source(), accelerator())


def test_nothing_else_changes(paper):
    config, without, plan = plans(paper.name)
    mine = {n.name for n in own(plan)}
    assert mine and not own(without)
    assert {n.name: n.step for n in without} == {n.name: n.step for n in plan if n.name not in mine}
    assert own(paper.plan(replace(config, headline=True)))
    selectors = [s for claim in load(ROOT / "papers" / paper.name / "claims.yaml").claims for s in claim.selectors]
    assert not any(matches(s, n.tags) for n in own(plan) for s in selectors)


def test_it_is_in_every_table_and_figure(paper):
    config, _, plan = plans(paper.name)
    label = f"yours: {EXAMPLES[paper.name]}"
    results = made_up(paper, "smoke", plan)
    results.config["yours"] = config.yours
    names = {n.name for n in own(plan)}
    seen = set()
    for name, f in paper.shown().items():
        wanted = {n.name for n in paper.numbers(config, f.grids(config))} & names
        if f.grids is f or not wanted or any(grid.apart for grid in f.grids(config)):
            continue
        with results.tracking() as used:
            drawn = f(results)
        seen.add(name)
        assert wanted <= set(used), name
        assert name.startswith("fig_") or any(label in row for row, _ in drawn.rows), name
    assert len(seen) > 5 and PLAIN & seen
    assert ADAPTIVE & seen or paper.name in ("pmg_aft", "roclip")
    assert any(name.startswith("fig_") for name in seen)


def test_the_look_lets_the_examples_pass_and_their_source_counts(paper, tmp_path):
    config, _, plan = plans(paper.name)
    lab = lab_of(config, tmp_path)
    paper.yours(lab, config)
    code = next(part for n in own(plan) for part in parts(n.step) if isinstance(part, Code))
    assert all(any(part == code for part in parts(n.step)) for n in own(plan) if n.tags.get("step") != 0)
    before = code.identity(lab)
    text = "class A:\n    def __call__(self, x):\n        return x\n"
    folder = Path(sys.path[0])
    first, second = (
        Code(f"{module(folder, name, more)}:A") for name, more in (("one", text), ("two", text + "B = 1\n"))
    )
    third = Code(f"{module(folder, 'three', text.replace('return x', 'return 1 * x'))}:A")
    importlib.invalidate_caches()
    assert json.dumps(before)
    assert len({one.identity(lab) for one in (first, third)}) == 2
    assert second.load() is not None


def test_a_defence_is_the_same_again_and_has_a_gradient_or_the_identitys():
    def drawn(x):
        return (x + torch.randn_like(x)).clamp(0, 1).detach()

    shield, x, rng = Shield(drawn, True, None), torch.full((3, 3, 4, 4), 0.5), SampleRng(0, [4, 5, 6])
    before = torch.get_rng_state()
    assert torch.equal(shield(x, rng), shield(x, rng)) and not torch.equal(shield(x, rng), shield(x, rng.child("b")))
    assert torch.equal(torch.get_rng_state(), before)
    z = x.clone().requires_grad_()
    out = shield(z, rng)
    assert torch.equal(out.detach(), shield(x, rng))
    assert torch.equal(torch.autograd.grad(out.sum(), z)[0], torch.ones_like(z))
    for draw in (lambda x: x + float(np.random.rand()), lambda x: x + random.random()):
        assert torch.equal(Shield(draw, True, None)(x, rng), Shield(draw, True, None)(x, rng))
    changing, before = Shield(lambda x: x.mul_(0.5), False, None), x.clone()
    assert torch.autograd.grad(changing(z, rng).sum(), z)[0].eq(0.5).all()
    assert torch.equal(changing(x, rng), 0.5 * before) and torch.equal(x, before)
    exact = Shield(lambda x, rng: 0.5 * x, True, None)
    assert torch.autograd.grad(exact(z, rng).sum(), z)[0].eq(0.5).all()


def test_an_attacker_who_knows_the_defence(tmp_path):
    """One step of distshift's adaptive table."""
    config, _, plan = plans("distshift")
    lab = lab_of(config, tmp_path)
    wanted = {"kind": "adaptive", "method": YOURS, "against": "exact", "judged": "mean"}
    number = next(n for n in plan if matches(wanted, n.tags))
    lab.make(step for step in closure([number.step]) if isinstance(step, Kept))
    values = number.step.make(lab)
    assert values.sanity and ((values.values >= 0) & (values.values <= 1)).all()
    costs = [n for n in plan if matches({"kind": "cost", "method": YOURS}, n.tags)]
    lab.make(step for step in closure(n.step for n in costs) if isinstance(step, Kept))
    assert len(costs) == 2 and all((n.step.make(lab).values >= 0).all() for n in costs)


def test_teco_as_ones_own_objective_is_teco(tmp_path):
    """PMG-AFT: the same weights, bit for bit; TeCoA is a class as the user would bring."""
    found = importlib.import_module("papers.pmg_aft.paper").PAPER
    config = replace(found.presets["smoke"], yours="shared.training.adversarial:TeCoA")
    rows = importlib.import_module("papers.pmg_aft.steps").methods(config, 0)
    lab = lab_of(config, tmp_path)
    usual = rows["tecoa"].tuning.given  # nothing is chosen here
    towers = [replace(rows[name], tuning=Settings(usual)).run(lab, lambda *_: None) for name in ("tecoa", YOURS)]
    theirs, mine = (tower.state_dict() for tower in towers)
    assert all(torch.equal(value, mine[name]) for name, value in theirs.items())


def test_one_paper_from_end_to_end(tmp_path, capsys):
    """PMG-AFT's headline: measured, drawn, no record, and nothing of the others is made again without it."""
    small = load_file("papers/pmg_aft/test_end_to_end.py").SMALL
    options = (*small, "--headline", "--results", tmp_path)
    own_too = (*options, "--yours", "my_module:SmoothedTeCoA")
    script = load_file("papers/conftest.py")._run_here
    for name in ("train", "evaluate"):
        done = script("pmg_aft", name, *own_too)
        assert done.code == 0, done.err
    results = Results.load(tmp_path, "smoke", "pmg_aft")
    found = importlib.import_module("papers.pmg_aft.tables").clean(results)
    assert "yours: SmoothedTeCoA" in [row for row, _ in found.rows]
    assert "a row of your own (my_module:SmoothedTeCoA) is in it" in complaint("pmg_aft", "smoke", tmp_path)
    said = status("pmg_aft", [str(word) for word in own_too])
    assert "missing" not in said
    again = script("pmg_aft", "evaluate", *options)
    count = len([n for n in results.planned.values() if n["method"] != YOURS])
    assert f"evaluation: {count} measurements, {count} already there" in again.out
    assert not complaint("pmg_aft", "smoke", tmp_path).startswith("pmg_aft: a row of your own")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("diffcap", "import nothing_there", "cannot be imported"),
        ("distshift", "x = 1", "no class or function 'Mine'"),
        ("diffcap", "class Mine: pass", "neither __call__"),
        ("distshift", "class Mine:\n    def __call__(self, x): return x[..., 1:]", "size that came in"),
        ("diffcap", "class Mine:\n    def __call__(self, x): return x * 2", "keep them in"),
        ("distshift", "class Mine:\n    def __call__(self, x): return x / 0", "keep them in"),
        ("distshift", "class Mine:\n    def __call__(self, x, y, z): return x", "called as defence"),
        ("rvpt", "class Mine: pass", "no method tune"),
        ("rvpt", "class Mine:\n    def tune(self, victim): pass", "fails"),
        ("pmg_aft", "class Mine:\n    def loss(self, *a): pass", "no method attack_loss"),
        (
            "pmg_aft",
            "class Mine:\n    def attack_loss(self, *a): pass\n    def loss(self, v, x, x_adv, y): return v(x_adv)",
            "must be of shape ()",
        ),
        ("roclip", "class Mine:\n    def forward(self): pass", "no method loss"),
        ("roclip", "class Mine:\n    def loss(self, image, text, scale, epoch): return image", "must be a scalar"),
        ("roclip", "class Mine:\n    def loss(self, image, *a): return (image / 0).sum()", "not finite"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_runs(name, text, said, tmp_path, request):
    folder = Path(sys.path[0])
    wrong = module(folder, f"wrong{abs(hash(request.node.name))}", text)
    importlib.invalidate_caches()
    found = importlib.import_module(f"papers.{name}.paper").PAPER
    config = replace(found.presets["smoke"], yours=f"{wrong}:Mine")
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        found.yours(lab_of(config, tmp_path), config)
    assert "\n" not in str(caught.value)
