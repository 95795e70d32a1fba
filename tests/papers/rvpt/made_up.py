"""Made-up arrays of the right shapes for the figures of RVPT."""

import numpy as np

NAMES = [
    "striped red star",
    "plain blue circle",
    "spotted green cross",
    "checkered yellow square",
    "plain cyan ring",
    "striped purple heart",
    "spotted orange triangle",
    "plain pink hexagon",
]
ATTACKS = ("badnet", "blended", "issba", "wanet", "trojvqa", "badclip")


def photograph(rng: np.random.Generator, shape: tuple[int, ...], height: int, width: int) -> np.ndarray:
    """Bytes as hard to compress as pictures from a camera, or harder."""
    smooth = np.cumsum(rng.integers(-3, 4, (*shape, 3, height, width)), axis=-1) * 4 + 128
    return np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)


def arrays(
    kind: str, rng: np.random.Generator, n: int = 6, side: int = 32, blocks: int = 4, maps: int = 3
) -> dict[str, np.ndarray]:
    """What stands beside the n values of a number."""
    if kind == "resistivity":
        return {"layers": (1 - 0.4 * rng.random((n, blocks))).astype(np.float32)}
    if kind == "attention":
        out = {
            "clean": rng.random(n),
            "of_all": rng.random(n),
            "area": np.full(n, 0.25),
            "truth": np.array(NAMES[:maps]),
        }
        for state in ("clean", "triggered"):
            out |= {
                f"{state}_maps": rng.random((maps, 4, 4)).astype(np.float32),
                f"{state}_said": np.array([NAMES[1]] * maps),
                f"{state}_pictures": photograph(rng, (maps,), side, side),
            }
        return out
    if kind == "embedding":
        labels = np.repeat(np.arange(8), 4)
        own = labels[labels != 7]
        return {
            "to_target": rng.random(n),
            "clean": rng.random(n),
            "xy": rng.random((len(labels), 2)),
            "labels": labels,
            "names": np.array(NAMES),
            "xy_triggered": rng.random((len(own), 2)),
            "triggered_labels": own,
        }
    if kind == "perturbed":
        return {
            "names": np.array(["noise", "blur", "colour", "flip"]),
            "pictures": photograph(rng, (maps, 5), side, side),
        }
    if kind == "triggers":
        sheet = photograph(rng, (), 2 * maps * (side + 2) - 2, 7 * (side + 2) - 2).transpose(1, 2, 0)
        return {
            "names": np.array(ATTACKS),
            "sheet": sheet,
            "side": np.array([side, side]),
            "gap": np.array(2),
            "gain": np.array(4.0),
        }
    return {}
