"""`accelerate launch`, minding its manners. Same arguments; what make uses by default.

    python -m shared.experiment.launch --config_file shared/experiment/launch/cpu.yaml -m papers.pmg_aft.train --scale cpu

It differs from the plain command in this:
* a script that fails or is interrupted ends with its own message and exit code, without the launcher's traceback after it;
* on Ctrl-C it waits until the script has put its things away;
* threads: every core, divided among the processes, unless OMP_NUM_THREADS is set (plain: one thread per GPU process);
* several CPU processes find each other (plain: each believes to be alone unless ACCELERATE_USE_CPU is set);
* nothing asks or reports home;
* a script of a paper that has finished, and of whose outcome nothing has changed since, is not started: what it would say is said here;
* it starts 5 s sooner than `accelerate launch`, whose command line imports every sub-command (accelerate 1.15: 8 s against 3 s).
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping

from shared.errors import UserError, run_main
from shared.experiment.finished import said


def environment(use_cpu: bool, processes: int, given: Mapping[str, str]) -> dict[str, str]:
    """The environment variables to add for `processes` processes on this machine; what is `given` already stays as it is."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    added = {"OMP_NUM_THREADS": str(max(1, cores // max(1, processes))), "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
    if use_cpu:
        added["ACCELERATE_USE_CPU"] = "true"
    return {name: value for name, value in added.items() if name not in given}


def read_config(path: str) -> dict:
    """An accelerate config file. Raises `UserError` if there is none."""
    import yaml

    try:
        with open(path, encoding="utf-8") as handle:
            return yaml.safe_load(handle) or {}
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"the launch configuration {path} cannot be read ({type(error).__name__}).") from error


def finished_before(argv: list[str]) -> str | None:
    """What the script of a paper in a launcher's command line said last, if it has nothing to do; see `shared.experiment.finished`."""
    place = argv.index("-m") + 1 if "-m" in argv else len(argv)
    module = ".".join(argv[place:place + 1]).split(".")
    if len(module) != 3 or module[0] != "papers" or module[2] not in ("train", "evaluate"):
        return None
    return said(module[1], module[2], argv[place + 1:])


def main() -> None:
    if text := finished_before(sys.argv[1:]):
        print(text, flush=True)
        return
    from accelerate.commands.launch import launch_command, launch_command_parser

    args = launch_command_parser().parse_args()
    config = read_config(args.config_file) if args.config_file else {}
    processes = args.num_processes or config.get("num_processes") or 1
    os.environ.update(environment(args.cpu or bool(config.get("use_cpu")), processes, os.environ))
    # A handler that does nothing, so that this process goes on waiting for its child; the child, after exec, has Python's own again.
    signal.signal(signal.SIGINT, lambda *_: None)
    sys.exit(run_quietly(lambda: launch_command(args)))


def run_quietly(launch) -> int:
    """Call `launch` and return the exit code of what it launched: that of the first process which failed, or 128 + the signal."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        launch()
    except subprocess.CalledProcessError as error:
        return _shell_code(error.returncode)
    except ChildFailedError as error:
        return _shell_code(error.get_first_failure()[1].exitcode)
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def _shell_code(code: int) -> int:
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    run_main(main)
