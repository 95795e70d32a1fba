"""Every file kept in figures/ says where it comes from, is what it says, and fits the repository."""

import importlib
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
    for output in outputs.values():
        module, _, name = output["producer"].rpartition(".")
        try:
            target = importlib.import_module(module)
        except ModuleNotFoundError:  # a method of a class
            module, _, owner = module.rpartition(".")
            target = getattr(importlib.import_module(module), owner)
        assert callable(getattr(target, name))
