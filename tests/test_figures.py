"""Every file kept in figures/ says where it comes from, is what it says, and fits the repository."""

from pathlib import Path

import pytest

from shared.files import sha256_file
from shared.report import manifest

ROOT = Path(__file__).parents[1]
FILES = sorted(p for p in (ROOT / "figures").rglob("*") if p.is_file() and p.name != manifest.NAME)
FOLDERS = sorted({p.parent for p in FILES})


def test_there_are_figures():
    assert {p.parent.name for p in FILES} >= {"pmg_aft"}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: str(p.relative_to(ROOT / "figures")))
def test_a_folder_is_what_its_record_says(folder):
    outputs = manifest.read(folder)["outputs"]
    said = {name: sha for output in outputs.values() for name, sha in output["files"].items()}
    assert said == {p.name: sha256_file(p) for p in FILES if p.parent == folder}
    assert all(p.stat().st_size <= 300_000 for p in FILES if p.parent == folder)
    # what drew it is named in the code of the commit that it names: since then a function may have gone
    assert all(output["producer"].startswith(("papers.", "shared.")) for output in outputs.values())
