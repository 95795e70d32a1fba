"""The notebooks run, whichever of the repository's folders they are opened in."""

import json
import subprocess
import sys
from pathlib import Path

import papermill
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted([*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("papers/*/notebook.ipynb")])
FIRST = """import sys
from pathlib import Path

# The repository, from whichever of its folders this was opened in.
root = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "pyproject.toml").is_file())
sys.path.insert(0, str(root))
"""


def code(path: Path) -> list[dict]:
    """The cells that are run, but for the parameters."""
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    return [cell for cell in cells if "parameters" not in cell["metadata"].get("tags", [])]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_notebook_finds_the_repository_and_has_no_outputs(path):
    cells = code(path)
    assert "".join(cells[0]["source"]).startswith(FIRST)
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)


@pytest.mark.parametrize("folder", ["papers/pmg_aft", "notebooks", "tests/shared/report"])
def test_a_papers_notebook_imports_wherever_it_is_opened(folder):
    source = "".join(code(ROOT / "papers" / "pmg_aft" / "notebook.ipynb")[0]["source"])
    imports = source.partition("report = ")[0] + "\nprint(tables.__file__)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", imports], cwd=ROOT / folder, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == str(ROOT / "papers" / "pmg_aft" / "tables.py"), done.stderr


@pytest.mark.parametrize(
    ("name", "folder", "parameters"),
    [
        ("read_a_papers_page", "notebooks", {}),
        pytest.param("attack_and_defend", "papers/rvpt", {"pictures": 8, "steps": 2}, marks=pytest.mark.slow),
        pytest.param("add_a_defence", "docs", {"pictures": 8, "steps": 2, "targets": 1}, marks=pytest.mark.slow),
    ],
)
def test_a_notebook_runs_in_any_folder(name, folder, parameters, tmp_path):
    path = ROOT / "notebooks" / f"{name}.ipynb"
    how = {"kernel_name": "python3", "progress_bar": False, "cwd": str(ROOT / folder)}
    papermill.execute_notebook(str(path), str(tmp_path / "done.ipynb"), parameters, **how)
