"""Any data set by one name: `scenes:<set>`, `digits:all`, `folder:<all|seen|unseen>`, `named:<set>`.

scenes   drawn on the spot, see `shared.data.scene_sets`
digits   real handwritten digits that need no files, see `shared.data.digits`
folder   the pictures below DATA_ROOT: an image folder, or CIFAR-10 as torchvision keeps it; `seen` and `unseen` are every other class
named    the sets of the papers through torchvision, below DATA_ROOT, see `shared.data.named`
"""

from dataclasses import dataclass
from pathlib import Path

from shared.data.annotated import FILES
from shared.data.base import ClassSubset, LabelledImages, halves, held_out
from shared.data.digits import digits
from shared.data.files import FileImages, ImageSize
from shared.data.folders import image_folder
from shared.data.named import named
from shared.data.scene_sets import SceneSet
from shared.data.scenes import VL_DOMAINS
from shared.data.vision_language import SPLITS, CaptionSet, QuestionSet, SceneCaptions, SceneQuestions
from shared.errors import UserError
from shared.options import check_bounds


@dataclass(frozen=True)
class Source:
    """Where pictures come from and how they are read."""

    root: str | None = None
    """DATA_ROOT: the folder that holds image folders or the named sets."""
    download: bool = False
    """Let torchvision fetch what is missing."""
    skip_corrupt: bool = False
    """Leave unreadable pictures out, counted and reported, instead of stopping at the first."""
    size: str = "native"
    """Size of the pictures of an image folder (and of digits and captioned pictures): native, 224, 256:224 (short side,
    centre crop)."""
    fast: bool = False
    """Read JPEGs faster, by torchvision's decoder and torch's resize of bytes: single bytes differ from Pillow's."""
    wording: str = "released"
    """Prompts of the named sets: released, or corrected (without the known slips)."""
    captions: str | None = None
    """csv:<file>, a table of pictures and captions below DATA_ROOT: small CLIPs that are pre-trained on an image folder
    (SCALE=photos) read these pairs too, beside its pictures with their class names in templates."""
    wnids: str | None = None
    """A text file with the classes of ImageNet30, one WNID a line in the order of labels; default: Hendrycks's."""

    def __post_init__(self):
        check_bounds(ImageSize.parse(self.size), "the image size's ")


def open_set(spec: str, split: str, source: Source, n: int = 100_000) -> LabelledImages:
    """The data set `spec` ("scenes:shape", "folder:seen", "named:cifar10"); n: length of a scenes set.

    split: "train" or "test"; or "validation", which settings are chosen on, and "fit", the training pictures without
    those of the validation. Scenes have validation pictures of their own; of other sets it is a tenth of the
    training's, the same for all parts of a folder.

    Raises UserError for an unknown kind or set, and where DATA_ROOT is needed and missing.
    """
    kind, _, name = spec.partition(":")
    if kind == "scenes":
        return SceneSet(name, "train" if split == "fit" else split, n)
    if split in ("validation", "fit") and kind != "folder":
        return held_out(open_set(spec, "train", source), split == "validation")
    if spec == "digits:all":
        return digits(split, ImageSize.parse(source.size))
    if kind not in ("folder", "named") or not name:
        raise UserError(
            f"the data set {spec!r} is not understood: write scenes:<set>, digits:all, folder:<all|seen|unseen> or "
            "named:<set>."
        )
    if not source.root:
        raise UserError(
            f"the data set {spec!r} is read from files: set DATA_ROOT (or --data.source.root) to the folder that holds "
            "them."
        )
    if kind == "named":
        how = {"wording": source.wording, "download": source.download, "wnids": source.wnids}
        data = named(name, source.root, split, skip_corrupt=source.skip_corrupt, **how)  # type: ignore[arg-type]
        return _sped_up(data, source)
    return _folder(name, split, source)


def _sped_up(data: LabelledImages, source: Source) -> LabelledImages:
    """Read the fast way where that is asked for and the pictures are in files."""
    if source.fast and isinstance(data, FileImages):
        data.size = data.size.fast()
    return data


def _folder(part: str, split: str, source: Source) -> LabelledImages:
    root = Path(source.root).expanduser()  # type: ignore[arg-type]
    read = "train" if split in ("validation", "fit") else split
    whole: LabelledImages
    if source.download or (root / "cifar-10-batches-py").is_dir():
        whole = named("cifar10", root, read, download=source.download)
    else:
        size = ImageSize.parse(source.size)
        whole = image_folder(root, read, size=size, skip_corrupt=source.skip_corrupt, in_memory=True)
        _sped_up(whole, source)
    if split in ("validation", "fit"):
        whole = held_out(whole, split == "validation")
    if part == "all":
        return whole
    if part not in ("seen", "unseen"):
        raise UserError(f"the part {part!r} of an image folder is not known: use all, seen or unseen.")
    if whole.num_classes < 4:
        raise UserError(
            f"{root} has {whole.num_classes} classes, and the parts seen and unseen take every other one: "
            "have four or more, so that each part has two."
        )
    return ClassSubset(whole, halves(whole.num_classes)[part == "unseen"], part)


def open_vl(spec: str, split: str, source: Source, size: int | str | None = None) -> CaptionSet | QuestionSet:
    """The pictures with text `spec` (see `shared.data.vision_language`), split "train", "validation" or "test".

    size: of the pictures, as pixels (short side and centre crop, bicubic) or as text for `ImageSize.parse`; by default
    `source.size`. The scenes have their own 32 pixels. Raises UserError for an unknown set or split, and where
    DATA_ROOT or a file below it is needed and missing.
    """
    kind, _, domain = spec.partition(":")
    if kind in ("scenes-captions", "scenes-questions"):
        return (SceneCaptions if kind == "scenes-captions" else SceneQuestions)(domain, split)
    if spec not in FILES:
        known = [f"scenes-{k}:{d}" for k in ("captions", "questions") for d in VL_DOMAINS]
        raise UserError(f"there is no vision-language set {spec!r}: choose one of {', '.join([*known, *FILES])}.")
    if split not in SPLITS:
        raise UserError(f"split {split!r} is not known; use {', '.join(SPLITS)}.")
    if not source.root:
        raise UserError(
            f"the set {spec!r} is read from files: set DATA_ROOT (or --data.source.root) to the folder that holds them."
        )
    wanted = ImageSize(size, size, "bicubic") if isinstance(size, int) else ImageSize.parse(size or source.size)
    return FILES[spec](source.root, split, wanted.fast() if source.fast else wanted, source.skip_corrupt)
