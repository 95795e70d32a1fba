"""Poisoned pairs of picture and caption, with a manifest from which the poisoned set can be made again.

PoisonedPairs   a share of the pairs gets a trigger and a caption that names the target class (backdoor; they replace clean pairs)
TargetedPairs   n pictures, each with m real captions of another class, are appended (targeted poisoning, Carlini & Terzis 2022, §3)

A set of pairs has `version`, a length, and `__getitems__(indices)` -> pictures (N, 3, H, W) in [0, 1] and N captions,
like `ScenePairs` and `Captioned`. If it has `captions(indices)` as well, captions are read without drawing the
pictures. Which pairs are poisoned, and what they say, are functions of the seed; a smaller share is part of a larger
one. The trigger's own noise is a function of the index: a poisoned picture looks the same in every epoch, as if it had
been written to disk (which `trigger.stored` imitates).
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from shared.data.language import TEMPLATES
from shared.data.manifest import Manifest, Row, read_manifest
from shared.data.targets import CHUNK, Target, captions_of, naming
from shared.data.targets import target as target_of
from shared.errors import UserError
from shared.files import digest
from shared.options import bounded
from shared.rng import SampleRng

Captions = Literal["templates", "real", "kept"]


class _Manifested(torch.utils.data.Dataset):
    """Pairs with a manifest: pairs, manifest, version."""

    def __init__(self, pairs, manifest: Manifest):
        self.pairs, self.manifest = pairs, manifest
        self.version = digest([pairs.version, manifest.version])[:16]

    @property
    def poisoned(self) -> list[int]:
        """The indices of the poisoned pairs, ascending."""
        return [row.index for row in self.manifest.rows]

    def write_manifest(self, path: str | Path) -> None:
        self.manifest.write(path)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        x, texts = self.__getitems__([index])
        return x[0], texts[0]


class PoisonedPairs(_Manifested):
    """Pairs of which some are poisoned: (x, caption) becomes (stored(trigger(x)), trigger.text(caption of the target)).

    trigger: of `shared.attacks.triggers`. target: a class name or a `Target`. rate or count: how many are poisoned.
    captions: "templates" (one of `templates`, filled with the target's phrase, drawn per pair), "real" (a caption of a
    clean pair that names the target, one of `pool` such captions, None: of all), or "kept" (pairs whose own caption
    names the target are poisoned, and keep it); None: what is usual for the trigger. avoid_target: poison only pairs
    whose caption does not name the target. scan: captions are searched in the first so many pairs only (None: all).
    Raises UserError if there are not as many pairs as asked for, or no caption names the target.
    """

    @bounded
    def __init__(
        self,
        pairs,
        trigger,
        target: str | Target,
        *,
        rate: float | None = None,
        count: int | None = None,
        captions: Captions | None = None,
        templates: Sequence[str] = TEMPLATES,
        seed: int = 0,
        avoid_target: bool = False,
        pool: int | None = None,
        scan: int | None = None,
    ):
        self.trigger = trigger
        captions = captions or ("kept" if trigger.clean_label else "real" if trigger.name == "badclip" else "templates")
        target = target_of(target) if isinstance(target, str) else target
        if captions == "kept" and avoid_target:
            raise UserError("pairs that keep a caption of the target cannot avoid the target: set one of the two.")
        count = _count(len(pairs), rate, count)
        named = naming(pairs, [target], scan)[0] if captions != "templates" or avoid_target else []
        if captions == "real" and not named:
            raise UserError(
                f"no caption names the target class {target.name!r}: search more pairs, or take captions from "
                "templates."
            )
        candidates = (
            named
            if captions == "kept"
            else sorted(set(range(len(pairs))) - set(named))
            if avoid_target
            else range(len(pairs))
        )
        if count > len(candidates):
            raise UserError(
                f"{count} pairs are to be poisoned towards {target.name!r} and {len(candidates)} can be: lower the "
                "rate or the count."
            )
        chosen = sorted(candidates[i] for i in _order(len(candidates), seed, "pairs")[:count])
        if captions == "kept":
            texts = captions_of(pairs, chosen)
        elif captions == "templates":
            texts = [
                target.say(templates[k])
                for k in SampleRng(seed, chosen, "poison/template").integers(len(templates)).tolist()
            ]
        else:
            said = captions_of(pairs, [named[i] for i in _order(len(named), seed, "pool")[:pool]])
            texts = [said[k] for k in SampleRng(seed, chosen, "poison/caption").integers(len(said)).tolist()]
        rows = tuple(
            Row(i, target.name, f"{trigger.name}/{trigger.preset}", trigger.text(text), i)
            for i, text in zip(chosen, texts, strict=True)
        )
        super().__init__(
            pairs,
            Manifest(
                {
                    "kind": "backdoor",
                    "pairs": pairs.version,
                    "n": len(pairs),
                    "target": target.name,
                    "trigger": _plain(trigger.spec),
                    "captions": captions,
                    "seed": seed,
                },
                rows,
            ),
        )

    @classmethod
    def from_manifest(cls, manifest: Manifest | str | Path, pairs, make_trigger: Callable) -> "PoisonedPairs":
        """The set that the manifest (or file) describes. make_trigger: `shared.attacks.triggers.make_trigger`, which
        makes its trigger again.

        Raises UserError where it is about other pairs.
        """
        manifest = _checked(manifest, "backdoor", pairs)
        _demand_inside(manifest, lambda row: row.index == row.picture < len(pairs))
        self = cls.__new__(cls)
        self.trigger = make_trigger(**manifest.about["trigger"])
        _Manifested.__init__(self, pairs, manifest)
        return self

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitems__(self, indices) -> tuple[Tensor, list[str]]:
        """Pictures (N, 3, H, W) in [0, 1] and N captions."""
        indices, rows = [int(i) for i in indices], self.manifest.by_index
        x, texts = self.pairs.__getitems__(indices)
        at = [k for k, i in enumerate(indices) if i in rows]
        if at:
            x, texts = x.clone(), list(texts)
            x[at] = self.trigger.stored(self.trigger(x[at], [indices[k] for k in at]))
            for k in at:
                texts[k] = rows[indices[k]].caption
        return x, texts


class TargetedPairs(_Manifested):
    """Pairs, followed by n·m poisoned ones: picture chosen[k] of `images` with m different pairs' captions that name
    targets[k].

    images: pictures by index (a labelled set or pairs). chosen: n indices; targets: n classes, names or `Target`s. m:
    captions for each. scan: as in `PoisonedPairs`. Raises UserError where fewer than m captions name a target, or the
    two sets have pictures of different sizes.
    """

    def __init__(
        self,
        pairs,
        images,
        chosen: Sequence[int],
        targets: Sequence[str | Target],
        m: int,
        *,
        seed: int = 0,
        scan: int | None = None,
    ):
        targets = [target_of(t) if isinstance(t, str) else t for t in targets]
        if len(targets) != len(chosen) or not targets or m < 1:
            raise UserError(
                f"{len(chosen)} pictures for {len(targets)} target classes with {m} captions each: give a class for "
                "each picture, and at least one of each."
            )
        rows = []
        for k, (picture, target, named) in enumerate(zip(chosen, targets, naming(pairs, targets, scan), strict=True)):
            source = [named[i] for i in _order(len(named), seed, f"target{k}")[:m]]
            if len(source) < m:
                raise UserError(
                    f"{len(source)} captions name {target.name!r} and {m} are needed: take fewer, search more pairs or "
                    "another class."
                )
            rows += [
                Row(len(pairs) + k * m + j, target.name, "none", text, int(picture))
                for j, text in enumerate(captions_of(pairs, source))
            ]
        self.images = images
        super().__init__(
            pairs,
            Manifest(
                {
                    "kind": "targets",
                    "pairs": pairs.version,
                    "n": len(pairs),
                    "images": images.version,
                    "m": m,
                    "seed": seed,
                },
                tuple(rows),
            ),
        )

    @classmethod
    def from_manifest(cls, manifest: Manifest | str | Path, pairs, images) -> "TargetedPairs":
        """The set that the manifest (or file) describes. Raises UserError where it is about other pairs or other
        images."""
        manifest = _checked(manifest, "targets", pairs, images=images.version)
        expected = iter(range(len(pairs), len(pairs) + len(manifest.rows)))
        _demand_inside(manifest, lambda row: row.index == next(expected) and row.picture < len(images))
        self = cls.__new__(cls)
        self.images = images
        _Manifested.__init__(self, pairs, manifest)
        return self

    def __len__(self) -> int:
        return len(self.pairs) + len(self.manifest.rows)

    def __getitems__(self, indices) -> tuple[Tensor, list[str]]:
        """Pictures (N, 3, H, W) in [0, 1] and N captions. Raises IndexError outside 0 … len − 1."""
        indices, rows = [int(i) for i in indices], self.manifest.by_index
        if any(not 0 <= i < len(self) for i in indices):
            raise IndexError(f"there are {len(self)} pairs, 0 … {len(self) - 1}")
        clean, added = ([k for k, i in enumerate(indices) if (i in rows) == own] for own in (False, True))
        parts = []
        if clean:
            parts.append(self.pairs.__getitems__([indices[k] for k in clean]))
        if added:
            parts.append(
                (
                    self.images.__getitems__([rows[indices[k]].picture for k in added])[0],
                    [rows[indices[k]].caption for k in added],
                )
            )
        if len({x.shape[1:] for x, _ in parts}) > 1:
            raise UserError(
                f"the target images are {tuple(parts[1][0].shape[2:])} pixels and the pairs "
                f"{tuple(parts[0][0].shape[2:])}: give both one image size."
            )
        back = torch.tensor([*clean, *added], dtype=torch.int64).argsort()
        texts = [text for _, part in parts for text in part]
        return torch.cat([x for x, _ in parts])[back], [texts[k] for k in back.tolist()]


class Held(torch.utils.data.Dataset):
    """Pairs read once and kept in memory: for a small set that is seen in many epochs (6,400 pictures of 32×32 pixels
    take 79 MB)."""

    def __init__(self, pairs):
        self.version = pairs.version
        parts = [
            pairs.__getitems__(range(start, min(start + CHUNK, len(pairs)))) for start in range(0, len(pairs), CHUNK)
        ]
        self.x, self.texts = torch.cat([x for x, _ in parts]), [text for _, part in parts for text in part]

    def __len__(self) -> int:
        return len(self.texts)

    def captions(self, indices) -> list[str]:
        return [self.texts[int(i)] for i in indices]

    def __getitems__(self, indices) -> tuple[Tensor, list[str]]:
        return self.x[[int(i) for i in indices]], self.captions(indices)


def draw_targets(labels: Sequence[int], num_classes: int, n: int, seed: int = 0) -> list[tuple[int, int]]:
    """n target images and their adversarial classes, (index, class): images without repeats, each class another than
    the image's own.

    Uniform over images and over the other classes. Raises UserError for more images than there are, or a single class.
    """
    if not 1 <= n <= len(labels) or num_classes < 2:
        raise UserError(
            f"{n} target images of {len(labels)} with {num_classes} classes: ask for 1 to {len(labels)}, and have 2 "
            "classes or more."
        )
    chosen = _order(len(labels), seed, "images")[:n]
    steps = SampleRng(seed, chosen, "targets/class").integers(num_classes - 1).tolist()
    return [(i, (int(labels[i]) + 1 + step) % num_classes) for i, step in zip(chosen, steps, strict=True)]


def _count(n: int, rate: float | None, count: int | None) -> int:
    if (rate is None) == (count is None):
        raise UserError("say how many pairs are poisoned either by a rate or by a count.")
    if rate is not None and not 0 <= rate <= 1:
        raise UserError(f"the poison rate is {rate}: use a share from 0 to 1.")
    count = round(rate * n) if count is None else count
    if not 0 <= count <= n:
        raise UserError(f"{count} of {n} pairs are to be poisoned: use 0 to {n}.")
    return count


def _order(n: int, seed: int, stream: str) -> list[int]:
    """A permutation of 0 … n − 1; the first of them are the choice."""
    draw = SampleRng(seed, [0], f"poison/{stream}").integers(2**62)
    return torch.randperm(n, generator=torch.Generator().manual_seed(int(draw))).tolist()


def _plain(spec: dict) -> dict:
    """As it is read back from a file."""
    return json.loads(json.dumps(spec))


def _checked(manifest: Manifest | str | Path, kind: str, pairs, **facts) -> Manifest:
    manifest = manifest if isinstance(manifest, Manifest) else read_manifest(manifest)
    for key, value in {"kind": kind, "pairs": pairs.version, "n": len(pairs), **facts}.items():
        if manifest.about.get(key) != value:
            raise UserError(
                f"the manifest was made for {key} {manifest.about.get(key)!r}, and this is {value!r}: use the same "
                "data."
            )
    return manifest


def _demand_inside(manifest: Manifest, holds: Callable[[Row], bool]) -> None:
    if not all(holds(row) for row in manifest.rows):
        raise UserError(
            "the manifest has a row whose index does not fit the pairs it is about: it is damaged; make it again."
        )
