"""From training to the page at SCALE=smoke: what is there is not made again, what was killed continues to the same numbers, two are as one."""

import importlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from shared.errors import UserError
from shared.experiment.store import Store
from shared.files import sha256_file
from shared.report import manifest
from tests.papers import ends
from tests.papers.ends import check_second_run, everything_measured, one_sentence, stamps

ROOT = Path(__file__).resolve().parents[3]
# Smaller than smoke itself: one seed, one set beside the seen one.
SMALL = (
    "--choosing.multiples",
    1,
    "--scale",
    "smoke",
    "--model.pretrained",
    "random",
    "--seeds",
    0,
    "--data.zero-shot",
    "scenes:shape",
    "--data.holdout",
    "--data.n",
    8,
    "--attack.multiples",
    1,
    2,
    "--attack.steps",
    2,
)


assert_equal = partial(ends.assert_equal, exact=True)


def folder(results: Path) -> Path:
    return results / "smoke" / "pmg_aft"


def whole(where: Path, pattern: str) -> list[Path]:
    """Files that are not the unfinished ones of a process that was killed."""
    return [p for p in where.glob(pattern) if not p.name.startswith(".")]


def weights(results: Path) -> dict[str, str]:
    return {p.name: sha256_file(p) for p in whole(folder(results) / "checkpoints", "*.safetensors")}


def test_everything_planned_is_there(reference, measured):
    store = everything_measured(folder(reference))
    found = store.planned()
    assert {m.slug for m in found} == measured(reference).keys()
    assert {m.tags["kind"] for m in found} == {"accuracy", "curve", "test_batch", "cost", "gate", "choice"}
    for m in found:
        assert (m.sanity is not None) == (m.tags["kind"] == "accuracy" and m.tags["attack"] != "clean")
    assert [g for g in store.gates() if g["name"].startswith("zero-shot accuracy")]


def test_a_second_run_makes_nothing_and_says_so(reference, script):
    out = check_second_run(script, reference, 10, *SMALL)
    total, there = re.search(r"(\d+) runs, (\d+) already there", out).groups()
    assert total == there and int(total) > 10


def test_one_changed_number_measures_only_what_depends_on_it(copy, script, measured):
    before, old = stamps(copy, ".npz", ".safetensors"), measured(copy)
    changed = (*SMALL, "--attack.kappa", 3, "--results", copy)
    assert re.search(r"(\d+) runs, \1 already there", script("train", *changed).out)
    outcome = script("evaluate", *changed)
    assert outcome.code == 0
    after, new = stamps(copy, ".npz", ".safetensors"), measured(copy)
    of_cw = {m.slug for m in Store(folder(copy)).planned() if m.tags.get("attack") == "cw"}
    assert {slug for slug in new if new[slug][0] != old[slug][0]} == of_cw
    assert {Path(name).stem.rpartition("-")[0] for name in after.keys() - before.keys()} == of_cw
    assert before.items() <= after.items()  # of the setting before, everything stays
    assert f"{len(old)} measurements, {len(old) - len(of_cw)} already there" in outcome.out


def test_damage_is_mended(copy, script, measured, reference):
    """A trained model and two measurements that a full disk or a careless hand has spoilt."""
    spoilt = whole(folder(copy) / "checkpoints", "pmg_clean__seed0*.safetensors")[0]
    spoilt.write_bytes(spoilt.read_bytes()[:5000])
    found = sorted((folder(copy) / "measurements").glob("*tecoa*shape*"))
    found[0].write_bytes(b"{")
    next(p for p in reversed(found) if p.suffix == ".npz").write_bytes(b"PK")
    stopped = script("evaluate", *SMALL, "--results", copy)
    assert stopped.code == 2
    assert re.fullmatch(
        r"note: .*pmg_clean__seed0.* will be made again\.\nerror: .*pmg_clean__seed0.*run the training.*\n", stopped.err
    )
    trained = script("train", *SMALL, "--results", copy)
    total, there = re.search(r"(\d+) runs, (\d+) already there", trained.out).groups()
    assert int(there) == int(total) - 1
    assert weights(copy) == weights(reference)
    assert script("evaluate", *SMALL, "--results", copy).code == 0
    assert_equal(measured(reference), measured(copy))


def test_the_headline_comes_first_and_the_rest_continues_from_it(reference, script, measured, tmp_path):
    options = (*SMALL, "--results", tmp_path)
    assert "18 runs, 0 already there" in script("train", *options, "--headline").out
    assert script("evaluate", *options, "--headline").code == 0
    everything, part = measured(reference), measured(tmp_path)
    assert 10 < len(part) < len(everything) / 3
    assert_equal({slug: everything[slug] for slug in part}, part)
    assert weights(tmp_path).items() <= weights(reference).items()


def test_a_training_that_was_stopped_half_way_gives_the_same_weights(reference, script, tmp_path, monkeypatch):
    """Interrupted after the checkpoint of an unfinished fine-tuning was written, and continued from it."""
    from shared.training import loop

    options, save, stopped = (*SMALL, "--headline", "--tuning.every", 1, "--results", tmp_path), loop.Fit._save, []

    def save_and_stop(self, step):
        save(self, step)
        if step == 2 and not stopped:
            stopped.append(self.name)
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.Fit, "_save", save_and_stop)
    outcome = script("train", *options)
    assert outcome.code == 130
    assert "run the same command again to continue" in outcome.err
    assert [p.name.startswith(stopped[0]) for p in folder(tmp_path).rglob("*.ckpt")] == [True]
    restored, restore = [], loop.Fit._restore
    monkeypatch.setattr(loop.Fit, "_restore", lambda self: restored.append(restore(self)) or restored[-1])
    assert script("train", *options).code == 0
    assert restored == [2, *[0] * (len(restored) - 1)]
    assert weights(tmp_path).items() <= weights(reference).items()
    assert not list(folder(tmp_path).rglob("*.ckpt"))


@pytest.mark.slow
def test_killed_and_continued_is_as_if_nothing_had_happened(reference, nursery, measured, tmp_path):
    """kill -9 of the process group in the middle of training on two processes, continued on one, and of evaluation on two, continued on two."""
    options, results = (*SMALL, "--results", tmp_path), folder(tmp_path)

    def start(processes: int, name: str):
        return nursery.start(tmp_path / "log", processes, name, *options)

    first = start(2, "train")
    first.wait_until(lambda: len(whole(results / "checkpoints", "*.safetensors")) >= 4)
    first.kill_group()
    (results / "checkpoints" / ".x.safetensors.tmp-abc.safetensors").write_bytes(b"half a file")
    os.utime(results / "checkpoints" / ".x.safetensors.tmp-abc.safetensors", (0, 0))
    done = weights(tmp_path)
    assert 4 <= len(done) < len(weights(reference))
    assert done.items() <= weights(reference).items()  # whole, and those of one process
    assert int(re.findall(r"runs, (\d+) already there", start(1, "train").finish())[-1]) >= 2
    assert weights(tmp_path) == weights(reference)
    assert not list(results.rglob(".x.*"))  # what a process killed long ago left behind is cleared away

    second = start(2, "evaluate")
    second.wait_until(lambda: len(whole(results / "measurements", "*.json")) >= 40)
    second.kill_group()
    had = stamps(results / "measurements", ".json")
    assert 40 <= len(had) < len(measured(reference))
    log = start(2, "evaluate").finish()
    said = re.findall(r"measurements, (\d+) already there", log)
    assert [int(n) for n in said] == [0, len(had)]  # a JSON is written last: what had one was whole …
    assert had.items() <= stamps(results / "measurements", ".json").items()  # … and stays as it is
    assert_equal(measured(reference), measured(tmp_path))


def test_two_processes_are_as_one(reference, nursery, measured, tmp_path):
    """From the start, without an interruption; each does a part, also if one begins so late that the other could have finished something."""
    for name, late in (("train", 0), ("evaluate", 4)):
        log = nursery.start(tmp_path / f"{name}.log", 2, name, *SMALL, "--results", tmp_path, late=late).finish()
        assert {rank for rank in "01" if f" by process {rank})" in log} == {"0", "1"}
    assert weights(tmp_path) == weights(reference)
    assert_equal(measured(reference), measured(tmp_path))


@pytest.mark.slow
def test_killed_and_continued_by_the_launcher(reference, launched, measured, tmp_path):
    """As `make` starts it: the launcher in the killed group, its two scripts in groups of their own."""
    options, results = (*SMALL, "--results", tmp_path), folder(tmp_path)
    for name, place, pattern, enough in (
        ("train", "checkpoints", "*.safetensors", 4),
        ("evaluate", "measurements", "*.json", 30),
    ):
        started = launched(tmp_path / f"{name}.log", name, *options)
        started.wait_until(
            lambda place=place, pattern=pattern, enough=enough: len(whole(results / place, pattern)) >= enough
        )
        started.kill_group()
        launched(tmp_path / f"{name}.log", name, *options).finish()
    assert weights(tmp_path) == weights(reference)
    assert_equal(measured(reference), measured(tmp_path))


@pytest.mark.slow
def test_runs_that_joined_share_the_work_and_one_outlives_the_other(reference, nursery, measured, tmp_path):
    """Two launchers of two processes each, as two nodes have them; one is killed in the middle."""
    logs = []
    for name, place, pattern, enough in (
        ("train", "checkpoints", "*.safetensors", 4),
        ("evaluate", "measurements", "*.json", 30),
    ):
        logs += [tmp_path / f"{name}-{node}.log" for node in range(2)]
        killed, other = (nursery.start(log, 2, name, *SMALL, "--join", "--results", tmp_path) for log in logs[-2:])
        killed.wait_until(
            lambda place=place, pattern=pattern, enough=enough: len(whole(folder(tmp_path) / place, pattern)) >= enough
        )
        killed.kill_group()
        other.finish()
    assert weights(tmp_path) == weights(reference)
    assert_equal(measured(reference), measured(tmp_path))
    made = re.findall(r"^training: (\S+) \(", "".join(log.read_text() for log in logs), re.M)
    assert len(made) == len(set(made)) > 4  # what was finished was not made again
    assert all("training: " in log.read_text() for log in logs[:2])


# -- the page ---------------------------------------------------------------------------------------------------------------------------------


NO_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "open_clip", "transformers", "accelerate"):
            raise ImportError(f"a page is drawn without {name}")

sys.meta_path.insert(0, Refuse())
"""


@pytest.fixture(scope="module")
def page(reference, tmp_path_factory):
    """(results, what was printed): the page of the reference run, made by processes that cannot load a model, where there is none."""
    root = tmp_path_factory.mktemp("page")
    results = Path(shutil.copytree(reference, root / "results", ignore=shutil.ignore_patterns("checkpoints")))
    (root / "sitecustomize.py").write_text(NO_TORCH)
    command = [sys.executable, "-m", "shared.report.page", "pmg_aft", "--scale", "smoke", "--results", str(results)]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return results, done.stdout


def test_the_page_is_drawn_from_measurements_alone(page):
    results, said = page
    html = (folder(results) / "page.html").read_text()
    assert "<h2" in html
    assert "not measured" not in html
    assert "no verdict (smoke)" in html
    assert html.index("Claims") < html.index("Main comparison")
    assert "src='http" not in html and 'src="http' not in html
    assert str(folder(results) / "page.html") in said
    from shared.claims.claims import load

    for claim in load(ROOT / "papers/pmg_aft/claims.yaml").claims:
        assert claim.id in html or claim.text.split(",")[0] in html


def check_records(figures: Path) -> int:
    """Every file is in the folder's record, which fits it and names a producer that exists; returns how many files there are."""
    record = manifest.read(figures)
    files = {p.name: sha256_file(p) for p in figures.iterdir() if p.is_file() and p.name != manifest.NAME}
    assert files == {name: sha for output in record["outputs"].values() for name, sha in output["files"].items()}
    assert record["command"].startswith("make figures-pmg_aft")
    for first, output in record["outputs"].items():
        module, *rest = output["producer"].split(".")
        while not rest[0][0].isupper() and (ROOT / module.replace(".", "/")).is_dir():
            module = f"{module}.{rest.pop(0)}"
        producer = importlib.import_module(module)
        for name in rest:
            producer = getattr(producer, name)
        assert callable(producer)
        assert output["measurements"] or first.startswith("claims")
    return len(files)


def test_every_file_has_a_record_and_a_producer(page):
    results, _ = page
    figures = folder(results) / "figures"
    assert check_records(figures) > 40
    calls = (re.findall(r'report\.(table|figure)\("(\w+)"', "".join(cell["source"])) for cell in
             json.loads((ROOT / "papers/pmg_aft/notebook.ipynb").read_text())["cells"])  # fmt: skip
    expected = {f"{stem}.{suffix}" for found in calls for kind, stem in found
                for suffix in (("md", "tex", "csv") if kind == "table" else ("pdf", "png"))}  # fmt: skip
    assert {p.name for p in figures.iterdir() if p.suffix != ".json"} == expected | {"claims.md", "claims_headline.md"}


# -- mistakes ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_an_unknown_option_or_value_is_named(script, tmp_path, name):
    for options, said in ((("--attack.epsilon", "2/255"), "--attack.epsilon"), (("--attack.eps", "two"), "'two'")):
        outcome = script(name, *SMALL, "--results", tmp_path, *options)
        assert outcome.code == 2
        assert said in outcome.err + outcome.out
    one_sentence(script(name, "--scale", "tiny"), "'tiny'", "smoke, cpu, photos, evening, paper")
    one_sentence(script(name, *SMALL, "--results", tmp_path, "--attack.eps", 2), "--attack.eps is 2", "at most 1")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_photographs_need_their_folder(script, tmp_path, name):
    one_sentence(script(name, "--scale", "photos", "--results", tmp_path), "DATA_ROOT")
    missing = tmp_path / "nowhere"
    one_sentence(script(name, "--scale", "photos", "--results", tmp_path, "--data-root", missing), str(missing))


@pytest.mark.parametrize("kind", ["missing", "truncated", "tampered", "pickle", "other model"])
def test_a_bad_checkpoint_is_refused(script, tmp_path, reference, kind):
    import torch

    from shared.models import zoo

    path, content = tmp_path / "weights.safetensors", zoo.weights("scenes-vit-s8").read_bytes()
    if kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "tampered":
        path.write_bytes(content[:8] + b"[" + content[9:])
    elif kind == "pickle":
        path = tmp_path / "weights.pt"
        path.write_bytes(pickle.dumps({"state_dict": Harm()}))
    elif kind == "other model":
        path = tmp_path / "weights.pt"
        torch.save({"state_dict": {"visual.proj": torch.zeros(3, 3)}}, path)
    outcome = script("train", *SMALL, "--results", tmp_path / "results", "--model.pretrained", path)
    one_sentence(outcome, str(path))
    assert not (tmp_path / "harmed").exists()


class Harm:
    """A pickle that would run a command when it is read."""

    def __reduce__(self):
        return os.system, ("touch harmed",)


def test_models_that_were_not_trained_are_named(script, tmp_path):
    one_sentence(script("evaluate", *SMALL, "--results", tmp_path), "the training of", "run the training")
    assert not (tmp_path / "smoke" / "pmg_aft" / "plan.json").exists()  # nothing is promised that cannot be measured


def test_an_unknown_zoo_model_is_named(script, tmp_path):
    one_sentence(
        script("train", *SMALL, "--results", tmp_path, "--model.pretrained", "zoo:nothing"),
        "'nothing'",
        "scenes-vit-s8",
    )


def test_an_unknown_parameter_of_the_notebook_is_refused(reference):
    from shared.report import page

    with pytest.raises(UserError, match=r"colour is no parameter of notebook.ipynb; it can set"):
        page.main(["pmg_aft", "--scale", "smoke", "--results", str(reference), "--set", "colour=red"])
    assert not (folder(reference) / "page.html").exists()


def test_a_page_without_measurements_names_the_command(tmp_path):
    from shared.report import page

    with pytest.raises(UserError, match="make reproduce-pmg_aft SCALE=smoke"):
        page.main(["pmg_aft", "--scale", "smoke", "--results", str(tmp_path)])
