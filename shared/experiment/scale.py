"""One dial: a scale is a preset of a paper's configuration dataclass, and every field can be overridden on the command
line."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from shared.data.catalogue import Source
from shared.errors import UserError
from shared.options import Bounded, Seed, from_command_line
from shared.options import show_eps as show_eps

Config = TypeVar("Config")


@dataclass(frozen=True)
class Options(Bounded):
    """What every paper's configuration has, under the names that make uses. A subclass has a field `data` with a
    `source`."""

    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Seeds of what a claim rests on; sweeps use the first."""
    headline: bool = False
    """Only what the claims of the abstract need."""
    yours: str = ""
    """module:name of your own method, a row in every table (docs/yours.md); with make: DEFENCE, OBJECTIVE, METHOD."""
    results: Path = Path("results")
    """Where measurements and checkpoints go."""
    draws: Literal["auto", "cpu", "device"] = "auto"
    """Who draws noise: auto (on a GPU the GPU), cpu (everywhere, for comparing machines), device (as a GPU would)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the forward passes of CLIPs, denoisers and language models that are trained whole; attacks stay in fp32."""
    compiled: bool = False
    """CLIPs' vision towers run through torch.compile: minutes before the first step, results to rounding."""
    join: bool = False
    """Other runs with the same options may work on the same results at once, on this machine or on others: each takes
    what nobody has taken."""
    data_root: str | None = None
    """DATA_ROOT, same as --data.source.root."""
    download: bool = False
    """Same as --data.source.download."""
    skip_corrupt: bool = False
    """Same as --data.source.skip-corrupt."""

    @property
    def source(self) -> Source:
        """The data source, after the short options."""
        s = self.data.source
        return replace(
            s,
            root=self.data_root or s.root,
            download=self.download or s.download,
            skip_corrupt=self.skip_corrupt or s.skip_corrupt,
        )


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse no seeds, and the same one twice."""
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds must be one or more different numbers, not {' '.join(map(str, seeds)) or 'nothing'}.")


def check_batch(option: str, batch: int, n: int, of: str = "pairs") -> None:
    """Refuse a batch that is larger than the set it is drawn from."""
    if batch > n:
        raise UserError(f"{option} is {batch}, more than the {n:,} {of} there are to train on: make it smaller.")


def parse(
    presets: Mapping[str, Config],
    description: str,
    argv: Sequence[str] | None = None,
    check: Callable[[Config], None] | None = None,
) -> tuple[str, Config]:
    """Read `--scale NAME` and then every field of the chosen preset from the command line; returns (scale,
    configuration).

    An unknown option or value prints what is wrong and leaves with exit code 2. Raises UserError for a number out of
    the bounds of its field, by the name of its option; `check` may raise it for combinations that cannot work.
    """
    script = getattr(sys.modules["__main__"].__spec__, "name", None)
    prog = f"python -m {script}" if script else Path(sys.argv[0]).name
    argv = list(sys.argv[1:] if argv is None else argv)
    first = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    first.add_argument("--scale", default="cpu")
    known, rest = first.parse_known_args(argv)
    if known.scale not in presets:
        raise UserError(f"there is no scale {known.scale!r}: choose one of {', '.join(presets)}.")
    defaults = f"--scale {{{','.join(presets)}}}: where the defaults below come from; these are of {known.scale}."
    config = from_command_line(
        type(presets[known.scale]),
        args=rest,
        default=presets[known.scale],
        prog=f"{prog} --scale {known.scale}",
        description=f"{description.rstrip()}\n\n{defaults}",
    )
    if check is not None:
        check(config)
    return known.scale, config


def plain(config: object) -> object:
    """A configuration as JSON-able data (paths become strings)."""
    if dataclasses.is_dataclass(config):
        return {f.name: plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(k): plain(v) for k, v in config.items()}
    if isinstance(config, list | tuple):
        return [plain(v) for v in config]
    return config if config is None or isinstance(config, bool | int | float | str) else str(config)
