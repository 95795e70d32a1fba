"""A made-up photograph."""

import functools
import io

import numpy as np
from PIL import Image


@functools.cache
def jpeg(width: int, height: int, mode: str = "RGB", kind: str = "JPEG") -> bytes:
    """A picture file with edges, colours and smooth parts."""
    y, x = np.mgrid[:height, :width] / 40
    waves = np.stack((np.sin(x * y), np.sign(np.sin(2 * x)), np.cos(x + y)), axis=-1)
    out = io.BytesIO()
    Image.fromarray((127.5 + 120 * waves).astype(np.uint8)).convert(mode).save(out, kind, quality=92)
    return out.getvalue()
