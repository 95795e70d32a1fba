"""One process at work on a paper: it opens data, hands out what steps have left, and makes, with the other processes,
what is missing.

Files, below the root of a paper at a scale:
    checkpoints/<name>-<key>[__<part>].safetensors     what a `Kept` has left, with its metadata in a .json beside it: key, sha256, facts
    checkpoints/<name>-<key>.ckpt                      where an unfinished training continues
    measurements/<name>-<key>.json + .npz              see `shared.experiment.store`

Every name holds the beginning of the key, so what one setting has made stays when another is tried, and is found again;
the rest of it is for people.
"""

import itertools
import json
import os
import platform
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.distributed import TCPStore

from shared.data.base import LabelledImages
from shared.data.catalogue import Source, open_set
from shared.errors import UserError
from shared.experiment.claimed import Claims
from shared.experiment.paper import Number
from shared.experiment.step import Kept, Step, Tensors, Trained, Values, closure, depth, key, needs
from shared.experiment.store import Store, slug
from shared.files import digest, look_at, sha256_bytes, sha256_file, write_json
from shared.models.clip import demand_finite, read_weights, save_tensors
from shared.models.victim import set_compiled
from shared.rng import Draws, generator, set_draws

SHORT = 12  # hex digits of a key in a file's name
PATIENCE = timedelta(days=30)
LOOK_AGAIN = 1.0  # seconds until what other runs are making is looked at again


class Lab:
    """See the module docstring. root: the folder of results; source: where data come from; room: bytes that `once` may
    keep (default: a quarter of the device's memory, divided among the processes that share it); join: other runs make
    the same things in the same folder; draws, compiled: who draws the noise and how towers run in this process from now
    on, see `shared.rng.set_draws` and `shared.models.victim.set_compiled`.

    A lab holds no configuration of the paper, so a step can depend on nothing but its own fields.
    """

    def __init__(
        self,
        root: Path,
        source: Source,
        accelerator: Accelerator,
        room: int | None = None,
        join: bool = False,
        draws: Draws = "auto",
        compiled: bool = False,
    ):
        set_draws(draws)
        set_compiled(compiled)
        self.root, self.source, self.accelerator, self.device = Path(root), source, accelerator, accelerator.device
        self.store = Store(self.root)
        self.room = _quarter(accelerator) if room is None else room
        self._cached: OrderedDict[Hashable, tuple[object, int]] = OrderedDict()
        self._sets: dict[tuple[str, str], LabelledImages] = {}
        self._keys: dict[Step, str] = {}
        self._identities: dict[Hashable, object] = {}
        self._fingerprints: dict[Step, str] = {}
        self._paths: dict[str, Path] = {}
        self._made: set[Step] = set()
        self._turns = _Turns(accelerator)
        self._claims = Claims(self.root) if join else None

    # -- what is given ---------------------------------------------------------------------------------------------

    def data(self, spec: str, split: str = "test") -> LabelledImages:
        """A labelled set, opened once. Raises UserError where it is not known or not there."""
        if (spec, split) not in self._sets:
            self._sets[spec, split] = open_set(spec, split, self.source)
        return self._sets[spec, split]

    def once(self, name: Hashable, make: Callable[[], object]):
        """What `make` returned when it was first asked for under this name. Where all that is kept takes more than
        `room` bytes, what was not asked for the longest is given up and made again when it is asked for. name: a step
        or leaf itself, or a tuple with one."""
        if name not in self._cached:
            made = make()
            self._cached[name] = made, _bytes(made, set())
            self._make_room()
        self._cached.move_to_end(name)
        return self._cached[name][0]

    def _make_room(self) -> None:
        total = sum(size for _, size in self._cached.values())
        for name in list(self._cached)[:-1]:
            if total <= self.room:
                return
            if self._cached[name][1] > 4096:  # what takes no room frees none
                total -= self._cached.pop(name)[1]

    def open_leaves(self, found: Iterable[object]) -> None:
        """Look at what is given among these parts of steps, so that what is to be downloaded is there."""
        for leaf in found:
            # what is known without anything that is yet to be made
            if hasattr(leaf, "identity") and not any(needs(leaf)):
                self.identity(leaf)

    def identity(self, leaf: Hashable) -> object:
        """What tells a leaf from others: the contents of what stands behind it, looked at once."""
        if leaf not in self._identities:
            self._identities[leaf] = leaf.identity(self)  # type: ignore[attr-defined]
        return self._identities[leaf]

    # -- what steps have left --------------------------------------------------------------------------------------

    def key(self, step: Step) -> str:
        """See `shared.experiment.step.key`; where the noise is not the CPU's or trainings are not in fp32, it says so.
        All that the step needs has to be made before."""
        if step not in self._keys:
            how = {generator(self.device), getattr(self.accelerator, "mixed_precision", "no")} - {"mt19937", "no"}
            self._keys[step] = digest([key(step, self), *sorted(how)]) if how else key(step, self)
        return self._keys[step]

    def fingerprint(self, step: Step) -> str:
        """A step as it counts in the key of another: its own key, and the contents that it has left. Raises UserError
        where those are missing."""
        if not isinstance(step, Kept):
            return self.key(step)
        if step not in self._fingerprints:
            record = self._record(step)
            if record.get("key") != self.key(step):
                raise UserError(f"{self.path(step)} is missing: run the training with the same options first.")
            self._fingerprints[step] = digest([record["key"], record["sha256"]])
        return self._fingerprints[step]

    def path(self, step: Kept, part: str = "") -> Path:
        """The file of one of its parts: known by its key, so that what is there is found under whichever name made
        it."""
        ending = f"-{self.key(step)[:SHORT]}{f'__{slug(part)}' if part else ''}.safetensors"
        if ending not in self._paths:
            folder = self.root / "checkpoints"
            there = min(folder.glob(f"*{ending}"), default=None)
            if there is None:
                return folder / f"{slug(step.name)}{ending}"
            self._paths[ending] = there
        return self._paths[ending]

    def partial(self, step: Kept) -> Path:
        """Where an unfinished training keeps its state: no other training continues from it."""
        return self.path(step).with_suffix(".ckpt")

    def _record(self, step: Kept, part: str = "", path: Path | None = None) -> dict:
        try:
            record = json.loads(Path(look_at((path or self.path(step, part)).with_suffix(".json"))).read_text())
            return record if isinstance(record, dict) else {}
        except (OSError, ValueError):
            return {}

    def is_made(self, step: Step) -> bool:
        """Whether all that it leaves is there, whole and under its key, and so is all that it needs (its key holds what
        that has left)."""
        if step in self._made:
            return True
        if not all(map(self.is_made, needs(step))):
            return False
        if not isinstance(step, Kept):
            return True
        if all(self._whole(step, part) for part in step.parts):
            self._made.add(step)
        return step in self._made

    def _whole(self, step: Kept, part: str) -> bool:
        path, record = self.path(step, part), self._record(step, part)
        if not path.is_file() or record.get("key") != self.key(step):
            return False
        if sha256_file(path) == record.get("sha256"):
            return True
        print(
            f"note: {path} is not as it was written (damaged or changed by hand); it will be made again.",
            file=sys.stderr,
            flush=True,
        )
        return False

    def keep(
        self,
        step: Kept,
        tensors: Tensors,
        part: str = "",
        facts: dict[str, str] | None = None,
        seconds: float | None = None,
    ) -> None:
        """Save what a step has made; facts: texts that stand beside the tensors, seconds: what it took.

        Of what all made together, one process saves it. Raises UserError where a number is not finite; nothing is then
        stored.
        """
        if step.together and not self.accelerator.is_main_process:
            return
        demand_finite(tensors, f"what {step.name} has left")
        path = self.path(step, part)
        self._fingerprints.pop(step, None)
        self._identities.clear()  # of a leaf that holds the step
        path.with_suffix(".json").unlink(missing_ok=True)
        save_tensors(tensors, path, facts)
        record = {"key": self.key(step), "sha256": sha256_file(path), "facts": facts or {}, "seconds": seconds}
        write_json(path.with_suffix(".json"), record)

    def file(self, step: Kept, part: str = "") -> Path:
        """The file of what a step has left. Raises UserError where it is missing, or not as it was written."""
        path, record = self.path(step, part), self._record(step, part)
        if not path.is_file() or record.get("key") != self.key(step):
            raise UserError(f"{path} is missing: run the training with the same options first.")
        if sha256_bytes(path.read_bytes()) != record["sha256"]:
            raise UserError(f"{path} is not as it was written (damaged or changed by hand): delete it and run again.")
        return path

    def weights(self, step: Kept, part: str = "") -> dict[str, Tensor]:
        """The tensors of that file, under the same conditions."""
        return read_weights(self.file(step, part))

    def facts(self, step: Kept, part: str = "") -> dict[str, str]:
        """The texts that stand beside its tensors."""
        return self._record(step, part).get("facts", {})

    def seconds(self, step: Kept) -> float | None:
        """What making it took, since it was last gone on with; None where nobody noted it."""
        return self._record(step).get("seconds")

    # -- making ----------------------------------------------------------------------------------------------------

    def make(self, steps: Iterable[Step]) -> None:
        """Make everything that is `Kept` among these steps and what they need, unless it is there."""
        found = [step for step in closure(steps) if isinstance(step, Kept)]

        def one(step: Kept) -> None:
            began = time.monotonic()
            made = step.make(self)
            tensors, facts = made if isinstance(made, tuple) else (made, None)
            self.keep(step, tensors, facts=facts, seconds=time.monotonic() - began)
            self.partial(step).unlink(missing_ok=True)

        # what is needed is there before what needs it
        for _, steps in itertools.groupby(sorted(found, key=depth), key=depth):
            level = list(steps)
            if common := [step for step in level if step.shared]:
                if self.accelerator.is_main_process:
                    self._take_over(step for step in common if not self.is_made(step))
                self.accelerator.wait_for_everyone()
            todo = [step for step in level if not self.is_made(step)]
            self.accelerator.wait_for_everyone()  # all have looked before anybody makes something
            what = "training" if any(isinstance(step, Trained) for step in todo) else "preparation"
            # where runs have joined, two processes of this one may have seen different things
            self._make_together(what, [step for step in (level if self._claims else todo) if step.together], one)
            alone = [[step] for step in todo if not step.together]
            self.share(what, alone, lambda group: one(group[0]), lambda group: group[0].name, self.is_made)

    def _take_over(self, steps: Iterable[Kept]) -> None:
        """What another paper of the same results has made of steps is copied."""
        for step, part in ((one, part) for one in steps for part in one.parts):
            own = self.path(step, part)
            for path in sorted(self.root.parent.glob(f"*/checkpoints/{own.name}")):
                record = self._record(step, part, path)
                if path != own and record.get("key") == self.key(step) and sha256_file(path) == record["sha256"]:
                    self.keep(step, read_weights(path), part, record["facts"])
                    print(f"{own.name} is taken over from {path.parents[1].name}", flush=True)
                    break

    def _make_together(self, what: str, steps: list[Kept], make: Callable[[Kept], None]) -> None:
        """Make these, each by all processes of this run, unless another run does."""
        while steps:
            left = []
            for step in steps:
                began = time.monotonic()
                if not self._ours(step):
                    left.append(step)
                elif not self.is_made(step):
                    with _named(f"{what}: {step.name}"):
                        make(step)
                    self.accelerator.wait_for_everyone()
                    if self.accelerator.is_main_process:
                        print(f"{what}: {step.name} by all processes, {time.monotonic() - began:.1f} s", flush=True)
                if self._claims and self.accelerator.is_main_process:
                    self._claims.give_back(self.key(step))
            if len(left) == len(steps):
                time.sleep(LOOK_AGAIN)
            steps = left

    def _ours(self, step: Step) -> bool:
        """Whether this run, all processes of it, may make a step."""
        if self._claims is None:
            return True
        got = self._claims.take(self.key(step)) if self.accelerator.is_main_process else None
        return broadcast_object_list([got])[0] if self.accelerator.num_processes > 1 else bool(got)

    def measure(self, numbers: Iterable[Number], save: Callable[[Number, Values, float], None]) -> None:
        """Make numbers; those of one group (see `Measured.group`) are made by one process, one after another. save:
        keeps one."""
        groups: dict[Hashable, list[Number]] = {}
        for number in numbers:
            groups.setdefault((number.step.group, number.step.weight), []).append(number)

        def one(group: list[Number]) -> None:
            made: dict[Step, Values] = {}  # sweeps meet: what has two names is made once
            for number in group:
                began = time.monotonic()
                values = made[number.step] = made.get(number.step) or number.step.make(self)
                wrong = np.size(values.values) - int(np.isfinite(values.values).sum())
                if wrong:
                    raise UserError(
                        f"{number.name}: {wrong} of {np.size(values.values)} values are not finite: nothing is stored. "
                        "See whether its model, and what it is given, are sound."
                    )
                save(number, values, time.monotonic() - began)

        self.share(
            "evaluation",
            list(groups.values()),
            one,
            lambda group: f"{group[0].name}, {len(group)} measurements",
            lambda number: self.store.fresh(number.name, self.key(number.step)),
        )

    def share(
        self,
        what: str,
        groups: Sequence[list],
        make: Callable[[list], None],
        name: Callable[[list], str],
        is_there: Callable[[Any], bool],
    ) -> None:
        """Every process takes the next group that nobody has taken, the longest first, until none is left; then all
        wait for each other. All processes of a run give the same groups; which one makes a group changes nothing in its
        result. is_there: whether one of a group has been made, where runs have joined."""
        self.accelerator.wait_for_everyone()
        groups = sorted(groups, key=lambda group: -sum(getattr(one, "step", one).weight for one in group))
        who = f" by process {self.accelerator.process_index}" if self.accelerator.num_processes > 1 else ""
        if self._claims:
            who += f" of {platform.node()}"

        def timed(k: int, group: list) -> None:
            began = time.monotonic()
            with _named(f"{what}: {name(group)}"):
                make(group)
            print(f"{what}: {name(group)} ({k + 1}/{len(groups)}{who}), {time.monotonic() - began:.1f} s", flush=True)

        if self._claims:
            self._share_among_runs(self._claims, groups, timed, is_there)
        else:
            for k in self._turns.of(len(groups)):
                timed(k, groups[k])
        self.accelerator.wait_for_everyone()

    def _share_among_runs(
        self, claims: Claims, groups: Sequence[list], make: Callable[[int, list], None], is_there: Callable[[Any], bool]
    ) -> None:
        """Make what nobody else makes until everything is there. Other runs may have other parts of a group left, so
        each part has a claim."""
        left = dict(enumerate(groups))
        while left:
            busy = {}
            for k, group in left.items():
                missing = [one for one in group if not is_there(one)]
                ours = [one for one in missing if claims.take(self._key_of(one))]
                # between the look and the lock, another may have come to its end
                if to_make := [one for one in ours if not is_there(one)]:
                    make(k, to_make)
                for one in ours:
                    claims.give_back(self._key_of(one))
                if len(ours) < len(missing):
                    busy[k] = [one for one in missing if one not in ours]
            if busy.keys() == left.keys():
                time.sleep(LOOK_AGAIN)
            left = busy

    def _key_of(self, one: Step | Number) -> str:
        return f"{one.name} {self.key(one.step)}" if isinstance(one, Number) else self.key(one)


class _Turns:
    """0, 1, 2, …, each number to one process only: a counter in a store that the first process serves."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator, self._rounds, self._store = accelerator, 0, None

    def of(self, count: int) -> Iterator[int]:
        """The numbers below `count` that this process gets. To be called by all processes."""
        self._rounds += 1
        if self.accelerator.num_processes == 1:
            yield from range(count)
            return
        store = self._open()
        while (turn := store.add(f"round {self._rounds}", 1) - 1) < count:
            yield turn

    def _open(self) -> TCPStore:
        if self._store is None:
            host, first = os.environ.get("MASTER_ADDR", "127.0.0.1"), self.accelerator.is_main_process
            served = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=PATIENCE) if first else None
            port = broadcast_object_list([served.port if first else None])[0]  # type: ignore[union-attr]
            self._store = served or TCPStore(host, port, is_master=False, timeout=PATIENCE)
        return self._store


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Say what failed, and on which machine, before the reason is said."""
    try:
        yield
    except Exception:
        print(f"{what} failed on {platform.node()}", file=sys.stderr, flush=True)
        raise


def _quarter(accelerator: Accelerator) -> int:
    """A quarter of the device's memory; processes on the CPU of one machine share it."""
    if accelerator.device.type == "cuda":
        return torch.cuda.get_device_properties(accelerator.device).total_memory // 4
    return psutil.virtual_memory().total // 4 // int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))


def _bytes(x: object, seen: set[int]) -> int:
    """How much memory the tensors and arrays in x take, each counted once."""
    if isinstance(x, Tensor):
        storage = x.untyped_storage()
        new = storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        return storage.nbytes() if new else 0
    if isinstance(x, np.ndarray):
        return x.nbytes
    if id(x) in seen or isinstance(x, str | bytes | int | float | type):
        return 0
    seen.add(id(x))
    if isinstance(x, nn.Module):
        return sum(_bytes(t, seen) for t in itertools.chain(x.parameters(), x.buffers()))
    parts = (
        x.values()
        if isinstance(x, dict)
        else x
        if isinstance(x, list | tuple)
        else vars(x).values()
        if hasattr(x, "__dict__")
        else ()
    )
    return sum(_bytes(part, seen) for part in parts)
