"""The same script on one process and on two, by the launcher: what both have saved."""

import os
import subprocess
import sys
from pathlib import Path

from torch import Tensor

from shared.models.clip import read_weights

ROOT = Path(__file__).resolve().parents[1]


def saved_by_one_and_two(script: str, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """script: source code that lets its main process save tensors in the file sys.argv[1]. folder: an empty one, for the script and what it saves."""
    (folder / "script.py").write_text(script)
    saved = []
    for device in ("cpu", "cpu2"):
        command = [sys.executable, "-m", "shared.experiment.launch", "--device", device]
        out = folder / f"{device}.safetensors"
        subprocess.run(
            [*command, str(folder / "script.py"), str(out)],
            cwd=ROOT,
            check=True,
            timeout=250,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        saved.append(read_weights(out))
    return saved[0], saved[1]
