"""What a process of an experiment works with: configuration, scale and device, and data sets and models that are opened once, when first needed."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from shared.data.base import LabelledImages, subset
from shared.data.catalogue import open_set
from shared.data.pairs import open_pairs
from shared.data.scene_sets import ScenePairs
from shared.errors import UserError
from shared.experiment.scale import Options
from shared.files import digest
from shared.models.sources import is_fresh

Made = TypeVar("Made")


@dataclass(frozen=True)
class World:
    """The chosen pictures of one set: x (N, 3, H, W) in [0, 1], labels y (N,), their indices; skipped: files that could not be read."""

    spec: str
    x: Tensor
    y: Tensor
    indices: list[int]
    skipped: tuple[str, ...] = ()

    def part(self, n: int, first: int = 0) -> "World":
        """n pictures from number `first` on."""
        rows = slice(first, first + n)
        return replace(self, x=self.x[rows], y=self.y[rows], indices=self.indices[rows])


@dataclass
class BaseBench:
    """A paper derives its own from this one, with a method for each of its models. config: the paper's, with a `source` of data."""

    config: Options
    scale: str
    device: torch.device

    def __post_init__(self):
        self._kept: dict = {}
        self._latest: OrderedDict = OrderedDict()

    def once(self, name: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` returned when it was first asked for under this name."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def lately(self, name: tuple, make: Callable[[], Made], keep: int = 4) -> Made:
        """Like `once`, for what is large: of a kind (the first of the name) only the last few are kept."""
        if name not in self._latest:
            of_kind = [k for k in self._latest if k[0] == name[0]]
            for old in of_kind[: len(of_kind) + 1 - keep]:
                del self._latest[old]
            self._latest[name] = make()
        self._latest.move_to_end(name)
        return self._latest[name]

    def labelled(self, spec: str, split: str = "test") -> LabelledImages:
        """A set to classify, opened once. Raises UserError where it is not known or not there."""
        return self.once(("set", spec, split), lambda: open_set(spec, split, self.config.source))

    def downloads(self) -> Iterable[tuple[str, str]]:
        """The sets of this run, as (spec, split): what `fetch` looks for."""
        return ()

    def fetch(self, accelerator) -> None:
        """Let one process download what is missing before the others read it (`--download`)."""
        if self.config.source.download:
            with accelerator.main_process_first():
                for spec, split in self.downloads():
                    self.labelled(spec, split)

    def finished(self, path: Path, key: str, what: str = "trained model") -> Path:
        """`path`, if the training under `key` has left its weights there; else UserError: missing, damaged, or of another configuration."""
        if not is_fresh(path, key):
            raise UserError(f"the {what} {path} is missing or of another configuration: run the training with the same options first.")
        return path


class PictureBench(BaseBench):
    """A bench for classifiers: its examples are pictures with labels. config.data has n (0: all) and the seed of the choice."""

    def world(self, spec: str, split: str = "test", n: int | None = None) -> World:
        """The chosen pictures of a set, on the device; a smaller n gives the beginning of a larger one. n: default config.data.n, 0: all."""
        n = self.config.data.n if n is None else n
        return self.once(("world", spec, split, n), lambda: self._world(spec, split, n))

    def _world(self, spec: str, split: str, n: int) -> World:
        data = self.labelled(spec, split)
        indices = subset(data, n or None, self.config.data.seed)
        x, y = data.__getitems__(indices)
        return World(spec, x.to(self.device), y.to(self.device), indices, data.skipped)


class PairBench(PictureBench):
    """A bench for CLIPs that are trained on pairs of picture and caption too. config.data.pairs: where those come from."""

    @property
    def main(self) -> str:
        """The set whose classes attackers name; pairs have the size of its pictures."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """Side of the pictures, in pixels."""
        return self.world(self.main, n=1).x.shape[-1]

    def label_of(self, spec: str, name: str) -> int:
        """The label of a class that attackers plant. Raises UserError where the set has none of that name."""
        classes = self.labelled(spec).classes
        if name not in classes:
            raise UserError(f"the set {spec} has no class {name!r}, which attackers are to plant: choose one of {', '.join(classes[:8])}, …")
        return classes.index(name)

    def pairs(self, n: int, seed: int, spec: str = ""):
        """n pairs of picture and caption: the same for the same seed, disjoint for others in the scenes world. spec: other pairs than the usual."""
        spec = spec or self.config.data.pairs
        return self.lately(("pairs", spec, n, seed), lambda: open_pairs(spec, self.config.source, n, seed, self.size), 8)

    def pairs_version(self, n: int, seed: int, spec: str = "") -> str:
        """Identity of such pairs; those of the scenes world are not drawn for it."""
        scenes = (spec or self.config.data.pairs) == "scenes"
        return digest([n, ScenePairs(n, self.size, seed).version]) if scenes else self.pairs(n, seed, spec).version
