"""A trigger by its name, as options and manifests give it."""

import ast
from collections.abc import Sequence

from shared.attacks.triggers.base import Trigger
from shared.attacks.triggers.everywhere import SIG, Blended, WaNet
from shared.attacks.triggers.optimised import BadCLIP, TrojVQA
from shared.attacks.triggers.patches import BadNet, LabelConsistent
from shared.attacks.triggers.steganography import ISSBA
from shared.errors import UserError
from shared.options import check_values, hints

TRIGGERS: dict[str, type[Trigger]] = {
    cls.name: cls for cls in (BadNet, Blended, SIG, WaNet, LabelConsistent, TrojVQA, BadCLIP, ISSBA)
}


def make_trigger(name: str, preset: str = "cleanclip", size: int = 224, **fields: object) -> Trigger:
    """A trigger by name; the rest as in `Trigger.make`. trojvqa and badclip need their `pixels`, the optimised patch
    (see `optimised`).

    Raises UserError for an unknown name, preset or field, and for values that a trigger refuses.
    """
    if name not in TRIGGERS:
        raise UserError(f"there is no trigger {name!r}: choose one of {', '.join(TRIGGERS)}.")
    return TRIGGERS[name].make(preset, size, **fields)


def parse_fields(options: Sequence[str], prefix: str = "the trigger's field ") -> dict[str, object]:
    """Fields of a trigger as options give them: {"patch": 8} of "patch=8".

    Raises UserError for what is not name=number, and for a field that is given twice. prefix: before a field's name."""
    out = {}
    for option in options:
        name, _, value = option.partition("=")
        if name in out:
            raise UserError(f"{prefix}{name!r} is given twice: give it once.")
        try:
            out[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            raise UserError(
                f"{prefix}{option!r} is not understood: write name=number, as in patch=8, with text in quotes."
            ) from None
    return out


def check_fields(name: str, options: Sequence[str], prefix: str) -> None:
    """Raise UserError for fields of a trigger, as options give them, that it does not have or that are out of bounds.

    It is not made for that: an optimised trigger has to be optimised first. prefix: before a field's name.
    """
    given, known = parse_fields(options, prefix), hints(TRIGGERS[name])
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise UserError(
            f"{prefix}{unknown[0]}: the trigger {name} has no such field; its fields are {', '.join(known)}."
        )
    check_values(TRIGGERS[name], given, prefix)
