import copy

import pytest
import torch

from papers.roclip.safeclip import SafeClip, safe_pairs, safeclip
from papers.roclip.training import Training
from shared.errors import UserError


def test_the_upper_of_two_heaps_is_safe():
    draw = torch.randn(600, generator=torch.Generator().manual_seed(0)) * 0.05
    cosine = draw + torch.cat([torch.full((400,), 0.6), torch.full((200,), 0.1)])
    safe = safe_pairs(cosine)
    assert safe[:400].float().mean() > 0.98 and safe[400:].sum() == 0
    assert safe_pairs(cosine, 0.999).sum() <= safe.sum()
    far = torch.cat([cosine, torch.tensor([-0.9])])
    assert not safe_pairs(far)[-1]
    with pytest.raises(UserError, match="at least 4"):
        safe_pairs(torch.zeros(3))


def test_it_trains_and_splits_and_can_be_continued(clip, pairs, tmp_path):
    training, config, epochs = Training(epochs=4, batch=64, warmup=2, every=4), SafeClip(alone=1, slow=1, share=0.2), []
    other = copy.deepcopy(clip)
    checkpoint = tmp_path / "safe.ckpt"  # of update 8, at the end
    loss, safe, history = safeclip(
        clip, pairs, config, training, checkpoint, lambda epoch, model, pools: epochs.append((epoch, model.training))
    )
    assert epochs == [(e, False) for e in range(1, 5)] and safe.shape == (206,) and 41 <= safe.sum() < 206
    assert history == [{"epoch": e, "matched": False} for e in range(1, 5)]
    assert torch.load(checkpoint, weights_only=True)["step"] == 8
    again, same, _ = safeclip(other, pairs, config, training, checkpoint)
    assert (
        again == loss
        and torch.equal(same, safe)
        and all(torch.equal(a, b) for a, b in zip(clip.parameters(), other.parameters(), strict=True))
    )


def test_what_is_refused(clip, pairs):
    for fields in ({"alone": 0}, {"slow": 0}, {"slow_lr": 0.0}, {"confidence": 1.0}, {"share": 0.0}, {"least": 2.0}):
        with pytest.raises(UserError):
            SafeClip(**fields)
    with pytest.raises(UserError, match="more than 3 epochs"):
        safeclip(clip, pairs, training=Training(epochs=3, batch=64))
