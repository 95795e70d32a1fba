"""This process among those that a launcher has started with it."""

import os
import sys
from datetime import timedelta

from shared.errors import UserError
from shared.lifeline import STARTED

# What launchers and MPI tell a process about the others; `accelerate` believes whichever it finds.
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
FAMILIES = ("PMI_", "OMPI_", "MV2_", "MPI_LOCAL", "TORCHELASTIC_", "ACCELERATE_")
MEET = timedelta(minutes=5)


def of_launchers() -> list[str]:
    """Those environment variables that a launcher sets, or that one has left behind in this shell."""
    return [name for name in os.environ if name in NAMES or name.startswith(FAMILIES)]


def accelerator(precision: str = "fp32"):
    """An `accelerate.Accelerator`: on the GPU where there is one, together with the other processes of its launcher.

    precision: fp32, or bf16 for the forward passes of the trainings that it prepares. (fp16 would need its loss scale
    in every checkpoint.)

    Processes meet within five minutes, or a `UserError` says so; after that they wait for each other as long as it
    takes: tasks are shared out whole, so one may be done hours before another, and torch's own limit is 10 to 30
    minutes. Without a launcher that starts several processes this is the only one, whatever the environment says: such
    variables were left behind by something else. Raises `UserError` too where a launcher was asked for a GPU and torch
    has none, or for another precision.
    """
    import torch
    from accelerate import Accelerator

    if STARTED in os.environ and os.environ.get("ACCELERATE_USE_CPU") == "false" and not torch.cuda.is_available():
        raise UserError(
            "a GPU was asked for and torch cannot use one (`make doctor` says why): use DEVICE=cpus to do without."
        )
    wanted, asked = "no" if precision == "fp32" else precision, os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", wanted):
        raise UserError(
            f"the launcher asks for {asked} (ACCELERATE_MIXED_PRECISION) and the options for {precision}: leave it to "
            "--precision, which the keys of what is trained name."
        )
    if "TORCHELASTIC_RUN_ID" not in os.environ and int(os.environ.get(STARTED, "1")) == 1:
        left = [name for name in of_launchers() if not name.startswith("ACCELERATE_")]
        for name in left:
            del os.environ[name]
        if left:
            print(
                f"note: {', '.join(left)} in the environment count for nothing: no launcher started this process.",
                file=sys.stderr,
                flush=True,
            )
    else:
        _meet()
    return Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=wanted)


def _meet() -> None:
    import torch
    from torch import distributed

    try:
        store, rank, world = next(distributed.rendezvous("env://", timeout=MEET))
    except (distributed.DistError, ValueError) as error:
        asked = " ".join(
            f"{name}={os.environ[name]}"
            for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
            if name in os.environ
        )
        raise UserError(
            f"the processes of this run did not find each other in {MEET} ({asked}): start them all, or unset these "
            "variables where no launcher has set them."
        ) from error
    on_gpu = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU") != "true"
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=world, timeout=timedelta(days=30)
    )
