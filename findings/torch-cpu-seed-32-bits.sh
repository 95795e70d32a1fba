#!/bin/sh
# A noise stream for each sample, its seed 63 bits of a hash: how many streams are there on a CPU?
#
# torch 2.14.1, seen 2026-11-29: `manual_seed` takes 64 bits and `initial_seed` gives them back, but on a CPU only the lower 32 choose the
# numbers (uniform, normal, permutations). Of 200,000 streams named by a hash, 8 pairs draw the same noise; with 64 bits, as NumPy has, none would.
# By the birthday bound the first pair is to be expected at about 80,000 streams: 800 pictures purified in 100 steps.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6 >/dev/null 2>&1
cat > "$folder/streams.py" <<'PY'
import hashlib
from collections import defaultdict

import numpy
import torch


def seed(k):
    return int.from_bytes(hashlib.blake2b(b"noise:%d" % k, digest_size=8).digest(), "little") >> 1


def draws(s):
    g = torch.Generator().manual_seed(s)
    return g.initial_seed(), torch.rand(64, generator=g), torch.randn(64, generator=g), torch.randperm(64, generator=g)


seeds = [seed(k) for k in range(200_000)]
assert len(set(seeds)) == len(seeds), "as seeds, all are different"
alike = defaultdict(list)
for k, s in enumerate(seeds):
    alike[s % 2**32].append(k)
pairs = [streams for streams in alike.values() if len(streams) > 1]
print(len(pairs), "pairs of streams agree in the lower 32 bits of their seeds:", pairs)
assert 1 <= len(pairs) <= 20
for a, b in pairs:
    (said_a, *one), (said_b, *other) = draws(seeds[a]), draws(seeds[b])
    assert said_a == seeds[a] and said_b == seeds[b] and said_a != said_b
    assert all(map(torch.equal, one, other)), "the upper bits count now: the finding is out of date"
    assert (numpy.random.default_rng(seeds[a]).random(64) != numpy.random.default_rng(seeds[b]).random(64)).any()
(_, *one), (_, *other) = draws(seeds[0]), draws(seeds[1])
assert not any(map(torch.equal, one, other))
print("each pair draws the same uniform and normal numbers and permutations with torch, and different ones with NumPy")
PY
"$folder/venv/bin/python" "$folder/streams.py"
