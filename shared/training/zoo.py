"""How a small model is put into the zoo: trained, written, measured, and described on the card beside its weights.

A script says what is trained (a `Making`, with options of its own) and gives `make` what its kind of model needs. The
first process writes; an interrupted training continues from its checkpoint in `--work`.
"""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from shared.errors import UserError
from shared.files import digest, sha256_file
from shared.models.zoo import write_card
from shared.options import Seed

VALIDATION = 256  # pictures per set behind the accuracies on a card
TRAINING_FACTS = ("model", "config", "seed", "data", "command", "commit", "loss", "seconds")


@dataclass(frozen=True, kw_only=True)
class Making:
    """What every such script is told; `out`, the path of the weights, and `train`, how to train, stand beside it."""

    seed: Seed = 0
    """Of the initial weights, the pictures and whatever else is drawn."""
    work: Path = Path("results/zoo")
    """Folder of the checkpoint of an unfinished run."""
    card_only: bool = False
    """Train nothing: measure the weights at `--out` again and write their card."""


class Training(NamedTuple):
    """A training that can begin."""

    model: str
    """Of the card."""
    data: str
    """The version of what is learnt from."""
    about: list
    """What else the weights depend on, beside the options: anything in JSON."""
    fit: Callable[[Path], tuple[float, nn.Module]]
    """checkpoint -> the last loss, and the model to be saved."""
    save: Callable[[nn.Module, Path], None]


def make(
    args: Any,
    script: str,
    begin: Callable[[], Training],
    measured: Callable[[str, Any], dict],
    accelerator: Any,
    out: Path | None = None,
    **more: str,
) -> None:
    """Do what a script is asked for.

    script: the module, for the command on the card. begin(): the training, with a model on the device of the
    accelerator. measured(model, device): what else the card says, of the weights that are there. out: by default
    args.out. more: of the card.
    """
    out = out or args.out
    facts = training_facts(out) if args.card_only else train(args, script, begin, accelerator, out)
    if accelerator.is_main_process:
        write_card(out, **more, **facts, **measured(facts["model"], accelerator.device))
        print(f"wrote the card of {out}" if args.card_only else f"wrote {out} and its card", flush=True)
    accelerator.wait_for_everyone()
    accelerator.end_training()


def train(args: Any, script: str, begin: Callable[[], Training], accelerator: Any, out: Path) -> dict:
    """Train, write the weights, and return what the card says about it. seconds: None if the run was interrupted in
    between."""
    commit, began = _commit(), time.monotonic()
    training = begin()
    # named by all that the weights depend on, so that a run with other options does not continue from it
    settings = {f.name: getattr(args.train, f.name) for f in fields(args.train) if not f.metadata.get("free")}
    identity = digest([training.model, training.about, args.seed, training.data, settings])
    checkpoint = args.work / f"{out.stem}-{identity[:12]}.ckpt"
    interrupted = checkpoint.is_file()
    loss, model = training.fit(checkpoint)
    if accelerator.is_main_process:
        training.save(model, out)
        checkpoint.unlink(missing_ok=True)
    return {
        "model": training.model,
        "config": asdict(args.train),
        "seed": args.seed,
        "data": training.data,
        "loss": loss,
        "commit": commit,
        "command": shlex.join(["python", "-m", f"shared.training.{script}", *sys.argv[1:]]),
        "seconds": None if interrupted else time.monotonic() - began,
    }


def training_facts(path: Path) -> dict:
    """What the card beside the weights at `path` says about their training. Raises UserError if it is missing or is
    about other weights."""
    try:
        card = json.loads(path.with_suffix(".json").read_text())
        facts, described = {k: card.get(k) for k in TRAINING_FACTS}, card["sha256"] == sha256_file(path)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"there are no weights with a readable card at {path}: train them first (leave out --card-only)."
        ) from error
    if not described:
        raise UserError(
            f"the card beside {path} is about other weights (wrong sha256): restore both with git, or train again."
        )
    return facts


def _commit() -> str:
    """The commit that trains, with `-dirty` where files differ from it. (`shared.experiment.provenance` is out of
    bounds here.)"""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            text=True,
            capture_output=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
