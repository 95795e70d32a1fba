import math

import pytest
import torch
import torch.nn.functional as F

from papers.roclip.method import (
    AS_RELEASED,
    BEFORE_V1,
    CROSS_MODAL,
    TWO_SIDED,
    Matching,
    clip_loss,
    matched_loss,
    neighbours,
    pools_of,
)
from papers.roclip.pool import NOISE, Pool
from shared.errors import UserError
from tests.accuracy import assert_within_rounding


def pool_of(vectors, ids=None):
    pool = Pool(*vectors.shape, start="pairs")
    pool.put(vectors, range(100, 100 + len(vectors)) if ids is None else ids)
    return pool


def written_out(rows, columns, s):
    """½·(CE over rows + CE over columns) with loops."""
    n, total = len(rows), 0.0
    for i in range(n):
        across = [math.exp(s * float(rows[i] @ columns[j])) for j in range(n)]
        down = [math.exp(s * float(rows[j] @ columns[i])) for j in range(n)]
        total -= math.log(across[i] / sum(across)) + math.log(down[i] / sum(down))
    return total / (2 * n)


def nearest_of(queries, vectors):
    return torch.stack(
        [
            vectors[max(range(len(vectors)), key=lambda j: float(F.cosine_similarity(q, vectors[j], dim=0)))]
            for q in queries
        ]
    )


def test_the_loss_of_each_version_is_the_one_written_out(units):
    image, text = units(6, 5, seed=1), units(6, 5, seed=2)
    texts, images, s = units(9, 5, seed=3), units(9, 5, seed=4), torch.tensor(7.0)
    pools = {"text": pool_of(texts), "image": pool_of(images)}
    expected = {
        TWO_SIDED: (written_out(image, nearest_of(text, texts), 7) + written_out(text, nearest_of(image, images), 7))
        / 2,
        AS_RELEASED: written_out(image, nearest_of(image, texts), 7),
        Matching(query="cross"): (
            written_out(image, nearest_of(image, texts), 7) + written_out(text, nearest_of(text, images), 7)
        )
        / 2,
        Matching(sides="text"): written_out(text, nearest_of(image, images), 7),
        Matching(sides="image"): written_out(image, nearest_of(text, texts), 7),
    }
    for matching, value in expected.items():
        needed = {name: pools[name] for name in pools_of(matching)}
        assert_within_rounding(
            matched_loss(image, text, s, needed, matching), torch.tensor(value), terms=9, scale=7.0, what=str(matching)
        )
    assert_within_rounding(clip_loss(image, text, s), torch.tensor(written_out(image, text, 7)), terms=9, scale=7.0)


def one_way(near, true, s):
    """CE of rows of neighbours over columns of the true other side, with loops."""
    total = 0.0
    for i in range(len(near)):
        across = [math.exp(s * float(near[i] @ column)) for column in true]
        total -= math.log(across[i] / sum(across))
    return total / len(near)


def test_the_loss_before_the_first_version_is_the_one_written_out(units):
    """½·(CE(s·NN(image)·textsᵀ) + CE(s·NN(text)·imagesᵀ)); the one bank is asked with images, which enter it, then with texts."""
    s, bank = torch.tensor(7.0), Pool(12, 5, "gaussian", "drop")
    kept = units(12, 5, seed=3)
    for k in range(2):
        bank.add(kept[6 * k : 6 * k + 6], range(6))
    image, text = units(6, 5, seed=1).requires_grad_(), units(6, 5, seed=2).requires_grad_()
    text.data[2] = image.data[4]  # which is in the bank by then
    with torch.no_grad():
        near_image = nearest_of(image, kept)
        near_text = nearest_of(text, torch.cat([image, kept[6:]]))
        expected = (one_way(near_image, text, 7) + one_way(near_text, image, 7)) / 2
        assert torch.equal(near_text[2], image[4])
    loss = matched_loss(image, text, s, {"joint": bank}, BEFORE_V1, range(6))
    assert_within_rounding(loss.detach(), torch.tensor(expected), terms=12, scale=7.0)
    assert torch.equal(bank.directions, kept) and pools_of(BEFORE_V1) == ("joint",)
    of_image, of_text = torch.autograd.grad(loss, (image, text))
    near = [near_image, near_text]
    again = [image.detach().requires_grad_(), text.detach().requires_grad_()]
    for rows, columns, gradient in ((near[1], again[0], of_image), (near[0], again[1], of_text)):
        by_hand = torch.autograd.grad(F.cross_entropy(7 * rows @ columns.T, torch.arange(6)) / 2, columns)[0]
        assert_within_rounding(gradient, by_hand, terms=12, scale=7.0)  # through the true embeddings alone


def test_the_cross_modal_variant_is_the_one_written_out(units):
    """The image bank is asked with texts and stands for images, the text bank the other way round, after five epochs."""
    image, text, texts, images = (units(n, 5, seed=k) for k, n in enumerate((6, 6, 9, 9)))
    pools = {"text": pool_of(texts), "image": pool_of(images)}
    expected = (one_way(nearest_of(text, images), text, 7) + one_way(nearest_of(image, texts), image, 7)) / 2
    loss = matched_loss(image, text, torch.tensor(7.0), pools, CROSS_MODAL)
    assert_within_rounding(loss, torch.tensor(expected), terms=9, scale=7.0)
    assert [CROSS_MODAL.active(e) for e in (1, 5, 6, 7)] == [False, False, True, True]
    assert 2 * CROSS_MODAL.size == BEFORE_V1.size == 256


def test_which_pairs_came_back(units):
    """As the picture strip wants them: the second version asks with the image, the first with the caption."""
    image, text, kept = units(6, 5, seed=1), units(6, 5, seed=2), units(9, 5, seed=3)
    kept[4], kept[7] = image[0], text[0]
    pools = {"text": pool_of(kept), "image": pool_of(kept)}
    assert neighbours(image, text, pools, AS_RELEASED)["image"].ids[0] == 104
    both = neighbours(image, text, pools, TWO_SIDED)
    assert both["image"].ids[0] == 107 and both["text"].ids[0] == 104


def test_only_the_matched_side_and_the_scale_have_a_gradient(units):
    pools = {"text": pool_of(units(9, 5, seed=3)), "image": pool_of(units(9, 5, seed=4))}
    for matching, whose in (
        (AS_RELEASED, (True, False)),
        (TWO_SIDED, (True, True)),
        (Matching(sides="text"), (False, True)),
    ):
        image, text, s = (
            units(6, 5, seed=1).requires_grad_(),
            units(6, 5, seed=2).requires_grad_(),
            torch.tensor(7.0, requires_grad=True),
        )
        matched_loss(image, text, s, pools, matching).backward()
        assert (image.grad is not None, text.grad is not None) == whose == matching.trains and s.grad != 0


def test_asking_does_not_change_a_pool(units):
    pools = {"text": pool_of(units(9, 5, seed=3))}
    before = {k: v.clone() for k, v in pools["text"].state_dict().items()}
    matched_loss(units(6, 5, seed=1), units(6, 5, seed=2), torch.tensor(7.0), pools, AS_RELEASED)
    assert all(torch.equal(before[k], v) for k, v in pools["text"].state_dict().items())


def test_a_poisoned_caption_meets_its_own_image_only_from_an_earlier_epoch(units):
    """Own modality finds a caption's own entry with cosine 1 wherever the pool still has it, unless own entries are excluded."""
    caption, image, others = units(1, 5, seed=1), units(1, 5, seed=2), units(7, 5, seed=3)
    before = pool_of(others)
    assert before.nearest(caption).ids.item() != 50  # in the step that it enters: asked before it is added
    before.add(caption, [50])
    assert before.nearest(caption).ids.item() == 50  # an epoch later, if no eight pairs have come since
    assert before.nearest(caption, [50]).ids.item() != 50
    loss = {
        own: matched_loss(
            image, caption, torch.tensor(3.0), {"text": before}, Matching(sides="image", own=own), [50]
        ).item()
        for own in ("allowed", "excluded")
    }
    assert loss["allowed"] == pytest.approx(0, abs=1e-5)  # one pair: nothing to tell apart
    for _ in range(2):
        before.add(units(4, 5, seed=4), range(4))
    assert 50 not in before.ids.tolist()


def test_epochs_of_either_kind():
    def kinds(**fields):
        return [Matching(**fields).active(e) for e in range(1, 7)]

    assert kinds() == [False, True] * 3  # K = 2, counted from 1: the last of 24 is a RoCLIP epoch
    assert kinds(offset=1) == [False, False, True, False, True, False]
    assert kinds(every=1) == [True] * 6
    assert kinds(every=3) == [False, False, True] * 2
    assert AS_RELEASED.active(24) and not AS_RELEASED.active(23) and not AS_RELEASED.active(1)


def test_sizes_of_a_pool():
    assert TWO_SIDED.entries(10_000) == 200 and TWO_SIDED.entries(3) == 1
    assert AS_RELEASED.entries(10_000) == AS_RELEASED.entries(10**6) == 21_845


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"sides": "none"}, "sides is 'none': use 'both', 'image' or 'text'"),
        ({"query": "text"}, "use 'own' or 'cross'"),
        ({"size": 5}, "either by a share"),
        ({"share": None}, "either by a share"),
        ({"share": 0.0}, "above 0 and at most 1"),
        ({"share": None, "size": 0}, "size is 0"),
        ({"every": 0}, "every is 0"),
        ({"offset": -1}, "offset is -1"),
        ({"start": "captions"}, "use 'gaussian', 'unit' or 'pairs'"),
        ({"refresh": "never"}, "use 'matched' or 'always'"),
        ({"wrap": "cut"}, "use 'drop' or 'ring'"),
        ({"own": "no"}, "use 'allowed' or 'excluded'"),
        ({"directions": "two"}, "use 'both' or 'one'"),
        ({"bank": "shared"}, "use 'apart' or 'joint'"),
        ({"bank": "joint"}, "asked with the own modality"),
        ({"bank": "joint", "start": "unit", "query": "cross"}, "asked with the own modality"),
    ],
)
def test_what_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Matching(**fields)


def test_noise_is_marked(units):
    found = Pool(4, 3).nearest(units(2, 3))
    assert found.ids.tolist() == [NOISE] * 2
