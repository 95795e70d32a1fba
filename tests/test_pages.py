"""The pages in a real browser (`make test-pages`): all five papers with made-up numbers, the overview, and the judge's
two, at three widths, light and dark, and as they are printed."""

import importlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from shared.experiment.store import Store, gate
from shared.judge.__main__ import run as judge
from shared.report import overview, page
from tests.papers.test_contract import PAPERS, made_up

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCRIPT = Path(__file__).with_name("pages.cjs")
PRINTED = {"background": "rgb(255, 255, 255)", "form": False, "contents": False, "over": False}
LETTERS = 20  # that a column of sentences has room for


def there() -> bool:
    """Whether there is a browser, and what drives it (NODE_PATH says where)."""
    asked = ["node", "-e", "require('playwright-core'); require('axe-core')"]
    return bool(BROWSER and shutil.which("node")) and subprocess.run(asked, capture_output=True).returncode == 0


def draw(name: str, results: Path) -> Path:
    """The page of a paper with made-up numbers, from a store and by the notebook, as after a run."""
    paper = importlib.import_module(f"papers.{name}.paper").PAPER
    plan = paper.plan(paper.presets["cpu"])
    made = made_up(paper, "cpu", plan)
    store = Store(results / "cpu" / name)
    for m in made.measurements:
        store.save(m)
    steps = {n.name: f"{type(n.step).__module__}.{type(n.step).__qualname__}" for n in plan}
    keys, asked = {m.slug: m.key for m in made.measurements}, {n.name: list(n.asked) for n in plan}
    store.write_plan(
        {"paper": name, "config": made.config, "keys": keys, "tags": made.planned, "asked": asked, "steps": steps}
    )
    store.write_gates([gate("the base model recognises what it sees", 0.9, 0.8, ">=", "top-1 of the undefended model")])
    page.main([name, "--scale", "cpu", "--results", str(results)])
    return results / "cpu" / name / "page.html"


@pytest.fixture(scope="module")
def looks(tmp_path_factory) -> dict[str, list[dict]]:
    """Page -> what the browser found at each width."""
    if not there():
        pytest.skip("no browser")
    results = tmp_path_factory.mktemp("results")
    pages = [draw(name, results) for name in PAPERS]
    overview.main(["--scale", "cpu", "--results", str(results)])
    few = ("--n", "8", "--part", "8", "--steps", "2", "--queries", "2", "--targets", "1", "--sanity-n", "4")
    for name, defence in (("bare", "none"), ("blurred", "blur:1")):
        judge(["judge", *few, "--defence", defence, "--out", str(results / name)])
    judge(["compare", str(results / "bare"), str(results / "blurred"), "--out", str(results / "compared")])
    return look([*pages, *(results / name / "page.html" for name in ("cpu/overview", "blurred", "compared"))])


def look(pages: list[Path], shots: Path | str = "") -> dict[str, list[dict]]:
    """What pages.cjs finds; with pictures of the screen in `shots`."""
    command = ["node", str(SCRIPT), BROWSER, str(shots), *map(str, pages)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


pytestmark = pytest.mark.slow


def test_nothing_is_wider_than_the_screen(looks):
    assert {(name, one["screen"]) for name, seen in looks.items() for one in seen if one["over"]} == set()


def test_sentences_have_room(looks):
    narrow = [
        (n, one["screen"], cell)
        for n, seen in looks.items()
        for one in seen
        for cell in one["narrow"]
        if cell["room"] < LETTERS
    ]
    assert narrow == []


def test_the_contents_lead_to_every_part(looks):
    counted = {(n, one["contents"], one["parts"]) for n, seen in looks.items() for one in seen}
    assert {found for found in counted if not found[1] == found[2] > 0} == set()


def test_it_prints_black_on_white_and_whole(looks):
    assert [(n, seen[-1]["print"]) for n, seen in looks.items() if seen[-1]["print"] != PRINTED] == []


def test_axe_finds_nothing_serious(looks):
    assert [(n, one["screen"], found) for n, seen in looks.items() for one in seen for found in one["axe"]] == []


def test_pictures_are_larger_by_whole_numbers(looks):
    factors = [factor for seen in looks.values() for one in seen for factor in one["zoomed"]]
    assert factors and all(factor >= 1 and factor == int(factor) for factor in factors)


def test_the_filter_counts(looks):
    assert all(one["filtered"] in (None, True) for seen in looks.values() for one in seen)
    assert any(one["filtered"] for seen in looks.values() for one in seen)


def test_no_link_is_dead(looks):
    dead = []
    for name, seen in looks.items():
        for link in seen[0]["links"]:
            to = urlsplit(link)
            if to.scheme == "https":
                assert to.netloc == "arxiv.org", link
                continue
            file = Path(name).parent / unquote(to.path) if to.path else Path(name)
            if not file.exists() or (
                to.fragment and not re.search(f"id=[\"']{re.escape(unquote(to.fragment))}[\"']", file.read_text())
            ):
                dead.append((name, link))
    assert dead == []
