"""The source that a class uses, and nothing else, decides what is the same code."""

import importlib
import subprocess
import sys
from types import ModuleType

import pytest

from shared.errors import UserError
from shared.experiment import source
from shared.experiment.leaves import Backbone, Pictures
from shared.steps.yours import Code

HELPER = "LEVELS = 8\n\ndef quantise(x):\n    return round(x * LEVELS) / LEVELS\n\ndef elsewhere(x):\n    return x\n"
OWN = '''
import own_helper
from own_helper import quantise

class Purifier:
    """Fewer grey levels."""

    def __call__(self, x):
        return quantise(x)

class Lazy:
    def __call__(self, x):
        from own_helper import quantise as fewer
        return fewer(x)

class Whole:
    def __call__(self, x):
        return own_helper.quantise(x)

class Apart:
    pass
'''


@pytest.fixture
def hashes(tmp_path, monkeypatch):
    """hashes(helper, own): class name -> hash, with these two files of the user's own."""
    monkeypatch.syspath_prepend(tmp_path)

    def call(helper: str = HELPER, own: str = OWN) -> dict[str, str]:
        for name, text in (("own_helper", helper), ("own_purifier", own)):
            (tmp_path / f"{name}.py").write_text(text)
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        source.of.cache_clear()
        source._read.clear()
        module = importlib.import_module("own_purifier")
        return {name: source.of(getattr(module, name)) for name in ("Purifier", "Lazy", "Whole", "Apart")}

    yield call
    for name in ("own_helper", "own_purifier"):
        sys.modules.pop(name, None)
    source.of.cache_clear()
    source._read.clear()


def test_a_change_in_what_is_used_counts_wherever_it_is_imported(hashes):
    before, after = hashes(), hashes(HELPER.replace("LEVELS = 8", "LEVELS = 3"))
    assert {name for name in before if before[name] != after[name]} == {"Purifier", "Lazy", "Whole"}


def test_a_change_in_the_class_counts_for_it_alone(hashes):
    before, after = hashes(), hashes(own=OWN.replace("return fewer(x)", "return fewer(x) + 1"))
    assert {name for name in before if before[name] != after[name]} == {"Lazy"}


def test_comments_docstrings_annotations_form_and_neighbours_do_not_count(hashes):
    before = hashes()
    helper = HELPER.replace("def quantise(x):", '# how many\ndef quantise( x : float ) -> float:\n    "Fewer."')
    helper = helper.replace("return x\n", "return 2 * x\n")
    assert hashes(helper, OWN.replace("Fewer grey levels.", "Three of them.") + "\nclass New:\n    pass\n") == before


@pytest.mark.parametrize(
    ("body", "used"),
    [
        ("elsewhere = x\n        return elsewhere", False),
        ("return [elsewhere for elsewhere in x]", False),
        ("return (lambda elsewhere: elsewhere)(x)", False),
        ("return [elsewhere(y) for y in x]", True),
        ("return [elsewhere for elsewhere in elsewhere(x)]", True),
        ("return (lambda y, elsewhere=elsewhere: elsewhere(y))(x)", True),
        ("global elsewhere\n        elsewhere = x\n        return elsewhere", True),
    ],
)
def test_a_variable_of_a_function_is_no_use_of_what_is_called_so(hashes, body, used):
    own = f"from own_helper import elsewhere\n{OWN}".replace("return quantise(x)", body)
    changed = HELPER.replace("return x\n", "return -x\n")
    assert (hashes(own=own)["Purifier"] != hashes(changed, own)["Purifier"]) == used


def test_the_hash_is_that_of_any_process():
    code = "from shared.experiment import source, leaves; print(source.of(leaves.Backbone), source.of(leaves.Pictures))"
    said = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=source.ROOT,
        env={"PYTHONHASHSEED": "7"},
    )
    assert said.stdout.split() == [source.of(Backbone), source.of(Pictures)]


def test_a_model_counts_with_its_blocks_and_without_what_passes_it_on():
    modules = {module for module, _ in source.used_by(Backbone)}
    assert {"shared.models.clip", "shared.models.blocks"} <= modules
    assert not [m for m in modules if m.startswith(("shared.report", "shared.experiment.lab", "shared.data.named"))]


def test_all_that_makes_an_object_counts_and_which_installed_name_is_meant(hashes, tmp_path):
    text = """
from functools import partial
from os.path import join as joined

net = [1]
net.append(2)
net = net * 2
net[0] = 5
try:
    def late(x):
        return net
except NameError:
    pass
fewer = lambda x: x
half = partial(joined, "a")
def calls(x):
    return joined(x)
"""
    hashes()
    names = ("net", "late", "fewer", "half", "calls")

    def identities(text: str) -> dict[str, object]:
        (tmp_path / "own_purifier.py").write_text(text)
        source.renew()
        importlib.import_module("own_purifier")
        return {name: source.whole(source.used("own_purifier", name)) for name in names}

    before = identities(text)
    changes = {
        "append(2)": ("append(3)", {"net", "late"}),
        "[0] = 5": ("[0] = 6", {"net", "late"}),
        "= [1]": ("= [2]", {"net", "late"}),
        "return net": ("return net * 1", {"late"}),
        "lambda x: x": ("lambda x: 2 * x", {"fewer"}),
        '"a"': ('"b"', {"half"}),
        "import join": ("import commonprefix", {"half", "calls"}),
    }
    for old, (new, counted) in changes.items():
        after = identities(text.replace(old, new))
        assert {name for name in names if before[name] != after[name]} == counted, new


def test_a_file_that_says_something_else_is_imported_anew(hashes, tmp_path):
    hashes()
    code, own = Code("own_helper:elsewhere"), Code("own_purifier:Purifier")
    before, whole = code.identity(None), own.identity(None)
    (tmp_path / "own_helper.py").write_text(HELPER.replace("return x\n", "return 7 * x\n").replace("= 8", "= 16"))
    source.renew()
    assert code.load()(2) == 14 and code.identity(None) != before and own.identity(None) != whole


def test_the_cells_of_a_notebook_are_its_source_and_a_prompt_has_none(monkeypatch):
    notebook = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", notebook)

    def run(*cells: str) -> object:
        notebook.In = [*cells]
        for cell in cells:
            exec(compile(cell, "cell", "exec"), vars(notebook))
        return Code("__main__:Blur").identity(None)

    text = "class Blur:\n    def __call__(self, x):\n        return x * k"
    first = run("k = 2", text)
    assert first == run("k = 2", text, "other = 1") != run("k = 3", text)
    notebook.In = ["!ls", *notebook.In]  # no Python
    assert Code("__main__:Blur").identity(None) == run("k = 3", text)
    del notebook.In
    with pytest.raises(UserError, match="its source is not found"):
        Code("__main__:Blur").identity(None)


def test_two_installed_names_are_two():
    assert Code("torch.nn:Identity").identity(None) != Code("torch.nn:Flatten").identity(None)
