"""What every attack promises, for every attack and norm."""

import copy

import pytest
import torch
from torch import nn

from shared.attacks import Threat, apgd_ce, apgd_dlr, apgd_t, ascend, autoattack, fgsm, pgd, square
from shared.attacks import losses as L
from shared.rng import SampleRng
from tests.accuracy import assert_within_rounding

N = 64


def by_ascend(victim, x, y, threat, rng):
    return ascend(lambda p: L.cross_entropy(victim(p), y), x, threat, steps=3, step_size=threat.eps / 2, rng=rng)


def by_pgd(**settings):
    def attack(victim, x, y, threat, rng):
        return pgd(victim, x, y, threat, steps=3, step_size=threat.eps / 2, rng=rng, **settings)

    return attack


def cut(attack, **settings):
    return lambda victim, x, y, threat, rng: attack(victim, x, y, threat, rng=rng, **settings)


ATTACKS = {
    "ascend": by_ascend,
    "fgsm": lambda victim, x, y, threat, rng: fgsm(victim, x, y, threat),
    "pgd": by_pgd(restarts=2),
    "pgd-last": by_pgd(keep="last"),
    "pgd-cw": by_pgd(loss="cw", kappa=0.0),
    "pgd-targeted": lambda victim, x, y, threat, rng: by_pgd(targeted=(y + 1) % 10)(victim, x, y, threat, rng),
    "pgd-undropped": by_pgd(drop=False),
    "apgd-ce": cut(apgd_ce, steps=6, restarts=2),
    "apgd-dlr": cut(apgd_dlr, steps=6),
    "apgd-t": cut(apgd_t, steps=6, targets=2),
    "apgd-t-undropped": cut(apgd_t, steps=3, targets=2, drop=False),
    "square": cut(square, queries=12),
    "autoattack": cut(autoattack, steps=3, targets=2, queries=5),
}
THREATS = [Threat("linf", 8 / 255), Threat("l2", 0.5)]
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
every_norm = pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)


class Restless(nn.Module):
    """The net with parts that misbehave outside eval mode, in mixed modes, partly frozen, with a gradient waiting in a parameter."""

    def __init__(self, net):
        super().__init__()
        self.net, self.norm, self.drop = copy.deepcopy(net).double(), nn.BatchNorm2d(3).double(), nn.Dropout(0.5)
        self.train()
        self.net[1].eval()
        self.net[0].weight.requires_grad_(False)
        self.net[2].weight.grad = torch.ones_like(self.net[2].weight)

    def forward(self, x):
        return self.net(self.drop(self.norm(x.double())))

    def state(self):
        return {
            "modes": [m.training for m in self.modules()],
            "grads": [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in self.parameters()],
            "tensors": {k: v.clone() for k, v in self.state_dict().items()},
        }


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(u, v) for u, v in zip(a, b, strict=True))
    return a == b


@every_norm
@every_attack
def test_promises(net, images, attack, threat):
    victim = Restless(net)
    if attack is by_ascend:
        victim.eval()  # a loss is the caller's: so is the mode
    x, y = images[0][:N], images[1][:N]
    rng = SampleRng(5, range(N))
    x_before, state, global_state = x.clone(), victim.state(), torch.get_rng_state()
    x_adv = attack(victim, x, y, threat, rng)

    assert x_adv.shape == x.shape and x_adv.dtype == x.dtype and not x_adv.requires_grad and torch.isfinite(x_adv).all()
    assert threat.distance(x_adv, x).max() <= threat.eps + 1e-6
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert torch.equal(x, x_before) and x_adv.data_ptr() != x.data_ptr() and not x.requires_grad
    assert same(state, victim.state())
    assert torch.equal(global_state, torch.get_rng_state())
    assert (x_adv != x).flatten(1).any(dim=1).float().mean() > 0.5  # it did something

    torch.manual_seed(123)
    try:
        assert torch.equal(attack(victim, x, y, threat, rng), x_adv)  # the same again
    finally:
        torch.set_rng_state(global_state)

    for size, some in ((1, 7), (7, 21)):  # small batches are slow, and so many show it
        parts = [attack(victim, x[c], y[c], threat, rng.subset(c)) for c in torch.arange(some).split(size)]
        assert_within_rounding(torch.cat(parts), x_adv[:some], terms=10 * 3 * 12 * 12)


@every_norm
@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in ("ascend", "fgsm")])
def test_another_seed_is_another_attack(net, images, threat, name):
    x, y = images[0][:8], images[1][:8]
    one, two = (ATTACKS[name](net, x, y, threat, SampleRng(seed, range(8))) for seed in (0, 1))
    assert not torch.equal(one, two)


@every_norm
@every_attack
def test_a_victim_that_raises_gets_its_mode_back(net, images, attack, threat):
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = copy.deepcopy(net)
            self.train(attack is not by_ascend)

        def forward(self, x):
            raise RuntimeError("out of memory")

    victim = Breaks()
    before = [m.training for m in victim.modules()]
    with pytest.raises(RuntimeError, match="memory"):
        attack(victim, images[0][:2], images[1][:2], threat, SampleRng(0, range(2)))
    assert [m.training for m in victim.modules()] == before


@every_norm
@every_attack
def test_eps_zero_returns_the_images(net, images, attack, threat):
    x, y = images[0][:6], images[1][:6]
    assert torch.equal(attack(net, x, y, Threat(threat.norm, 0.0), SampleRng(0, range(6))), x)
