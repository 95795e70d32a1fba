"""What the command line of `judge` and `compare` says. Imports no torch, so that a mistake is said at once."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from shared.errors import UserError
from shared.options import Batch, Bounded, Count, Draws, Pixels, Range, Seed, Whole, free


@dataclass(frozen=True)
class Config(Bounded):
    """Judge how robust a model is, alone or behind a defence, and write a page about it."""

    model: str = "scenes-vit-s8"
    """A zoo name (shared/models/zoo); NAME/PRETRAINED or open_clip:NAME@FILE; hf:FOLDER_OR_NAME;
    torchvision:NAME[@FILE]; or module:name, a function from pictures in [0, 1] to logits, or one without arguments that
    makes such a model."""
    data: str = "scenes:combinations"
    """A folder with a folder of pictures per class; csv:FILE, with columns path (or image) and label (or class);
    shards:PATTERN, tar files with 0001.jpg and 0001.cls (or .txt, .json); hf:FOLDER, as save_to_disk of datasets writes
    it; torchvision:NAME; scenes:SET, drawn here."""
    data_root: str = "."
    """Where tables, shards and torchvision's sets are."""
    size: str = "native"
    """Size of pictures from files: native, 224, 256:224 (short side, centre crop)."""
    skip_corrupt: bool = False
    """Leave unreadable pictures out, counted and reported, instead of stopping at the first."""
    classes: str = ""
    """A text file with the model's classes, one a line, in the order of its logits; every class of the pictures is
    among them, or line i names the i-th class. Where labels are numbers, line i + 1 names the number i."""
    template: str = "a photo of a {}"
    """Makes a prompt of a name of --classes."""
    defence: str = "none"
    """none; jpeg:75, bits:4, tv:0.05, blur:1, resize:24, resize_pad:0.1; diffpure:100; diffcap, distshift; or
    module:name, a class without arguments or a function, called as defence(x) or defence(x, rng)."""
    denoiser: str = "zoo:scenes-ddpm"
    """The diffusion model of diffpure; see shared/diffusion/open.py."""
    attack: tuple[str, ...] = ()
    """Attacks of one's own, module:name, called as attack(victim, x, y, threat, rng=rng)."""
    norm: Literal["linf", "l2"] = "linf"
    eps: Annotated[Pixels, Range(0, 1000, above=True, example="8/255")] = 8 / 255
    """Radius of the ball, in pixels of [0, 1]; at most 1 in ℓ∞."""
    n: Whole = 128
    """Pictures (0: all)."""
    repeats: Draws = 8
    """Times that each picture is shown to a model or defence that is random."""
    steps: Count = 20
    """Of PGD and of each APGD run; AutoAttack has 100."""
    targets: Count = 3
    """Classes of the targeted APGD; AutoAttack has 9."""
    queries: Count = 100
    """Of Square; AutoAttack has 5000."""
    eot: Count = 4
    """Draws behind each gradient where something is random; AutoAttack has 20."""
    sanity_n: Count = 32
    """Pictures of the sanity checks."""
    seed: Seed = 0
    part: Count = 64
    """Pictures of a task: processes share tasks, and an interrupt costs one."""
    batch: Batch = free(64)
    """Pictures in the model at a time."""
    out: Path = Path("judged")
    """Folder of the page and of all that is kept."""
    pictures: bool = False
    """Write the strongest adversarial pictures too: PNG, and as they are in safetensors."""
    device: Literal["cpu", "cpu2", "cpus", "gpu", "gpus"] | None = None
    """As in shared/experiment/launch; by default a GPU where one is seen, else a process per core."""
    headline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raises UserError for numbers out of bounds, and for code as it is: a run knows it by its name."""
        super().__post_init__()
        if self.norm == "linf" and self.eps > 1:
            raise UserError(f"--eps is {self.eps:g}, and pixels lie in [0, 1]: write {self.eps:g}/255 for 255ths.")
        attacks = self.attack if isinstance(self.attack, tuple | list) else (self.attack,)
        object.__setattr__(self, "attack", tuple(_word("attack", one) for one in attacks))
        for f in fields(self):
            if f.type is str:
                object.__setattr__(self, f.name, _word(f.name, getattr(self, f.name)))
        object.__setattr__(self, "out", Path(self.out))


def _word(name: str, given: object) -> str:
    if isinstance(given, str | Path):
        return str(given)
    thing = given if hasattr(given, "__qualname__") else type(given)
    raise UserError(
        f"{name} is {given!r}: give its name, as in {name}='{thing.__module__}:{thing.__qualname__}' for code."
    )


@dataclass(frozen=True)
class Compare:
    """Two judged folders side by side: paired differences on the same pictures."""

    a: tyro.conf.Positional[Path]
    """A folder that judge has written."""
    b: tyro.conf.Positional[Path]
    """Another one; differences are A − B."""
    out: Path = Path("compared")
    """Folder of the page and the tables."""
