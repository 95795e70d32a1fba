"""The page from end to end, with a real kernel, on a fake paper."""

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from shared.errors import UserError
from shared.files import sha256_file
from shared.report import manifest, page
from shared.report.notebook import ROOT, figures_folder

START = """import sys
sys.path.insert(0, {folder!r})
import fake_tables as tables
from shared.report import Report
report = Report("fake", scale, results, figures, claims)"""


@pytest.fixture(scope="module")
def paper(tmp_path_factory, write):
    """A folder with a notebook, claims, tables and measurements; nothing executed yet."""
    folder = tmp_path_factory.mktemp("paper {x}")  # braces and blanks in the path must not matter
    write.measurements(folder / "results" / "cpu" / "fake")
    (folder / "claims.yaml").write_text(write.claims)
    (folder / "fake_tables.py").write_text(write.tables)
    write.notebook(
        folder / "notebook.ipynb", START.format(folder=str(folder)),
        "# What was claimed", "report.claims()", "report.gates()", "report.sanity()",
        'report.table("robust", tables.robust)', 'report.table("absent", tables.absent)', 'report.figure("bars", tables.bars)',
        "report.references()", 'print("a line of output", extra)', 'import sys; print("a warning", file=sys.stderr)', "report.provenance()",
    )  # fmt: skip
    return folder


def arguments(paper, *more):
    return ["fake", "--results", str(paper / "results"), "--notebook", str(paper / "notebook.ipynb"), *more]


@pytest.fixture(scope="module")
def made(paper):
    """The paper after one run: (folder of the results, what was printed)."""
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        page.main(arguments(paper, "--set", "extra=7"))
    return paper / "results" / "cpu" / "fake", out.getvalue()


def test_page_is_one_file_that_needs_nothing_else(made):
    html = (made[0] / "page.html").read_text()
    assert not re.search(r"<(link|iframe|object)\b|<script\s|@import|url\(|https?://", html)
    assert (
        all(src.startswith("data:image/png;base64,") for src in re.findall(r"\ssrc='([^']*)'", html)) and "<img" in html
    )
    assert "report.claims()" not in html and "In [" not in html and "import sys" not in html  # no code
    assert "<title>A fake &amp; small paper</title>" in html and "never of the paper&#39;s own numbers" in html
    assert html.index("What was claimed") < html.index("direction holds") < html.index("Robust accuracy")
    for words in (
        "absent: not measured",
        "make reproduce-fake",
        "a line of output 7",
        "base model",
        "Robust accuracy by set.",
    ):
        assert words in html
    assert "a warning" not in html and "Not part of the caption" not in html


def test_what_is_printed_at_the_end(made):
    printed = made[1]
    assert "A fake & small paper" in printed and "DIRECTION HOLDS °  Ours <beats> theirs." in printed
    assert (
        printed.index("DIRECTION HOLDS")
        < printed.index("page     ")
        < printed.index("figures  ")
        < printed.index("tables   ")
    )
    assert str(made[0] / "page.html") in printed


def test_files_have_complete_records_and_stay_out_of_the_repository(made):
    folder = made[0] / "figures"
    names = {p.name for p in folder.iterdir()}
    files = {"claims.md", "claims_headline.md", *(f"robust.{k}" for k in ("md", "tex", "csv")), "bars.pdf", "bars.png"}
    assert names == {*files, manifest.NAME}
    record = manifest.read(folder)
    assert {"paper", "scale", "commit", "config", "machine", "provenance"} <= set(record)
    assert record["command"] == "make figures-fake"
    assert all(
        {"producer", "commit", "seeds", "measurements", "files"} == set(output) for output in record["outputs"].values()
    )
    said = {name: sha for output in record["outputs"].values() for name, sha in output["files"].items()}
    assert said == {name: sha256_file(folder / name) for name in files}
    robust = record["outputs"]["robust.md"]
    assert robust["producer"] == "fake_tables.robust"
    assert len(manifest.behind(record, "robust.md")) == 15 - 5  # robust cells of the zero-shot sets, and no others
    assert not (ROOT / "figures" / "fake").exists()


def test_executed_notebook_is_kept_with_its_parameters(made, paper):
    notebook = nbformat.read(made[0] / "notebook.ipynb", as_version=4)
    source = "".join(c.source for c in notebook.cells)
    assert "extra = 7" in source and 'scale = "cpu"' in source
    assert not any(
        c.get("outputs") for c in nbformat.read(paper / "notebook.ipynb", as_version=4).cells
    )  # the original is untouched
    assert not list(made[0].glob("*.failed*")) and not list(made[0].glob(".*"))


def test_unknown_parameter_is_refused_before_anything_runs(paper, made):
    before = (made[0] / "page.html").stat().st_mtime_ns
    command = [sys.executable, "-m", "shared.report.page", *arguments(paper, "--set", "epsilon=2")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr == "error: --set epsilon: epsilon is no parameter of notebook.ipynb; it can set: claims, extra\n"
    assert (made[0] / "page.html").stat().st_mtime_ns == before
    done = subprocess.run(
        [*command[:3], "fake", "--colour", "red"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 2 and "--colour" in done.stderr
    with pytest.raises(UserError, match="name=value"):
        page.main(arguments(paper, "--set", "epsilon"))


PARAMETERS = 'name = "a"\nwhole = 1\nshare = 0.5\nyes = True\nmany = [1]\nopen = None\nscale = "cpu"'


@pytest.mark.parametrize(("text", "value"), [
    ("name=12:30", "12:30"), ("name=010", "010"), ("name=1e-3", "1e-3"), ("name=", ""), ("name=a=b", "a=b"), ("whole=12", 12), ("share=1e-3", 1e-3),
    ("share=2", 2), ("yes=false", False), ("many=[2, 3]", [2, 3]), ("open=1e-3", 1e-3), ("open=12:30", "12:30"), ("open=010", "010"),
    ("open=true", True)])  # fmt: skip
def test_a_setting_has_the_type_of_the_default(tmp_path, text, value):
    cell = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "notebook.ipynb")
    found = page.settings(tmp_path / "notebook.ipynb", [text])[text.partition("=")[0]]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(("text", "said"), [
    ("whole=010", "takes a whole number, not '010'"), ("whole=1.5", "a whole number"), ("whole=true", "a whole number"), ("share=12:30", "a number"),
    ("share=NaN", "a number"), ("yes=1", "true or false"), ("many=1", "a list"), ("scale=paper", "is set by --scale"),
    ("other=1", "it can set: many,"),
    ("whole", "takes name=value"), ("a b=1", "takes name=value")])  # fmt: skip
def test_a_setting_of_another_type_is_refused(tmp_path, text, said):
    cell = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "notebook.ipynb")
    with pytest.raises(UserError, match=said):
        page.settings(tmp_path / "notebook.ipynb", [text])


def test_settings_can_be_looked_at_before_there_is_anything_to_draw(tmp_path, capsys):
    cell = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "notebook.ipynb")
    given = ["alpha", "--notebook", str(tmp_path / "notebook.ipynb"), "--results", str(tmp_path), "--check", "--set"]
    page.main([*given, "whole=2"])
    with pytest.raises(UserError, match=r"--set nosuch: nosuch is no parameter of notebook\.ipynb; it can set: many,"):
        page.main([*given, "nosuch=5"])
    assert not capsys.readouterr().out and [path.name for path in tmp_path.iterdir()] == ["notebook.ipynb"]


def children(pid: int) -> list[int]:
    return [int(child) for child in (Path("/proc") / str(pid) / "task" / str(pid) / "children").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_page_and_its_kernel(paper, write, tmp_path, number):
    write.notebook(tmp_path / "notebook.ipynb", "import time; time.sleep(60)")
    shutil.copy(paper / "claims.yaml", tmp_path)
    command = [sys.executable, "-m", "shared.report.page", *arguments(paper, "--figures", str(tmp_path))]
    command[command.index("--notebook") + 1] = str(tmp_path / "notebook.ipynb")
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # a job in the background ignores it
    )
    until = time.monotonic() + 60
    while not (kernels := children(process.pid)):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(number)
    process.wait(60)
    said = process.stderr.read()
    until = time.monotonic() + 2
    while any(
        Path(f"/proc/{kernel}/cmdline").is_file() and Path(f"/proc/{kernel}/cmdline").read_text() for kernel in kernels
    ):
        assert time.monotonic() < until, "the kernel outlived the page"
        time.sleep(0.05)
    assert (process.returncode, said.count("\n")) == ((130, 1) if number == signal.SIGINT else (-number, 0)), said
    assert number != signal.SIGINT or said.startswith("interrupted:")


def test_a_failing_cell_leaves_the_old_page(paper, made, write, tmp_path):
    before = {p.name: p.read_bytes() for p in made[0].iterdir() if p.is_file()}
    write.notebook(tmp_path / "notebook.ipynb", "x = 1", "1 / 0", "raise SystemExit")
    shutil.copy(paper / "claims.yaml", tmp_path)
    with pytest.raises(UserError) as caught:
        page.main(["fake", "--results", str(paper / "results"), "--notebook", str(tmp_path / "notebook.ipynb")])
    said = str(caught.value)
    assert "ZeroDivisionError: division by zero" in said and "the page was not touched" in said and "\n" not in said
    failed = made[0] / "notebook.failed.ipynb"
    assert str(failed) in said and "ZeroDivisionError" in failed.read_text()
    failed.unlink()
    assert {p.name: p.read_bytes() for p in made[0].iterdir() if p.is_file()} == before


def test_mistakes_before_the_notebook(paper, tmp_path, write):
    with pytest.raises(UserError, match=r"no notebook at .*gone\.ipynb"):
        page.main(
            [*arguments(paper)[:3], "--notebook", str(tmp_path / "gone.ipynb"), "--claims", str(paper / "claims.yaml")]
        )
    with pytest.raises(UserError, match="make reproduce-fake"):
        page.main(["fake", "--results", str(tmp_path), "--notebook", str(paper / "notebook.ipynb")])
    (tmp_path / "bad.ipynb").write_text("not json")
    with pytest.raises(UserError, match="not a readable notebook"):
        page.main(
            [*arguments(paper)[:3], "--notebook", str(tmp_path / "bad.ipynb"), "--claims", str(paper / "claims.yaml")]
        )
    write.notebook(tmp_path / "mute.ipynb", "x = 1", parameters="pass")
    with pytest.raises(UserError, match="has no parameter figures, results, scale; it knows none"):
        page.main(
            [*arguments(paper)[:3], "--notebook", str(tmp_path / "mute.ipynb"), "--claims", str(paper / "claims.yaml")]
        )


def test_where_files_go(tmp_path):
    for scale in ("smoke", "cpu", "photos", "paper"):
        assert figures_folder("p", scale, ROOT / "results") == ROOT / "results" / scale / "p" / "figures"
    assert figures_folder("p", "cpu", tmp_path) == tmp_path / "cpu" / "p" / "figures"
