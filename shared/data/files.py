"""Labelled pictures from files, and what happens when a file cannot be read.

An unreadable picture is never dropped in silence: reading it raises an error that names the file, or, with
`skip_corrupt`, `usable` leaves it out of the chosen examples, and where nobody asked `usable` (a training) another of
its class stands in for it; both are counted and said on stderr. Indices never shift because of it.

Every picture file is opened by `decode`. As the readers of the field do, it gives the first frame of an animation,
ignores the orientation that a camera noted (EXIF), and drops transparency, so the colours stored below it are what is
seen. 16-bit grey is scaled to 8 bits, v/257 rounded.
"""

import hashlib
import io
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from shared.data import resize
from shared.data.base import LabelledImages, stack
from shared.data.skipped import HOW, Skipped, say, shown
from shared.errors import UserError
from shared.files import digest, sha256_file
from shared.options import Bounded, Side

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class UnreadableImage(UserError):
    """A picture file that is missing, truncated or not a picture."""


@dataclass(frozen=True)
class ImageSize(Bounded):
    """Native size (no fields), or: the short side resized to `short` pixels, then the centre `crop`×`crop` pixels cut
    out.

    The pixels are those of torchvision's Resize(short, interpolation) and CenterCrop(crop) on a PIL picture; of JPEGs
    with an interpolation that is "-fast", those of torchvision's decoder and `shared.data.resize`.
    """

    short: Side | None = None
    crop: Side | None = None
    interpolation: Literal["bilinear", "bicubic", "bilinear-fast", "bicubic-fast"] = "bilinear"

    def __post_init__(self):
        super().__post_init__()
        if (self.short is None) != (self.crop is None) or (self.short is not None and self.crop > self.short):
            raise UserError(
                f"an image size needs a short side and a crop that is not larger, not {self.short} and {self.crop}."
            )

    @classmethod
    def parse(cls, text: str) -> "ImageSize":
        """ "native", "SIZE", "SHORT:CROP" or "SHORT:CROP:bicubic", e.g. "256:224". Raises UserError for anything
        else."""
        if text == "native":
            return cls()
        short, *rest = text.split(":")
        crop, *filters = rest or [short]
        if not (short.isdecimal() and crop.isdecimal() and len(filters) <= 1):
            raise UserError(f"image size {text!r} is not understood; write native, 224, 256:224 or 256:224:bicubic.")
        return cls(int(short), int(crop), *filters)

    @property
    def filter(self) -> str:
        return self.interpolation.removesuffix("-fast")

    def fast(self) -> "ImageSize":
        """The same size, read the fast way."""
        return replace(self, interpolation=f"{self.filter}-fast")

    def geometry(self, width: int, height: int) -> resize.Geometry:
        """Of a picture of that size. Raises DecompressionBombError for more pixels than Pillow opens."""
        if self.short is None:
            return width, height, 0, 0, width, height
        if min(width, height) != self.short:
            long = int(self.short * max(width, height) / min(width, height))
            width, height = (self.short, long) if width <= height else (long, self.short)
            if width * height > 2 * (Image.MAX_IMAGE_PIXELS or np.inf):  # a thin picture grows in its long side too
                raise Image.DecompressionBombError
        left, top = round((width - self.crop) / 2), round((height - self.crop) / 2)
        return width, height, left, top, self.crop, self.crop

    def apply(self, image: Image.Image) -> Image.Image:
        *size, left, top, width, height = self.geometry(*image.size)
        if image.size != tuple(size):
            image = image.resize(size, _FILTERS[self.filter])
        return image if image.size == (width, height) else image.crop((left, top, left + width, top + height))


class Squashed(ImageSize):
    """Resized to short × short pixels, whatever the picture's sides."""

    def geometry(self, width: int, height: int) -> resize.Geometry:
        return self.short, self.short, 0, 0, self.short, self.short


NATIVE = ImageSize()
CLIP_INPUT = ImageSize(256, 224, "bilinear")  # what PMG-AFT and TeCoA do to everything but CIFAR and STL-10


def to_tensor(image: Image.Image) -> Tensor:
    """RGB picture -> (3, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def unreadable(name: str | os.PathLike, what: str) -> UnreadableImage:
    """The error for a picture that is not there or broken.

    Its class takes the sentence alone, since data loaders make it anew from that.
    """
    return UnreadableImage(f"the picture {shown(name)} {what}: replace it, or {HOW}.")


def read_picture(path: str | os.PathLike) -> bytes:
    """A picture file as it is stored.

    Raises UnreadableImage if it is missing, or no file (a pipe or a device would never end), and UserError if the
    system refuses to open it: then the picture may be fine, so skip_corrupt does not apply.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise unreadable(path, "is a folder, a pipe or a device, no file")
        with open(path, "rb") as file:
            return file.read()  # at once: PIL's many small reads cost more than decoding a small picture
    except (FileNotFoundError, NotADirectoryError):
        raise unreadable(path, "is missing") from None
    except OSError as error:
        raise UserError(f"the picture {shown(path)} cannot be opened: {error.strerror}.") from None


def decode(content: bytes, name: str | os.PathLike, size: ImageSize = NATIVE) -> Tensor:
    """Bytes of a picture file -> (3, H, W) uint8, RGB, at a size. name: for people.

    Raises UnreadableImage if it is truncated or no picture. Raises UserError, which skip_corrupt does not pass over
    since nothing is broken, for pictures with more pixels than Pillow opens, before or after the resize, and for 32-bit
    grey, whose range no file tells.
    """
    try:
        image = Image.open(io.BytesIO(content))
        if size.interpolation.endswith("-fast") and (image.format, image.mode) == ("JPEG", "RGB"):
            return _decode_fast(content, size.geometry(*image.size), size.filter)
        return to_tensor(size.apply(_to_rgb(image, name)))
    except (MemoryError, UserError):
        raise
    except Image.DecompressionBombError:
        raise _too_large(name) from None
    except Exception:  # PIL raises OSError, SyntaxError, ValueError, struct.error … on broken files
        raise unreadable(name, "is corrupt or truncated") from None


def _decode_fast(content: bytes, geometry: resize.Geometry, interpolation: str) -> Tensor:
    from torchvision.io import decode_jpeg  # a second, which few need

    return resize.fit(decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8)), geometry, interpolation)


def _to_rgb(image: Image.Image, name: str | os.PathLike) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # Pillow scales a PPM to 16 bits
        grey = (np.asarray(image).astype(np.int64) + 128) // 257  # `convert` would cut everything above 255
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise UserError(
            f"the picture {shown(name)} holds 32-bit numbers, and which of them is white is not known: "
            "save it with 8 or 16 bits per channel."
        )
    return image.convert("RGB")


def _too_large(name: str | os.PathLike) -> UserError:
    return UserError(
        f"the picture {shown(name)} is not broken but has more than the {2 * Image.MAX_IMAGE_PIXELS:,} "
        "pixels that Pillow's size limit allows, as it is or at the image size: make it smaller."
    )


class FileImages(LabelledImages):
    """Pictures in files. x (3, H, W) float32 in [0, 1]; all of one size unless `size` is native and the files differ.

    paths, labels: one per example. root: the folder that the version names files relative to. in_memory: keep each
    picture as uint8 once it has been read (needs equal sizes; with DataLoader workers each worker has its own copy, so
    use it with workers=0).
    """

    def __init__(
        self,
        name: str,
        root: str | os.PathLike,
        paths: Sequence[str | os.PathLike],
        labels: Sequence[int],
        classes: Sequence[str],
        prompts: Sequence[str],
        *,
        size: ImageSize = NATIVE,
        skip_corrupt: bool = False,
        in_memory: bool = False,
    ):
        self.name, self.root, self.classes, self.prompts = name, os.fspath(root), tuple(classes), tuple(prompts)
        self.paths, self.labels = [os.fspath(p) for p in paths], np.asarray(labels, np.int64)
        self.size, self.skip_corrupt, self.in_memory = size, skip_corrupt, in_memory
        self._skipped = Skipped(name)
        self._cache: Tensor | None = None
        if len(self.paths) != len(self.labels) or len(self.classes) != len(self.prompts):
            raise ValueError(f"{name}: a label is needed per path and a prompt per class")

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_cache": None}  # a worker that is sent the set must not be sent gigabytes of pictures

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def version(self) -> str:
        """Digest of names, contents, labels, prompts and image size; what was read before is not read again
        (`sha256_file`)."""
        names = hashlib.sha256()
        for path, label in zip(self.paths, self.labels.tolist(), strict=True):
            try:
                content = sha256_file(path)
            except OSError:  # whoever needs it says what is wrong with it
                content = "unreadable"
            relative = os.path.relpath(path, self.root) if os.path.isabs(path) else path
            names.update(f"{relative}\0{content}\0{label}\n".encode("utf-8", "surrogateescape"))
        return digest([names.hexdigest(), self.classes, self.prompts, repr(self.size)])[:12]

    @property
    def skipped(self) -> tuple[str, ...]:
        return self._skipped.names

    def _decode(self, index: int) -> Tensor:
        return decode(read_picture(self.paths[index]), self.paths[index], self.size)

    def pixels(self, index: int) -> Tensor:
        """(3, H, W) uint8 of the file with this number, and of no other. Raises as `read_picture` and `decode` do."""
        if not self.in_memory:
            return self._decode(index)
        if self._cache is None:
            first = self._decode(index)
            _refuse_more_than_memory(self.name, len(self) * first.numel())
            self._cache = torch.empty((len(self), *first.shape), dtype=torch.uint8)
            self._read = np.zeros(len(self), bool)
        if not self._read[index]:
            picture = self._decode(index)
            if picture.shape != self._cache.shape[1:]:
                raise UserError(
                    f"{self.paths[index]} is {tuple(picture.shape[1:])} pixels and others are "
                    f"{tuple(self._cache.shape[2:])}: give an image size, or do not keep the pictures in memory."
                )
            self._cache[index], self._read[index] = picture, True
        return self._cache[index]

    def _readable(self, index: int) -> Tensor:
        """Pixels of an example; with skip_corrupt, where they cannot be read, those of the next one of its class.

        That is a function of the files alone, whatever was read before.
        """
        try:
            return self.pixels(index)
        except UnreadableImage:
            if not self.skip_corrupt:
                raise
        self._skipped.replaced(index, self.paths[index])
        same = np.flatnonzero(self.labels == self.labels[index])
        for other in np.roll(same, -1 - int(np.searchsorted(same, index)))[:-1].tolist():
            try:
                return self.pixels(other)
            except UnreadableImage:
                self._skipped.add(other, self.paths[other])
        raise UserError(
            f"{self.name}: no picture of the class {self.classes[self.labels[index]]!r} below "
            f"{shown(self.root)} can be read."
        )

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._readable(index).float().div_(255), int(self.labels[index])

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        indices = [int(i) for i in indices]
        x = stack([self._readable(i) for i in indices], self.name).float().div_(255)
        return x, torch.from_numpy(self.labels[indices])

    def usable(self, indices: Iterable[int]) -> list[int]:
        """`indices`, or with skip_corrupt those whose file decodes; the others go to `skipped` and are counted in one
        line on stderr.

        Raises UserError if none decodes.
        """
        indices = [int(i) for i in indices]
        if not self.skip_corrupt:
            return indices
        new = False
        for i in indices:
            try:
                self.pixels(i)
            except UnreadableImage:
                new |= self._skipped.add(i, self.paths[i])
        good = [i for i in indices if i not in self._skipped]
        if new:
            bad = [os.path.relpath(self.paths[i], self.root) for i in indices if i in self._skipped]
            say(self.name, f"{len(bad)} of {len(indices)} chosen pictures cannot be read and are left out", bad)
        if indices and not good:
            raise UserError(
                f"{self.name}: none of the {len(indices)} chosen pictures below {shown(self.root)} can be read."
            )
        return good


def _refuse_more_than_memory(name: str, needed: int) -> None:
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > 0.8 * available:
        raise UserError(
            f"{name} needs {needed / 2**30:.0f} GiB to be kept in memory and this machine has {available / 2**30:.0f}: "
            "read it from the disk instead."
        )
