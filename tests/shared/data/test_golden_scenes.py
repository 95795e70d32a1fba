"""The world as it was when its VERSION was given: a change of it must raise VERSION, since every measurement is kept under it.

After raising it: `PYTHONPATH=. .venv/bin/python tests/shared/data/test_golden_scenes.py` writes the two files anew.
Pictures are compared with a stored sheet, not by a hash: processors with other vector units may round a value of a few in 1,000
pictures the other way (by 1/255). Attributes and sentences use no such functions and must be equal.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.data.language import VOCABULARY, captions, questions
from shared.data.scene_sets import SETS, ScenePairs, SceneSet
from shared.data.scenes import VERSION, sample

pytestmark = pytest.mark.numeric
SHEET, FACTS = (Path(__file__).with_name(f"golden_scenes.{suffix}") for suffix in ("png", "json"))
PAIRS = 6


def sheet() -> np.ndarray:
    """(rows · 32, 32, 3) uint8: the first test picture of every set, then the first pre-training pictures."""
    rows = [SceneSet(name).__getitems__([0])[0] for name in SETS] + [
        ScenePairs(10).__getitems__([i])[0] for i in range(PAIRS)
    ]
    return np.concatenate([np.rint(x[0].numpy() * 255).astype(np.uint8).transpose(1, 2, 0) for x in rows])


def facts() -> dict[str, str]:
    """What identifies the rest of the world, as hashes."""
    n = np.arange(2000)
    s = sample(0, n)
    whole = {
        name: getattr(s, name)
        for name in ("kind", "n_objects", "shape", "colour", "surface", "size", "position", "background")
    }
    hashes = {
        "attributes": repr([(k, v.tolist()) for k, v in whole.items()]),
        "captions": repr(captions(s, 0, n)),
        "questions": repr(questions(s, 0, n)),
        "vocabulary": repr(VOCABULARY),
        "classes": repr([(name, SceneSet(name).classes, SceneSet(name).prompts) for name in SETS]),
        "labels": repr([SceneSet(name, n=500).labels.tolist() for name in SETS]),
    }
    return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in hashes.items()}


def test_the_golden_files_are_of_this_version():
    assert json.loads(FACTS.read_text())["version"] == VERSION, (
        f"VERSION was raised: write the golden files anew ({__doc__})"
    )


def test_attributes_sentences_and_labels_are_those_of_this_version():
    stored = json.loads(FACTS.read_text())
    changed = [name for name, value in facts().items() if stored[name] != value]
    assert not changed, f"{changed} changed: raise VERSION in shared/data/scenes.py"


def test_pictures_are_those_of_this_version():
    stored = np.asarray(Image.open(SHEET)).astype(int)
    difference = np.abs(stored - sheet())
    assert difference.max() <= 1 and (difference > 0).sum() <= 5, (
        "pictures changed: raise VERSION in shared/data/scenes.py"
    )


if __name__ == "__main__":
    FACTS.write_text(json.dumps({"version": VERSION, **facts()}, indent=1) + "\n")
    Image.fromarray(sheet()).save(SHEET, optimize=True)
