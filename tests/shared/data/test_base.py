"""Views, balanced subsets and the loader, on a set whose pictures say which example they are."""

import pickle

import numpy as np
import pytest
import torch

from shared.data.base import ClassSubset, LabelledImages, Subset, at_end, halves, held_out, loader, subset
from shared.errors import UserError


class Numbers(LabelledImages):
    """Example i is a picture of the value i/1000, with the label given."""

    name, version = "numbers", "1"

    def __init__(self, labels, broken=()):
        self.truth, self.broken, self.labels = list(labels), set(broken), np.asarray(labels)
        self.classes = tuple("abcdefgh"[: max(labels) + 1])
        self.prompts = tuple(f"a photo of a {c}" for c in self.classes)

    def __len__(self):
        return len(self.truth)

    def __getitem__(self, i):
        if i in self.broken:
            raise UserError(f"example {i} is broken: Error: mend it.")
        return torch.full((3, 2, 2), i / 1000), self.truth[i]

    def usable(self, indices):
        return [i for i in indices if i not in self.broken]


LABELS = [0] * 40 + [1] * 25 + [2] * 3 + [0] * 2


def test_held_out_pictures_are_a_tenth_of_every_class_and_no_others():
    data = Numbers(LABELS)
    kept, rest = held_out(data, True), held_out(data, False)
    assert sorted([*kept.indices, *rest.indices]) == list(range(len(LABELS)))
    assert np.bincount(kept.labels).tolist() == [5, 3, 1]
    assert kept.version != rest.version
    with pytest.raises(UserError, match="the class 'c' has one picture to train on"):
        held_out(Numbers([0, 0, 1, 1, 2]), False)


def counts(data, chosen):
    return np.bincount([data.truth[i] for i in chosen], minlength=3).tolist()


def test_subset_is_as_balanced_as_the_classes_allow():
    data = Numbers(LABELS)
    assert counts(data, subset(data, 9, 0)) == [3, 3, 3]
    assert counts(data, subset(data, 23, 0)) == [10, 10, 3]  # class 2 is used up
    assert counts(data, subset(data, 1000, 0)) == [42, 25, 3]  # at most n
    assert sorted(subset(data, None, 5)) == list(range(70))
    assert max(counts(data, subset(data, 4, 0))) == 2


def test_subset_is_a_prefix_of_a_larger_one_and_depends_on_the_seed():
    data = Numbers(LABELS)
    long = subset(data, 50, 3)
    assert all(subset(data, n, 3) == long[:n] for n in (1, 4, 9, 30))
    assert len(set(long)) == 50
    assert subset(data, 50, 4) != long
    with pytest.raises(UserError, match="at least 1"):
        subset(data, 0, 0)


def test_the_last_are_as_balanced_and_no_others_than_the_first_of_a_class_in_reverse():
    data = Numbers(LABELS)
    last = at_end(data, 9, 3)
    assert counts(data, last) == [3, 3, 3]
    whole = subset(data, 70, 3)
    for label in range(3):
        order = [i for i in whole if data.truth[i] == label]
        assert {i for i in last if data.truth[i] == label} == set(order[-3:])
    first = subset(data, 40, 3)  # takes all three of class 2
    assert {data.truth[i] for i in last if i in first} == {2}


def test_subset_leaves_out_what_cannot_be_read_and_touches_no_global_generator():
    data = Numbers(LABELS, broken={65, 66})
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert counts(data, subset(data, 9, 0)) == [3, 3, 1]
    list(loader(data, [[0, 1], [2]]))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_subset_view():
    data = Numbers(LABELS)
    view = Subset(data, [41, 3, 66])
    x, y = view.__getitems__([2, 0])
    assert x[:, 0, 0, 0].tolist() == pytest.approx([0.066, 0.041])
    assert y.tolist() == [2, 1] and y.dtype == torch.int64
    assert view.labels.tolist() == [1, 0, 2] and view[1][1] == 0
    assert view.prompts == data.prompts
    assert len({data.version, view.version, Subset(data, [3, 41, 66]).version}) == 3
    assert Subset(data, [41, 3, 66]).version == view.version
    assert Subset(Numbers(LABELS, broken={3}), [41, 3, 66]).usable([0, 1, 2]) == [0, 2]
    with pytest.raises(IndexError):
        Subset(data, [70])


def test_class_subset_relabels_and_prompts_follow():
    data = Numbers(LABELS)
    view = ClassSubset(data, [2, 0], name="chosen")
    assert (view.name, view.classes, view.num_classes) == ("chosen", ("c", "a"), 2)
    assert view.prompts == ("a photo of a c", "a photo of a a")
    assert len(view) == 45 and view.labels.tolist() == [1] * 40 + [0] * 3 + [1] * 2
    x, y = view.__getitems__([39, 40, 43])
    assert x[:, 0, 0, 0].tolist() == pytest.approx([0.039, 0.065, 0.068])  # examples 39, 65 and 68 of the whole
    assert y.tolist() == [1, 0, 1] and [view[i][1] for i in (39, 40, 43)] == [1, 0, 1]
    assert ClassSubset(data, [0, 2]).version != view.version
    for bad in ([], [0, 0], [3]):
        with pytest.raises(UserError, match="must be different labels"):
            ClassSubset(data, bad)


def test_halves_share_no_class_and_miss_none():
    seen, unseen = halves(7)
    assert seen == [0, 2, 4, 6] and sorted(seen + unseen) == list(range(7))
    assert set(ClassSubset(Numbers(LABELS), halves(3)[0]).classes) == {"a", "c"}


def test_labels_are_read_from_the_examples_where_a_set_does_not_know_them():
    data = Numbers(LABELS)
    del data.labels
    assert data.labels.tolist() == LABELS and data.labels.dtype == np.int64


def test_duplicates_are_reported():
    data = Numbers(LABELS)
    assert data.duplicates == {}
    data.prompts = ("crane", "fox", "crane")
    assert data.duplicates == {"crane": (0, 2)}


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_gives_the_batches_asked_for(workers):
    data = ClassSubset(pickle.loads(pickle.dumps(Numbers(LABELS))), [1, 2])
    batches = [[0, 27], [5], [26, 1, 2]]
    got = list(loader(data, batches, workers))
    assert [y.tolist() for _, y in got] == [[0, 1], [0], [1, 0, 0]]
    assert [x.shape for x, _ in got] == [(2, 3, 2, 2), (1, 3, 2, 2), (3, 3, 2, 2)]
    assert torch.allclose(got[2][0][:, 0, 0, 0], torch.tensor([66, 41, 42]) / 1000)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_example_is_one_sentence_with_and_without_workers(workers):
    with pytest.raises(UserError) as error:
        list(loader(Numbers(LABELS, broken={1}), [[0], [1]], workers))
    assert str(error.value) == "example 1 is broken: Error: mend it."


def test_pictures_of_two_sizes_do_not_share_a_batch():
    class TwoSizes(Numbers):
        def __getitem__(self, i):
            return torch.zeros(3, 2 + i, 5), 0

    with pytest.raises(UserError, match="2×5 and 3×5 pixels cannot share a batch"):
        TwoSizes(LABELS).__getitems__([0, 1])
