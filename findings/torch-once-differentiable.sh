#!/bin/sh
# A function marked `once_differentiable` inside a model whose gradient is differentiated again, as an attack through a guided purifier does.
#
# torch 2.14.1, seen 2026-11-29: `torch.autograd.grad` of something made of that gradient raises no error and leaves out every term that goes
# through the function; `.backward()` of the same value raises, as the decorator's text says. Which of the two is called decides
# whether the mistake is seen.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6 >/dev/null 2>&1
cat > "$folder/second.py" <<'PY'
import torch
from torch.autograd.function import once_differentiable


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * 3 * x**2


def guided(x):
    """x + d/dx Σ (x³)², as one step of guidance is: its derivative needs the second of the cube."""
    (first,) = torch.autograd.grad((Cube.apply(x) ** 2).sum(), x, create_graph=True)
    return x + first


x = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
exact = 1 + 30 * x.detach() ** 4
(found,) = torch.autograd.grad(guided(x).sum(), x)
print("exact", exact.tolist(), "torch.autograd.grad", found.tolist())
assert torch.equal(found, torch.ones_like(x))  # of x alone: the second derivative is left out

try:
    guided(x).sum().backward()
    raise SystemExit("backward() raised nothing")
except RuntimeError as error:
    print("backward():", error)
    assert "once_differentiable" in str(error)
PY
"$folder/venv/bin/python" "$folder/second.py"
