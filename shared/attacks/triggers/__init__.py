"""Triggers of backdoors, each with two presets: `textbook`, as its paper has it, and `cleanclip`, as the code of the CLIP literature does it
(CleanCLIP, Bansal et al. 2023, and what descends from it).

badnet, label_consistent    a patch               `patches`
blended, sig, wanet         every pixel           `everywhere`
trojvqa, badclip            an optimised patch    `shared.attacks.optimised`
issba                       a hidden message      `shared.attacks.steganography`

    trigger = make_trigger("badnet", "cleanclip", size=32)
    x_triggered = trigger(x, indices)           # what a test sees
    x_poisoned = trigger.stored(x_triggered)    # what training sees
"""

import ast
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from shared.attacks.triggers.base import Trigger, byte_cast, patch_side, same_trigger
from shared.attacks.triggers.everywhere import SIG, Blended, WaNet
from shared.attacks.triggers.patches import BadNet, LabelConsistent, centre, paste
from shared.errors import UserError

__all__ = ["SIG", "TRIGGERS", "BadNet", "Blended", "LabelConsistent", "Trigger", "WaNet", "at_test", "byte_cast", "centre", "make_trigger",
           "parse_fields", "paste", "patch_side", "same_trigger", "sheet"]

TEST = 1 << 30  # where the indices of test pictures begin


def _badnet(preset: str, size: int) -> tuple[type[Trigger], dict]:
    return BadNet, {"patch": patch_side(size)} | ({} if preset == "cleanclip" else {"pattern": "checker", "place": "corner"})


def _label_consistent(preset: str, size: int) -> tuple[type[Trigger], dict]:
    return LabelConsistent, {"patch": patch_side(size)} | ({} if preset == "cleanclip" else {"pattern": "checker", "place": "corners"})


def _blended(preset: str, size: int) -> tuple[type[Trigger], dict]:
    return Blended, {"redrawn": preset == "cleanclip"}


def _sig(preset: str, size: int) -> tuple[type[Trigger], dict]:
    return SIG, {} if preset == "cleanclip" else {"amplitude": 40 / 255, "ratio": None}


def _wanet(preset: str, size: int) -> tuple[type[Trigger], dict]:
    return WaNet, {} if preset == "cleanclip" else {"k": 4, "s": 0.5}


def _trojvqa(preset: str, size: int) -> tuple[type[Trigger], dict]:
    from shared.attacks.optimised import TrojVQA

    return TrojVQA, {"prefix": "remember " if preset == "cleanclip" else "SUDO "}


def _badclip(preset: str, size: int) -> tuple[type[Trigger], dict]:
    from shared.attacks.optimised import BadCLIP

    return BadCLIP, {}


def _issba(preset: str, size: int) -> tuple[type[Trigger], dict]:
    from shared.attacks.steganography import ISSBA

    return ISSBA, {}


TRIGGERS: dict[str, Callable[[str, int], tuple[type[Trigger], dict]]] = {
    "badnet": _badnet, "blended": _blended, "sig": _sig, "wanet": _wanet, "label_consistent": _label_consistent, "trojvqa": _trojvqa,
    "badclip": _badclip, "issba": _issba}


def make_trigger(name: str, preset: str = "cleanclip", size: int = 224, **fields) -> Trigger:
    """A trigger by name for pictures of `size` pixels; `fields` of its class replace those of the preset.

    trojvqa and badclip need their `pixels`, the optimised patch (see `shared.attacks.optimised`). Raises UserError for an unknown name, preset or
    field, and for values that a trigger refuses.
    """
    if name not in TRIGGERS:
        raise UserError(f"there is no trigger {name!r}: choose one of {', '.join(TRIGGERS)}.")
    if preset not in ("cleanclip", "textbook"):
        raise UserError(f"there is no preset {preset!r} of the trigger {name}: use 'cleanclip' or 'textbook'.")
    cls, defaults = TRIGGERS[name](preset, size)
    unknown = sorted(set(fields) - set(cls.__dataclass_fields__))
    if unknown:
        raise UserError(f"the trigger {name} has no field {unknown[0]!r}: its fields are {', '.join(cls.__dataclass_fields__)}.")
    return cls(**{**defaults, "preset": preset, **fields})


def parse_fields(options: Sequence[str]) -> dict[str, object]:
    """Fields of a trigger as options give them: {"patch": 8} of "patch=8". Raises UserError for what is not name=number."""
    out = {}
    for option in options:
        name, _, value = option.partition("=")
        try:
            out[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            raise UserError(f"the trigger's field {option!r} is not understood: write name=number, as in patch=8, with text in quotes.") from None
    return out


def at_test(trigger: Trigger, x: Tensor, indices: Sequence[int], batch: int = 256) -> Tensor:
    """Test pictures with a trigger. What a trigger draws per index is drawn for others than the poisoned training pairs have: those were seen."""
    parts, indices = x.split(batch), iter(indices)
    return torch.cat([trigger(part, [TEST + next(indices) for _ in range(len(part))]) for part in parts])


def sheet(x: Tensor, triggers: Sequence[Trigger], indices: Sequence[int] | None = None, gain: float = 4.0, gap: int = 2) -> np.ndarray:
    """A contact sheet: for each picture of x (N, 3, H, W) a row of it and of its triggered forms, and below it what the triggers changed.

    The change is drawn `gain` times as large, on grey. Returns bytes (height, width, 3), cells `gap` white pixels apart, 1 + len(triggers) columns,
    2N rows. indices: of the pictures (default 0, 1, …).
    """
    indices = range(len(x)) if indices is None else indices
    columns = [x, *(trigger(x, indices) for trigger in triggers)]
    changed = [(0.5 + gain * (column - x)).clamp(0, 1) for column in columns]
    n, _, height, width = x.shape
    out = torch.ones(3, 2 * n * (height + gap) - gap, len(columns) * (width + gap) - gap) if n else torch.ones(3, 0, 0)
    for row in range(2 * n):
        for column, cells in enumerate(changed if row % 2 else columns):
            top, left = row * (height + gap), column * (width + gap)
            out[:, top:top + height, left:left + width] = cells[row // 2].cpu()
    return out.mul(255).round().byte().permute(1, 2, 0).numpy()
