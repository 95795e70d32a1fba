"""The lean blocks and towers against open_clip's own classes with the same weights: values, gradients, hooks, fallbacks."""

import copy

import open_clip
import pytest
import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import nn

from shared.models.blocks import LeanBlock, LeanCLIP, LeanVision
from shared.models.clip import PatchEmbedding, create_clip
from tests.accuracy import assert_as_accurate, assert_within_rounding, float64, in_both

SMALL, LARGE = "scenes-vit-s8", "ViT-B-32-quickgelu"


def plain_copy(lean):
    """The same weights in open_clip's own classes."""
    plain = copy.deepcopy(lean)
    for module in plain.modules():
        if type(module) in (LeanBlock, LeanVision, LeanCLIP, PatchEmbedding):
            module.__class__ = type(module).__base__
    assert type(plain) is open_clip.CLIP and type(plain.visual) is VisionTransformer
    assert type(plain.transformer.resblocks[0]) is ResidualAttentionBlock and type(plain.visual.conv1) is nn.Conv2d
    return plain


def make_pair(name):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        lean = create_clip(name)
        for tower in (lean.visual, lean):  # of the large one three blocks are enough
            del tower.transformer.resblocks[4 if name == SMALL else 3 :]
        for p in lean.parameters():  # biases and norms away from their initial 0 and 1
            if p.ndim == 1:
                p.data += 0.1 * torch.randn(p.shape)
    return lean, plain_copy(lean)


@pytest.fixture(scope="module")
def small():
    return make_pair(SMALL)


@pytest.fixture(scope="module")
def pair(request, small):
    return small if request.param == SMALL else make_pair(request.param)


def inputs(clip, n=2):
    generator = torch.Generator().manual_seed(5)
    size, context, words = clip.visual.image_size, clip.context_length, clip.vocab_size
    size = size if isinstance(size, tuple) else (size, size)
    tokens = torch.zeros(n, context, dtype=torch.long)
    for row, length in zip(tokens, (4, 9), strict=True):
        row[:length] = torch.randint(1, words - 1, (length,), generator=generator)
        row[length - 1] = words - 1
    return torch.randn(n, 3, *size, generator=generator), tokens


def longest_sum(clip):
    """Terms of the longest sum of a forward pass: the second layer of an MLP."""
    return max(block.mlp.c_proj.in_features for block in clip.visual.transformer.resblocks)


def gradients(clip, x, tokens, trained):
    """Outputs, gradient of the image, gradients of the parameters, of a loss over both towers."""
    clip.requires_grad_(trained)
    x = x.clone().requires_grad_()
    image, text, scale = clip(x, tokens)
    raw = clip.encode_image(x)
    loss = (scale * image @ text.T).square().sum() + raw.square().sum()
    of = {k: p for k, p in clip.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, [x, *of.values()])
    return [image.detach(), text.detach(), raw.detach()], found[0], dict(zip(of, found[1:], strict=True))


@pytest.mark.parametrize("pair, trained", [(SMALL, False), (SMALL, True), (LARGE, True)], indirect=["pair"])
def test_values_and_gradients_are_those_of_open_clip(pair, trained):
    lean, plain = pair
    x, tokens = inputs(lean)
    terms = longest_sum(lean)
    ours, theirs, exact = gradients(lean, x, tokens, trained), *in_both(gradients, plain, x, tokens, trained)
    assert_as_accurate(ours[:2], theirs[:2], exact[:2], terms=terms, what="values, input gradient")
    assert bool(ours[2]) == trained
    # The bias of the keys has no influence at all (softmax drops it), so its gradient is what cancels on the scale of all.
    unit = max((g.abs().max().item() for g in exact[2].values()), default=0.0)
    assert_as_accurate(ours[2], theirs[2], exact[2], terms=terms, scale=1e-3 * unit)


def test_modules_and_state_dict_stay(small):
    lean, plain = small
    assert isinstance(lean, LeanCLIP) and isinstance(lean.visual, LeanVision)
    assert all(isinstance(b, LeanBlock) for tower in (lean.visual, lean) for b in tower.transformer.resblocks)
    assert [n for n, _ in lean.named_modules()] == [n for n, _ in plain.named_modules()]
    assert list(lean.state_dict()) == list(plain.state_dict())
    again = copy.deepcopy(lean)
    again.load_state_dict(plain.state_dict())
    assert isinstance(again.visual, LeanVision)


@pytest.mark.parametrize("last", [1, 5, 12])
def test_partly_frozen(small, last):
    """Gradients reach exactly the parameters that ask for them."""
    x, _ = inputs(small[0])
    found = []
    for clip in (*small, float64(small[1])):
        visual = copy.deepcopy(clip.visual).requires_grad_(False)
        chosen = list(visual.parameters())[-last:]
        for p in chosen:
            p.requires_grad_(True)
        visual(x.to(chosen[0].dtype)).square().sum().backward()
        assert all((p.grad is not None) == p.requires_grad for p in visual.parameters())
        found.append([p.grad for p in chosen])
    assert_as_accurate(*found, terms=longest_sum(small[0]))


def test_blocks_are_called_in_order_with_whole_sequences(small):
    """Deep prompts: a hook before each block puts its own tokens behind the others, as later work does."""
    x, _ = inputs(small[0])
    prompts = torch.randn(4, 2, 96, generator=torch.Generator().manual_seed(1)).requires_grad_()
    found, seen = [], []
    for clip, (picture, tokens) in zip(
        (*small, float64(small[1])), ((x, prompts), (x, prompts), float64((x, prompts))), strict=True
    ):
        visual = copy.deepcopy(clip.visual).requires_grad_(False)
        calls = []
        for k, block in enumerate(visual.transformer.resblocks):

            def put(module, args, k=k, calls=calls, tokens=tokens):
                calls.append((k, tuple(args[0].shape)))
                return (torch.cat([args[0][:, :17], tokens[k].expand(len(args[0]), -1, -1)], dim=1), *args[1:])

            block.register_forward_pre_hook(put)
        out = visual(picture)
        found.append((out, torch.autograd.grad(out.square().sum(), tokens)[0]))
        seen.append(calls)
    assert seen[0] == seen[1] and seen[0][1] == (1, (2, 19, 96)), seen
    assert_as_accurate(*found, terms=longest_sum(small[0]))


@pytest.mark.parametrize("where", ["", "ln_1", "attn", "mlp.gelu", "mlp"])
def test_hooks_see_what_they_see_in_open_clip(small, where):
    x, _ = inputs(small[0])
    found = []
    for clip in (*small, float64(small[1])):
        visual, outputs = copy.deepcopy(clip.visual), []
        for block in visual.transformer.resblocks:

            def keep(module, args, out, outputs=outputs):
                outputs.append(out[0] if isinstance(out, tuple) else out)

            block.get_submodule(where).register_forward_hook(keep)
        with torch.no_grad():
            visual(x.to(clip.logit_scale.dtype))
        assert len(outputs) == 4
        found.append(outputs)
    assert_as_accurate(*found, terms=longest_sum(small[0]))


class Adapter(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def _adapter(visual):
    visual.transformer.resblocks[1].mlp.c_fc.__class__ = Adapter


def _tanh(visual):
    visual.transformer.resblocks[2].mlp.gelu = nn.GELU(approximate="tanh")


def _double(visual):
    visual.double()


def _tokens_out(visual):
    visual.output_tokens = True


def _checkpointing(visual):
    visual.set_grad_checkpointing(True)


def _pooled_by_mean(visual):
    visual.pool_type = "avg"


@pytest.mark.parametrize("change", [_adapter, _tanh, _double, _tokens_out, _checkpointing, _pooled_by_mean])
def test_what_the_quick_way_cannot_do_is_done_by_open_clip(small, change):
    x, _ = inputs(small[0])
    found = []
    for clip in (*small, float64(small[1])):
        visual = copy.deepcopy(clip.visual)
        change(visual)
        point = x.to(next(visual.parameters()).dtype).requires_grad_()
        out = visual(point)
        out = out if isinstance(out, tuple) else (out,)
        found.append([*(o.detach() for o in out), torch.autograd.grad(sum(o.square().sum() for o in out), point)[0]])
    assert_as_accurate(*found, terms=longest_sum(small[0]))


def test_autocast_is_open_clips(small):
    """Half precision goes through the same modules; only the class token's products in the last block have another shape."""
    x, tokens = inputs(small[0])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = ((clip.encode_image(x), clip.encode_text(tokens)) for clip in small)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        assert (a - b).float().abs().max() < 0.02 * b.float().abs().max()


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_a_few_queries_are_the_first_rows_of_all(small, quick, masked):
    block = copy.deepcopy(small[0].visual.transformer.resblocks[0]).requires_grad_(False)
    if not quick:
        block.double()
    x = torch.randn(
        2, 9, 96, generator=torch.Generator().manual_seed(2), dtype=torch.float32 if quick else torch.float64
    ).requires_grad_()
    mask = torch.full((9, 9), float("-inf"), dtype=x.dtype).triu_(1) if masked else None

    def rows(block, x, mask):
        out = block(x, attn_mask=mask)[:, :4]
        return out, torch.autograd.grad(out.square().sum(), x)[0]

    some = block(x, attn_mask=mask, queries=4)
    some = some, torch.autograd.grad(some.square().sum(), x)[0]
    if quick:
        assert_as_accurate(some, *in_both(rows, block, x, mask), terms=longest_sum(small[0]))
    else:
        assert_within_rounding(some, rows(block, x, mask), terms=longest_sum(small[0]))


def test_sequences_that_are_not_contiguous(small):
    x = torch.randn(9, 2, 96, generator=torch.Generator().manual_seed(2)).transpose(0, 1)
    lean, plain = (clip.visual.transformer.resblocks[0] for clip in small)
    with torch.no_grad():
        assert_as_accurate(lean(x), *in_both(lambda block, x: block(x), plain, x), terms=longest_sum(small[0]))


def test_second_derivatives_are_refused(small):
    x, _ = inputs(small[0])
    x.requires_grad_()
    grad = torch.autograd.grad(small[0].visual(x).square().sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="differentiat"):
        grad.sum().backward()


@pytest.mark.parametrize("quick", [True, False])
def test_the_last_block_computes_the_ends_of_texts_only(small, quick):
    """Of texts of many lengths, with the gradients of all weights; who watches that block still sees whole sequences."""
    lean, plain = (copy.deepcopy(clip).requires_grad_(True) for clip in small)
    exact = float64(plain)
    if not quick:
        lean.double()
        plain.double()
    tokens = torch.zeros(12, lean.context_length, dtype=torch.long)
    for k, row in enumerate(tokens):
        row[: 2 * k + 1] = torch.randint(
            1, lean.vocab_size - 1, (2 * k + 1,), generator=torch.Generator().manual_seed(k)
        )
        row[2 * k + 1] = lean.vocab_size - 1
    outs = [clip.encode_text(tokens) for clip in (lean, plain, exact)]
    for out in outs:
        (out * torch.linspace(-1, 1, out.numel()).to(out).view_as(out)).sum().backward()
    grads = [
        {name: p.grad for name, p in clip.named_parameters() if p.grad is not None} for clip in (lean, plain, exact)
    ]
    unit = max(g.abs().max().item() for g in grads[2].values())
    terms = longest_sum(lean)
    if quick:
        assert_as_accurate(*outs, terms=terms)
        assert_as_accurate(*grads, terms=terms, scale=1e-3 * unit)
    else:
        assert_within_rounding(*outs[:2], terms=terms)
        assert_within_rounding(*grads[:2], terms=terms, scale=1e-3 * unit)
    shapes = []
    lean.transformer.resblocks[-1].ln_2.register_forward_hook(lambda module, args, out: shapes.append(tuple(out.shape)))
    assert_within_rounding(lean.encode_text(tokens), outs[0], terms=terms)
    assert shapes == [(12, 24, 64)]


@pytest.mark.parametrize("longest", [3, 7, 24])
def test_texts_are_cut_after_the_longest(small, longest):
    lean, plain = small
    tokens = torch.full((2, lean.context_length), 5)
    tokens[0, 2] = tokens[1, longest - 1] = lean.vocab_size - 1
    seen = []
    handle = lean.transformer.resblocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    with torch.no_grad():
        ours = lean.encode_text(tokens, normalize=True)
        theirs = in_both(lambda clip: clip.encode_text(tokens, normalize=True), plain)
    handle.remove()
    assert seen == [longest]
    assert_as_accurate(ours, *theirs, terms=longest_sum(lean))
