"""Pairs from tables and shards: which, what they look like, and what is said about missing and broken ones."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

import shared.data.shards as shards
from shared.data.base import loader
from shared.data.catalogue import Source
from shared.data.pairs import FilePairs, PairSubset, open_pairs
from shared.data.poison import PoisonedPairs
from shared.data.shards import expand, shard_files
from shared.data.targets import target
from shared.errors import UserError


def encoded(seed, size=(12, 9), form="PNG"):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(file, form)
    return file.getvalue()


def table(root, n=6, header="filepath,title", name="pairs.csv", separator=","):
    (root / "pictures").mkdir(exist_ok=True)
    lines = [header]
    for i in range(n):
        (root / "pictures" / f"{i}.png").write_bytes(encoded(i, (8 + i, 6)))
        lines.append(separator.join([f"pictures/{i}.png", f"picture {i}"]))
    (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Source(root=str(root))


def shard(path, rows):
    """rows: (member name, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in rows:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def cc3m(root, files=3, each=4):
    for k in range(files):
        rows = []
        for i in range(each):
            number = k * each + i
            said = f"picture {number}".encode()
            rows += [(f"{number:09d}.jpg", encoded(number, form="PNG"))]
            rows += [(f"{number:09d}.txt", said)] if i % 2 else [(f"{number:09d}.json", json.dumps({"caption": said.decode(), "n": 1}).encode())]
        shard(root / "cc3m" / f"{k:05d}.tar", rows)
    return Source(root=str(root))


def all_of(pairs):
    x, texts = pairs.__getitems__(range(len(pairs)))
    return dict(zip(texts, x, strict=True))


# ---- scenes ----------------------------------------------------------------------------------------------------------------


def test_scenes_are_held_and_disjoint():
    a, b = (open_pairs("scenes", Source(), 20, seed) for seed in (0, 1))
    assert len(a) == 20 and a.__getitems__([3])[0].shape == (1, 3, 32, 32)
    assert a.version != b.version and not torch.equal(a.x, b.x)
    assert a.captions([5, 2]) == a.__getitems__([5, 2])[1]


# ---- tables ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["filepath,title", "image,caption", "path,text", " Path ,TEXT"])
def test_a_table_gives_squashed_pictures_and_captions(tmp_path, header):
    pairs = open_pairs("csv:pairs.csv", table(tmp_path, header=header), 6, 0, size=7)
    found = all_of(pairs)
    assert sorted(found) == [f"picture {i}" for i in range(6)]
    for i in range(6):
        whole = Image.open(tmp_path / "pictures" / f"{i}.png").resize((7, 7), Image.Resampling.BICUBIC)
        assert torch.equal(found[f"picture {i}"], torch.from_numpy(np.array(whole)).permute(2, 0, 1).float() / 255)


def test_tabs_other_columns_quotes_and_a_byte_order_mark(tmp_path):
    source = table(tmp_path, 2)
    (tmp_path / "tabs.tsv").write_text("﻿id\tcaption\tpath\n7\tone, two\tpictures/0.png\n\n8\tthree\tpictures/1.png\n", encoding="utf-8")
    assert sorted(all_of(open_pairs("csv:tabs.tsv", source, 2, 0, 4))) == ["one, two", "three"]
    (tmp_path / "quoted.csv").write_text('path,caption\npictures/0.png,"a cat, and\na dog"\n')
    assert open_pairs("csv:quoted.csv", source, 1, 0, 4).captions([0]) == ["a cat, and\na dog"]


def test_paths_are_relative_to_the_table(tmp_path):
    below = tmp_path / "below"
    below.mkdir()
    table(below, 2)
    assert len(all_of(open_pairs("csv:below/pairs.csv", Source(root=str(tmp_path)), 2, 0, 4))) == 2


def test_the_choice_is_a_function_of_the_seed_and_grows(tmp_path):
    source = table(tmp_path, 30)
    few, many, again, other = (open_pairs("csv:pairs.csv", source, n, seed, 4) for n, seed in ((5, 1), (20, 1), (5, 1), (5, 2)))
    assert few.captions(range(5)) == many.captions(range(5)) == again.captions(range(5)) != other.captions(range(5))
    assert few.version == again.version and len({few.version, many.version, other.version}) == 3
    assert open_pairs("csv:pairs.csv", source, 5, 1, 8).version != few.version
    few.__getitems__([3, 1])
    assert few.__getitems__([1])[1] == again.__getitems__([1])[1]


def test_the_version_sees_a_caption_and_a_file(tmp_path):
    source = table(tmp_path, 3)
    before = open_pairs("csv:pairs.csv", source, 3, 0, 4).version
    (tmp_path / "pictures" / "1.png").write_bytes(encoded(1, (30, 30)))
    changed = open_pairs("csv:pairs.csv", source, 3, 0, 4).version
    text = (tmp_path / "pairs.csv").read_text().replace("picture 2", "picture two")
    (tmp_path / "pairs.csv").write_text(text)
    assert len({before, changed, open_pairs("csv:pairs.csv", source, 3, 0, 4).version}) == 3


def test_a_subset_has_captions_pictures_and_an_identity(tmp_path):
    pairs = open_pairs("csv:pairs.csv", table(tmp_path), 6, 0, 8)
    part = PairSubset(pairs, [5, 2])
    assert len(part) == 2 and part.captions([1, 0]) == pairs.captions([2, 5])
    x, texts = part.__getitems__([0])
    assert torch.equal(x, pairs.__getitems__([5])[0]) and texts == pairs.captions([5])
    assert part.version == PairSubset(pairs, (5, 2)).version != PairSubset(pairs, [2, 5]).version


def test_pairs_can_be_poisoned_and_read_by_workers(tmp_path):
    pairs = open_pairs("csv:pairs.csv", table(tmp_path, 10), 8, 0, 32)
    from shared.attacks.triggers import make_trigger

    poisoned = PoisonedPairs(pairs, make_trigger("badnet", size=32), target("banana"), count=3)
    x, texts = poisoned.__getitems__(range(8))
    assert sum("banana" in t for t in texts) == 3 and x.shape == (8, 3, 32, 32)
    batches = list(loader(pairs, [[0, 1], [2]], workers=1))
    assert torch.equal(batches[0][0], pairs.__getitems__([0, 1])[0]) and batches[1][1] == pairs.captions([2])


# ---- shards ----------------------------------------------------------------------------------------------------------------


def test_ranges_of_names(tmp_path):
    assert expand("a/{08..10}.tar") == ["a/08.tar", "a/09.tar", "a/10.tar"]
    assert expand("{0..1}-{1..2}") == ["0-1", "0-2", "1-1", "1-2"] and expand("plain.tar") == ["plain.tar"]
    cc3m(tmp_path, 3)
    assert shard_files(tmp_path, "cc3m/*.tar") == [f"cc3m/0000{k}.tar" for k in range(3)]
    with pytest.raises(UserError, match="smaller number first"):
        expand("{3..1}")


@pytest.mark.parametrize("pattern", ["cc3m/{00000..00002}.tar", "cc3m/*.tar"])
def test_shards_give_pictures_and_captions(tmp_path, pattern):
    found = all_of(open_pairs(f"shards:{pattern}", cc3m(tmp_path), 12, 0, 7))
    assert sorted(found) == sorted(f"picture {i}" for i in range(12))
    for i in range(12):
        whole = Image.open(io.BytesIO(encoded(i))).resize((7, 7), Image.Resampling.BICUBIC)
        assert torch.equal(found[f"picture {i}"], torch.from_numpy(np.array(whole)).permute(2, 0, 1).float() / 255)


def test_the_contents_are_read_once_and_again_after_a_change(tmp_path, monkeypatch):
    source, seen = cc3m(tmp_path, 2), []
    inner = shards._members
    monkeypatch.setattr(shards, "_members", lambda path: seen.append(path.name) or inner(path))
    first = open_pairs("shards:cc3m/*.tar", source, 8, 0, 4)
    again = open_pairs("shards:cc3m/*.tar", source, 8, 0, 4)
    assert len(seen) == 2 and first.version == again.version
    assert len(list((tmp_path / "cc3m").glob(".pairs-*.npz"))) == 1 and not list((tmp_path / "cc3m").glob(".*.tmp-*"))
    shard(tmp_path / "cc3m" / "00001.tar", [("x.png", encoded(99)), ("x.txt", b"new")])
    assert "new" in open_pairs("shards:cc3m/*.tar", source, 5, 0, 4).captions(range(5)) and len(seen) == 4
    os.utime(tmp_path / "cc3m" / "00000.tar", (1, 1))
    open_pairs("shards:cc3m/*.tar", source, 5, 0, 4)
    assert len(seen) == 6
    kept = next((tmp_path / "cc3m").glob(".pairs-*.npz"))
    kept.write_bytes(kept.read_bytes()[:100])  # a damaged table is made again
    assert open_pairs("shards:cc3m/*.tar", source, 5, 0, 4).captions(range(5)) and len(seen) == 8


def test_a_folder_that_cannot_be_written_to_has_its_table_in_the_cache(tmp_path, monkeypatch):
    source, inner = cc3m(tmp_path / "data", 1), shards.atomic_path

    def refuse(path):
        if "data" in str(path.parent):
            raise PermissionError(13, "read-only")
        return inner(path)

    monkeypatch.setattr(shards, "atomic_path", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = open_pairs("shards:cc3m/*.tar", source, 4, 0, 4).version
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 1
    monkeypatch.setattr(shards, "_members", lambda path: pytest.fail("read again"))
    assert open_pairs("shards:cc3m/*.tar", source, 4, 0, 4).version == first
    monkeypatch.undo()
    monkeypatch.setattr(shards, "atomic_path", lambda path: refuse(tmp_path / "data" / "x"))  # nowhere at all
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert open_pairs("shards:cc3m/*.tar", source, 4, 0, 4).version == first


def test_folders_in_shards_keep_pairs_apart_and_txt_comes_before_json(tmp_path):
    shard(tmp_path / "a.tar", [("one/k.png", encoded(0)), ("one/k.txt", b"first"), ("two/k.PNG", encoded(1)),
                               ("two/k.json", b'{"caption": "second"}'), ("two/k.txt", "zwölf".encode()), ("readme.md", b"no")])
    assert sorted(open_pairs("shards:a.tar", Source(root=str(tmp_path)), 2, 0, 4).captions([0, 1])) == ["first", "zwölf"]


# ---- what goes wrong -------------------------------------------------------------------------------------------------------


def spoil(root, how):
    path = root / "pictures" / "2.png"
    if how == "missing":
        path.unlink()
    else:
        whole = path.read_bytes()
        path.write_bytes({"empty": b"", "truncated": whole[: len(whole) // 2], "garbage": b"this is not a picture"}[how])


@pytest.mark.parametrize("how", ["missing", "empty", "truncated", "garbage"])
def test_a_bad_picture_stops_or_another_stands_in(tmp_path, how, capsys):
    source = table(tmp_path, 6)
    spoil(tmp_path, how)
    pairs = open_pairs("csv:pairs.csv", source, 5, 0, 4)
    if "picture 2" not in pairs.captions(range(5)):
        pairs = open_pairs("csv:pairs.csv", source, 6, 0, 4)
    with pytest.raises(UserError, match=r"2\.png.*(missing|corrupt)"):
        pairs.__getitems__(range(len(pairs)))
    source = Source(root=source.root, skip_corrupt=True)
    pairs, other = (open_pairs("csv:pairs.csv", source, len(pairs), 0, 4) for _ in range(2))
    at = pairs.captions(range(len(pairs))).index("picture 2")
    x, texts = pairs.__getitems__(range(len(pairs)))
    assert "picture 2" not in texts and len(pairs.skipped) == 1 and "2.png" in pairs.skipped[0]
    assert "stand in" in capsys.readouterr().err
    alone = other.__getitems__([at])  # whatever was read before
    assert alone[1] == [texts[at]] and torch.equal(alone[0][0], x[at])


def test_nothing_but_bad_pictures(tmp_path):
    source = table(tmp_path, 3)
    for path in (tmp_path / "pictures").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="in a row"):
        open_pairs("csv:pairs.csv", Source(root=source.root, skip_corrupt=True), 2, 0, 4).__getitems__([0])


@pytest.mark.parametrize(("content", "says"), [
    ("", "columns nothing"), ("a,b\n1,2\n", "columns a, b"), ("path,caption\n", "no pair"), ("path,caption\nx.png\n", "row 2 lacks"),
    ("path,caption\nx.png,ok\n, a\n", "row 3 lacks"), ("path,caption\nx.png,\n", "row 2 lacks"), (b"path,caption\n\xff\xfe,a\n", "UTF-8")])
def test_bad_tables(tmp_path, content, says, capsys):
    (tmp_path / "t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=says):
        open_pairs("csv:t.csv", Source(root=str(tmp_path)), 1, 0, 4)
    if "row 3" in says:
        assert len(open_pairs("csv:t.csv", Source(root=str(tmp_path), skip_corrupt=True), 1, 0, 4)) == 1
        assert "1 rows lack" in capsys.readouterr().err


def test_bad_specs(tmp_path):
    source = table(tmp_path, 3)
    for spec, says in (("cc3m", "not understood"), ("csv:", "not understood"), ("csv:none.csv", "no file"), ("shards:none.tar", "no file"),
                       ("shards:none/{0..3}.tar", "no file"), ("shards:none*.tar", "no file"), ("csv:pictures", "cannot be read")):
        with pytest.raises(UserError, match=says):
            open_pairs(spec, source, 1, 0, 4)
    with pytest.raises(UserError, match=r"has 3 pairs .* 4 are wanted"):
        open_pairs("csv:pairs.csv", source, 4, 0, 4)
    with pytest.raises(UserError, match="DATA_ROOT"):
        open_pairs("csv:pairs.csv", Source(), 1, 0, 4)
    with pytest.raises(UserError, match="1 or more"):
        open_pairs("scenes", Source(), 0, 0, 4)
    pairs = open_pairs("csv:pairs.csv", source, 2, 0, 4)
    assert isinstance(pairs, FilePairs) and pairs.__getitems__([])[0].shape == (0, 3, 4, 4) and pairs[0][0].shape == (3, 4, 4)
    for index in (-1, 2):
        with pytest.raises(IndexError):
            pairs[index]


def test_bad_shards(tmp_path, capsys):
    cc3m(tmp_path, 3)
    folder, strict, lenient = tmp_path / "cc3m", Source(root=str(tmp_path)), Source(root=str(tmp_path), skip_corrupt=True)

    def both(pattern, says, left):
        with pytest.raises(UserError, match=says):
            open_pairs(f"shards:{pattern}", strict, 1, 0, 4)
        pairs = open_pairs(f"shards:{pattern}", lenient, left, 0, 4)
        assert "left out" in capsys.readouterr().err
        with pytest.raises(UserError, match="are wanted"):
            open_pairs(f"shards:{pattern}", lenient, left + 1, 0, 4)
        return pairs

    both("cc3m/{00000..00003}.tar", "00003.tar is missing", 12)
    whole = (folder / "00002.tar").read_bytes()
    (folder / "00002.tar").write_bytes(whole[:512 * 4 + 100])  # within the second pair
    pairs = both("cc3m/*.tar", "00002.tar is broken", 9)
    assert len(all_of(pairs)) == 9
    (folder / "00002.tar").write_bytes(b"nothing like a tar" * 100)
    both("cc3m/*.tar", "broken or compressed", 8)
    with tarfile.open(folder / "00002.tar", "w:gz"):
        pass
    both("cc3m/*.tar", "broken or compressed", 8)
    shard(folder / "00002.tar", [("a.jpg", encoded(0)), ("b.txt", b"alone"), ("c.jpg", encoded(0)), ("c.json", b"{"), ("d.jpg", encoded(0)),
                                 ("d.json", b'{"caption": null}')])
    both("cc3m/*.tar", "4 things .* no caption", 8)
    for name in ("00000.tar", "00001.tar"):
        (folder / name).unlink()
    with pytest.raises(UserError, match="has 0 pairs"):
        open_pairs("shards:cc3m/*.tar", lenient, 1, 0, 4)


def test_a_bad_picture_in_a_shard(tmp_path):
    shard(tmp_path / "a.tar", [("a.jpg", b"no picture"), ("a.txt", b"bad"), ("b.jpg", encoded(1)), ("b.txt", b"good")])
    with pytest.raises(UserError, match=r"a in .*a\.tar is corrupt"):
        open_pairs("shards:a.tar", Source(root=str(tmp_path)), 2, 0, 4).__getitems__([0, 1])
    pairs = open_pairs("shards:a.tar", Source(root=str(tmp_path), skip_corrupt=True), 2, 0, 4)
    assert pairs.__getitems__([0, 1])[1] == ["good", "good"] and len(pairs.skipped) == 1
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:2000])  # cut off while it is in use
    with pytest.raises(UserError, match="cut off"):
        FilePairs("shards", pairs.store, 2, 0, 4).__getitems__([0, 1])
