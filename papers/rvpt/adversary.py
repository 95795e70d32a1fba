"""Attackers of another kind: PGD on the defended model (table 12), and one who knows the defence and optimises the patch through it (ours)."""

from dataclasses import replace

import numpy as np
import torch

from papers.rvpt.cells import Cell
from papers.rvpt.models import Model
from papers.rvpt.training import badclip
from shared.attacks import Threat, check_attack, pgd
from shared.attacks.triggers import Trigger, at_test
from shared.experiment.evaluation import Values
from shared.metrics import backdoor
from shared.models.victim import Pixels
from shared.rng import SampleRng


def adversarial(m, cell: Cell) -> Values:
    """Whether the classifier is right, per picture, on the first `adversary.n` test pictures (0: all): clean, or robust, that is under PGD.

    PGD raises the cross-entropy within ε of ℓ∞ from a random start in steps of 2.5·ε/steps; the picture counts as lost where any iterate is taken for
    another class. robust has the record of the attack's sanity checks on this very model.
    """
    a, world = m.config.adversary, m.bench.world(m.config.spec(cell.at))
    world = world.part(a.n or len(world.x))
    victim, truth = m.bench.classifier(cell), world.y.cpu().numpy()
    if cell.measure == "clean":
        return Values(backdoor.clean_accuracy(_labels(m, victim, world.x), truth), "share")
    threat, rng = Threat("linf", a.eps), SampleRng(a.seed, world.indices, "adversarial")

    def attack(model, x, y, inside, *, steps, rng):
        parts = torch.arange(len(x)).split(m.config.batch)
        step = 2.5 * inside.eps / steps
        return torch.cat([pgd(model, x[rows], y[rows], inside, steps=steps, step_size=step, rng=rng.subset(rows)) for rows in parts])

    x_adv = attack(victim, world.x, world.y, threat, steps=a.steps, rng=rng)
    few = world.part(a.sanity_n)
    checks = check_attack(victim, few.x, few.y, threat, attack, rng=SampleRng(a.seed, few.indices, "sanity"), steps=a.steps, images=len(few.x))
    return Values(backdoor.clean_accuracy(_labels(m, victim, x_adv), truth), "share", sanity=checks)


def adaptive(m, cell: Cell) -> Values:
    """BadCLIP's patch on the test pictures of the cell's set: asr over those of other classes, ta (right in spite of the patch) over all.

    The point's `against`: planted, the patch that the CLIP was poisoned with; knowing, a patch optimised as that one, but through the very model that
    the user has, defence included (its text tower is the CLIP's own): the attacker knows everything and can no longer change the weights. On a CLIP
    that nobody poisoned this patch is an adversarial example and nothing else: the control. extra of knowing: the patch.
    """
    label = m.bench.label(cell.place, cell.at)
    world = m.bench.world(m.config.spec(cell.at))
    against = dict(cell.point)["against"]
    name = ("adaptive", cell.poison, cell.defence, against)
    if name not in m.held:
        trigger = m.bench.trigger(cell.attack, cell.backbone) if against == "planted" else known_patch(m, cell)
        x = at_test(trigger, world.x, world.indices)
        m.held[name] = _labels(m, m.bench.classifier(cell, trigger), x), trigger
    said, trigger = m.held[name]
    truth = world.y.cpu().numpy()
    values = backdoor.asr(said, truth, label) if cell.measure == "asr" else backdoor.triggered_accuracy(said, truth)
    return Values(values, "share", {"patch": trigger.pixels.numpy()} if against == "knowing" else {})


def known_patch(m, cell: Cell) -> Trigger:
    """A patch towards the target of the main set, optimised through the cell's model with `adversary.patch`; the side of the planted patch, so that
    the two can be compared, where none is given."""
    config, model = m.config, m.bench.of(cell)
    planted = m.bench.trigger(cell.attack, cell.backbone)
    patch = config.adversary.patch
    if patch.patch is None:
        patch = replace(patch, patch=planted.pixels.shape[-1])
    return badclip(m.bench, model, patch, through=through(model, m.bench.device), seed=config.adversary.seed, preset=planted.preset)


def through(model: Model, device):
    """pixels -> embeddings of a model as it is used, prompts included."""
    pixels = Pixels.of(model.visual).to(device)
    return lambda x: model.visual(pixels(x))


@torch.no_grad()
def _labels(m, classifier, x: torch.Tensor) -> np.ndarray:
    return np.concatenate([classifier(part).argmax(1).cpu().numpy() for part in x.split(m.config.batch)])
