"""What a measuring function gives back."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Values:
    """values: (n,) per example; unit; extra: further arrays for figures; sanity: of the attack, where it is not that of the cell's source."""

    values: np.ndarray
    unit: str
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    sanity: dict | None = None
