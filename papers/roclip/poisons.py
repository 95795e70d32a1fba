"""The poisoned pairs of one training: target images on top of clean pairs, and several backdoors among them, no pair
with two.

Each backdoor is a `PoisonedPairs` of what the ones before it left alone, so that all of `shared.data.poison` holds for
it; what became of every pair stands in one manifest per backdoor and one for the targets, by the index in the whole
set.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from shared.attacks.triggers import Trigger
from shared.data.manifest import Manifest
from shared.data.pairs import PairSubset
from shared.data.poison import PoisonedPairs, TargetedPairs, draw_targets
from shared.data.targets import Target, captions_of, naming
from shared.errors import UserError
from shared.files import digest
from shared.rng import SampleRng


class Poisoned(torch.utils.data.Dataset):
    """Clean pairs with backdoors in them, and target images after them.

    clean: pairs. backdoors: name -> (trigger, target class, share of the clean pairs, captions as in `PoisonedPairs` or
    None). images: pictures by index; chosen, classes: target images among them and their adversarial classes; m:
    captions of each. scan: captions are searched in the first so many pairs only. Raises UserError where too few
    captions name a class, or too few pairs are left. manifests: by backdoor and "targets", with indices of this set.
    version: of everything in it.
    """

    def __init__(
        self,
        clean,
        backdoors: dict[str, tuple[Trigger, Target, float, str | None]],
        images,
        chosen: Sequence[int],
        classes: Sequence[Target],
        m: int,
        seed: int = 0,
        scan: int | None = None,
    ):
        left, self.manifests, self._triggers, self._rows = list(range(len(clean))), {}, {}, {}
        for name, (trigger, target, rate, captions) in backdoors.items():
            made = PoisonedPairs(
                PairSubset(clean, left),
                trigger,
                target,
                count=round(rate * len(clean)),
                captions=captions,
                seed=seed,
                scan=scan,
            )
            rows = tuple(replace(row, index=left[row.index], picture=left[row.picture]) for row in made.manifest.rows)
            self.manifests[name] = Manifest(
                {**made.manifest.about, "pairs": clean.version, "n": len(clean), "attack": name}, rows
            )
            taken = {row.index for row in rows}
            left = [i for i in left if i not in taken]
            self._triggers[name] = trigger
            self._rows |= {row.index: (name, row.caption) for row in rows}
        self.targeted = TargetedPairs(
            clean, images, chosen, classes, m, seed=seed, scan=scan
        )  # captions are those of the clean pairs
        self.manifests["targets"] = self.targeted.manifest
        self.version = digest([clean.version, {name: manifest.version for name, manifest in self.manifests.items()}])[
            :16
        ]

    def __len__(self) -> int:
        return len(self.targeted)

    def captions(self, indices: Sequence[int]) -> list[str]:
        """Captions without their pictures."""
        indices, added = [int(i) for i in indices], self.manifests["targets"].by_index
        clean = iter(captions_of(self.targeted.pairs, [i for i in indices if i not in added and i not in self._rows]))
        return [
            added[i].caption if i in added else self._rows[i][1] if i in self._rows else next(clean) for i in indices
        ]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, list[str]]:
        """Pictures (N, 3, H, W) in [0, 1] and N captions."""
        indices = [int(i) for i in indices]
        x, texts = self.targeted.__getitems__(indices)
        texts = list(texts)
        for name, trigger in self._triggers.items():
            at = [k for k, i in enumerate(indices) if i in self._rows and self._rows[i][0] == name]
            if at:
                x[at] = trigger.stored(trigger(x[at], [indices[k] for k in at]))
                for k in at:
                    texts[k] = self._rows[indices[k]][1]
        return x, texts

    def write_manifests(self, folder: Path, name: str) -> None:
        """One file per attack, <name>__<attack>.jsonl."""
        for attack, manifest in self.manifests.items():
            manifest.write(folder / f"{name}__{attack}.jsonl")


def labelled_targets(images, n: int, seed: int) -> tuple[list[int], list[int]]:
    """n target images of a labelled set and for each a class that it does not show."""
    drawn = draw_targets(images.labels, images.num_classes, n, seed)
    return [i for i, _ in drawn], [k for _, k in drawn]


def unlabelled_targets(
    pairs, count: int, named: Sequence[Target], m: int, n: int, seed: int, scan: int | None = None
) -> tuple[list[int], list[int]]:
    """n target images of `count` without labels, and for each a class drawn at random of those that m captions name;
    what an image shows is not known, as in the paper. No class is given twice while there are others.

    Raises UserError where there are fewer images, or no class is named often enough.
    """
    if not 1 <= n <= count:
        raise UserError(f"{n} target images of {count}: ask for 1 to {count}.")
    draw = SampleRng(seed, [0, 1], "roclip/targets").integers(2**62).tolist()
    order = torch.randperm(len(named), generator=torch.Generator().manual_seed(draw[0])).tolist()
    usable: list[int] = []
    while order and len(usable) < n:  # a part of the classes at a time: a million captions take theirs
        part, order = order[: 8 * n], order[8 * n :]
        usable += [
            k for k, found in zip(part, naming(pairs, [named[k] for k in part], scan), strict=True) if len(found) >= m
        ]
    if not usable:
        raise UserError(
            f"none of {len(named)} classes is named by {m} captions: take fewer captions per target image, or search "
            "more pairs."
        )
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(draw[1])).tolist()[:n]
    return chosen, [usable[k % len(usable)] for k in range(n)]
