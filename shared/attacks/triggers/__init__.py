"""Triggers of backdoors, each with two presets: `textbook`, as its paper has it, and `cleanclip`, as the code of the
CLIP literature does it (CleanCLIP, Bansal et al. 2023, and what descends from it).

badnet, label_consistent    a patch               `patches`
blended, sig, wanet         every pixel           `everywhere`
trojvqa, badclip            an optimised patch    `optimised`
issba                       a hidden message      `steganography`

    trigger = make_trigger("badnet", "cleanclip", size=32)
    x_triggered = trigger(x, indices)           # what a test sees
    x_poisoned = trigger.stored(x_triggered)    # what training sees
"""

from shared.attacks.triggers.base import Trigger, at_test, same_trigger, sheet
from shared.attacks.triggers.make import check_fields, make_trigger, parse_fields

__all__ = ["Trigger", "at_test", "check_fields", "make_trigger", "parse_fields", "same_trigger", "sheet"]
