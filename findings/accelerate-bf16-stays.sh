#!/bin/sh
# A model is trained under bf16 by Accelerate, then evaluated or attacked outside of it. In which precision?
#
# accelerate 1.15.0, torch 2.14.1, seen 2026-11-29: `prepare` returns the very model that it was given and has replaced its `forward`: every later
# call computes in bf16, in eval mode, in a deep copy, after `free_memory`, and through `unwrap_model` as it is called by default. Weights and outputs are
# float32, so nothing shows it but the digits: off by 0.4 %, and the gradient that an attack follows by as much. `unwrap_model(m, keep_fp32_wrapper=False)`
# takes it off.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet accelerate==1.15.0 torch==2.14.1 numpy==2.4.6 >/dev/null 2>&1
cat > "$folder/after.py" <<'PY'
import copy

import torch
from accelerate import Accelerator

torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.GELU(), torch.nn.Linear(256, 10))
x = torch.randn(512, 256, requires_grad=True)


def looked_at(model):
    out = model(x)
    gradient, = torch.autograd.grad(out.square().sum(), x)
    assert out.dtype == gradient.dtype == next(model.parameters()).dtype == torch.float32
    return out.detach(), gradient


def off(model):
    return [float((now - then).abs().max() / then.abs().max()) for now, then in zip(looked_at(model), exact)]


exact = looked_at(net)
assert max(off(net)) < 1e-5
accelerator = Accelerator(cpu=True, mixed_precision="bf16")
prepared = accelerator.prepare(net)
assert prepared is net
found = {"the model that was handed in": off(net.eval()), "unwrap_model": off(accelerator.unwrap_model(prepared)), "a deep copy": off(copy.deepcopy(net))}
accelerator.free_memory()
found["after free_memory"] = off(net)
for name, (output, gradient) in found.items():
    print(f"{name}: output off by {output:.1e}, gradient by {gradient:.1e}")
    assert min(output, gradient) > 1e-4, "float32 again: the finding is out of date"
assert max(off(accelerator.unwrap_model(net, keep_fp32_wrapper=False))) < 1e-5 and max(off(net)) < 1e-5
print("unwrap_model(…, keep_fp32_wrapper=False): float32 again")
PY
"$folder/venv/bin/python" "$folder/after.py"
