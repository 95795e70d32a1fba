"""A row of the user's own (docs/yours.md): the examples of that page in every paper, and what bad input gets."""

import importlib
import json
import re
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from shared.claims.claims import load
from shared.claims.selection import matches
from shared.data.catalogue import Source
from shared.errors import UserError
from shared.experiment.lab import Lab
from shared.experiment.paper import Paper
from shared.experiment.step import parts
from shared.processes import accelerator
from shared.report.shown import YOURS
from shared.steps.yours import Code
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
        if f.grids is f or not wanted:
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
    first, second = (Code(f"{module(folder, name, more)}:A") for name, more in (("one", text), ("two", text + "B = 1\n")))
    third = Code(f"{module(folder, 'three', text.replace('return x', 'return 1 * x'))}:A")
    importlib.invalidate_caches()
    assert json.dumps(before)
    assert len({one.identity(lab) for one in (first, third)}) == 2
    assert second.load() is not None


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
