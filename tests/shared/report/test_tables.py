import csv
import hashlib
import io

import pytest

from shared.errors import UserError
from shared.metrics.intervals import Estimate
from shared.report import manifest, table_text
from shared.report.table_text import save_table
from shared.report.tables import Table, from_results

E1, E2 = Estimate(0.4714, 0.45, 0.492, 256, 3), Estimate(-0.031, -0.05, -0.01, 256, 1)


def table(**options):
    rows = [("A & B", [E1, E2]), ("C_d|e", ["n/a", None])]
    base = {
        "columns": ["clean_1", "Δ 50%"],
        "rows": rows,
        "caption": "Robust (%)",
        "corner": "method",
        "bold": {(0, 0)},
    }
    return Table(**{**base, **options})


def test_markdown():
    text = table_text.markdown(table())
    lines = text.splitlines()
    assert lines[0] == "**Robust (%)**"
    assert lines[2:6] == [
        "| method | clean\\_1 | Δ 50% |",
        "|---|---:|---:|",
        "| A & B | **47.1** \\[45.0, 49.2\\] | −3.1 \\[−5.0, −1.0\\] |",
        "| C\\_d\\|e | n/a | – |",
    ]
    assert "1 to 3 seeds" in lines[7]


def test_latex():
    text = table_text.latex(table())
    assert text.splitlines()[-7:] == [
        r"\toprule",
        r"method & clean\_1 & $\Delta$ 50\% \\",
        r"\midrule",
        r"A \& B & \textbf{47.1} {\scriptsize[45.0, 49.2]} & $-$3.1 {\scriptsize[$-$5.0, $-$1.0]} \\",
        r"C\_d$|$e & n/a & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    assert r"\begin{tabular}{lrr}" in text and "% Robust (%)" in text
    assert r"\,$\pm$\,2.1" in table_text.latex(table(interval="pm"))
    assert all(line.count("&") - line.count(r"\&") == 2 for line in text.splitlines() if line.endswith(r"\\"))


def test_latex_escapes_everything_special():
    assert table_text.escape_latex(r"50% of $x_i$ {a}#~^\ & β ≥ 2×") == (
        r"50\% of \$x\_i\$ \{a\}\#\textasciitilde{}\textasciicircum{}\textbackslash{} \& $\beta$ $\ge$ 2$\times$"
    )


def test_csv_has_a_line_per_cell_in_the_unit_of_the_table():
    rows = list(csv.DictReader(io.StringIO(table_text.csv(table()))))
    assert list(rows[0]) == ["row", "column", "value", "low", "high", "n", "seeds", "text"]
    assert list(rows[0].values()) == ["A & B", "clean_1", "47.14", "45", "49.2", "256", "3", ""]
    assert [r["text"] for r in rows] == ["", "", "n/a", "not measured"]


def test_html_is_escaped_and_balanced():
    from xml.etree import ElementTree

    text = table_text.html(table(caption="<b>&", notes=["a < b"]))
    ElementTree.fromstring(text)  # well formed
    assert "&lt;b&gt;&amp;" in text and "<b>47.1</b>" in text and "A &amp; B" in text


def test_factor_and_digits_per_column():
    t = table(factor={"clean_1": 1}, digits={"clean_1": 3})
    assert t.numbers(0, E1)[0] == "0.471" and t.numbers(1, E2)[0] == "-3.1"


def test_interval_styles():
    wide = Table([str(i) for i in range(6)], [("a", [E1] * 6)])
    assert wide.interval_style == "pm" and "47.1 ±2.1" in table_text.markdown(wide)
    assert "±" not in table_text.markdown(table(interval="none")).split("Intervals")[0]
    with pytest.raises(UserError, match=r"Table\.interval is"):
        table(interval="stars")
    with pytest.raises(UserError, match="has 1 cells, but there are 2 columns"):
        table(rows=[("a", [E1])])


METHODS = {
    "theirs": {"method": "theirs"},
    "ours": {"method": "ours"},
    "nobody": {"method": "nobody"},
    "base": {"method": "base"},
}


def test_from_results(fake_results):
    t = from_results(
        fake_results, METHODS, {"shape": {"set": "shape"}, "mean": {"role": "zero_shot"}}, common={"attack": "pgd10"}
    )
    assert [label for label, _ in t.rows] == ["theirs", "ours", "base"]
    assert t.rows[1][1][1] == fake_results.estimate(method="ours", attack="pgd10", role="zero_shot")
    assert t.bold == {(1, 0), (1, 1)}
    assert from_results(fake_results, METHODS, {"all": {}}, common={"attack": "none"}) is None
    worst = from_results(fake_results, METHODS, {"mean": {"role": "zero_shot"}}, common={"attack": "pgd10"}, best="min")
    assert worst.bold == {(2, 0)}


def test_an_incomplete_table_says_so(fake_results):
    kept = [m for m in fake_results.measurements if m.tags["set"] != "colour"]
    fake_results.planned = {m.slug: m.tags for m in fake_results.measurements}
    whole = from_results(fake_results, METHODS, {"mean": {"role": "zero_shot"}}, common={"attack": "pgd10"})
    assert not any("Incomplete" in note for note in whole.all_notes)
    fake_results.measurements = kept
    partial = from_results(
        fake_results, METHODS, {"mean": {"role": "zero_shot"}}, common={"attack": "pgd10"}, notes=["One."]
    )
    assert partial.all_notes[:2] == ["One.", "Incomplete: 5 planned measurements behind these cells are missing."]


def test_bold_only_where_the_difference_is_clear(fake_results):
    rows = {"seed 0": {"seed": 0}, "seed 1": {"seed": 1}}  # they differ by one example in a hundred
    assert not from_results(
        fake_results, rows, {"shape": {"set": "shape"}}, common={"method": "ours", "attack": "pgd10"}
    ).bold


def test_save_table(tmp_path, fake_results):
    t = from_results(fake_results, METHODS, {"shape": {"set": "shape"}}, common={"attack": "pgd10"})
    made_of = manifest.origin(fake_results, [fake_results.measurements[0].slug], "here")
    paths = save_table(t, tmp_path / "out" / "v1.robust", made_of)
    assert [p.name for p in paths] == ["v1.robust.md", "v1.robust.tex", "v1.robust.csv"]
    first = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    said = manifest.read(tmp_path / "out")["outputs"]["v1.robust.md"]["files"]
    assert said == {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}
    save_table(t, tmp_path / "out" / "v1.robust", made_of)
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == first
