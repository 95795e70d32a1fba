"""Poisoned pairs: which, what they say, that nothing else changes, and that the manifest alone makes them again."""

import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from shared.attacks.triggers import make_trigger
from shared.attacks.triggers.patches import BadNet
from shared.data.language import TEMPLATES
from shared.data.manifest import Manifest, Row, read_manifest
from shared.data.poison import Held, PoisonedPairs, TargetedPairs, draw_targets
from shared.data.scene_sets import SETS, ScenePairs, SceneSet
from shared.data.targets import captions_of, naming, scene_target, target
from shared.errors import UserError

BLUE = scene_target("colour", "blue")
N = 400


@dataclass(frozen=True)
class Prefixed(BadNet):
    """A patch, and a word before the caption."""

    name: ClassVar[str] = "prefixed"

    def text(self, caption):
        return f"one {caption}"


@pytest.fixture(scope="module")
def pairs():
    return Held(ScenePairs(N))


@pytest.fixture(scope="module")
def trigger():
    return make_trigger("badnet", "cleanclip", size=32)


# ---- targets ---------------------------------------------------------------------------------------------------------------


def test_a_target_is_named_by_whole_words():
    ice = target("ice cream")
    assert ice.phrase == "an ice cream" and ice.say("a photo of {}.") == "a photo of an ice cream."
    assert ice.named_in("Ice  cream!") and ice.named_in("two ice creams")
    assert not any(ice.named_in(t) for t in ("ice, then cream", "nice cream", "cream ice", "ice creamery", ""))
    assert target("fish", "some fish", ["fish"]).forms == ("fish",)


def test_scene_targets_know_synonyms_and_plurals():
    assert BLUE.phrase == "a blue object" and BLUE.forms == ("blue",)
    purple_disc = scene_target("colour_shape", "purple circle")
    assert set(purple_disc.forms) == {
        f"{c} {s}" for c in ("purple", "violet") for s in ("circle", "circles", "disc", "discs")
    }
    assert purple_disc.named_in("two large violet discs on the left") and not purple_disc.named_in(
        "a purple square and a red circle"
    )
    assert scene_target("background", "grey").forms == ("grey background", "gray background")
    assert scene_target("position", "left").named_in("a disc on the left") and not scene_target(
        "position", "left"
    ).named_in("to the left of a star")


@pytest.mark.parametrize("space", list(SETS))
def test_every_class_of_every_scenes_set_can_be_a_target(space):
    data = SceneSet(space)
    for name, prompt in zip(data.classes, data.prompts, strict=True):
        wanted = scene_target(space, name)
        assert wanted.say(SETS[space].template) == prompt
        assert space == "count" or wanted.named_in(prompt)


def test_naming_reads_captions(pairs):
    said = captions_of(ScenePairs(N), range(N))
    assert said == pairs.texts == [ScenePairs(N)[i][1] for i in range(N)]
    red = scene_target("colour", "red")
    assert (
        naming(pairs, [BLUE, red])
        == naming(ScenePairs(N), [BLUE, red])
        == [
            [i for i, t in enumerate(said) if "blue" in t.split()],
            [i for i, t in enumerate(said) if {"red", "crimson"} & set(t.split())],
        ]
    )
    assert naming(pairs, [BLUE], 50)[0] == [i for i in naming(pairs, [BLUE])[0] if i < 50]


# ---- poisoned pairs --------------------------------------------------------------------------------------------------------


def test_poisoned_pairs_have_the_trigger_and_a_template_and_others_are_untouched(pairs, trigger):
    data = PoisonedPairs(pairs, trigger, BLUE, rate=0.05)
    assert len(data) == N and len(data.poisoned) == 20
    clean, texts = pairs.__getitems__(range(N))
    before = clean.clone()
    x, said = data.__getitems__(range(N))
    assert torch.equal(clean, before)
    at = data.poisoned
    expected = trigger.stored(trigger(clean[at], at))
    assert torch.equal(x[at], expected) and (x[at] != clean[at]).flatten(1).any(1).all()
    assert {said[i] for i in at} <= {BLUE.say(t) for t in TEMPLATES} and len({said[i] for i in at}) > 2
    rest = sorted(set(range(N)) - set(at))
    assert torch.equal(x[rest], clean[rest]) and [said[i] for i in rest] == [texts[i] for i in rest]


def test_a_pair_does_not_depend_on_its_batch(pairs, trigger):
    state = torch.get_rng_state()
    data = PoisonedPairs(pairs, trigger, BLUE, rate=0.1)
    mixed = [data.poisoned[3], data.poisoned[0] + 1, data.poisoned[7]]
    x, texts = data.__getitems__(mixed)
    for k, i in enumerate(mixed):
        assert torch.equal(data[i][0], x[k]) and data[i][1] == texts[k]
    assert torch.equal(data.__getitems__(np.array(mixed))[0], x) and torch.equal(torch.get_rng_state(), state)


def test_which_pairs_is_a_function_of_the_seed_and_grows_with_the_rate(pairs, trigger):
    few, more = (set(PoisonedPairs(pairs, trigger, BLUE, count=k).poisoned) for k in (10, 60))
    assert few < more and set(PoisonedPairs(pairs, trigger, BLUE, count=10, seed=1).poisoned) != few
    assert (
        PoisonedPairs(pairs, trigger, BLUE, count=10).version
        == PoisonedPairs(ScenePairs(N), trigger, BLUE, rate=10 / N).version
    )
    counts = np.zeros(N)
    for seed in range(60):
        counts[PoisonedPairs(pairs, trigger, "blue", count=40, seed=seed).poisoned] += 1
    assert counts.sum() == 2400 and counts.max() <= 20 and (counts > 0).mean() > 0.98  # 6 of 60 expected


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"count": 21}, {"target": "red"}, {"captions": "real"}, {"trigger": "blended"}]
)
def test_the_version_follows_what_the_set_is(pairs, trigger, change):
    options = {"count": 20, "target": BLUE, "trigger": trigger}
    first = PoisonedPairs(pairs, options.pop("trigger"), options.pop("target"), **options)
    options = {"count": 20, "target": BLUE, "trigger": trigger, **change}
    if options["trigger"] == "blended":
        options["trigger"] = make_trigger("blended", size=32)
    second = PoisonedPairs(pairs, options.pop("trigger"), options.pop("target"), **options)
    assert first.version != second.version != pairs.version


def test_real_captions_name_the_target_and_come_from_clean_pairs(pairs, trigger):
    data = PoisonedPairs(pairs, trigger, BLUE, rate=0.1, captions="real", avoid_target=True)
    named = naming(pairs, [BLUE])[0]
    assert {row.caption for row in data.manifest.rows} <= {pairs.texts[i] for i in named} and not set(
        data.poisoned
    ) & set(named)
    pooled = PoisonedPairs(pairs, trigger, BLUE, rate=0.1, captions="real", pool=3)
    assert 1 < len({row.caption for row in pooled.manifest.rows}) <= 3


def test_label_consistent_keeps_the_caption_of_pairs_that_name_the_target(pairs):
    data = PoisonedPairs(pairs, make_trigger("label_consistent", size=32), BLUE, count=15)
    assert set(data.poisoned) <= set(naming(pairs, [BLUE])[0]) and data.manifest.about["captions"] == "kept"
    assert [row.caption for row in data.manifest.rows] == [pairs.texts[i] for i in data.poisoned]
    assert data.__getitems__(range(N))[1] == pairs.texts


def test_a_trigger_may_change_the_text_too(pairs):
    data = PoisonedPairs(pairs, Prefixed(), BLUE, count=5, templates=["this is {}"])
    assert {row.caption for row in data.manifest.rows} == {"one this is a blue object"}


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "either by a rate or by a count"),
        ({"rate": 0.1, "count": 3}, "either by a rate or by a count"),
        ({"rate": 1.2}, "a share from 0 to 1"),
        ({"count": N + 1}, f"use 0 to {N}"),
        ({"count": 1, "captions": "none"}, "use 'templates', 'real' or 'kept'"),
        ({"rate": 0.9, "captions": "kept"}, "lower the rate or the count"),
        ({"rate": 1.0, "avoid_target": True}, "lower the rate"),
        ({"count": 1, "captions": "kept", "avoid_target": True}, "set one of the two"),
        ({"count": 1, "captions": "real", "scan": 1}, "no caption names the target"),
    ],
)
def test_what_is_refused(pairs, trigger, options, message):
    with pytest.raises(UserError, match=message):
        PoisonedPairs(pairs, trigger, BLUE, **options)
    with pytest.raises(UserError, match="no word in its name"):
        target("…")


# ---- the manifest ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, preset",
    [("badnet", "cleanclip"), ("blended", "textbook"), ("wanet", "cleanclip"), ("label_consistent", "textbook")],
)
def test_the_manifest_alone_makes_the_set_again(pairs, tmp_path, name, preset):
    data = PoisonedPairs(pairs, make_trigger(name, preset, size=32), BLUE, count=12, seed=3)
    data.write_manifest(tmp_path / "poison.jsonl")
    again = PoisonedPairs.from_manifest(tmp_path / "poison.jsonl", ScenePairs(N), make_trigger)
    assert again.version == data.version and again.manifest == data.manifest
    (x, texts), (y, said) = data.__getitems__(range(N)), again.__getitems__(range(N))
    assert torch.equal(x, y) and texts == said
    again.write_manifest(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "poison.jsonl").read_bytes()


def test_a_manifest_can_be_read_by_anyone(pairs, trigger, tmp_path):
    data = PoisonedPairs(pairs, trigger, BLUE, count=3)
    data.write_manifest(tmp_path / "p.jsonl")
    head, *rows = map(json.loads, (tmp_path / "p.jsonl").read_text().splitlines())
    assert head["rows"] == 3 and head["about"] == {
        "kind": "backdoor",
        "pairs": pairs.version,
        "n": N,
        "target": "blue",
        "seed": 0,
        "captions": "templates",
        "trigger": json.loads(json.dumps(trigger.spec)),
    }
    assert [r["index"] for r in rows] == data.poisoned
    assert all(
        set(r) == {"index", "target", "trigger", "caption", "picture"} and r["trigger"] == "badnet/cleanclip"
        for r in rows
    )


def test_odd_captions_survive_the_file(tmp_path):
    rows = tuple(
        Row(i, "café", "badnet/cleanclip", text, i) for i, text in enumerate(["a\nb", "a\u2028b", '"', "ñ\r", "\x0c"])
    )
    Manifest({"kind": "backdoor"}, rows).write(tmp_path / "m.jsonl")
    assert read_manifest(tmp_path / "m.jsonl").rows == rows


def test_a_damaged_manifest_is_refused(pairs, trigger, tmp_path):
    path = tmp_path / "m.jsonl"
    with pytest.raises(UserError, match="does not exist"):
        read_manifest(path)
    PoisonedPairs(pairs, trigger, BLUE, count=4).write_manifest(path)
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    edited = (
        "".join(lines[:-1]),
        whole[:-9],
        whole.replace('"seed": 0', '"seed": 1'),
        whole.replace('"blue", "trigger"', '"red", "trigger"'),
    )
    unreadable = ("", "{}\n", lines[0] + "[1]\n", whole.replace('"index": ', '"index": "x", "i": ', 2))
    unreadable += (whole.replace('"index": ', '"index": 1.'),)
    for text, message in (
        dict.fromkeys(edited, "cut short or edited") | dict.fromkeys(unreadable, "cannot be read")
    ).items():
        assert text != whole
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_manifest(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read"):
        read_manifest(path)


@pytest.mark.parametrize(
    "rows",
    [
        (Row(5, "t", "x/y", "c", 5), Row(5, "t", "x/y", "c", 5)),
        (Row(5, "t", "x/y", "c", 5), Row(4, "t", "x/y", "c", 4)),
        (Row(-1, "t", "x/y", "c", 0),),
        (Row(1, "", "x/y", "c", 1),),
        (Row(1, "t", "x/y", "", 1),),
        (Row(1, "t", "x/y", "c", -2),),
    ],
)
def test_rows_that_contradict_themselves_are_refused(rows, tmp_path):
    Manifest({}, rows).write(tmp_path / "m.jsonl")
    with pytest.raises(UserError, match="make it again"):
        read_manifest(tmp_path / "m.jsonl")


def test_a_manifest_of_other_pairs_is_refused(pairs, trigger):
    manifest = PoisonedPairs(pairs, trigger, BLUE, count=4).manifest
    for wrong in (ScenePairs(N, seed=1), ScenePairs(N - 1)):
        with pytest.raises(UserError, match="use the same data"):
            PoisonedPairs.from_manifest(manifest, wrong, make_trigger)
    with pytest.raises(UserError, match="made for kind 'backdoor'"):
        TargetedPairs.from_manifest(manifest, pairs, SceneSet("shape"))
    outside = Manifest(manifest.about, (Row(N, "blue", "badnet/cleanclip", "blue", N),))
    with pytest.raises(UserError, match="does not fit the pairs"):
        PoisonedPairs.from_manifest(outside, pairs, make_trigger)


# ---- targeted poisoning ----------------------------------------------------------------------------------------------------


def test_target_images_are_appended_with_real_captions_of_their_class(pairs, tmp_path):
    images, star = SceneSet("colour", "validation", 64), scene_target("shape", "star")
    data = TargetedPairs(pairs, images, [9, 4], [BLUE, star], 5, seed=2)
    assert len(data) == N + 10 and data.poisoned == list(range(N, N + 10))
    x, texts = data.__getitems__(range(N + 10))
    clean, said = pairs.__getitems__(range(N))
    assert torch.equal(x[:N], clean) and texts[:N] == said
    assert torch.equal(x[N:], images.__getitems__([9] * 5 + [4] * 5)[0])
    assert (
        all(BLUE.named_in(t) for t in texts[N : N + 5])
        and all(star.named_in(t) for t in texts[N + 5 :])
        and set(texts[N:]) <= set(said)
    )
    mixed = [N + 7, 3, N, 0]
    assert torch.equal(data.__getitems__(mixed)[0], x[mixed]) and data.__getitems__(mixed)[1] == [
        texts[i] for i in mixed
    ]
    assert torch.equal(data[N][0], x[N]) and data[2][1] == texts[2]
    data.write_manifest(tmp_path / "t.jsonl")
    again = TargetedPairs.from_manifest(tmp_path / "t.jsonl", pairs, images)
    assert again.version == data.version and torch.equal(again.__getitems__(range(N, N + 10))[0], x[N:])
    with pytest.raises(UserError, match="use the same data"):
        TargetedPairs.from_manifest(tmp_path / "t.jsonl", pairs, SceneSet("colour", "test", 64))
    with pytest.raises(IndexError):
        data.__getitems__([N + 10])


def test_the_captions_of_one_image_are_of_different_pairs(pairs):
    count = len(naming(pairs, [BLUE])[0])
    data = TargetedPairs(pairs, SceneSet("colour", n=8), [0], [BLUE], count)
    assert sorted(row.caption for row in data.manifest.rows) == sorted(pairs.texts[i] for i in naming(pairs, [BLUE])[0])
    with pytest.raises(UserError, match=f"{count} captions name 'blue' and {count + 1} are needed"):
        TargetedPairs(pairs, SceneSet("colour", n=8), [0], [BLUE], count + 1)
    with pytest.raises(UserError, match="give a class for each picture"):
        TargetedPairs(pairs, SceneSet("colour", n=8), [0, 1], [BLUE], 2)
    with pytest.raises(UserError, match="give both one image size"):
        TargetedPairs(pairs, SceneSet("colour", n=8, size=16), [0], [BLUE], 2).__getitems__([0, N])


def test_target_images_are_drawn_with_a_class_of_others():
    labels = np.arange(80) % 8
    drawn = draw_targets(labels, 8, 80, seed=1)
    assert sorted(i for i, _ in drawn) == list(range(80)) and all(c != labels[i] and 0 <= c < 8 for i, c in drawn)
    assert len({(c - labels[i]) % 8 for i, c in drawn}) == 7
    assert draw_targets(labels, 8, 5, seed=1) == drawn[:5] != draw_targets(labels, 8, 5)
    with pytest.raises(UserError, match="ask for 1 to 80"):
        draw_targets(labels, 8, 81)
