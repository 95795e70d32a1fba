"""A process that has imported everything and forks: a script then starts at once, where the imports alone take seconds of each new process.

Reads orders from stdin, one JSON per line, and answers each with one line on stdout:

    {"script": "train", "options": [...], "processes": 2, "port": 29500, "log": path, "late": 0}    -> [pid, pid], a process group
    {"wait": [pid, pid]}                                                                           -> [exit code, exit code]

late: seconds by which the second process looks later than the first at what is already there, as may happen on a busy machine.
"""

import json
import os
import sys
import time

import open_clip  # noqa: F401
import torch
import torchvision  # noqa: F401

import papers.pmg_aft.paper  # noqa: F401
from shared.errors import run_main
from shared.experiment import scripts
from shared.experiment.lab import Lab
from shared.experiment.store import Store
from shared.lifeline import STARTED


def child(order: dict, rank: int, group: int) -> None:
    os.setpgid(0, group)
    if order["processes"] > 1:  # what the launcher sets
        world = str(order["processes"])
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=world,
            LOCAL_WORLD_SIZE=world,
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(order["port"]),
            ACCELERATE_USE_CPU="true",
        )
        os.environ[STARTED] = world
    if rank == 1 and order["late"]:
        Lab.is_made, Store.fresh = late(Lab.is_made, order["late"]), late(Store.fresh, order["late"])
    with open(order["log"], "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    run_main(lambda: scripts.run("pmg_aft", order["script"], "", order["options"]))


def late(function, seconds: float):
    waited = []

    def call(*args):
        if not waited:
            waited.append(time.sleep(seconds))
        return function(*args)

    return call


def fork(order: dict) -> list[int]:
    pids: list[int] = []
    for rank in range(order["processes"]):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                child(order, rank, pids[0] if pids else 0)
                code = 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 1
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stdout.flush()
                os._exit(code)
        os.setpgid(pid, pids[0] if pids else pid)
        pids.append(pid)
    return pids


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        given = json.loads(line)
        if "wait" in given:
            answer = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in given["wait"]]
        else:
            answer = fork(given)
        print(json.dumps(answer), flush=True)
