"""The page for the whole: rows, counts and costs of papers that were run, half run, and not run."""

import contextlib
import csv
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from shared.errors import UserError
from shared.files import sha256_file
from shared.report import overview
from shared.report.notebook import ROOT
from shared.report.overview_times import Run, clock

TIMES = """1763720000 headline train
1763720100 headline evaluate
1763720130 headline page
1763720137 headline end
a line that nobody wrote
1763723000 reproduce train
1763723400 reproduce evaluate
"""


@pytest.fixture
def place(tmp_path, write):
    """papers/{fake,later,notes} and results/cpu/fake: `later` was not run, `notes` is no paper."""
    for name in ("fake", "later", "notes"):
        (tmp_path / "papers" / name).mkdir(parents=True)
    for name in ("fake", "later"):
        (tmp_path / "papers" / name / "train.py").touch()
        (tmp_path / "papers" / name / "claims.yaml").write_text(write.claims.replace("paper: fake", f"paper: {name}"))
    write.measurements(tmp_path / "results" / "cpu" / "fake")
    return tmp_path


def opened(place, scale="cpu"):
    return overview.Overview(scale, place / "results", place / "figures", place / "papers")


def rows(html: str) -> list[str]:
    return re.findall(r"<tr data-paper=.*?</tr>", html, re.S)


def test_every_claim_of_every_paper_is_a_row(place):
    found = opened(place)
    shown = rows(found.claims().html)
    assert [re.search("data-paper='(.*?)'", r)[1] for r in shown] == ["fake"] * 4 + ["later"] * 4
    of_fake, of_later = (re.findall("data-verdict='(.*?)'", "".join(part)) for part in (shown[:4], shown[4:]))
    assert of_fake == ["direction holds", "direction holds", "not testable here", "not measured"]
    assert of_later == ["not measured", "not measured", "not testable here", "not measured"]
    assert ["data-headline='1'" in r for r in shown] == [True, False, False, False] * 2
    assert (
        "Ours &lt;beats&gt; theirs." in shown[0]
        and "5 points" in shown[0]
        and "unknown" in shown[1]
        and "abstract" in shown[0]
    )
    assert "make headline-later" in shown[4]
    assert found.counts == {"direction holds": 2, "not testable here": 2, "not measured": 4}


def test_a_row_leads_to_the_page_of_its_paper_where_there_is_one(place):
    assert "<a " not in rows(opened(place).claims().html)[0]
    (place / "results" / "cpu" / "fake" / "page.html").touch()
    shown = rows(opened(place).claims().html)
    assert "href='../fake/page.html#claim-gain'" in shown[0] and "<a " not in shown[4]


def test_a_paper_that_was_not_run_is_listed_as_such(place):
    found = opened(place)
    assert [p.state for p in found.papers] == ["complete", "not run"]
    assert "later <small>not run</small>" in found.verdicts().html
    assert "not run<small>make reproduce-later</small>" in found.runs().html
    assert found.text().splitlines()[:3] == [
        "verdicts at SCALE=cpu",
        "  fake   2 direction holds, 1 not measured, 1 not testable here",
        "  later  not run: make reproduce-later",
    ]
    at_paper_scale = opened(place, "paper")
    assert at_paper_scale.text().endswith("not run: make reproduce-later SCALE=paper") and at_paper_scale.counts == {
        "not measured": 8
    }


def test_a_paper_without_the_scale_is_not_recommended(place):
    (place / "papers" / "later" / "config.py").write_text("PRESETS = {'cpu': None}\n")
    found = opened(place, "paper")
    assert found.text().splitlines()[1:] == [
        "  fake   not run: make reproduce-fake SCALE=paper",
        "  later  has no such scale",
    ]
    assert "has no such scale</td>" in found.runs().html and "make reproduce-later" not in found.runs().html


def test_states_of_a_run(place):
    store = place / "results" / "cpu" / "fake"
    plan = json.loads((store / "plan.json").read_text())
    (store / "plan.json").write_text(json.dumps({**plan, "headline": True}))
    assert (
        opened(place).papers[0].state == "headline only" and "not testable here (headline only)" in opened(place).text()
    )
    assert "fake <small>headline only</small>" in opened(place).verdicts().html
    name, key = next(iter(plan["keys"].items()))
    (store / "measurements" / f"{name}-{key[:12]}.json").unlink()
    found = opened(place)
    assert found.papers[0].state == f"1 of {len(plan['keys'])} measurements missing"
    assert "make reproduce-fake" in found.runs().html


def test_a_gate_that_failed_is_one_verdict_whatever_its_name(place, write):
    shutil.rmtree(place / "results")
    write.measurements(place / "results" / "cpu" / "fake", gates_pass=False)
    found = opened(place)
    assert found.papers[0].counts["gate failed"] == 2
    assert "gate failed: base model" in found.runs().html and "data-verdict='gate failed'" in found.claims().html


def test_costs_are_read_from_what_make_noted(place):
    (place / "results" / "cpu" / "fake" / "times.txt").write_text(TIMES)
    found = opened(place)
    first, second = found.papers[0].runs
    assert first == Run("headline", {"train": 100, "evaluate": 30, "page": 7}, True)
    assert first.text() == "headline: 2 min 17 s (train 1 min 40 s, evaluate 30 s, page 7 s)"
    assert second == Run("reproduce", {"train": 400}, False)
    assert second.text() == "reproduce: 6 min 40 s (train 6 min 40 s), did not come to its end"
    html = found.runs().html
    assert "8 min 57 s in 2" in html and "seeds 0, 1" in html and "cccccccccccc; 2 cores" in html
    assert found.papers[0].measuring == pytest.approx(1.5 * len(found.papers[0].results.measurements))
    (place / "results" / "cpu" / "fake" / "times.txt").write_text("what is this\n")
    assert opened(place).papers[0].runs == ()


def test_what_open_claims_would_need_is_summed_once_for_each_number(place):
    found = opened(place)
    first = found.papers[0]
    v = replace(first.verdicts[0], status="inconclusive", tone="unsure")
    verdicts = (replace(v, needs=2), replace(v, needs=8), replace(v, needs=None))
    found.papers[0] = replace(first, verdicts=verdicts)
    behind = 1.5 * len(v.slugs)
    assert [found.papers[0].measuring_further(k) for k in (2, 4, 8)] == pytest.approx([behind, behind, 7 * behind])
    assert "3 claims are open." in found.further and "For the other 1 there is" in found.further
    assert f"1 up to ×2 ({clock(behind)}); 2 up to ×8 ({clock(7 * behind)})." in found.further
    assert opened(place).further == ""


def test_files_have_records_and_are_the_same_when_made_again(place):
    def make():
        found = opened(place)
        found.verdicts(), found.claims()
        return {p.name: p.read_bytes() for p in (place / "figures").iterdir()}

    made = make()
    assert set(made) == {"verdicts.md", "claims.csv", "record.json"} and make() == made
    record = json.loads(made["record.json"])
    claims = record["outputs"]["claims.csv"]
    assert (
        claims["files"] == {"claims.csv": sha256_file(place / "figures" / "claims.csv")}
        and record["command"] == "make overview"
    )
    assert claims["producer"] == "shared.report.overview.Overview.claims" and record["papers"]["later"] == {
        "state": "not run"
    }
    table = list(csv.DictReader(io.StringIO(made["claims.csv"].decode())))
    assert len(table) == 8 and table[0]["verdict"] == "direction holds" and table[0]["published"] == "5 points"
    assert (table[0]["n"], table[0]["seeds"], table[0]["short of"]) == ("240", "2", "2 seeds")
    assert table[0]["would show"].endswith(" points") and table[-1]["n"] == ""
    assert "| later | not run | 4 |  | 3 | 1 |" in made["verdicts.md"].decode()


def test_mistakes_are_one_sentence(place, tmp_path, capsys):
    with pytest.raises(UserError, match="there is no paper in"):
        overview.Overview("cpu", place / "results", "", tmp_path / "nowhere")
    (place / "papers" / "later" / "claims.yaml").unlink()
    left = [paper.name for paper in opened(place).papers]
    assert left and "later" not in left
    said = capsys.readouterr().err
    assert "note: later is left out of the overview: " in said and "there is no claims file here" in said
    for name in left:
        (place / "papers" / name / "claims.yaml").unlink()
    with pytest.raises(UserError, match="can be shown: see the notes above"):
        opened(place)


def test_the_page_is_one_file_that_needs_no_network(tmp_path):
    """The real notebook on the real papers, of which none was run here."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        overview.main(["--scale", "paper", "--results", str(tmp_path)])
    page = tmp_path / "paper" / "overview" / "page.html"
    html = page.read_text().replace('"', "'")
    assert not re.search(r"<(link|iframe|object)\b|@import|url\(|https?://|\ssrc=", html)
    assert (
        html.count("<script>") == html.count("<form class='filter' hidden=''>") == 1
        and "In [" not in html
        and "Overview(" not in html
    )
    papers = sorted(p.parent.name for p in ROOT.glob("papers/*/train.py"))
    assert [f"<option>{name}</option>" in html for name in papers] == [True] * len(papers)
    shown = re.findall("data-verdict='(.*?)'", html)
    assert len(shown) > 100 and set(shown) <= {"not measured", "not testable here"}
    assert (
        "row.dataset.paper === form.paper.value)\n        && (!form.verdict.value" in html
    )  # the script was not escaped on its way
    printed = out.getvalue()
    assert all(f"not run: make reproduce-{name} SCALE=paper" in printed for name in papers)
    assert (
        printed.endswith(f"\noverview {page}\n")
        and (tmp_path / "paper" / "overview" / "figures" / "claims.csv").is_file()
    )


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node to run the script with")
def test_the_script_shows_what_is_chosen(tmp_path):
    """The script on a stand-in for the page: three rows."""
    script = (ROOT / "shared" / "report" / "templates" / "filter.js").read_text()
    stage = """
    const row = (paper, verdict, headline, text) => ({dataset: {paper, verdict, headline}, textContent: text, hidden: false});
    const rows = [row("a", "holds", "1", "Ours beats THEIRS"), row("a", "fails", "0", "more memory"), row("b", "holds", "0", "ours again")];
    const said = {}, heard = {};
    const form = {paper: {value: ""}, verdict: {value: ""}, headline: {checked: false}, words: {value: ""}, querySelector: () => said,
                  addEventListener: (name, f) => { heard[name] = f; }};
    const document = {querySelector: () => form, querySelectorAll: () => rows};
    """
    ask = """
    const look = (set) => { Object.assign(form, {paper: {value: ""}, verdict: {value: ""}, headline: {checked: false}, words: {value: ""}}, set);
                            heard.input(); return rows.map((r) => +!r.hidden).join("") + " " + said.textContent; };
    console.log(JSON.stringify([look({}), look({paper: {value: "a"}}), look({verdict: {value: "holds"}}), look({headline: {checked: true}}),
                                look({words: {value: " theirs  OURS "}}), look({paper: {value: "b"}, words: {value: "memory"}})]));
    """
    (tmp_path / "x.js").write_text(stage + script + ask)
    done = subprocess.run(["node", str(tmp_path / "x.js")], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [
        "111 3 of 3 claims",
        "110 2 of 3 claims",
        "101 2 of 3 claims",
        "100 1 of 3 claims",
        "100 1 of 3 claims",
        "000 0 of 3 claims",
    ]
