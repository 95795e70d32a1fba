"""This machine as other CPUs: the environment tells a process's libraries which instructions and how many threads to use.

python -m tests.cpus            the `numeric` tests under every setting, one after the other (an hour on 2 cores)
python -m tests.cpus --quick    a part of them where vectors are shortest: belongs to `make test`
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
QUICK = [
    "tests/test_accuracy.py",
    "tests/shared/attacks/test_losses.py",
    "tests/shared/models/test_blocks.py",
    "tests/shared/models/test_clip.py",
    "tests/shared/models/test_victim.py",
    "tests/shared/models/test_vlm_vision.py",
    "tests/shared/training/test_contrastive.py",
]

NO_VECTORS = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
    "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
}
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "AVX2",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
}
AVX512 = {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}


def settings(flags: set[str]) -> dict[str, dict[str, str]]:
    """Name -> environment of what a CPU with these flags can be made to be; each library alone, and all together."""
    found = {"as it is": {}, "no vectors": NO_VECTORS, "no vectors, 4 threads": {**NO_VECTORS, "TEST_THREADS": "4"}}
    if "avx2" in flags:
        found |= {"AVX2": AVX2, "AVX2, 2 threads": {**AVX2, "TEST_THREADS": "2"}}
        for key in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR"):
            found[f"AVX2, but {key}={NO_VECTORS[key]}"] = {**AVX2, key: NO_VECTORS[key]}
    if "avx512f" in flags:
        found |= {"AVX-512": AVX512, "AVX-512, 4 threads": {**AVX512, "TEST_THREADS": "4"}}
    return found


def flags_of_this_cpu() -> set[str]:
    """As Linux names them; empty where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


def run_tests(name: str, environment: dict[str, str], *arguments: str) -> bool:
    """pytest on the numeric tests in that environment; whether all passed."""
    print(f"as another CPU: {name}", flush=True)
    wanted = "numeric and not slow and not bench"
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-m", wanted, *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=False).returncode == 0


def main(arguments: list[str]) -> int:
    if "--quick" in arguments:
        passed = run_tests("no vectors", NO_VECTORS, *QUICK, *(a for a in arguments if a != "--quick"))
        return 0 if passed else 1
    possible = settings(flags_of_this_cpu())
    failed = [name for name, environment in possible.items() if not run_tests(name, environment, *arguments)]
    print(f"{len(possible) - len(failed)} of {len(possible)} settings pass", *failed, sep="\n  failed: ")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
