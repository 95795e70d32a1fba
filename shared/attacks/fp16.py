"""Half precision on a CPU, by rounding: what fp16 autocast does to gradients, at the speed of single precision.

Autocast runs matrix products in fp16, so what goes into a product and what comes out of it is rounded to fp16, forwards
and backwards, while the sums inside are kept in fp32 (tensor cores; so does this). Values under 6·10⁻⁸ become zero.
CPUs without fp16 arithmetic take many times longer for `torch.autocast` than for fp32; here the products run in fp32
and their operands and results are rounded.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
PRODUCTS = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.baddbmm.default,
    _aten.convolution.default,
    _aten.convolution_backward.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
}
IN_PLACE = {_aten.addmm_.default, _aten.baddbmm_.default}


def rounded(value):
    """fp32 tensors to the nearest fp16 number and back; anything else as it is."""
    return value.half().float() if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else value


class HalfProducts(TorchDispatchMode):
    """While active, every matrix product, attention and convolution has fp16 operands and results."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in IN_PLACE:
            args[0].copy_(rounded(args[0]))
            func(args[0], *(rounded(a) for a in args[1:]), **kwargs)
            return args[0].copy_(rounded(args[0]))
        if func not in PRODUCTS:
            return func(*args, **kwargs)
        out = func(*(rounded(a) for a in args), **kwargs)
        return type(out)(rounded(o) for o in out) if isinstance(out, tuple | list) else rounded(out)
