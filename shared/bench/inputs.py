"""What goes into a model: noise, against a generator of its own for every sample; pictures, against Pillow's way."""

import hashlib
import io
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from shared.bench.harness import Cases
from shared.bench.timing import Case
from shared.data.files import CLIP_INPUT, ImageSize, decode
from shared.rng import SampleRng


def cases(quick: bool) -> Cases:
    sides = {32: 2, 224: 2} if quick else {32: 64, 224: 16}
    named = {f"noise, {n} x 3 x {side} x {side}": partial(_noise, n, side) for side, n in sides.items()}
    sizes = {"bilinear": CLIP_INPUT, "bicubic": ImageSize(224, 224, "bicubic")}
    return named | {f"JPEG 500 x 375 to 224, {k}": partial(_pictures, v, 2 if quick else 32) for k, v in sizes.items()}


def _noise(n: int, side: int) -> Case:
    rng, shape = SampleRng(0, range(n), "step"), (3, side, side)

    def reference() -> Tensor:
        out = torch.empty((n, *shape))
        for i, row in enumerate(out):
            digest = hashlib.blake2b(f"0:step:{i}".encode(), digest_size=8).digest()
            row.normal_(generator=torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1))
        return out

    return Case("a generator for every sample", lambda: rng.normal(shape), reference, _level, agree=_equal(0))


def _pictures(size: ImageSize, n: int) -> Case:
    y, x = np.mgrid[:375, :500] / 40
    waves = np.stack((np.sin(x * y), np.sin(3 * x), np.cos(x + y)), axis=-1)
    file = io.BytesIO()
    Image.fromarray((127.5 + 120 * waves).astype(np.uint8)).save(file, "JPEG", quality=92)

    def read(size: ImageSize) -> Tensor:
        return torch.stack([decode(file.getvalue(), "a", size) for _ in range(n)]).float().div_(255)

    return Case(
        "Pillow's decoder and resize", lambda: read(size.fast()), lambda: read(size), _level, agree=_equal(1e-3)
    )


def _level(x: Tensor) -> dict[str, float]:
    return {"mean": x.mean().item(), "root mean square": x.square().mean().sqrt().item()}


def _equal(apart: float) -> Callable[[dict, dict], str | None]:
    def agree(ours: dict, theirs: dict) -> str | None:
        wrong = [name for name, value in ours.items() if abs(value - theirs[name]) > apart]
        return f"they differ in {', '.join(wrong)}" if wrong else None

    return agree
