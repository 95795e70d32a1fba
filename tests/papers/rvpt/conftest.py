"""Towers of open_clip small enough for loops, and RVPT's forward pass written out number by number."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, VisionTransformer

from shared.data.scene_sets import SceneSet
from shared.models.blocks import make_lean
from shared.models.clip import create_clip
from shared.models.victim import ZeroShot, text_matrix

DATA = SceneSet("colour", "train", 64)


def tower_of(lean=False, seed=0, **changes):
    """A vision transformer of 4 blocks, width 12, 3 × 3 patches, with weights that no part can hide behind."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = {
            "image_size": 12,
            "patch_size": 4,
            "width": 12,
            "layers": 4,
            "heads": 2,
            "mlp_ratio": 2.0,
            "output_dim": 7,
        }
        tower = VisionTransformer(**{**sizes, **changes})
        for p in tower.parameters():
            p.data += 0.3 * torch.randn_like(p)
    return make_lean(tower.eval()) if lean else tower.eval()


def norm_of(s, name, h):
    if f"{name}.weight" not in s:
        return h
    rows = [
        (r - r.mean()) / torch.sqrt(((r - r.mean()) ** 2).mean() + 1e-5) * s[f"{name}.weight"] + s[f"{name}.bias"]
        for r in h
    ]
    return torch.stack(rows)


def block_of(s, d, f, heads, quick):
    """Block d (from 0) on one picture's tokens f (T, d_v)."""
    name, width = f"transformer.resblocks.{d}", f.shape[1]
    e = width // heads
    h = norm_of(s, f"{name}.ln_1", f)
    q, k, v = (h @ s[f"{name}.attn.in_proj_weight"].T + s[f"{name}.attn.in_proj_bias"]).split(width, dim=1)
    out = []
    for i in range(heads):
        cut = slice(i * e, (i + 1) * e)
        scores = q[:, cut] @ k[:, cut].T / math.sqrt(e)
        weights = scores.exp() / scores.exp().sum(dim=1, keepdim=True)
        out.append(weights @ v[:, cut])
    a = torch.cat(out, dim=1) @ s[f"{name}.attn.out_proj.weight"].T + s[f"{name}.attn.out_proj.bias"]
    f = f + a * s.get(f"{name}.ls_1.gamma", torch.tensor(1.0))
    u = norm_of(s, f"{name}.ln_2", f) @ s[f"{name}.mlp.c_fc.weight"].T + s[f"{name}.mlp.c_fc.bias"]
    u = u * torch.sigmoid(1.702 * u) if quick else u * 0.5 * (1 + torch.erf(u / math.sqrt(2)))
    return f + (u @ s[f"{name}.mlp.c_proj.weight"].T + s[f"{name}.mlp.c_proj.bias"]) * s.get(
        f"{name}.ls_2.gamma", torch.tensor(1.0)
    )


def literal(tower, x, prompts, heads=2, quick=False):
    """(embeddings (N, D), class tokens c^1 … c^L (N, L, d_v)) of pictures x, one at a time. prompts: d -> p^d."""
    s, p = dict(tower.state_dict()), tower.patch_size[0]
    embeddings, classes = [], []
    for picture in x:
        patches = [
            (s["conv1.weight"] * picture[:, r : r + p, c : c + p]).sum((1, 2, 3))
            for r in range(0, picture.shape[1], p)
            for c in range(0, picture.shape[2], p)
        ]
        f = norm_of(s, "ln_pre", torch.stack([s["class_embedding"], *patches]) + s["positional_embedding"])
        own = []
        for d in range(len(tower.transformer.resblocks)):
            c, e = f[:1], f[1:]
            if d in prompts:
                out = block_of(s, d, torch.cat([c, prompts[d], e]), heads, quick)
                f = torch.cat([out[:1], out[1 + len(prompts[d]) :]])
            else:
                f = block_of(s, d, torch.cat([c, e]), heads, quick)
            own.append(f[0])
        if tower.final_ln_after_pool and tower.pool_type == "avg":
            z = norm_of(s, "ln_post", f[1:].mean(0)[None])[0]
        elif tower.pool_type == "avg":
            z = norm_of(s, "ln_post", f)[1:].mean(0)
        else:
            z = norm_of(s, "ln_post", f[:1])[0]
        embeddings.append(z @ s["proj"])
        classes.append(torch.stack(own))
    return torch.stack(embeddings), torch.stack(classes)


TOWERS = {
    "open_clip's blocks": ({}, False),
    "our quick blocks": ({"lean": True}, False),
    "quick GELU": ({"act_layer": QuickGELU}, True),
    "quick GELU, our blocks": ({"act_layer": QuickGELU, "lean": True}, True),
    "layer scale": ({"ls_init_value": 0.5}, False),
    "layer scale, our blocks": ({"ls_init_value": 0.5, "lean": True}, False),
    "no norm before": ({"no_ln_pre": True}, False),
    "mean of the patches": ({"pool_type": "avg", "lean": True}, False),
    "norm after the mean": ({"pool_type": "avg", "final_ln_after_pool": True}, False),
}


def cosine(a, b):
    """cos of two vectors, written out."""
    return (a * b).sum() / (math.sqrt((a * a).sum()) * math.sqrt((b * b).sum()))


@pytest.fixture(scope="session")
def _clip():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return create_clip("scenes-vit-xs8").requires_grad_(False)


@pytest.fixture
def clip(_clip):
    """A CLIP of 3 blocks with the same random weights for every test, free to be trained."""
    return copy.deepcopy(_clip)


@pytest.fixture
def victim(clip):
    return ZeroShot(clip.visual, text_matrix(clip, DATA.prompts), 10.0)


@pytest.fixture
def data():
    return DATA


@pytest.fixture
def tools():
    """What tests transcribe with; `--import-mode=importlib` lets no test import its conftest."""

    class Tools:
        pass

    for f in (tower_of, literal, cosine):
        setattr(Tools, f.__name__, staticmethod(f))
    Tools.F = F
    return Tools


def pytest_generate_tests(metafunc):
    if "tower_kind" in metafunc.fixturenames:
        metafunc.parametrize("tower_kind", TOWERS.values(), ids=TOWERS)
