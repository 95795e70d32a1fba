#!/bin/sh
# What to run where a GPU is at hand for a few minutes (six at most); without one all parts run on the CPU at tiny sizes.
#   tests/device/check.sh [PYTHON] [OUT]        PYTHON: default .venv/bin/python; OUT: the figures, default results/device.json
# The tests of what a GPU computes, figures (tests/device/check.py), and with a GPU all papers at SCALE=smoke on it.
set -u
cd "$(dirname "$0")/../.." || exit 2
python=${1:-.venv/bin/python}
out=${2:-results/device.json}
quick=${3:-}  # for the test of this script: without the tests that call it, and without torch.compile, which takes minutes
ample=${quick:+9}  # a digit before every limit, for a machine that is busy with other things
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
failed=

if [ -z "$quick" ]; then
    timeout "${ample}60" "$python" -m pytest -q -p no:cacheprovider tests/device -m slow -k "gpu and not check" || failed="$failed tests"
fi
timeout "${ample}150" "$python" -m tests.device.check --out "$out" ${quick:+--without compiled} || failed="$failed figures"

# No tensor may be on the wrong device: each paper from end to end, at once.
if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
    for paper in diffcap distshift pmg_aft roclip rvpt; do
        for script in train evaluate; do
            timeout "${ample}70" "$python" -m "papers.$paper.$script" --scale smoke --results "$work" || exit 1
        done >"$work/$paper.log" 2>&1 &
        eval "$paper=$!"
    done
    for paper in diffcap distshift pmg_aft roclip rvpt; do
        eval "wait \$$paper" || { failed="$failed $paper"; tail -n 20 "$work/$paper.log"; }
    done
fi
[ -z "$failed" ] || { echo "failed:$failed"; exit 1; }
echo "all well; figures in $out"
