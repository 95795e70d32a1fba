"""Options: dataclasses whose fields are what can be set."""

import dataclasses


def free(default: object = dataclasses.MISSING) -> dataclasses.Field:
    """A field that changes no outcome: how many at a time, how many processes read ahead, how often it is saved, what it is called.

    It is no part of the key of what is made with it (`shared.experiment.step`).
    """
    return dataclasses.field(default=default, metadata={"free": True})
