"""The two halves of a transformer block with gradients written out by hand, for fp32 on a CPU.

    a = x + W_o·concat_heads( softmax(q kᵀ/√e + mask) v ) + b_o,   (q, k, v) = W·LN(x) + b         `attend`
    y = x + W_2·g( W_1·LN(x) + b_1 ) + b_2,                        g = GELU or g(u) = u·σ(1.702 u)  `feed_forward`

Values and gradients are those of open_clip's `ResidualAttentionBlock` up to float rounding; what differs is the time.
With short sequences a CPU spends most of a block outside its large matrix products. Here the small batched products of
attention get their operands copied into the order in which they are fast (A·Bᵀ with 17 tokens takes four times as long
as A·B), biases and residuals are added where memory is touched anyway, and gradients of slices are not filled with
zeros first. There is no second derivative: torch raises an error if one is asked for.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

SLOPE = 1.702  # of the quick GELU


def attend(x: Tensor, norm, attention, mask: Tensor | None = None, queries: int | None = None) -> Tensor:
    """a of the module docstring: x (N, L, D) -> (N, L, D), or (N, queries, D) for the first `queries` tokens, which
    still look at all L.

    norm: nn.LayerNorm; attention: nn.MultiheadAttention with packed weights and biases; mask: (L, L), or
    (N·heads, queries, L) for each sample and head, added to the scores, rows are queries.
    """
    return _Attend.apply(x.contiguous(), norm.weight, norm.bias, attention.in_proj_weight, attention.in_proj_bias, attention.out_proj.weight,
                         attention.out_proj.bias, attention.num_heads, norm.eps, mask, queries or x.shape[1])  # fmt: skip


def feed_forward(x: Tensor, norm, first, second, quick: bool) -> Tensor:
    """y of the module docstring: x (N, L, D) -> (N, L, D). norm: nn.LayerNorm; first, second: nn.Linear; quick: which
    g."""
    return _FeedForward.apply(
        x.contiguous(), norm.weight, norm.bias, first.weight, first.bias, second.weight, second.bias, norm.eps, quick
    )


def _rows(t: Tensor) -> Tensor:
    return t.reshape(-1, t.shape[-1])


def _by_head(t: Tensor) -> Tensor:
    """(N, L, H, e) -> (N·H, L, e), contiguous."""
    n, length, heads, each = t.shape
    return t.transpose(1, 2).contiguous().view(n * heads, length, each)


def _by_head_transposed(t: Tensor) -> Tensor:
    """(N, L, H, e) -> (N·H, e, L), contiguous."""
    n, length, heads, each = t.shape
    return t.permute(0, 2, 3, 1).contiguous().view(n * heads, each, length)


def _by_token(t: Tensor, heads: int) -> Tensor:
    """(N·H, L, e) -> (N, L, H, e), a view."""
    return t.view(-1, heads, *t.shape[1:]).transpose(1, 2)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, norm_w, norm_b, w, b, out_w, out_b, heads, eps, mask, queries):
        n, length, width = x.shape
        each, all_tokens = width // heads, queries == length
        h, mean, rstd = torch.native_layer_norm(x, (width,), norm_w, norm_b, eps)
        if all_tokens:
            q, k, v = torch.mm(_rows(h), w.t()).add_(b).view(n, length, 3, heads, each).unbind(2)
        else:
            q = torch.mm(_rows(h[:, :queries]), w[:width].t()).add_(b[:width]).view(n, queries, heads, each)
            k, v = torch.mm(_rows(h), w[width:].t()).add_(b[width:]).view(n, length, 2, heads, each).unbind(2)
        k, v = _by_head(k), _by_head(v)
        added = (
            x.new_empty(()) if mask is None else mask[..., :queries, :].mT
        )  # the scores have keys as rows, queries as columns
        p = torch.baddbmm(added, k, _by_head_transposed(q), beta=0 if mask is None else 1, alpha=each**-0.5).softmax(1)
        o = _by_token(torch.bmm(p.transpose(1, 2), v), heads).reshape(n * queries, width)
        ctx.save_for_backward(x, mean, rstd, norm_w, norm_b, w, out_w, h, q, k, v, p, o)
        return (
            torch.add(x if all_tokens else x[:, :queries], out_b)
            .view(-1, width)
            .addmm_(o, out_w.t())
            .view(n, queries, width)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, mean, rstd, norm_w, norm_b, w, out_w, h, q, k, v, p, o = ctx.saved_tensors
        need, out = ctx.needs_input_grad, [None] * 11
        n, queries, heads, each = q.shape
        length, width = x.shape[1:]
        g = _rows(grad)
        do = torch.mm(g, out_w).view(q.shape)
        ds = torch._softmax_backward_data(torch.bmm(v, _by_head_transposed(do)), p, 1, p.dtype).mul_(each**-0.5)
        if queries == length:
            packed = x.new_empty(n, length, 3, heads, each)
            dq, dk, dv = packed.unbind(2)
        else:
            packed, dq = x.new_empty(n, length, 2, heads, each), x.new_empty(q.shape)
            dk, dv = packed.unbind(2)
        dq.copy_(_by_token(torch.bmm(ds.transpose(1, 2), k), heads))
        dk.copy_(_by_token(torch.bmm(ds, _by_head(q)), heads))
        dv.copy_(_by_token(torch.bmm(p, _by_head(do)), heads))
        packed = packed.view(n * length, -1)
        if any(need[:3]):
            dh = torch.mm(packed, w[-packed.shape[1] :]).view(x.shape)
            if queries < length:
                dh[:, :queries] += torch.mm(dq.view(-1, width), w[:width]).view(n, queries, width)
            out[:3] = torch.ops.aten.native_layer_norm_backward(dh, x, (width,), mean, rstd, norm_w, norm_b, need[:3])
            if need[0]:
                out[0][:, :queries] += grad
        if need[3]:
            dw = torch.mm(packed.t(), _rows(h))
            out[3] = (
                dw if queries == length else torch.cat((torch.mm(dq.view(-1, width).t(), _rows(h[:, :queries])), dw))
            )
        if need[4]:
            db = packed.sum(0)
            out[4] = db if queries == length else torch.cat((dq.view(-1, width).sum(0), db))
        if need[5]:
            out[5] = torch.mm(g.t(), o)
        if need[6]:
            out[6] = g.sum(0)
        return tuple(out)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, norm_w, norm_b, w1, b1, w2, b2, eps, quick):
        h, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], norm_w, norm_b, eps)
        u = torch.mm(_rows(h), w1.t()).add_(b1)
        s = torch.mul(u, SLOPE).sigmoid_() if quick else None
        a = u * s if quick else F.gelu(u)
        ctx.save_for_backward(x, mean, rstd, norm_w, norm_b, w1, w2, h, None if quick else u, s, a)
        return _rows(torch.add(x, b2)).addmm_(a, w2.t()).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, mean, rstd, norm_w, norm_b, w1, w2, h, u, s, a = ctx.saved_tensors
        need, out = ctx.needs_input_grad, [None] * 9
        g = _rows(grad)
        du = torch.mm(g, w2)
        if s is None:
            du = torch.ops.aten.gelu_backward(du, u)
        else:  # g'(u) = σ + 1.702·(a − a·σ)
            du.mul_(torch.addcmul(a, a, s, value=-1).mul_(SLOPE).add_(s))
        if any(need[:3]):
            dh = torch.mm(du, w1).view(x.shape)
            out[:3] = torch.ops.aten.native_layer_norm_backward(
                dh, x, x.shape[-1:], mean, rstd, norm_w, norm_b, need[:3]
            )
            if need[0]:
                out[0] += grad
        if need[3]:
            out[3] = torch.mm(du.t(), _rows(h))
        if need[4]:
            out[4] = du.sum(0)
        if need[5]:
            out[5] = torch.mm(g.t(), a)
        if need[6]:
            out[6] = g.sum(0)
        return tuple(out)
