"""What a paper's notebook calls. Each method returns something that shows itself in the notebook and on the page."""

import base64
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from markupsafe import escape

from shared.claims import claims as claims_module
from shared.claims.verdicts import judge
from shared.files import write_atomic
from shared.report import claims_page, manifest, panels, plots
from shared.report.data import Results
from shared.report.rendering import Links, links, render
from shared.report.table_text import html, markdown, save_table

ROOT = Path(__file__).resolve().parents[2]
_KINDS = {".md": "Markdown", ".tex": "LaTeX"}


class Html:
    """A piece of the page."""

    def __init__(self, html: str, text: str = ""):
        self.html, self.text = html, text

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


def figures_folder(paper: str, scale: str, results: str | Path) -> Path:
    """Where tables and figures go: beside the measurements. What figures/ holds is published by `make record` alone."""
    return Path(results) / scale / paper / "figures"


class Report:
    """The report of one paper at one scale: measurements in, tables, figures and verdicts out."""

    def __init__(self, paper: str, scale: str = "cpu", results: str = "results", figures: str = "", claims: str = ""):
        results = ROOT / results  # a relative folder is one of the repository, wherever the notebook was opened
        self.results = Results.load(results, scale, paper)
        self.claims_file = claims_module.load(claims or ROOT / "papers" / paper / "claims.yaml")
        self.folder = ROOT / figures if figures else figures_folder(paper, scale, results)
        self.page = Path(results) / scale / paper  # the folder that links start from

    def claims(self, headline: bool | None = None) -> Html:
        """Every claim beside what was measured (`headline=True`: only those), saved as `claims.md`, and the headline as
        `claims_headline.md`."""
        chosen = [c for c in self.claims_file.claims if headline is None or c.headline == headline]
        with self.results.tracking() as used:
            verdicts = judge(self.claims_file, self.results, chosen)
        made_of = manifest.origin(self.results, used, "shared.report.notebook.Report.claims")
        for name, some in (
            ("claims", verdicts if headline is None else []),
            ("claims_headline", [v for v in verdicts if v.claim.headline]),
        ):
            if some:
                path = self.folder / f"{name}.md"
                write_atomic(path, claims_page.markdown_claims(some))
                manifest.write([path], made_of)
        rows = [(self.results.paper, verdict) for verdict in verdicts]
        return Html(claims_page.html_claims(rows, self._steps), claims_page.text_claims(verdicts))

    def references(self) -> Html:
        """The known tables of numbers, each cell held against ours where the scale allows it."""
        tables = [
            claims_page.html_reference(self.claims_file, table, self.results)
            for table in self.claims_file.reference_tables
        ]
        return Html("\n".join(tables), claims_page.text_references(self.claims_file, self.results))

    def table(self, stem: str, make: Callable[[Results], object]) -> Html:
        """Call `make(results) -> Table | None`, save it as Markdown, LaTeX and CSV with records of exactly what it
        read, and show it."""
        with self.results.tracking() as used:
            table = make(self.results)
        if table is None:
            return self._absent(stem)
        paths = save_table(table, self.folder / stem, manifest.origin(self.results, used, _producer(make)))
        return Html(html(table, self._links(paths, make, used)), markdown(table))

    def figure(self, stem: str, make: Callable[[Results], object], caption: str = "") -> Html:
        """Call `make(results) -> matplotlib Figure | None` in the project's style, save PDF and PNG with records, and
        show it.

        The caption is `caption` or the first paragraph of the function's docstring.
        """
        from shared.report.figures import save_figure
        from shared.report.style import style

        with self.results.tracking() as used, style():
            fig = make(self.results)
        if fig is None:
            return self._absent(stem)
        paths = save_figure(fig, self.folder / stem, manifest.origin(self.results, used, _producer(make)))
        caption = caption or " ".join((make.__doc__ or stem).split("\n\n")[0].split())
        found = plots.panels(fig)
        shown = render(
            "figure",
            stem=stem,
            caption=caption,
            width=fig.get_size_inches()[0],
            data=base64.b64encode(paths[1].read_bytes()).decode(),
            panels=found,
            zoom=found and plots.zoom(found),
            links=self._links(paths, make, used),
        )
        return Html(shown, f"{caption} ({paths[0]})")

    def gates(self) -> Html:
        """What had to hold before any verdict may be given."""
        return Html(panels.html_gates(self.results), f"{len(self.results.failed_gates())} gates failed")

    def sanity(self) -> Html:
        """The checks of the attacks behind the robust cells, failures listed."""
        return Html(panels.html_sanity(self.results), "sanity checks of the attacks")

    def provenance(self) -> Html:
        """How many measurements, which seeds, commit and machine are behind the page."""
        line = panels.provenance_line(self.results)
        return Html(f"<p class='notes'>{escape(line)}</p>", line)

    def _links(self, paths: Sequence[Path], make: Callable, used: Iterable[str]) -> Links:
        """The files of a table or figure, and the source of what draws and of what measures it."""
        files = {_KINDS.get(path.suffix, path.suffix[1:].upper()): path for path in paths}
        return {**links(self.page, files | _code([_producer(make)])), **self._steps(used)}

    def _steps(self, slugs: Iterable[str]) -> Links:
        """The source of the steps that measure these."""
        classes = dict.fromkeys(self.results.steps[slug] for slug in slugs if slug in self.results.steps)
        return links(self.page, _code(classes))

    def _absent(self, stem: str) -> Html:
        command = f"make reproduce-{self.results.paper}" + (
            "" if self.results.scale == "cpu" else f" SCALE={self.results.scale}"
        )
        return Html(
            f"<p class='absent'>{escape(stem)}: not measured. Run <code>{escape(command)}</code>.</p>",
            f"{stem}: not measured",
        )


def _code(names: Iterable[str]) -> dict[str, Path]:
    """The end of each full name -> the file of its module."""
    split = [name.split(".") for name in names]
    return {".".join(parts[-2:]): ROOT.joinpath(*parts[:-1]).with_suffix(".py") for parts in split}


def _producer(make: Callable) -> str:
    return f"{getattr(make, '__module__', '?')}.{getattr(make, '__qualname__', type(make).__name__)}"
