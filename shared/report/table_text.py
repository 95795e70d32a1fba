"""A `Table` as Markdown, LaTeX, CSV and HTML, and saved with its records."""

import csv as csv_module
import io
from pathlib import Path

from markupsafe import Markup

from shared.files import write_atomic
from shared.metrics.intervals import Estimate
from shared.report import manifest
from shared.report.rendering import Links, render
from shared.report.tables import Table

EMPTY = "–"  # a cell that was not measured

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "|": r"$|$", '"': "''", "±": r"$\pm$",
    "×": r"$\times$", "−": "$-$", "–": "--", "→": r"$\to$", "≥": r"$\ge$", "≤": r"$\le$", "≈": r"$\approx$", "∞": r"$\infty$",
    "√": r"$\surd$", "²": r"$^2$", "‖": r"$\|$", "ℓ": r"$\ell$", "·": r"$\cdot$", "α": r"$\alpha$", "β": r"$\beta$",
    "γ": r"$\gamma$", "δ": r"$\delta$", "ε": r"$\varepsilon$", "θ": r"$\theta$", "κ": r"$\kappa$", "λ": r"$\lambda$",
    "μ": r"$\mu$", "σ": r"$\sigma$", "τ": r"$\tau$", "Δ": r"$\Delta$", "…": r"\dots{}", "\u00a0": "~", "\n": " ",
}  # fmt: skip


def escape_latex(text: str) -> str:
    """Plain text as LaTeX: special characters escaped, common symbols and Greek letters set as mathematics."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def escape_markdown(text: str) -> str:
    """Plain text as a cell of a Markdown table."""
    for letter in "\\`*_[]<>|":
        text = text.replace(letter, f"\\{letter}")
    return " ".join(text.split())


def markdown(table: Table) -> str:
    """A pipe table with its caption above and its notes below."""
    lines = [f"**{escape_markdown(table.caption)}**", ""] if table.caption else []
    lines.append("| " + " | ".join(escape_markdown(name) for name in (table.corner, *table.columns)) + " |")
    lines.append("|---" + "|---:" * len(table.columns) + "|")
    for r, (label, cells) in enumerate(table.rows):
        texts = [_plain(table, r, c, cell) for c, cell in enumerate(cells)]
        lines.append("| " + " | ".join([escape_markdown(label), *texts]) + " |")
    lines += ["", *(f"{escape_markdown(note)}  " for note in table.all_notes)] if table.all_notes else []
    return "\n".join(lines) + "\n"


def _plain(table: Table, r: int, c: int, cell) -> str:
    if not isinstance(cell, Estimate):
        return EMPTY if cell is None else escape_markdown(cell)
    value, low, high, half = (x.replace("-", "−") for x in table.numbers(c, cell))
    value = f"**{value}**" if (r, c) in table.bold else value
    ends = f" \\[{low}, {high}\\]"
    return value + {"pm": f" ±{half}" if half else ends, "brackets": ends, "none": ""}[table.interval_style]


def latex(table: Table) -> str:
    r"""A booktabs `tabular` for \input, caption and notes as comments: the author chooses the float, its place and its
    label."""
    head = [f"% {' '.join(line.split())}" for line in (table.caption, *table.all_notes) if line]
    lines = [*head, r"% needs \usepackage{booktabs}", rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}", r"\toprule"]
    lines.append(" & ".join(escape_latex(name) for name in (table.corner, *table.columns)) + r" \\")
    lines.append(r"\midrule")
    for r, (label, cells) in enumerate(table.rows):
        lines.append(
            " & ".join([escape_latex(label), *(_latex_cell(table, r, c, cell) for c, cell in enumerate(cells))])
            + r" \\"
        )
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex_cell(table: Table, r: int, c: int, cell) -> str:
    if not isinstance(cell, Estimate):
        return escape_latex(EMPTY if cell is None else cell)
    value, low, high, half = (escape_latex(x).replace("-", "$-$") for x in table.numbers(c, cell))
    value = rf"\textbf{{{value}}}" if (r, c) in table.bold else value
    pm, brackets = rf"{{\scriptsize\,$\pm$\,{half}}}", rf" {{\scriptsize[{low}, {high}]}}"
    return value + {"pm": pm if half else brackets, "brackets": brackets, "none": ""}[table.interval_style]


def csv(table: Table) -> str:
    """One line per cell: row, column, value, low, high (in the table's unit, six digits), n, seeds, text (for cells
    that are words)."""
    out = io.StringIO()
    writer = csv_module.writer(out, lineterminator="\n")
    writer.writerow(("row", "column", "value", "low", "high", "n", "seeds", "text"))
    for label, cells in table.rows:
        for c, (column, cell) in enumerate(zip(table.columns, cells, strict=True)):
            if isinstance(cell, Estimate):
                e = table.shown(c, cell)
                writer.writerow((label, column, *(f"{x:.6g}" for x in (e.value, e.low, e.high)), e.n, e.seeds, ""))
            else:
                writer.writerow((label, column, "", "", "", "", "", "not measured" if cell is None else cell))
    return out.getvalue()


def html(table: Table, links: Links | None = None) -> Markup:
    """A <figure> with a table that scrolls sideways on a narrow screen; intervals small below the values. links: below
    it."""
    return render("table", table=table, links=links, empty=EMPTY)


def save_table(table: Table, stem: str | Path, made_of: dict) -> list[Path]:
    """`write_table`, and put the files into the folder's record (made_of: `manifest.origin`)."""
    paths = write_table(table, stem)
    manifest.write(paths, made_of)
    return paths


def write_table(table: Table, stem: str | Path) -> list[Path]:
    """Write `<stem>.md`, `.tex` and `.csv`; the three paths."""
    paths = []
    for kind, written in (("md", markdown), ("tex", latex), ("csv", csv)):
        path = Path(stem).with_name(f"{Path(stem).name}.{kind}")
        write_atomic(path, written(table))
        paths.append(path)
    return paths
