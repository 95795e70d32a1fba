"""Arrays that figures read beside the values, for `tests.papers.test_contract`."""

import numpy as np


def arrays(kind: str, rng: np.random.Generator, side: int = 16) -> dict[str, np.ndarray]:
    """Of `returned`: pictures and captions, of the pairs and of what either pool returned; one is noise without a caption."""
    if kind != "returned":
        return {}
    smooth = np.clip(np.cumsum(rng.normal(0, 0.1, (5, 3, side, side)), -1) * 0.3 + 0.5, 0, 1).astype(np.float32)
    said = np.array(["a big red star on a plain blue background beside two small circles"] * 4 + [""])
    made = {"pictures": smooth, "captions": said}
    return {f"{whose}{what}": array for whose in ("", "image_", "text_") for what, array in made.items()}
