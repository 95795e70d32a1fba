#!/bin/sh
# The same seed, the same torch, the same machine: numbers drawn with the vector instructions that most CPUs have, and without.
#
# torch 2.14.1, seen 2026-11-29: uniform numbers and whole numbers are equal bit for bit; of the normal ones about 38 % differ, by about 1e-6.
# The noise that a diffusion model or an initialisation takes is thus another one on a CPU without AVX2, although the seed is the same.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6 >/dev/null 2>&1
cat > "$folder/draw.py" <<'PY'
import sys
import numpy
import torch

g = torch.Generator().manual_seed(0)
numpy.savez(sys.argv[1], normal=torch.empty(10_000).normal_(generator=g).numpy(), uniform=torch.empty(10_000).uniform_(generator=g).numpy(),
            whole=torch.randint(0, 1000, (10_000,), generator=g).numpy(), capability=torch.backends.cpu.get_cpu_capability())
PY
cat > "$folder/compare.py" <<'PY'
import numpy

a, b = numpy.load("default.npz"), numpy.load("avx2.npz")
print("capabilities", a["capability"], b["capability"])
if str(a["capability"]) == str(b["capability"]):
    print("this CPU has no AVX2: nothing to compare")
    raise SystemExit(0)
for name in ("uniform", "whole", "normal"):
    differ = (a[name] != b[name]).mean()
    print(f"{name}: {100 * differ:.0f} % of the numbers differ, by at most {abs(a[name] - b[name]).max():.1e}")
    assert (differ > 0.1) == (name == "normal"), name
PY
cd "$folder"
ATEN_CPU_CAPABILITY=default "$folder/venv/bin/python" draw.py default.npz
ATEN_CPU_CAPABILITY=avx2 "$folder/venv/bin/python" draw.py avx2.npz
"$folder/venv/bin/python" compare.py
