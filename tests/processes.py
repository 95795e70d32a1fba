"""The same training on one process and on two, by the launcher: what both have saved."""

import os
import subprocess
import sys
from pathlib import Path

from torch import Tensor

from shared.models.clip import read_weights

ROOT = Path(__file__).resolve().parents[1]
TIED = "from shared.lifeline import tie_to_launcher\n\ntie_to_launcher()\n"


def saved_by_one_and_two(folder: Path, *command: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """command: a script's name or `-m MODULE`, and arguments; that of the file in which the main process saves tensors
    follows. folder: for what they save."""
    saved = []
    for device in ("cpu", "cpu2"):
        out = folder / f"{device}.safetensors"
        subprocess.run(
            [sys.executable, "-m", "shared.experiment.launch", "--device", device, *command, str(out)],
            cwd=ROOT,
            check=True,
            timeout=500,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        saved.append(read_weights(out))
    return saved[0], saved[1]


def script_in(folder: Path, source: str) -> str:
    """The name of a script in that folder, whose processes end with their launcher."""
    path = folder / "script.py"
    path.write_text(TIED + source)
    return str(path)
