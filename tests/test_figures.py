"""Every file kept in figures/ says where it comes from, is what it says, and fits the repository."""

import importlib
import json
from pathlib import Path

import pytest

from shared.files import sha256_file

ROOT = Path(__file__).parents[1]
FILES = sorted(p for p in (ROOT / "figures").rglob("*") if p.is_file() and not p.name.endswith(".json"))


def test_there_are_figures():
    assert {p.parent.name for p in FILES} >= {"pmg_aft"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT / "figures")))
def test_a_file_has_its_record_and_its_producer(path):
    record = json.loads(path.with_name(path.name + ".json").read_text())
    assert record["sha256"] == sha256_file(path)
    module, _, name = record["producer"].rpartition(".")
    try:
        target = importlib.import_module(module)
    except ModuleNotFoundError:  # a method of a class
        module, _, owner = module.rpartition(".")
        target = getattr(importlib.import_module(module), owner)
    assert callable(getattr(target, name))
    assert path.stat().st_size <= 300_000


def test_no_record_without_a_file():
    records = (p for p in (ROOT / "figures").rglob("*.json"))
    assert [str(p) for p in records if not p.with_name(p.name.removesuffix(".json")).is_file()] == []
