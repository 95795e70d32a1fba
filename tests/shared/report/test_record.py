"""What is published as the record in figures/: finished runs of committed code, whole, and nothing else."""

import json
from pathlib import Path

import pytest

from shared.errors import UserError
from shared.experiment import scales
from shared.report import manifest, readme, record
from shared.report.data import Results


@pytest.fixture
def place(tmp_path, write, monkeypatch) -> Path:
    """A repository with one paper, `fake`, measured by committed code and drawn; its README shows a table."""
    root = tmp_path / "cpu" / "fake"
    write.measurements(root)
    results = Results.load(tmp_path, "cpu", "fake")
    for m in results.measurements:
        results_of(root).save(measured_by(m, modified=False))
    results = Results.load(tmp_path, "cpu", "fake")
    draw(root / "figures", results, "robust.md", "table of now\n")
    draw(tmp_path / "cpu" / "overview" / "figures", results, "verdicts.md", "verdicts of now\n")
    repository = tmp_path / "repository"
    (repository / "papers" / "fake").mkdir(parents=True)
    (repository / "papers" / "fake" / "train.py").touch()
    (repository / "README.md").write_text("<!-- from figures/fake/robust.md -->\nold\n<!-- end -->\n")
    for module in (record, readme):
        monkeypatch.setattr(module, "ROOT", repository)
    monkeypatch.setattr(record, "papers_with", lambda scale: scales.papers_with(scale, repository / "papers"))
    monkeypatch.setattr(record, "refuse_unreadable", lambda: scales.refuse_unreadable(repository / "papers"))
    return tmp_path


def results_of(root: Path):
    from shared.experiment.store import Store

    return Store(root)


def measured_by(m, modified: bool):
    from dataclasses import replace

    provenance = {**m.provenance, "modified": modified}
    return replace(m, provenance=provenance, given=m.values, given_extra=dict(m.extra), path=None)


def draw(folder: Path, results: Results, name: str, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    manifest.write([folder / name], manifest.origin(results, [m.slug for m in results.measurements], "here.table"))


def publish(place: Path, *options: str) -> None:
    record.main([*options, "--results", str(place)])


def test_a_finished_run_is_published_whole_and_shown(place, capsys):
    old = place / "repository" / "figures" / "fake"
    (old / "photos").mkdir(parents=True)
    (old / "photos" / "kept.md").write_text("another scale")
    (old / "gone.md").write_text("of the record before")
    publish(place)
    assert {p.name for p in old.iterdir()} == {"robust.md", "record.json", "photos"}
    assert (old / "photos" / "kept.md").is_file()
    assert (place / "repository" / "figures" / "overview" / "verdicts.md").read_text() == "verdicts of now\n"
    assert "table of now" in (place / "repository" / "README.md").read_text()
    assert capsys.readouterr().out.splitlines() == ["published figures/fake", "published figures/overview"]


def test_what_is_partial_is_refused_and_nothing_is_touched(place, write):
    root = place / "cpu" / "fake"
    plan = json.loads((root / "plan.json").read_text())

    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match):
            publish(place)
        assert not (place / "repository" / "figures").exists()
        assert "old" in (place / "repository" / "README.md").read_text()

    (root / "plan.json").write_text(json.dumps({**plan, "headline": True}))
    refused("only the headline has been measured; run make reproduce-fake first")
    (root / "plan.json").write_text(json.dumps({**plan, "config": {**plan["config"], "yours": "my:Mine"}}))
    refused(r"a row of your own \(my:Mine\) is in it")
    (root / "plan.json").write_text(json.dumps({**plan, "keys": {**plan["keys"], "more": "0" * 64}}))
    refused("1 measurements are missing, the first is more")
    (root / "plan.json").write_text(json.dumps(plan))
    one = Results.load(place, "cpu", "fake").measurements[0]
    results_of(root).save(measured_by(one, modified=True))
    refused("1 numbers were measured by code that was not committed")
    results_of(root).save(measured_by(one, modified=False))
    (root / "figures" / "record.json").unlink()
    refused("are not drawn from what is measured; run make figures-fake first")
    gates = json.loads((root / "gates.json").read_text())
    rows = gates if isinstance(gates, list) else gates["gates"]
    rows[0]["passed"] = False
    (root / "gates.json").write_text(json.dumps(gates))
    refused("a gate failed")


def test_papers_that_are_not_finished_are_named_and_the_others_published(place, capsys):
    repository = place / "repository"
    for name, text in (("begun", "PRESETS = {'cpu': 0}"), ("half", "PRESETS = {")):
        (repository / "papers" / name).mkdir()
        (repository / "papers" / name / "train.py").touch()
        (repository / "papers" / name / "config.py").write_text(text)
    with pytest.raises(UserError, match="all is done but for half"):
        publish(place)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("begun is left out") and said[1:] == [
        "published figures/fake",
        "published figures/overview",
    ]
    (repository / "figures" / "begun").mkdir()  # of an earlier run: the verdicts of all would lack it
    with pytest.raises(UserError, match="begun"):
        publish(place)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("nobody",), "there is no paper 'nobody' with a scale cpu"),
        (("--scale", "smoke"), "a record is kept of cpu and photos"),
    ],
)
def test_mistakes_are_one_sentence(place, options, match):
    with pytest.raises(UserError, match=match):
        publish(place, *options)
