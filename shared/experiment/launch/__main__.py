"""Start a script on one process or several of this machine.

    python -m shared.experiment.launch [--device cpus] [--gpus 2] -m papers.pmg_aft.train --scale cpu

Each process gets its share of the cores (unless OMP_NUM_THREADS is set) and what torch and accelerate need to know of
the others; what another launcher has left in the environment is dropped. How they end together:
`shared.lifeline.supervise`. A script of a paper that has finished, and of whose outcome nothing has changed since, is
not started: what it would say is said here. Standard library only, so it starts at once.
"""

import argparse
import ctypes
import os
import socket
import sys
from collections.abc import Sequence
from importlib import metadata

from shared.errors import UserError, run_main
from shared.experiment.finished import said
from shared.lifeline import supervise, tie_to_launcher
from shared.processes import of_launchers

DEVICES = ("cpu", "cpu2", "cpus", "gpu", "gpus")
# Small models gain more from a process per core than from threads; eight are enough to wait for the longest task.
MOST = 8


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> int:
    """The GPUs that torch would see: the driver's, less those that CUDA_VISIBLE_DEVICES hides."""
    if metadata.version("torch").endswith("+cpu"):  # torch without CUDA
        return 0
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


def choose(device: str | None = None, wanted: int | None = None) -> tuple[bool, int]:
    """(on GPUs, number of processes). device: one of DEVICES, or what this machine has; wanted: number of GPUs.

    Raises `UserError` where the machine has fewer.
    """
    if wanted is not None and wanted < 1:
        raise UserError(f"GPUS={wanted}: at least one is needed; use DEVICE=cpus to do without.")
    if device is None and wanted is not None:
        device = "gpus"
    if device is None:
        device = "gpu" if gpus() else "cpus"
    if device.startswith("cpu"):
        if wanted is not None:
            raise UserError(f"GPUS={wanted} and DEVICE={device} contradict each other: leave one of them out.")
        return False, {"cpu": 1, "cpu2": 2, "cpus": min(MOST, cores())}[device]
    seen = gpus()
    count = (wanted or max(seen, 2)) if device == "gpus" else wanted or 1
    if device == "gpu" and count > 1:
        raise UserError(f"DEVICE=gpu is one GPU, and GPUS={wanted} are asked for: use DEVICE=gpus.")
    if seen < count:
        needed = f"{count} GPUs" if count > 1 else "a GPU"
        few = f"{seen} can be seen" if seen else "none can be seen (`make doctor` says why)"
        raise UserError(f"DEVICE={device} needs {needed} and {few}: leave DEVICE and GPUS out to use what is there.")
    return True, count


def environments(on_gpu: bool, processes: int) -> list[dict[str, str]]:
    """The environment of each process."""
    left = of_launchers()
    common = {
        "OMP_NUM_THREADS": str(max(1, cores() // processes)),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
    }
    common |= {name: value for name, value in os.environ.items() if name not in left}
    # half precision makes attacks partly blind
    common |= {"ACCELERATE_USE_CPU": "false" if on_gpu else "true", "ACCELERATE_MIXED_PRECISION": "no"}
    if processes == 1:
        return [common]
    with socket.socket() as probe:  # a free port, so that two runs on one machine do not meet
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def finished_before(command: Sequence[str]) -> str | None:
    """What the script of a paper said last, if it has nothing to do; see `shared.experiment.finished`."""
    module = command[1].split(".") if command[0] == "-m" else []
    if len(module) != 3 or module[0] != "papers" or module[2] not in ("train", "evaluate"):
        return None
    return said(module[1], module[2], list(command[2:]))


def start(command: Sequence[str], device: str | None = None, wanted: int | None = None) -> int:
    """Run `python <command>` on the processes that `choose` says; returns the exit code.

    Raises `UserError` where the device is not there, and `Interrupted` on a signal.
    """
    on_gpu, processes = choose(device, wanted)
    if text := finished_before(command):
        print(text, flush=True)
        return 0
    return supervise([[sys.executable, *command]] * processes, environments(on_gpu, processes))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m shared.experiment.launch", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--device", choices=DEVICES, help="by default a GPU where one is seen, else a process per core")
    parser.add_argument("--gpus", type=int, help="how many GPUs, a process each")
    parser.add_argument("-m", action="store_true", dest="module", help="the script is named as a module")
    parser.add_argument("script")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="of the script")
    args = parser.parse_args()
    tie_to_launcher(("MAKELEVEL",))
    sys.exit(start([*(["-m"] if args.module else []), args.script, *args.options], args.device, args.gpus))


if __name__ == "__main__":
    run_main(main)
