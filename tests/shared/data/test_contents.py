"""Contents decide what is the same, in every kind of file: other contents of equal length under equal names are other pictures, other weights."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shared import files
from shared.data.annotated import FileCaptions
from shared.data.arrays import Hdf5Images
from shared.data.catalogue import Source
from shared.data.files import NATIVE, FileImages
from shared.data.pairs import open_pairs
from shared.models.sources import identity, locate


def bmp(seed: int) -> bytes:
    """A picture of noise; those of all seeds are equally long."""
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)).save(out, "BMP")
    return out.getvalue()


def folder(root: Path, seed: int) -> object:
    (root / "0.bmp").write_bytes(bmp(seed))
    return FileImages("pictures", root, [root / "0.bmp"], [0], ["a"], ["an a"])


def captions(root: Path, seed: int) -> object:
    (root / "0.bmp").write_bytes(bmp(seed))
    return FileCaptions("captions", root, ["0.bmp"], [["a picture"]], NATIVE, False)


def table(root: Path, seed: int) -> object:
    (root / "0.bmp").write_bytes(bmp(seed))
    (root / "pairs.csv").write_text("filepath,title\n0.bmp,a picture\n")
    return open_pairs("csv:pairs.csv", Source(str(root)), 1, 0)


def shards(root: Path, seed: int) -> object:
    with tarfile.open(root / "0.tar", "w") as tar:
        for name, content in (("0.png", bmp(seed)), ("0.txt", b"a picture")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return open_pairs("shards:0.tar", Source(str(root)), 1, 0)


def hdf5(root: Path, seed: int) -> object:
    h5py = pytest.importorskip("h5py")
    for name, content in (("x", np.full((2, 8, 8, 3), seed, np.uint8)), ("y", np.zeros((2, 1, 1, 1), np.uint8))):
        with h5py.File(root / f"{name}.h5", "w") as file:
            file[name] = content
    return Hdf5Images("hdf5", str(root / "x.h5"), str(root / "y.h5"), ["a"], ["an a"])


@pytest.mark.parametrize("make", [folder, captions, table, shards, hdf5], ids=lambda f: f.__name__)
def test_other_contents_of_equal_length_are_another_set(tmp_path, make):
    places = [tmp_path / name for name in ("one", "same", "other")]
    for place in places:
        place.mkdir()
    versions = [make(place, seed).version for place, seed in zip(places, (1, 1, 2), strict=True)]
    lengths = [sorted(p.stat().st_size for p in place.iterdir() if not p.name.startswith(".")) for place in places]
    assert lengths[0] == lengths[1] == lengths[2]
    assert versions[0] == versions[1] != versions[2]
    assert make(places[0], 2).version == versions[2]  # replaced in its place


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth.tar", "a.ckpt", "weights", "a"])
def test_weights_are_known_by_their_contents_whatever_their_file_is_called(tmp_path, name):
    known = []
    for k in (1, 2):
        torch.save({"w": torch.full((3,), k)}, tmp_path / name)
        known.append(
            (
                locate(str(tmp_path / name), "--model")[1],
                identity(str(tmp_path / name)),
                identity(f"guided:{tmp_path / name}"),
            )
        )
    assert all(a != b for a, b in zip(*known, strict=True))
    with pytest.raises(Exception, match="does not exist"):
        locate(str(tmp_path / "none.xyz"), "--model")


def test_a_folder_of_weights_is_known_by_every_file(tmp_path):
    for name in ("config.json", "unet/weights.bin", ".cache/lock"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"1234")
    before = identity(str(tmp_path))
    (tmp_path / ".cache" / "lock").write_bytes(b"5678")
    assert identity(str(tmp_path)) == before == identity(f"llava:{tmp_path}")
    (tmp_path / "unet" / "weights.bin").write_bytes(b"5678")
    assert identity(str(tmp_path)) != before


def test_a_file_that_did_not_change_is_not_read_again(tmp_path, monkeypatch):
    path, read = tmp_path / "file", []
    path.write_bytes(b"contents")
    os.utime(path, (1, 1))
    whole = files.hashlib.file_digest
    monkeypatch.setattr(
        files.hashlib, "file_digest", lambda handle, name: read.append(handle.name) or whole(handle, name)
    )
    first = files.sha256_file(path)
    assert files.sha256_file(path) == first == files.sha256_bytes(b"contents")
    files.note_digests(tmp_path / "noted.json")
    monkeypatch.setattr(files, "_digests", {})
    files.remember_digests(tmp_path / "noted.json")  # a later process
    assert files.sha256_file(path) == first
    assert len(read) == 1
    path.write_bytes(b"Contents")
    os.utime(path, (1, 1))  # of equal length, and dated back
    assert files.sha256_file(path) != first


@pytest.mark.parametrize("content", ["", "[]", json.dumps({"x": 1})])
def test_notes_that_cannot_be_read_are_none(tmp_path, monkeypatch, content):
    monkeypatch.setattr(files, "_digests", {})
    (tmp_path / "noted.json").write_text(content)
    files.remember_digests(tmp_path / "noted.json")
    (tmp_path / "file").write_bytes(b"contents")
    assert files.sha256_file(tmp_path / "file") == files.sha256_bytes(b"contents")
