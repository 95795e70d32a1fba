"""Make a paper's page: `python -m shared.report.page pmg_aft --scale cpu [--results results] [--figures DIR] [--set name=value]`

Runs papers/<paper>/notebook.ipynb on its parameters and writes `<results>/<scale>/<paper>/page.html` (one file: no script, no style
sheet, no font from anywhere else) and the executed `notebook.ipynb` beside it; tables and figures go where
`shared.report.notebook.figures_folder` says. A parameter that the notebook does not know is refused. If a cell fails, the page of the
run before stays as it is.
"""

import argparse
import ast
import asyncio
import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from shared.claims import claims as claims_module
from shared.claims.claims import ClaimsFile
from shared.claims.verdicts import judge
from shared.errors import UserError, run_main
from shared.experiment import finished
from shared.files import atomic_path, check_folder, look_at, looked_at, write_atomic
from shared.lifeline import STARTED
from shared.report import manifest
from shared.report.claims_page import SCALE_WORDS, text_claims, text_references
from shared.report.data import Results
from shared.report.notebook import ROOT, figures_folder
from shared.report.rendering import Links, links, render

# no history file in the user's home, and no warnings about transports; what a cell prints or raises is not affected
# ends when this process does, and not seconds later
_KERNEL = "from shared.lifeline import tie_to_launcher as tie; tie(); from ipykernel import kernelapp; kernelapp.launch_new_instance()"
OWN = ("scale", "results", "figures")  # parameters with an option of their own
_QUIET = ("--HistoryManager.enabled=False", "--IPKernelApp.log_level=50")


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, make the page, print the claims and where everything is; a page with nothing new to draw
    is left as it is."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = _arguments(argv)
    own = not args.notebook  # what another notebook imports is not known
    if own and (text := finished.said(args.paper, "page", argv)):
        print(text, flush=True)
        return
    looked_at.clear()
    notebook = Path(args.notebook) if args.notebook else ROOT / "papers" / args.paper / "notebook.ipynb"
    parameters = settings(notebook, args.set)
    if args.check:
        return
    claims = Path(args.claims) if args.claims else notebook.parent / "claims.yaml"
    results = Path(args.results).absolute()
    figures = Path(args.figures).absolute() if args.figures else figures_folder(args.paper, args.scale, results)
    given = {"scale": args.scale, "results": str(results), "figures": str(figures), **parameters}
    loaded = Results.load(
        results, args.scale, args.paper
    )  # before the notebook, so that "nothing measured" is one sentence
    file = claims_module.load(claims)
    page = make_page(
        notebook,
        given,
        results / args.scale / args.paper,
        file.title,
        optional={"paper": args.paper, "claims": str(claims)},
        files={
            **{name: notebook.parent / name for name in ("README.md", "method.py", "steps.py", "claims.yaml")},
            **{name: figures / name for name in ("claims.md", "record.json")},
            "notebook.ipynb": results / args.scale / args.paper / "notebook.ipynb",
        },
    )
    text = _said(file, loaded, page, figures)
    print(text, flush=True)
    if own:
        outputs = (figures / name for made in manifest.read(figures)["outputs"].values() for name in made["files"])
        for path in (notebook, claims, page, page.with_name("plan.json"), page.with_name("gates.json"), *outputs):
            look_at(path)
        finished.note(args.paper, "page", argv, text, None)


def _said(file: ClaimsFile, loaded: Results, page: Path, figures: Path) -> str:
    """The claims, the reference tables, and where everything is."""
    width, folder = max(60, min(shutil.get_terminal_size((110, 24)).columns, 130)), _relative(figures)
    text = f"\n{file.title}\nscale {SCALE_WORDS[loaded.scale]}\n\n{text_claims(judge(file, loaded), width)}\n"
    if file.reference_tables:
        text += f"\nreference tables\n{text_references(file, loaded)}\n"
    return f"{text}\npage     {_relative(page)}\nfigures  {folder}/*.pdf, *.png\ntables   {folder}/*.md, *.tex, *.csv"


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m shared.report.page", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("paper", help="folder under papers/")
    parser.add_argument("--scale", default="cpu", choices=list(SCALE_WORDS))
    parser.add_argument("--results", default=str(ROOT / "results"), help="the folder of all results")
    parser.add_argument("--figures", default="", help="where tables and figures go")
    parser.add_argument("--notebook", default="", help="another notebook than papers/<paper>/notebook.ipynb")
    parser.add_argument("--claims", default="", help="another claims file than the one beside the notebook")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the notebook; may be repeated"
    )
    parser.add_argument("--check", action="store_true", help="only say whether the notebook takes these")
    return parser.parse_args(argv)


def make_page(
    notebook: Path,
    parameters: dict,
    out: Path,
    title: str,
    optional: dict | None = None,
    files: Mapping[str, Path] | None = None,
) -> Path:
    """Execute `notebook` with `parameters` (and those of `optional` that it knows) and write `out/page.html`; returns
    its path.

    files: what the head of the page leads to, where it is there.

    Raises UserError for a parameter the notebook does not know and for a failing cell; then `out/page.html` is left as
    it was.
    """
    if not notebook.is_file():
        raise UserError(f"there is no notebook at {notebook}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = _read(notebook)
        known = list(_parameters(content))
        unknown = sorted(set(parameters) - set(known))
        if unknown:
            raise UserError(
                f"{notebook.name} has no parameter {', '.join(unknown)}; it knows {', '.join(known) or 'none'}"
            )
        parameters = {**{name: value for name, value in (optional or {}).items() if name in known}, **parameters}
        check_folder(out, "RESULTS")
        with atomic_path(out / "notebook.ipynb") as executed:
            body = _body(_execute(content, notebook.name, executed, parameters, out))
    papers = {f"arXiv {number}": f"https://arxiv.org/abs/{number}" for number in re.findall(r"arXiv (\d+\.\d+)", title)}
    scale = parameters.get("scale", "")
    about = f"Scale {SCALE_WORDS.get(scale, scale)}"
    write_atomic(out / "page.html", wrap(body, title, about, {**papers, **links(out, files or {})}))
    return out / "page.html"


def _read(path: Path):
    """The notebook, said to be for Python whatever its own metadata say (papermill needs to know, and authors' editors
    disagree)."""
    import nbformat

    try:
        notebook = nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable notebook: {error}") from None
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return notebook


def _execute(notebook, name: str, executed: Path, parameters: dict, out: Path):
    """Run the notebook with this interpreter; a failing cell becomes a UserError and leaves `notebook.failed.ipynb`."""
    import importlib.util

    if importlib.util.find_spec("ipykernel") is None:
        raise UserError(f"{sys.executable} has no ipykernel, which runs the notebook: run `make setup`")
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    options = {"kernel_name": "python3", "progress_bar": sys.stderr.isatty(), "log_output": False, "cwd": str(ROOT)}
    failed = out / "notebook.failed.ipynb"
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what else it says is in the errors that it raises
    try:
        target = str(executed).replace("{", "{{").replace("}", "}}")  # papermill formats the path with the parameters
        with tempfile.TemporaryDirectory() as profile:
            done = papermill.execute_notebook(
                notebook, target, parameters, kernel_manager_class=_this_interpreter(profile), **options
            )
    except PapermillExecutionError as error:
        shutil.copyfile(executed, failed)
        said = " ".join(str(error.evalue).split())
        where = f"cell {error.exec_count} of {name} failed"
        raise UserError(
            f"{where} with {error.ename}: {said} (its full trace is in {failed}; the page was not touched)"
        ) from None
    except (DeadKernelError, RuntimeError) as error:
        raise UserError(f"the process that runs {name} died or did not start: {error}") from None
    failed.unlink(missing_ok=True)
    return done


def _this_interpreter(profile: str):
    """A kernel manager whose kernel is this interpreter, whatever kernels the user has installed elsewhere under the
    same name.

    profile: an empty folder for what IPython keeps; the user's own, whose scripts run at the start, has no part in a
    page, and HOME need not be there."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class Manager(AsyncKernelManager):
        shutdown_wait_time = 1.0  # seconds that a kernel has to end by itself, also after an interrupt

        @property
        def kernel_spec(self):
            argv = [sys.executable, "-c", _KERNEL, "-f", "{connection_file}", *_QUIET]
            env = {"PYDEVD_DISABLE_FILE_VALIDATION": "1", "IPYTHONDIR": profile, STARTED: "1"}
            return KernelSpec(argv=argv, display_name="Python 3", language="python", env=env)

        async def start_kernel(self, **options):
            # nbclient's handlers end the kernel and let this script go on; a signal is to end the script
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().remove_signal_handler(number)
            return await super().start_kernel(**options)

    return Manager


def _body(notebook) -> str:
    """The executed notebook as HTML without code, prompts or what was written to stderr (that goes to our stderr)."""
    from nbconvert import HTMLExporter

    for cell in notebook.cells:
        if cell.cell_type == "code":
            for output in cell.outputs:
                if output.output_type == "stream" and output.name == "stderr":
                    print(output.text, end="", file=sys.stderr)
            cell.outputs = [o for o in cell.outputs if not (o.output_type == "stream" and o.name == "stderr")]
    exporter = HTMLExporter(template_name="basic", embed_images=True, exclude_input=True, exclude_anchor_links=True)
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    return exporter.from_notebook_node(notebook)[0]


def wrap(body: str, title: str, about: str, lead: Links | None = None) -> str:
    """A page of its own, with contents, from what it shows. about: a line below its title; lead: links below that."""
    contents: dict[str, str] = {}

    def named(heading: re.Match) -> str:
        words = Markup(heading[1]).striptags()
        to = "-".join(re.findall(r"\w+", words.lower()))
        to += f"-{len(contents)}" if to in contents else ""
        contents[to] = words
        return f'<h2 id="{to}">{heading[1]}</h2>'

    first = re.search("<h1>(.*?)</h1>", body, re.S)
    if first and title.startswith(Markup(first[1]).striptags()):  # the page has it already
        body = body.replace(first[0], "", 1)
    body = re.sub("<h2>(.*?)</h2>", named, body, flags=re.S)
    return render("page", title=title, about=about, links=lead, contents=contents, body=Markup(body))


def settings(notebook: Path, pairs: Sequence[str]) -> dict:
    """NAME=VALUE for the parameters of a notebook; a value is read as what the parameter's default is.

    Text is taken as it stands; a whole number, number, truth value (true, false) or list must be one, as in JSON. Where
    the default is None, a value is what JSON makes of it, else text. Raises UserError for an unknown parameter and for
    a value of another type.
    """
    if not pairs:
        return {}
    known = _parameters(_read(notebook))
    out: dict = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"--set takes name=value, not {pair!r}")
        if name not in known or name in OWN:
            free = ", ".join(sorted(set(known) - set(OWN))) or "none"
            why = (
                f"is set by --{name} (with make: {name.upper()})"
                if name in OWN
                else f"is no parameter of {notebook.name}"
            )
            raise UserError(f"--set {name}: {name} {why}; it can set: {free}")
        out[name] = _value(name, text, known[name])
    return out


def _parameters(notebook) -> dict[str, object]:
    """The names assigned in the cell tagged `parameters`, with their defaults (None where one is no literal)."""
    from papermill.inspection import inspect_notebook

    out = {}
    for name, parameter in inspect_notebook(notebook).items():
        try:
            out[name] = ast.literal_eval(parameter["default"])
        except (ValueError, SyntaxError):
            out[name] = None
    return out


def _value(name: str, text: str, default: object) -> object:
    if isinstance(default, str):
        return text
    try:
        value = json.loads(text, parse_constant=_refuse)
    except ValueError:
        value = text
    if default is None or type(value) is type(default) or (type(default), type(value)) == (float, int):
        return value
    kinds = {bool: "true or false", int: "a whole number", float: "a number", list: "a list such as [1, 2]"}
    raise UserError(f"--set {name} takes {kinds.get(type(default), type(default).__name__)}, not {text!r}")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _relative(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    run_main(main)
