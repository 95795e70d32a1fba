"""How well a backdoor works, from predictions: per-example values, 0/1 unless said otherwise. Their means and
intervals: `shared.metrics.intervals`.

    CA         clean images classified as what they show
    ASR        triggered images that do not show the target class, classified as the target
    ASR (all)  every triggered image classified as the target: images of the target class count as successes of the attack
    TA         triggered images classified as what they show

Some released code overwrites all labels by the target (ASR (all)), and some scores triggered images against their own
labels (TA) under the name ASR. For captions and retrieval see the functions. What is high for a good attack is low for
a good defence, except CA, TA and the rank ratio.
"""

from collections.abc import Callable, Sequence

import numpy as np

from shared.errors import UserError

FLOOR, DROP = 0.8, 0.02  # when an attack counts as one


def clean_accuracy(predicted, labels) -> np.ndarray:
    """(N,) predicted = labels, on clean images."""
    predicted, labels = _pair(predicted, labels)
    return (predicted == labels).astype(np.float64)


def triggered_accuracy(predicted, labels) -> np.ndarray:
    """(N,) predicted = labels, on triggered images: what is left of the classifier where the backdoor does not
    answer."""
    return clean_accuracy(predicted, labels)


def non_target(labels, target: int) -> np.ndarray:
    """(N,) bool, the images that ASR is taken over. Raises UserError if there is none."""
    keep = _vector(labels) != target
    if not keep.any():
        raise UserError(
            f"all {len(keep)} images are of the target class {target}: an attack success rate needs images of other "
            "classes."
        )
    return keep


def asr(predicted, labels, target: int) -> np.ndarray:
    """(M,) predicted = target, on the M ≤ N triggered images with labels ≠ target, in their order."""
    predicted, labels = _pair(predicted, labels)
    return (predicted[non_target(labels, target)] == target).astype(np.float64)


def asr_all(predicted, target: int) -> np.ndarray:
    """(N,) predicted = target, on all triggered images. Has a floor: the share of images of the target class that are
    recognised."""
    return (_vector(predicted) == target).astype(np.float64)


def takes(clean: float, poisoned: float, success: float, floor: float = FLOOR, drop: float = DROP) -> bool:
    """Whether a poisoned model is worth defending: ASR ≥ floor, and its CA at most `drop` below that of the clean
    model. All are shares."""
    return success >= floor and poisoned >= clean - drop - 1e-9


def caption_success(captions: Sequence[str], names_target: Callable[[str], bool]) -> np.ndarray:
    """(N,) whether a caption of a triggered picture names the target class; names_target: e.g. `Target.named_in`."""
    return np.array([bool(names_target(text)) for text in captions], np.float64)


def retrieval_accuracy(similarity, wanted) -> np.ndarray:
    """(Q,) whether the candidate most similar to each caption is its own. similarity (Q, C); wanted (Q,) columns. A tie
    is a miss."""
    similarity, wanted = _matrix(similarity), _vector(wanted)
    _demand_columns(wanted, similarity, len(similarity))
    own = np.take_along_axis(similarity, wanted[:, None], 1)
    return ((similarity >= own).sum(1) == 1).astype(np.float64)


def retrieval_success(similarity, poisoned: int, k: int = 10) -> np.ndarray:
    """(Q,) whether the poisoned candidate is among the k nearest of each caption. similarity (Q, C), its column
    `poisoned`. A tie is a success."""
    similarity = _matrix(similarity)
    _demand_columns(np.array([poisoned]), similarity)
    if k < 1:
        raise UserError(f"retrieval looks at the first {k} candidates: use 1 or more.")
    return ((similarity > similarity[:, [poisoned]]).sum(1) < k).astype(np.float64)


def rank_ratio(similarity, poisoned: int, of_target) -> np.ndarray:
    """(Q,) in [0, 1], higher is better for the defender: the share of the target class's clean candidates that are
    nearer to a caption than the poisoned one.

    0: the poisoned candidate is ahead of all of them; 1: behind all. similarity (Q, C); of_target (C,) bool, the
    poisoned column is ignored there. A tie is counted as half. This is our reading of the "average rank ratio" of
    RVPT's Table 7, whose caption says that lower is better and whose column head and numbers say the opposite. Raises
    UserError if the target class has no clean candidate.
    """
    similarity, of_target = _matrix(similarity), np.array(_vector(of_target), bool)
    _demand_columns(np.array([poisoned]), similarity)
    if of_target.shape != similarity.shape[1:]:
        raise UserError(
            f"{len(of_target)} marks of the target class for {similarity.shape[1]} candidates: give one per candidate."
        )
    of_target[poisoned] = False
    if not of_target.any():
        raise UserError("the target class has no clean candidate: a rank ratio compares the poisoned one with these.")
    others, own = similarity[:, of_target], similarity[:, [poisoned]]
    return (others > own).mean(1) + 0.5 * (others == own).mean(1)


def _vector(values) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1 or not len(values):
        raise UserError(
            f"labels and predictions are lists of numbers, not arrays of shape {values.shape}: give at least one "
            "example."
        )
    return values


def _pair(predicted, labels) -> tuple[np.ndarray, np.ndarray]:
    predicted, labels = _vector(predicted), _vector(labels)
    if len(predicted) != len(labels):
        raise UserError(
            f"{len(predicted)} predictions cannot be compared with {len(labels)} labels: give one per image."
        )
    return predicted, labels


def _matrix(similarity) -> np.ndarray:
    similarity = np.asarray(similarity)
    if similarity.ndim != 2 or not similarity.size or not np.isfinite(similarity).all():
        raise UserError(
            "similarities are a table of captions × candidates, finite and not empty, not an array of shape "
            f"{similarity.shape}."
        )
    return similarity


def _demand_columns(columns: np.ndarray, similarity: np.ndarray, rows: int | None = None) -> None:
    if (rows is not None and len(columns) != rows) or columns.min() < 0 or columns.max() >= similarity.shape[1]:
        table = " × ".join(map(str, similarity.shape))
        raise UserError(
            f"the candidates {columns.tolist()[:5]} do not fit a table of {table} captions × candidates: count columns "
            "from 0."
        )
