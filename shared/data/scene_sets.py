"""Label spaces and domains on the scenes world: one set to fine-tune on, its hold-out, zero-shot sets, and the caption
pairs to pre-train on.

The fine-tuning classes are the combinations colour × surface × shape with (colour + shape + surface) ≡ 0 mod 4: 64
classes that name every colour, surface and shape equally often, so that a loss over their prompts speaks about all
three. The hold-out has the 64 with ≡ 2 mod 4.

`CLASSIFIED` are for classifiers without a text tower, trained from nothing: stand-ins for CIFAR-10 and ImageNet30.
`SHIFTED` has the classes of "colour" in domains of which `SETS` has two more.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shared.data.base import LabelledImages
from shared.data.language import article, captions, plural
from shared.data.scenes import ATTRIBUTES, VERSION, Domain, Scenes, render, sample
from shared.errors import UserError
from shared.files import digest

_ONE = (1.0, 0.0, 0.0)
_SEEDS = {"train": 1, "test": 2, "validation": 3}  # disjoint streams of pictures …
_PAIRS = 4  # … and that of the caption pairs


@dataclass(frozen=True)
class LabelSpace:
    """What a class of a set is: a combination of attributes, its prompt, and the domain the pictures come from.

    `residue` keeps the combinations whose value indices sum to it modulo 4 (None: all).
    """

    attributes: tuple[str, ...]
    template: str = "a photo of {}"
    domain: Domain = Domain(kinds=_ONE)
    residue: int | None = None

    def combos(self) -> np.ndarray:
        """(K, len(attributes)) value indices of each class."""
        grids = np.meshgrid(*(self._allowed(a) for a in self.attributes), indexing="ij")
        table = np.stack([g.ravel() for g in grids], 1)
        return table if self.residue is None else table[table.sum(1) % 4 == self.residue]

    def _allowed(self, attribute: str) -> list[int]:
        values = ATTRIBUTES[attribute]
        return [values.index(v) for v in self.domain.fixed.get(attribute, values)]

    def name(self, combo: np.ndarray) -> str:
        """The class name: its attribute values in the order they are said."""
        return " ".join(ATTRIBUTES[a][v] for a, v in zip(self.attributes, combo, strict=True))

    def prompt(self, combo: np.ndarray) -> str:
        """The class's sentence, in the grammar of the captions."""
        value = dict(
            zip(self.attributes, (ATTRIBUTES[a][v] for a, v in zip(self.attributes, combo, strict=True)), strict=True)
        )
        if "count" in value:
            body = "one object" if value["count"] == "one" else f"{value['count']} {plural('object')}"
        elif "position" in value:
            place = {
                "left": "on the left",
                "right": "on the right",
                "top": "at the top",
                "bottom": "at the bottom",
                "centre": "in the centre",
            }
            body = f"{article('object')} {place[value['position']]}"
        elif "background" in value:
            body = f"an object on a {value['background']} background"
        else:
            body = article(" ".join([*value.values(), *([] if "shape" in value else ["object"])]))
        return self.template.format(body)


def _one(**changes) -> Domain:
    return Domain(kinds=_ONE, **changes)


_BIG = {"size": ("medium", "large")}
FINE_TUNING = "combinations"
HOLD_OUT = "combinations_new"
SETS: dict[str, LabelSpace] = {
    FINE_TUNING: LabelSpace(("surface", "colour", "shape"), domain=_one(fixed=_BIG), residue=0),
    HOLD_OUT: LabelSpace(("surface", "colour", "shape"), domain=_one(fixed=_BIG), residue=2),
    "shape": LabelSpace(("shape",)),
    "colour": LabelSpace(("colour",)),
    "surface": LabelSpace(("surface",)),
    "size": LabelSpace(("size",)),
    "position": LabelSpace(("position",), domain=_one(fixed={"size": ("small", "medium")})),
    "background": LabelSpace(("background",)),
    "count": LabelSpace(("count",)),
    "colour_shape": LabelSpace(("colour", "shape")),
    "surface_shape": LabelSpace(("surface", "shape"), domain=_one(fixed=_BIG)),
    "outline": LabelSpace(("shape",), domain=_one(outline=True, fixed={**_BIG, "surface": ("plain",)})),
    "grey": LabelSpace(
        ("shape",), domain=_one(grey=True, fixed={**_BIG, "surface": ("plain",), "background": ("black", "white")})
    ),
    "rotated": LabelSpace(("shape",), domain=_one(rotation=60.0, fixed=_BIG)),
    "cluttered": LabelSpace(("colour", "shape"), domain=_one(clutter=8, fixed=_BIG)),
    "low_contrast": LabelSpace(("colour",), domain=_one(contrast=0.35)),
    "tiny": LabelSpace(("colour",), domain=_one(radius=(3.0, 3.8), fixed={"surface": ("plain",)})),
    "textured": LabelSpace(("surface",), domain=_one(texture=True, fixed=_BIG)),
}
ZERO_SHOT = tuple(name for name in SETS if name not in (FINE_TUNING, HOLD_OUT))
_FIVE = ("circle", "square", "triangle", "star", "cross")
_MODEST = {"size": ("small", "medium"), "shape": _FIVE}
CLASSIFIED: dict[str, LabelSpace] = {  # one small or medium object: large ones are hard to attack
    "ten": LabelSpace(("surface", "shape"), domain=_one(fixed={**_MODEST, "surface": ("plain", "striped")})),
    "thirty": LabelSpace(
        ("surface", "colour", "shape"),
        domain=_one(fixed={**_MODEST, "surface": ("plain", "striped", "checkered"), "colour": ("red", "orange")}),
    ),
}
SHIFTED: dict[str, LabelSpace] = {  # beside low_contrast and tiny: the classes of "colour" in other domains
    "colour_textured": LabelSpace(("colour",), domain=_one(texture=True)),
    "colour_cluttered": LabelSpace(("colour",), domain=_one(clutter=8)),
}
_ALL = {**SETS, **CLASSIFIED, **SHIFTED}


def _inside(indices, data) -> np.ndarray:
    """The indices as an array. There would be a picture for any number: without this a loop over a set would never
    end."""
    indices = np.asarray(indices, np.int64).reshape(-1)
    if len(indices) and not (indices.min() >= 0 and indices.max() < len(data)):
        raise IndexError(f"there are {len(data)} pictures, 0 … {len(data) - 1}")
    return indices


class SceneSet(LabelledImages):
    """One labelled set of scenes: picture i has class i mod K, so every prefix of it is as balanced as can be.

    name: a key of SETS, CLASSIFIED or SHIFTED; split: "train", "test" or "validation" (disjoint pictures); n: how many
    pictures the set has; size: pixels. Raises UserError for an unknown name or split.
    """

    def __init__(self, name: str, split: str = "test", n: int = 10_000, size: int = 32):
        if name not in _ALL or split not in _SEEDS:
            raise UserError(
                f"there is no scenes set {name!r} with split {split!r}: sets are {', '.join(_ALL)}; splits are "
                f"{', '.join(_SEEDS)}."
            )
        self.space, self.name, self.n, self.size = _ALL[name], name, n, size
        self._seed = _SEEDS[split] + 16 * (int(digest(name)[:8], 16) + 1)  # sets do not share pictures
        self._combos = self.space.combos()
        self.classes = tuple(self.space.name(c) for c in self._combos)
        self.prompts = tuple(self.space.prompt(c) for c in self._combos)
        self.version = digest([VERSION, name, split, size, repr(self.space)])[:16]

    def __len__(self) -> int:
        return self.n

    @property
    def labels(self) -> np.ndarray:
        """(len,) int64, the label of every picture."""
        return np.arange(self.n) % len(self._combos)

    def scenes(self, indices) -> Scenes:
        """The attributes of pictures `indices`."""
        indices = np.asarray(indices, np.int64)
        combos = self._combos[indices % len(self._combos)]
        given = {a: combos[:, k] for k, a in enumerate(self.space.attributes)}
        return sample(self._seed, indices, self.space.domain, **given)

    def __getitems__(self, indices) -> tuple[Tensor, Tensor]:
        """Pictures (N, 3, size, size) in [0, 1] and labels (N,). Raises IndexError outside 0 … n − 1."""
        indices = _inside(indices, self)
        x = render(self.scenes(indices), self.space.domain, self.size)
        return torch.from_numpy(x), torch.from_numpy(indices % len(self._combos))

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        x, y = self.__getitems__([i])
        return x[0], int(y[0])


class ScenePairs(torch.utils.data.Dataset):
    """Pictures with captions, to pre-train on: item i is a function of (seed, i), and there is no end to them but
    `n`."""

    def __init__(self, n: int, size: int = 32, seed: int = 0):
        self.n, self.size, self._seed = n, size, _PAIRS + 1000 * seed
        self.domain = Domain()
        self.version = digest([VERSION, "pairs", size, self._seed])[:16]

    def __len__(self) -> int:
        return self.n

    def __getitems__(self, indices) -> tuple[Tensor, list[str]]:
        """Pictures (N, 3, size, size) in [0, 1] and N captions. Raises IndexError outside 0 … n − 1."""
        indices = _inside(indices, self)
        scenes = sample(self._seed, indices, self.domain)
        return torch.from_numpy(render(scenes, self.domain, self.size)), captions(scenes, self._seed, indices)

    def __getitem__(self, i: int) -> tuple[Tensor, str]:
        x, text = self.__getitems__([i])
        return x[0], text[0]
