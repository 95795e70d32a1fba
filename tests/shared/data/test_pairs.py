"""Pairs from tables and shards: which, what they look like, and what is said about missing and broken ones."""

import io
import json
import os
import re
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import shared.data.shards as shards
from shared.attacks.triggers import make_trigger
from shared.data.base import loader
from shared.data.catalogue import Source
from shared.data.pairs import FilePairs, PairSubset, open_pairs
from shared.data.poison import PoisonedPairs
from shared.data.shards import expand, shard_files
from shared.data.targets import target
from shared.errors import UserError


def encoded(seed, size=(12, 9), form="PNG"):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(
        file, form
    )
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
            rows += (
                [(f"{number:09d}.txt", said)]
                if i % 2
                else [(f"{number:09d}.json", json.dumps({"caption": said.decode(), "n": 1}).encode())]
            )
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
    (tmp_path / "tabs.tsv").write_text(
        "﻿id\tcaption\tpath\n7\tone, two\tpictures/0.png\n\n8\tthree\tpictures/1.png\n", encoding="utf-8"
    )
    assert sorted(all_of(open_pairs("csv:tabs.tsv", source, 2, 0, 4))) == ["one, two", "three"]
    (tmp_path / "quoted.csv").write_text('path,caption\npictures/0.png,"a ""big"" cat, and a dog"\n')
    assert open_pairs("csv:quoted.csv", source, 1, 0, 4).captions([0]) == ['a "big" cat, and a dog']


def test_paths_are_relative_to_the_table(tmp_path):
    below = tmp_path / "below"
    below.mkdir()
    table(below, 2)
    assert len(all_of(open_pairs("csv:below/pairs.csv", Source(root=str(tmp_path)), 2, 0, 4))) == 2


def test_the_choice_is_a_function_of_the_seed_and_grows(tmp_path):
    source = table(tmp_path, 30)
    few, many, again, other = (
        open_pairs("csv:pairs.csv", source, n, seed, 4) for n, seed in ((5, 1), (20, 1), (5, 1), (5, 2))
    )
    assert few.captions(range(5)) == many.captions(range(5)) == again.captions(range(5)) != other.captions(range(5))
    assert few.version == again.version and len({few.version, many.version, other.version}) == 3
    assert open_pairs("csv:pairs.csv", source, 5, 1, 8).version != few.version
    assert open_pairs("csv:pairs.csv", replace(source, fast=True), 5, 1, 4).version != few.version
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
    assert expand("{8..010}") == ["008", "009", "010"]
    assert expand("{0..8..4}.{a,b}") == ["0.a", "0.b", "4.a", "4.b", "8.a", "8.b"]
    assert expand("x{,-old}.tar") == ["x.tar", "x-old.tar"] and expand("{2..0}") == ["2", "1", "0"]


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
    monkeypatch.setattr(shards, "_members", lambda path, of: seen.append(path.name) or inner(path, of))
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
    monkeypatch.setattr(shards, "_members", lambda path, of: pytest.fail("read again"))
    assert open_pairs("shards:cc3m/*.tar", source, 4, 0, 4).version == first
    monkeypatch.undo()
    monkeypatch.setattr(shards, "atomic_path", lambda path: refuse(tmp_path / "data" / "x"))  # nowhere at all
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert open_pairs("shards:cc3m/*.tar", source, 4, 0, 4).version == first


def test_folders_in_shards_keep_pairs_apart_and_txt_comes_before_json(tmp_path):
    shard(
        tmp_path / "a.tar",
        [
            ("one/k.png", encoded(0)),
            ("one/k.txt", b"first"),
            ("two/k.PNG", encoded(1)),
            ("two/k.json", b'{"caption": "second"}'),
            ("two/k.txt", "zwölf".encode()),
            ("readme.md", b"no"),
        ],
    )
    assert sorted(open_pairs("shards:a.tar", Source(root=str(tmp_path)), 2, 0, 4).captions([0, 1])) == [
        "first",
        "zwölf",
    ]


# ---- what goes wrong -------------------------------------------------------------------------------------------------------


def spoil(root, how):
    path = root / "pictures" / "2.png"
    if how == "missing":
        path.unlink()
    else:
        whole = path.read_bytes()
        path.write_bytes(
            {"empty": b"", "truncated": whole[: len(whole) // 2], "garbage": b"this is not a picture"}[how]
        )


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
    assert "1 pictures so far cannot be read and others stand in" in capsys.readouterr().err
    alone = other.__getitems__([at])  # whatever was read before
    assert alone[1] == [texts[at]] and torch.equal(alone[0][0], x[at])


def test_nothing_but_bad_pictures(tmp_path):
    source = table(tmp_path, 3)
    for path in (tmp_path / "pictures").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="in a row"):
        open_pairs("csv:pairs.csv", Source(root=source.root, skip_corrupt=True), 2, 0, 4).__getitems__([0])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "columns nothing"),
        ("a,b\n1,2\n", "columns a, b"),
        ("path,caption\n", "has 0 pairs"),
        ("path,Caption,caption\nx.png,a,b\n", "more than one column caption"),
        ("image\timage\ttitle\nx.png\ty.png\ta\n", "more than one column image"),
        ("path;caption\nx.png;a\n", "columns path;caption:"),
        ("path,caption".encode("utf-16"), "is not UTF-8"),
        (b"pa\xffth,caption\n", "column names is not UTF-8"),
        ('path,"caption\nx.png,a\n', "quotes that do not fit"),
    ],
)
def test_bad_tables(tmp_path, content, says):
    (tmp_path / "t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    for skip in (False, True):
        with pytest.raises(UserError, match=says):
            open_pairs("csv:t.csv", Source(root=str(tmp_path), skip_corrupt=skip), 1, 0, 4)


ROWS = {
    "path,caption\nx.png\n": "has 1 fields and the first line 2",
    "path,caption\n, a\n": "lacks",
    "path,caption\nx.png,\n": "lacks",
    "path,caption\nx.png,a cat, a dog\n": "has 3 fields and the first line 2 .*needs quotes",
    'path,caption\nx.png,"a cat\n': "quotes that do not fit",
    'path,caption\nx.png,"a cat" sat\n': "quotes that do not fit",
    "path,caption\nx.png,a\0b\n": "number 0",
    "path\tcaption\nx.png\ta\tb\n": "has 3 fields",
    "path,caption,id\nx.png,a cat\n": "has 2 fields and the first line 3",
    "path\tcaption\n\t\n": "lacks",
    b"path,caption\nx.png,caf\xe9\n": "is not UTF-8",
    "path,caption\nx.png," + 200_000 * "a" + "\n": "field larger than",
}


@pytest.mark.parametrize("content", ROWS)
def test_rows_that_are_no_pair_stop_or_are_counted_and_named(tmp_path, content, capsys):
    content, says = content if isinstance(content, bytes) else content.encode(), ROWS[content]
    good = b"y.png\tgood\n" if b"\t" in content else b"y.png,good,3\n" if b"id" in content else b"y.png,good\n"
    (tmp_path / "t.csv").write_bytes(content + good)
    with pytest.raises(UserError, match=rf"1 things .* first is: row 2 of .*t.csv .*{says}.*--skip-corrupt"):
        open_pairs("csv:t.csv", Source(root=str(tmp_path)), 1, 0, 4)
    pairs = open_pairs("csv:t.csv", Source(root=str(tmp_path), skip_corrupt=True), 1, 0, 4)
    assert pairs.captions([0]) == ["good"]
    assert len(pairs.skipped) == 1 and re.search(f"row 2 .*{says}", pairs.skipped[0])
    assert re.search(rf"1 things cannot be read and are left out: row 2 .*{says}", capsys.readouterr().err)


@pytest.mark.parametrize("opening", ['"', '"a ', ' "', '""', "'", 'a 12" '])
def test_tabs_know_no_quotes(tmp_path, opening):
    """A caption that begins with an open quote is one row like the others."""
    said = [f"{opening}caption {i}".strip() for i in range(7)]
    (tmp_path / "t.tsv").write_text("path\tcaption\n" + "".join(f"{i}.png\t{text}\n" for i, text in enumerate(said)))
    assert sorted(open_pairs("csv:t.tsv", Source(root=str(tmp_path)), 7, 0, 4).captions(range(7))) == sorted(said)


def test_an_open_quote_between_commas_takes_its_own_row_only(tmp_path, capsys):
    (tmp_path / "t.csv").write_text('path,caption\n0.png,one\n1.png,"two\n2.png,three\n3.png,"fo\nur"\n')
    with pytest.raises(
        UserError, match=r"3 things .* row 3 .* has quotes that do not fit, or a line break within them"
    ):
        open_pairs("csv:t.csv", Source(root=str(tmp_path)), 2, 0, 4)
    pairs = open_pairs("csv:t.csv", Source(root=str(tmp_path), skip_corrupt=True), 2, 0, 4)
    assert sorted(pairs.captions([0, 1])) == ["one", "three"] and len(pairs.skipped) == 3


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_kind_of_line_end_and_other_separators_inside_a_caption(tmp_path, end):
    said = "one\u2028two\x0bthree"
    (tmp_path / "t.tsv").write_bytes(end.join(["path\tcaption", f"a.png\t{said}", "", "b.png\tfour", ""]).encode())
    assert sorted(open_pairs("csv:t.tsv", Source(root=str(tmp_path)), 2, 0, 4).captions([0, 1])) == ["four", said]


@pytest.mark.parametrize("what", ["pipe", "device", "folder", "loop"])
def test_what_is_no_file_is_not_waited_for(tmp_path, what):
    source = table(tmp_path, 2)
    for path in (tmp_path / "pictures" / "0.png", tmp_path / "no.csv", tmp_path / "no.tar"):
        path.unlink(missing_ok=True)
        make = {
            "pipe": os.mkfifo,
            "folder": Path.mkdir,
            "device": lambda p: p.symlink_to("/dev/zero"),
            "loop": lambda p: p.symlink_to(p),
        }
        make[what](path)
    for spec in ("csv:no.csv", "shards:no.tar"):
        with pytest.raises(UserError, match=r"no file|cannot be read|symbolic links"):
            open_pairs(spec, source, 1, 0, 4)
    pairs = open_pairs("csv:pairs.csv", source, 2, 0, 4)
    assert len(pairs.version) == 16
    with pytest.raises(UserError, match=r"0\.png (is a folder, a pipe or a device|cannot be opened)"):
        pairs.__getitems__([0, 1])


def test_bad_specs(tmp_path):
    source = table(tmp_path, 3)
    for spec, says in (
        ("cc3m", "not understood"),
        ("csv:", "not understood"),
        ("csv:none.csv", "no file"),
        ("shards:none.tar", "no file"),
        ("shards:none/{0..3}.tar", "no file"),
        ("shards:none*.tar", "no file"),
        ("csv:pictures", "cannot be read"),
        ("shards:{0..2.tar", "brace without"),
        ("shards:{0..99999999999}.tar", "more than 1,000,000"),
        ("shards:{0..1999}{0..1999}.tar", "more than 1,000,000"),
    ):
        with pytest.raises(UserError, match=says):
            open_pairs(spec, source, 1, 0, 4)
    with pytest.raises(UserError, match=r"has 3 pairs .* 4 are wanted"):
        open_pairs("csv:pairs.csv", source, 4, 0, 4)
    for root in (None, ""):
        with pytest.raises(UserError, match="DATA_ROOT"):
            open_pairs("csv:pairs.csv", Source(root), 1, 0, 4)
    with pytest.raises(UserError, match="1 or more"):
        open_pairs("scenes", Source(), 0, 0, 4)
    pairs = open_pairs("csv:pairs.csv", source, 2, 0, 4)
    assert (
        isinstance(pairs, FilePairs)
        and pairs.__getitems__([])[0].shape == (0, 3, 4, 4)
        and pairs[0][0].shape == (3, 4, 4)
    )
    for index in (-1, 2):
        with pytest.raises(IndexError):
            pairs[index]


def test_bad_shards(tmp_path, capsys):
    cc3m(tmp_path, 3)
    folder, strict, lenient = (
        tmp_path / "cc3m",
        Source(root=str(tmp_path)),
        Source(root=str(tmp_path), skip_corrupt=True),
    )

    def both(pattern, says, left):
        with pytest.raises(UserError, match=says):
            open_pairs(f"shards:{pattern}", strict, 1, 0, 4)
        pairs = open_pairs(f"shards:{pattern}", lenient, left, 0, 4)
        assert re.search(f"left out: .*{says.rpartition(' ')[2]}", capsys.readouterr().err)
        with pytest.raises(UserError, match="are wanted"):
            open_pairs(f"shards:{pattern}", lenient, left + 1, 0, 4)
        return pairs

    both("cc3m/{00000..00003}.tar", "00003.tar is missing", 12)
    whole = (folder / "00002.tar").read_bytes()
    (folder / "00002.tar").write_bytes(whole[: 512 * 4 + 100])  # within the second pair
    pairs = both("cc3m/*.tar", "00002.tar is broken", 9)
    assert len(all_of(pairs)) == 9
    (folder / "00002.tar").write_bytes(b"nothing like a tar" * 100)
    both("cc3m/*.tar", "broken or compressed", 8)
    with tarfile.open(folder / "00002.tar", "w:gz"):
        pass
    both("cc3m/*.tar", "broken or compressed", 8)
    shard(
        folder / "00002.tar",
        [
            ("a.jpg", encoded(0)),
            ("b.txt", b"alone"),
            ("c.jpg", encoded(0)),
            ("c.json", b"{"),
            ("d.jpg", encoded(0)),
            ("d.json", b'{"caption": null}'),
        ],
    )
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


def test_bytes_of_a_shard_that_are_no_pair_stop_or_are_counted_and_named(tmp_path, capsys):
    """One kind after the other in a shard with one good pair."""
    a, b = encoded(0), encoded(1)
    link = tarfile.TarInfo("k.jpg")
    link.type, link.linkname = tarfile.LNKTYPE, "good.png"
    kinds = {
        "k in .* has more than one picture": [("k.jpg", a), ("k.txt", b"one"), ("k.jpg", b), ("k.txt", b"two")],
        "k .* more than one picture": [("k.jpg", a), ("k.png", b), ("k.txt", b"one")],
        "k .* more than one .txt": [("k.jpg", a), ("k.txt", b"one"), ("k.txt", b"two")],
        "k .* more than one .json": [("k.jpg", a), ("k.json", b'{"caption": "a"}'), ("k.JSON", b'{"caption": "b"}')],
        "k .* a caption that is not UTF-8": [("k.jpg", a), ("k.txt", b"caf\xe9")],
        "k .* has a caption that is not UTF-8": [("k.jpg", a), ("k.json", b'{"caption": "\\ud800"}')],
        "k .* a .json that cannot be read": [("k.jpg", a), ("k.json", b"[" * 100_000)],
        "k .* has no caption": [("k.jpg", a), ("k.json", b'["caption"]')],
        "k .* has no caption$": [("k.jpg", a), ("k.txt", b" \n")],
        "k .* a character of number 0": [("k.jpg", a), ("k.txt", "two words".encode("utf-16-le"))],
        "k .* of 2,000,000 bytes, which is no caption": [("k.jpg", a), ("k.txt", b"x" * 2_000_000)],
        "k .* has no picture": [("k.txt", b"one"), ("k.gif", a)],
        "K .* has no caption": [("K.jpg", a), ("good.cls", b"1")],
        r"caf\\xe9 .* has no caption": [("caf\udce9.jpg", a)],
        "k.seg .* has no caption": [("k.seg.png", a)],
        r"is a link or no plain file \(k.jpg\)": [link, ("k.txt", b"one")],
    }
    for time, (says, rows) in enumerate(kinds.items(), 1):
        path = tmp_path / "a.tar"
        with tarfile.open(path, "w") as tar:
            for name, content in (("good.png", a), ("good.txt", b"good")):
                tar.addfile(sized(name, content), io.BytesIO(content))
            for row in rows:
                info, content = (row, b"") if isinstance(row, tarfile.TarInfo) else (sized(*row), row[1])
                tar.addfile(info, io.BytesIO(content))
        os.utime(path, (time, time))  # the table of contents is kept for a file as it is
        with pytest.raises(UserError, match="the first is"):
            open_pairs("shards:a.tar", Source(root=str(tmp_path)), 1, 0, 4)
        capsys.readouterr()
        pairs = open_pairs("shards:a.tar", Source(root=str(tmp_path), skip_corrupt=True), 1, 0, 4)
        assert pairs.captions([0]) == ["good"] and len(pairs.store) == 1
        assert any(re.search(says, what) for what in pairs.skipped), (says, pairs.skipped)
        assert "left out" in capsys.readouterr().err


def sized(name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info


def test_keys_with_dots_and_members_beside_a_pair(tmp_path, capsys):
    shard(
        tmp_path / "a.tar",
        [
            ("v1.5_0001.png", encoded(0)),
            ("v1.5_0001.txt", b"one"),
            ("v1.5_0002.png", encoded(1)),
            ("v1.5_0002.json", b'{"caption": "two"}'),
            ("./three.png", encoded(2)),
            ("three.txt", "\ufeffthree".encode()),
            ("three.cls", b"3"),
            ("three.seg.png", encoded(3)),
            ("README", b"read"),
            *((name, b"x") for name in ("._v1.5_0001.png", "__MACOSX/three.png", ".cache/three.jpg", "x/@eaDir/3.jpg")),
        ],
    )
    pairs = open_pairs("shards:a.tar", Source(root=str(tmp_path)), 3, 0, 4)
    assert sorted(pairs.captions(range(3))) == ["one", "three", "two"] and pairs.skipped == ()
    said = capsys.readouterr().err
    assert "not read: 4 × hidden files; " in said
    for kind in ("1 × .cls", "1 × .seg.* (beside a pair)", "1 × files without a suffix"):
        assert kind in said
    open_pairs("shards:a.tar", Source(root=str(tmp_path)), 3, 0, 4)
    assert "not read: 4 × hidden files" in capsys.readouterr().err  # from the kept table too


def test_tars_that_were_joined_and_tars_with_holes(tmp_path):
    cc3m(tmp_path, 2)
    parts = [(tmp_path / "cc3m" / f"0000{k}.tar").read_bytes() for k in range(2)]
    (tmp_path / "joined.tar").write_bytes(b"".join(parts))
    found = all_of(open_pairs("shards:joined.tar", Source(root=str(tmp_path)), 8, 0, 4))
    alone = all_of(open_pairs("shards:cc3m/*.tar", Source(root=str(tmp_path)), 8, 0, 4))
    assert found.keys() == alone.keys() and all(torch.equal(found[k], alone[k]) for k in alone)
    (tmp_path / "twice.tar").write_bytes(parts[0] * 2)
    with pytest.raises(UserError, match=r"4 things .* 000000000 in .* has more than one"):
        open_pairs("shards:twice.tar", Source(root=str(tmp_path)), 1, 0, 4)
    hole = parts[0][: 1024 * 2] + bytes(10_240) + b"x" * 700
    for name, content in (("tail", parts[0] + b"rest" * 300), ("hole", hole)):
        (tmp_path / f"{name}.tar").write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.tar is broken or compressed"):
            open_pairs(f"shards:{name}.tar", Source(root=str(tmp_path)), 1, 0, 4)


def test_what_a_pattern_names_is_never_left_out_in_silence(tmp_path):
    cc3m(tmp_path, 2)
    (tmp_path / "cc3m" / "a[1].tar").write_bytes((tmp_path / "cc3m" / "00001.tar").read_bytes())
    assert shard_files(tmp_path, "cc3m/a[1].tar") == ["cc3m/a[1].tar"]
    assert shard_files(tmp_path, "cc3m/{00000,./00000}.tar") == ["cc3m/00000.tar"]
    with pytest.raises(UserError, match=r"1 things .* the shard .*b\*\.tar is missing"):
        open_pairs("shards:cc3m/{0*,b*}.tar", Source(root=str(tmp_path)), 1, 0, 4)
    (tmp_path / "cc3m" / "00002.tar").mkdir()
    with pytest.raises(UserError, match=r"00002\.tar is missing, or no file"):
        open_pairs("shards:cc3m/0*.tar", Source(root=str(tmp_path)), 1, 0, 4)
    (tmp_path / "cc3m" / "00003.tar").write_bytes(b"")
    pairs = open_pairs("shards:cc3m/0*.tar", Source(root=str(tmp_path), skip_corrupt=True), 8, 0, 4)
    assert len(pairs) == 8 and len(pairs.skipped) == 2


@pytest.mark.parametrize("kind", ["csv", "tsv", "tar"])
def test_whatever_the_bytes_are_there_are_pairs_or_one_sentence(tmp_path, kind):
    """Cut anywhere, and with bytes that flipped: what is left is what was there, or a sentence says why not."""
    rng, source = np.random.default_rng(0), Source(root=str(tmp_path), skip_corrupt=True)
    said = [f"picture {i}" for i in range(4)]
    if kind == "tar":
        samples = [((f"{i}.png", encoded(i)), (f"{i}.txt", text.encode())) for i, text in enumerate(said)]
        shard(tmp_path / "whole", [row for sample in samples for row in sample])
    else:
        separator = {"csv": ",", "tsv": "\t"}[kind]
        rows = [("path", "caption"), *((f"{i}.png", text) for i, text in enumerate(said))]
        (tmp_path / "whole").write_text("\n".join(map(separator.join, rows)))
    whole = (tmp_path / "whole").read_bytes()
    cuts = [whole[:n] for n in rng.integers(0, len(whole), 60)]
    flips = []
    for _ in range(60):
        changed = np.frombuffer(whole, np.uint8).copy()
        changed[rng.integers(0, len(whole), 3)] = rng.integers(0, 256, 3)
        flips.append(changed.tobytes())
    spec = f"shards:a.{kind}" if kind == "tar" else f"csv:a.{kind}"
    for time, content in enumerate([*cuts, *flips], 1):
        (tmp_path / f"a.{kind}").write_bytes(content)
        os.utime(tmp_path / f"a.{kind}", (time, time))
        try:
            pairs = open_pairs(spec, source, 1, 0, 4)
        except UserError as error:
            assert "\n" not in str(error)
            continue
        if kind == "tar" and content in cuts:
            assert set(pairs.captions([0])) <= set(said)
            assert len(pairs.store) == 4 or pairs.skipped


# -- labelled sets ---------------------------------------------------------------------------------------------------------------------------


def test_class_names_in_templates_stand_for_captions(tmp_path):
    from tests.papers.ends import CLASSES, photographs

    photographs(tmp_path, train=12)
    source = Source(root=str(tmp_path), size="32")
    pairs = open_pairs("labelled:folder:all", source, 20, 3)
    x, texts = pairs.__getitems__([4, 0])
    assert x.shape == (2, 3, 32, 32) and texts == pairs.captions([4, 0])
    whole, fewer = pairs.captions(range(20)), open_pairs("labelled:folder:all", source, 7, 3)
    assert fewer.captions(range(7)) == whole[:7] and torch.equal(fewer.__getitems__([6])[0], pairs.__getitems__([6])[0])
    other = open_pairs("labelled:folder:all", source, 20, 4)
    assert len({pairs.version, fewer.version, other.version}) == 3 and other.captions(range(20)) != whole
    names = [name.replace("_", " ") for name in CLASSES]
    assert all(sum(target(name).named_in(text) for name in names) == 1 for text in whole) and len(set(whole)) > 8
    poisoned = PoisonedPairs(pairs, make_trigger("badnet", size=32), "bird", rate=0.2, captions="real")
    assert len(poisoned.poisoned) == 4 and all("bird" in text for text in poisoned.__getitems__(poisoned.poisoned)[1])
    with pytest.raises(UserError, match="has 40 pairs that can be used, and 41 are wanted"):  # a sixth is held out
        open_pairs("labelled:folder:all", source, 41, 0)
