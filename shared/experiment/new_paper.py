"""`make new-paper NAME=x`: a small working paper, docs/new-paper, as papers/x, and its test as tests/papers/x.

Standard library only.
"""

import keyword
import os
import re
import shutil
import tempfile
from pathlib import Path

from shared.errors import UserError
from shared.experiment.scales import ROOT

WORD = "newpaper"  # what the template is called in its files
RESERVED = ("overview", WORD)  # results of all papers lie beside those of each


def begin(name: str, root: Path = ROOT) -> list[Path]:
    """Write the folders of a new paper, whole or not at all; returns them. Raises UserError for a name that cannot
    be."""
    said = f"NAME={name}"
    if not re.fullmatch("[a-z][a-z0-9_]{0,29}", name) or keyword.iskeyword(name):
        raise UserError(
            f"{said} names no paper: take a word of small letters, digits and _ that Python can import, up to 30 long, "
            "as in make new-paper NAME=my_paper"
        )
    if name in RESERVED:
        raise UserError(f"{said} is taken: the project uses that word itself; take another")
    paper, tests = root / "papers" / name, root / "tests" / "papers" / name
    for there in (paper, tests, tests.with_suffix(".py")):
        if there.exists():
            raise UserError(f"{said} is taken: there is {there.relative_to(root)} already; take another")
    with tempfile.TemporaryDirectory(dir=root / "papers", prefix=".new-") as staged:
        of_paper, of_tests = Path(staged, "paper"), Path(staged, "tests")
        of_paper.mkdir()
        of_tests.mkdir()
        for path in sorted((root / "docs" / "new-paper").iterdir()):
            if path.is_file():
                text = path.read_text(encoding="utf-8").replace(WORD, name)
                folder = of_tests if path.name.startswith("test_") else of_paper
                (folder / path.name.replace(WORD, name)).write_text(text, encoding="utf-8")
        shutil.copystat(root / "papers", of_paper)
        os.replace(of_tests, tests)
        os.replace(of_paper, paper)
    return [paper, tests]
