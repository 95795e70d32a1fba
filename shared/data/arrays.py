"""Labelled pictures that do not lie in a file each: arrays in memory, and HDF5 files."""

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from shared.data.base import LabelledImages
from shared.data.files import NATIVE, ImageSize, to_tensor
from shared.errors import UserError
from shared.files import digest, sha256_file


class ArrayImages(LabelledImages):
    """Pictures in memory: pixels (N, 3, H, W) uint8, labels (N,). With a size, each is resized when it is asked for."""

    def __init__(
        self,
        name: str,
        pixels: Tensor,
        labels: Sequence[int],
        classes: Sequence[str],
        prompts: Sequence[str],
        size: ImageSize = NATIVE,
    ):
        self.name, self.classes, self.prompts, self.size = name, tuple(classes), tuple(prompts), size
        self.pixels, self.labels = pixels.contiguous(), np.asarray(labels, np.int64)

    @cached_property
    def version(self) -> str:
        """Digest of the pixels themselves, the labels, the prompts and the size."""
        pixels = hashlib.sha256(self.pixels.numpy()).hexdigest()
        return digest([pixels, self.labels.tolist(), self.classes, self.prompts, repr(self.size)])[:12]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x, y = self.__getitems__([index])
        return x[0], int(y[0])

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        indices = torch.as_tensor(list(indices), dtype=torch.int64)
        x = self.pixels[indices]
        if self.size != NATIVE:
            x = torch.stack([to_tensor(self.size.apply(Image.fromarray(p.permute(1, 2, 0).numpy()))) for p in x])
        return x.float().div_(255), torch.from_numpy(self.labels)[indices]


class Hdf5Images(LabelledImages):
    """Pictures x (N, H, W, 3) uint8 and labels y (N, 1, 1, 1) in two HDF5 files (the format of PCAM), opened by each
    process for itself."""

    def __init__(
        self,
        name: str,
        x_path: str,
        y_path: str,
        classes: Sequence[str],
        prompts: Sequence[str],
        size: ImageSize = NATIVE,
    ):
        self.x_path, self.y_path, self.size = x_path, y_path, size
        self.name, self.classes, self.prompts = name, tuple(classes), tuple(prompts)
        self._handle = (0, None)
        self.labels = _open_hdf5(self.y_path)["y"][:].reshape(-1).astype(np.int64)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_handle": (0, None)}

    @cached_property
    def version(self) -> str:
        labels = hashlib.sha256(self.labels.tobytes()).hexdigest()
        return digest([sha256_file(self.x_path), labels, self.classes, self.prompts, repr(self.size)])[:12]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self._handle[0] != os.getpid():  # HDF5 handles do not survive a fork
            self._handle = (os.getpid(), _open_hdf5(self.x_path))
        picture = self.size.apply(Image.fromarray(self._handle[1]["x"][int(index)]))
        return to_tensor(picture).float().div_(255), int(self.labels[index])


def _open_hdf5(path: str):
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): copy it again.") from None
