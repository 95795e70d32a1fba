from xml.etree import ElementTree

import pytest

from shared.claims.claims import load
from shared.claims.verdicts import judge
from shared.report import claims_page, panels
from shared.report.data import Results


@pytest.fixture
def verdicts(fake_results, fake_claims):
    return judge(load(fake_claims), fake_results)


def well_formed(html):
    return ElementTree.fromstring(f"<div>{html}</div>")


def test_html(verdicts):
    html = claims_page.html_claims([("fake", v) for v in verdicts])
    rows = well_formed(html).findall(".//tbody/tr")
    assert len(rows) == 4
    assert "Ours &lt;beats&gt; theirs." in html
    badges = [row.find(".//span[@class]/.[@class!='star'][@class!='value']").attrib["class"] for row in rows]
    assert badges == ["badge good", "badge good", "badge none", "badge none"]
    said = "".join(rows[0].itertext())
    for words in (
        "headline",
        "abstract",
        "5 points",
        "[S]",
        "direction holds",
        "lies above 0",
        "ours − theirs; pgd10, zero_shot; above 0",
    ):
        assert words in said
    assert "n = 240, 2 seeds" in said.replace("\u00a0", " ")
    assert "unknown" in "".join(rows[1].itertext())
    assert "not testable here" in "".join(rows[2].itertext()) and "There is no GPU." in "".join(rows[2].itertext())
    assert "not read by anybody here" in html  # what the mark U means


def test_text_fits_the_terminal(verdicts):
    text = claims_page.text_claims(verdicts, 72)
    assert max(map(len, text.splitlines())) <= 72
    assert text.startswith("DIRECTION HOLDS °  Ours <beats> theirs.")
    assert "paper 5 points [S] · measured +" in text
    assert "NOT MEASURED" in text and "make reproduce-fake" in text.replace("\n" + " " * 19, " ")


def test_markdown(verdicts):
    *lines, blank, chance = claims_page.markdown_claims(verdicts).splitlines()
    assert blank == "" and chance.startswith(
        "2 claims tested at 95 % each: up to 0.1 wrong verdicts are to be expected by chance."
    )
    assert len(lines) == 6 and all(line.count("|") - line.count("\\|") == 5 for line in lines)
    assert lines[2].startswith("| Ours \\<beats\\> theirs. | 5 points \\[S\\] | +") and lines[2].endswith(
        "| **direction holds °** |"
    )


def test_references_elsewhere_are_folded_with_the_reason(fake_results, fake_claims):
    file = load(fake_claims)
    html = claims_page.html_reference(file, file.reference("known"), fake_results)
    assert well_formed(html).find("details").attrib == {} and "Other pictures." in html and "<td>unknown</td>" in html
    assert "known: 4 not testable here" in claims_page.text_references(file, fake_results)


def test_references_at_paper_scale_stand_beside_ours(tmp_path, write, fake_claims):
    write.measurements(tmp_path / "r" / "paper" / "fake")
    results, file = Results.load(tmp_path / "r", "paper", "fake"), load(fake_claims)
    html = claims_page.html_reference(file, file.reference("known"), results)
    cells = {td.attrib.get("class"): "".join(td.itertext()) for td in well_formed(html).findall(".//td")}
    assert (
        cells["good"].endswith("✓")
        and cells["bad"].endswith("✗")
        and "open" in well_formed(html).find("details").attrib
    )
    assert "reproduced" in claims_page.text_references(file, results)


def test_gates(tmp_path, write, fake_results):
    assert "passed" in panels.html_gates(fake_results) and "withheld" not in panels.html_gates(fake_results)
    write.measurements(tmp_path / "r" / "cpu" / "fake", gates_pass=False)
    results = Results.load(tmp_path / "r", "cpu", "fake")
    assert "withheld" in panels.html_gates(results) and results.failed_gates() == ["base model"]
    well_formed(panels.html_gates(results))


def test_sanity_lists_failures(fake_results):
    html = panels.html_sanity(fake_results)
    well_formed(html)
    assert "12 of 15" in html and html.count("<li>") == 1 and "3 cells of base, seed 0</code>: all zero" in html
    assert "All 15 robust cells are checked." in html
    for m in fake_results.measurements[:20]:
        object.__setattr__(m, "sanity", None)
    html = panels.html_sanity(fake_results)
    assert "of 15 robust cells carry no sanity check" in html
    one = next(m for m in fake_results.measurements if m.sanity)
    object.__setattr__(one, "sanity", {"gradients": {"passed": False}, "passed": False})
    assert f"in <code>{one.slug}</code></li>" in panels.html_sanity(fake_results)


@pytest.mark.parametrize(("sanity", "outcome"), [
    ({"a": True, "b": None}, {"a": (True, ""), "b": (None, "")}),
    ({"a": {"passed": False, "detail": "x"}}, {"a": (False, "x")}),
    ({"checks": {"a": {"passed": True}}}, {"a": (True, "")}),
    ({"checks": [{"name": "a", "passed": False, "detail": "x"}]}, {"a": (False, "x")}),
    ({"seconds": 3.0}, {}),
    ({"a": {"passed": True, "value": 0.1, "threshold": 0.2, "detail": "x"}, "passed": True}, {"a": (True, "x")}),
])  # fmt: skip
def test_forms_of_a_sanity_record(sanity, outcome):
    assert panels.sanity_outcomes(sanity) == outcome


def test_provenance(fake_results):
    line = panels.provenance_line(fake_results)
    assert line.startswith("30 measurements; seeds 0, 1; 45 s of measuring; commit cccccccccccc; machine cores 2.")


def test_readings_stand_side_by_side(fake_results, tmp_path, write):
    path = tmp_path / "claims.yaml"
    both = "readings: {as_written: {method: ours}, as_released: {method: base}}"
    path.write_text(write.claims.replace("predicate: greater, testable", f"{both}, predicate: greater, testable", 1))
    verdicts = judge(load(path), fake_results)
    html = claims_page.html_claims([("fake", v) for v in verdicts])
    row = well_formed(html).find(".//tr[@id='claim-gain']")
    cells = {td.attrib["data-label"]: "".join(td.itertext()) for td in row.findall("td") if "data-label" in td.attrib}
    assert cells["verdict"].startswith("as writtendirection holds") and "as releaseddirection fails" in cells["verdict"]
    assert "Depends on the reading" in cells["verdict"] and cells["measured"].count("points [") == 0
    assert cells["measured"].count("n\u00a0=") == 2
    assert "as released: direction fails · measured −" in claims_page.text_claims(verdicts, 500)
    assert "**; as released: direction fails |" in claims_page.markdown_claims(verdicts)


def test_commands_stand_as_code_and_nothing_else_is_let_through(verdicts):
    html = claims_page.html_claims([("fake", v) for v in verdicts])
    assert "Run <code>make reproduce-fake</code>." in html and "&lt;beats&gt;" in html
