"""Tables, figures, the claims page. Imports no torch, and matplotlib only when something is drawn.

How a paper uses it. `papers/<paper>/tables.py` says what each table and figure shows, by the tags of numbers; see
`shared.report.shown`:

    from shared.report import figures, style
    from shared.report.shown import Shown, figure, table

    @table
    def robust(c):
        return Shown(METHODS, SETS, {"kind": "accuracy", "attack": "pgd"}, c.seeds, "Robust accuracy (%), PGD-10.")

    @figure(lambda c: Grid(METHODS, steps(c), {"kind": "curve"}, c.seeds))
    def fig_curve(filled):
        "Robust accuracy along the training."          # the caption
        fig, ax = style.figure(style.COLUMN)
        figures.lines(ax, filled.columns, filled.series(), xlabel="updates")
        return fig

`papers/<paper>/notebook.ipynb` imports only this and that, reads measurements and never trains. Its cell tagged
`parameters` names everything that can be set (`scale`, `results`, `figures`; others as the paper likes);
`python -m shared.report.page <paper>` fills them in:

    scale, results, figures = "cpu", "results", ""          # one per line, so that papermill finds them
    from shared.report import Report
    from papers.pmg_aft import tables
    report = Report("pmg_aft", scale, results, figures)
    report.claims()                                         # first: the page opens with the verdicts
    report.gates()
    report.table("robust", tables.robust)                   # one call per cell: a cell shows its last value
    report.figure("curve", tables.fig_curve)
    report.references(); report.sanity(); report.provenance()

Each table becomes .md, .tex and .csv, each figure .pdf and .png, and `record.json` names for each the producer (the
function), the measurements it read, their commit and seeds, beside the configuration and the machine. A function that
returns None (nothing measured yet) shows a line that says so. `make record` publishes them in figures/.

What a page looks like stands in templates/ (Jinja; page.css, filter.js); `rendering.render` fills a template in, and
escapes.
"""

from shared.report.data import Results
from shared.report.notebook import Report

__all__ = ["Report", "Results"]
