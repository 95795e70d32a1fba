"""Models in folders of transformers and diffusers, or by hub name: all their tensors from the files, or one
sentence."""

import logging

from torch import nn

from shared.models.clip import demand_finite, refuse_misfit


def from_pretrained(kind: type, source: str, library: str, **how: object) -> nn.Module:
    """`kind.from_pretrained(source, **how)`, with every tensor in place.

    Both libraries fill what a file lacks with random numbers and go on; here what they say of it decides. Tied weights
    may be left out, and so may what the library knows to be of no use. kind: a class of `library` ("transformers",
    "diffusers"). Raises UserError with the first tensor that is missing, of another shape, unknown or not finite; for
    other failures whatever the library raises.
    """
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.ERROR)  # a table of what differs, which is told in a sentence here
    try:
        model, info = kind.from_pretrained(source, output_loading_info=True, ignore_mismatched_sizes=True, **how)
    finally:
        logger.setLevel(level)
    other = sorted(mismatch[0] for mismatch in info["mismatched_keys"])
    missing = sorted({*info["missing_keys"]} - {*other})
    refuse_misfit(f"the folder of weights {source!r}", "get it again, with the configuration that belongs to it", missing, other,
                  sorted(info["unexpected_keys"]))  # fmt: skip
    demand_finite(model.state_dict(), f"the folder of weights {source!r}")
    return model
