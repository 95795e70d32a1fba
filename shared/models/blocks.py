"""open_clip's transformer block and towers, the same modules with the same weights and results, but quick on a CPU.

`make_lean` changes the class of the modules of a CLIP in place and nothing else: names, parameters, state dict, hooks,
call signatures and the (N, L, D) tensors that go from block to block stay open_clip's. Whatever the quick way cannot do
takes open_clip's own.
"""

import torch
from open_clip import CLIP
from open_clip.transformer import (
    LayerNorm,
    LayerNormFp32,
    QuickGELU,
    ResidualAttentionBlock,
    Transformer,
    VisionTransformer,
)
from torch import Tensor, nn

from shared.models.fp16_towers import attend, feed_forward

NORMS = (LayerNorm, LayerNormFp32, nn.LayerNorm)


def make_lean(clip: nn.Module) -> nn.Module:
    """Swap the classes of an open_clip CLIP's blocks, vision tower and itself where one of those below fits; returns
    `clip`."""
    for module in clip.modules():
        for lean in (LeanBlock, LeanVision, LeanCLIP):
            if type(module) is lean.__base__:
                module.__class__ = lean
    return clip


def hooked(module: nn.Module) -> bool:
    """Whether someone watches or changes what goes in or out of this very module."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


class LeanBlock(ResidualAttentionBlock):
    """A block that uses `shared.models.fp16_towers` in fp32 on a CPU, and open_clip's modules otherwise."""

    def forward(
        self, q_x: Tensor, k_x=None, v_x=None, attn_mask: Tensor | None = None, queries: int | None = None
    ) -> Tensor:
        """As in open_clip: (N, L, D) -> (N, L, D). `queries`: only the first so many tokens are wanted, (N, queries,
        D); they look at all.

        attn_mask: (L, L), or (N·heads, queries, L) for each text and head; added to the scores, rows are queries."""
        if k_x is None and v_x is None and self._can_be_quick(q_x, attn_mask):
            x = attend(q_x, self.ln_1, self.attn, attn_mask, queries)
            return feed_forward(x, self.ln_2, self.mlp.c_fc, self.mlp.c_proj, isinstance(self.mlp.gelu, QuickGELU))
        if queries in (None, q_x.shape[1]):
            return super().forward(q_x, k_x, v_x, attn_mask)
        h = self.ln_1(q_x)
        mask = None if attn_mask is None else attn_mask[..., :queries, :]
        x = q_x[:, :queries] + self.ls_1(self.attention(h[:, :queries], h, h, mask))
        return x + self.ls_2(self.mlp(self.ln_2(x)))

    def _can_be_quick(self, x: Tensor, mask: Tensor | None) -> bool:
        attn, mlp = self.attn, self.mlp
        if x.device.type != "cpu" or x.dtype != torch.float32 or x.dim() != 3 or torch.is_autocast_enabled("cpu"):
            return False
        if mask is not None and (mask.dim() not in (2, 3) or mask.dtype != x.dtype or mask.requires_grad):
            return False
        plain = (  # parts that someone replaced (adapters, parametrisations, quantised layers) speak for themselves
            type(self.ln_1) in NORMS
            and type(self.ln_2) in NORMS
            and type(self.ls_1) is type(self.ls_2) is nn.Identity
            and type(attn) is nn.MultiheadAttention
            and attn.batch_first
            and attn.in_proj_weight is not None
            and attn.in_proj_bias is not None
            and attn.bias_k is None
            and not attn.add_zero_attn
            and attn.dropout == 0
            and len(mlp) == 3
            and type(mlp.c_fc) is type(mlp.c_proj) is nn.Linear
            and (type(mlp.gelu) is QuickGELU or _is_exact_gelu(mlp.gelu))
        )
        parts = (self.ln_1, self.ln_2, self.ls_1, self.ls_2, attn, attn.out_proj, mlp, *mlp)
        return (
            plain
            and attn.in_proj_weight.dtype == x.dtype
            and not any(hooked(part) for part in parts)
            and not torch.compiler.is_compiling()
        )


def _is_exact_gelu(module: nn.Module) -> bool:
    return type(module) is nn.GELU and module.approximate == "none"


def may_do_less(block: nn.Module) -> bool:
    """Whether a block takes `queries`, and nobody watches it or its parts, who would see less than usual."""
    return type(block) is LeanBlock and not any(hooked(m) for m in block.modules())


def _last_alone(transformer: nn.Module) -> LeanBlock | None:
    """The last block, where it may compute less than the transformer would have it do, since nobody watches either;
    else None."""
    if (
        type(transformer) is not Transformer
        or transformer.grad_checkpointing
        or hooked(transformer)
        or "forward" in vars(transformer)
    ):
        return None
    last = transformer.resblocks[-1]
    return last if may_do_less(last) else None


class LeanVision(VisionTransformer):
    """A vision tower whose last block computes the class token only, where nothing else of its output is used."""

    def forward(self, x: Tensor):
        """Images (N, 3, H, W) -> embeddings (N, D)."""
        last = _last_alone(self.transformer)
        if last is None or self.pool_type != "tok" or self.attn_pool is not None or self.output_tokens:
            return super().forward(x)
        x = self._embeds(x)
        for block in self.transformer.resblocks[:-1]:
            x = block(x)
        x = self.ln_post(last(x, queries=1)[:, 0])
        return x if self.proj is None else x @ self.proj


class LeanCLIP(CLIP):
    """A CLIP whose text tower computes no more of a text than its embedding needs: nothing behind its end, which under
    the causal mask no end sees, and of the last block the end alone."""

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Tokens (N, context) -> embeddings (N, D)."""
        if self.attn_mask is None or self.text_pool_type != "argmax" or text.numel() == 0:
            return super().encode_text(text, normalize)
        x = self.ln_final(self._ends(text))
        if self.text_projection is not None:
            x = self.text_projection(x) if isinstance(self.text_projection, nn.Linear) else x @ self.text_projection
        return nn.functional.normalize(x, dim=-1) if normalize else x

    def _ends(self, text: Tensor) -> Tensor:
        """What the transformer makes of tokens (N, context) at the ends of the texts: (N, width)."""
        ends, rows = (
            text.argmax(dim=-1),
            torch.arange(len(text), device=text.device),
        )  # the end has the largest number; open_clip pools there
        length, dtype = int(ends.max()) + 1, self.transformer.get_cast_dtype()
        x = self.token_embedding(text[:, :length]).to(dtype) + self.positional_embedding[:length].to(dtype)
        mask, last = self.attn_mask[:length, :length], _last_alone(self.transformer)
        if last is None:
            return self.transformer(x, attn_mask=mask)[rows, ends]
        for block in self.transformer.resblocks[:-1]:
            x = block(x, attn_mask=mask)
        # the end comes once more, in front, as the only query; it looks at what it would see in its own place
        x = torch.cat((x[rows, ends][:, None], x), dim=1)
        seen = torch.cat((mask.new_full((len(text), 1), -torch.inf), mask[ends]), dim=1)
        return last(x, attn_mask=seen[:, None].repeat_interleave(last.attn.num_heads, 0), queries=1)[:, 0]
