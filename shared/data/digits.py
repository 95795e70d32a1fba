"""Real handwritten digits that need no download: the 1,797 pictures of 8×8 pixels that scikit-learn carries (UCI
Optical Recognition, test part).

Shown as RGB of 32×32 pixels (bilinear), for models of photographs or scenes to meet another domain. The pictures are in
the order of their writers, and a writer's digits resemble each other, so the splits are cut, not shuffled: the first
four fifths are train, the rest is test.
"""

import torch
import torch.nn.functional as F

from shared.data.arrays import ArrayImages
from shared.data.files import NATIVE, ImageSize
from shared.errors import UserError

PARTS = {"train": slice(0, 1437), "test": slice(1437, 1797)}
TEMPLATE = 'a photo of the number: "{}".'  # CLIP's prompt for MNIST
SIDE = 32


def digits(split: str = "test", size: ImageSize = NATIVE) -> ArrayImages:
    """Ten classes, "0" … "9". size: of the pictures, 32×32 by default. Raises UserError for an unknown split."""
    from sklearn.datasets import load_digits

    if split not in PARTS:
        raise UserError(f"split {split!r} is not known; use train or test.")
    given = load_digits()
    grey = torch.from_numpy(given.images[PARTS[split]]).float().div_(16)[:, None]
    grey = F.interpolate(grey, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    classes = [str(k) for k in range(10)]
    pixels = grey.mul_(255).round_().byte().expand(-1, 3, -1, -1)
    return ArrayImages(
        "digits", pixels, given.target[PARTS[split]], classes, [TEMPLATE.format(c) for c in classes], size
    )
