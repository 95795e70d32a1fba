"""The steps of the Dockerfile, run: `python -m tests.image [--torch cpu]` (`make test-image`; the network, minutes, 7 GB).

In a clone and an environment of their own, without what is Debian's, which has to be here. What they make is asked from
another folder, and `pip install .` is tried with what builds it fetched.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.test_setup_files import ROOT, dockerfile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--torch", choices=("", "cpu"), default="", help="as TORCH=; every package index has that with CUDA"
    )
    torch = parser.parse_args().torch
    with tempfile.TemporaryDirectory() as folder:
        root, base, elsewhere = (Path(folder, name) for name in ("vlm-robust", "base", "elsewhere"))
        elsewhere.mkdir()
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PYTHON"))}
        clean |= {"PATH": f"{base / 'bin'}:{os.environ['PATH']}", "TORCH": torch}

        def run(*command: str | Path, cwd: Path = root) -> None:
            print("+", *command, flush=True)
            subprocess.run(command, cwd=cwd, env=clean, check=True)

        run("git", "clone", "-q", ROOT, root, cwd=elsewhere)
        run(sys.executable, "-m", "venv", base, cwd=elsewhere)
        for word, step in dockerfile():
            if word == "RUN" and "apt-get" not in step:
                run("sh", "-euc", re.sub(r"--mount=\S+", "", step))
        programs, import_all = root / ".venv" / "bin", "import vlm_robust, shared, papers.rvpt.paper"
        run("make")
        run(programs / "python", "-c", import_all, cwd=elsewhere)
        run(programs / "pip", "install", "-q", "--no-deps", "--force-reinstall", root, cwd=elsewhere)
        run(programs / "python", "-c", import_all, cwd=elsewhere)
        run(programs / "vlm-robust", "judge", "--n", "8", "--steps", "2", "--queries", "2", cwd=elsewhere)


if __name__ == "__main__":
    main()
