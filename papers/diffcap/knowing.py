"""Attackers who know the defence: on the classifier, and on a captioner. Each attack is made once and judged in several ways.

    control        nobody attacks: what repeated purification costs by itself
    transfer       the undefended model is attacked (the paper's gray box)
    bpda, bpda_eot identity for the defence's derivative, one draw, or the mean of the logits over some (the paper's adaptive test)
    exact          through noising, stop and reverse process, loss averaged over draws of the noise; the stop index straight through
    early_stop     the same plus a term that raises consecutive similarities, so that the loop ends early (DiffCAP only)
    from_diffpure  what `exact` found against DiffPure, shown to DiffCAP

judged by: one purification, the mean over N, the worst of N (the attacker may submit N times), the majority of N.
"""

import numpy as np
import torch

from papers.diffcap.cells import Cell
from shared.attacks import Threat
from shared.attacks.adaptive import AdaptiveAttack, DefendedVLM, majority, predict, resubmit, summaries
from shared.attacks.language import nll_attack
from shared.attacks.sanity_random import check_adaptive
from shared.experiment.evaluation import Values
from shared.rng import SampleRng

SANITY = 4  # pictures of the checks of the exact attack


def attack_of(m, name: str) -> AdaptiveAttack:
    """The attack by that name at the preset's budget: PGD with step 2.5·ε/steps."""
    a = m.config.adaptive
    return {"transfer": AdaptiveAttack("none", optimiser="pgd", steps=a.steps),
            "bpda": AdaptiveAttack("bpda", optimiser="pgd", steps=a.steps),
            "bpda_eot": AdaptiveAttack("bpda", draws=a.eot, average="logits", optimiser="pgd", steps=a.steps),
            "exact": AdaptiveAttack("exact", draws=a.eot, optimiser="pgd", steps=a.steps)}[name]


def adaptive(m, cell: Cell) -> Values:
    """Whether the classifier is right, per picture, under one attack and one way of judging."""
    point = dict(cell.point)
    against, judged = point["against"], point["judged"]
    world = m.bench.world(cell.spec, "classes").part(m.config.adaptive.n)
    labels, sanity = _labels(m, cell, against, world)
    if judged == "majority":
        values = majority(labels, world.y)
    else:
        values = summaries(labels == world.y[:, None])[judged]
    return Values(values.double().cpu().numpy(), "share", sanity=sanity)


def _defence(m, method: str):
    return m.bench.diffpure() if method == "diffpure" else m.bench.diffcap(m.tau)


def _labels(m, cell: Cell, against: str, world):
    """((N, draws) predicted labels after repeated purification of the attacked pictures, sanity record)."""
    if ("labels", cell.method, against) not in m.held:
        x_adv, sanity = _pictures(m, cell, against, world)
        rng = SampleRng(cell.seed, world.indices, "judging")
        says = predict(m.bench.classifier(cell.spec))
        labels = resubmit(says, _defence(m, cell.method), x_adv, rng, m.config.adaptive.draws, m.config.method.batch)
        m.held["labels", cell.method, against] = labels, sanity
    return m.held["labels", cell.method, against]


def _pictures(m, cell: Cell, against: str, world):
    if against == "control":
        return world.x, None
    method = "diffpure" if against == "from_diffpure" else cell.method
    name = {"from_diffpure": "exact", "early_stop": "exact"}.get(against, against)
    defence, attack, victim = _defence(m, method), attack_of(m, name), m.bench.classifier(cell.spec)
    if ("pictures", method, against) not in m.held:
        rng, noise = SampleRng(m.config.attack.seed, world.indices, "adaptive"), SampleRng(cell.seed, world.indices, "known")
        threat, batch = Threat("linf", cell.eps), max(1, m.config.method.batch // m.config.adaptive.eot)
        extra = None
        if against == "early_stop":
            def extra(x, streams):
                return m.config.adaptive.weight * defence.early_stop_loss(x, streams)

        x_adv = attack(victim, defence, world.x, world.y, threat, rng=rng, defence_rng=noise, batch=batch, extra=extra)
        sanity = None
        if against == "exact":
            sanity = check_adaptive(victim, defence, world.x, world.y, threat, attack, rng=rng, defence_rng=noise, n=4, images=SANITY, batch=batch)
        m.held["pictures", method, against] = x_adv, sanity
    return m.held["pictures", method, against]


def adaptive_caption(m, cell: Cell) -> Values:
    """CIDEr of the captioner's answers, per picture: mean or worst over repeated purifications of attacked pictures."""
    point = dict(cell.point)
    against, world = point["against"], m.bench.world(cell.spec, "captions").part(m.config.adaptive.caption_n)
    if ("captions", cell.method, against) not in m.held:
        vlm, defence = m.bench.vlm(cell.model), _defence(m, cell.method)
        x_adv = _caption_pictures(m, cell, against, world, vlm, defence)

        def cider(images, rows):
            answers = vlm.answer(images, [world.prompts[i] for i in rows.tolist()], max_tokens=world.max_tokens)
            return torch.as_tensor(world.scores(answers, rows.tolist()))

        rng = SampleRng(cell.seed, world.indices, "judging")
        m.held["captions", cell.method, against] = resubmit(cider, defence, x_adv, rng, m.config.adaptive.draws, m.config.method.batch)
    values = summaries(m.held["captions", cell.method, against])[point["judged"]]
    return Values(np.asarray(values.cpu(), np.float64), world.unit)


def _caption_pictures(m, cell: Cell, against: str, world, vlm, defence):
    """Attacked pictures: APGD raises the NLL of the first reference."""
    a = m.config.adaptive
    if against == "control":
        return world.x
    rng, noise = SampleRng(m.config.attack.seed, world.indices, "adaptive"), SampleRng(cell.seed, world.indices, "known")
    victim = vlm if against == "transfer" else DefendedVLM(vlm, defence, noise, gradient="bpda" if against == "bpda_eot" else "exact", draws=a.eot)
    return nll_attack(victim, world.x, world.prompts, [texts[0] for texts in world.truths], Threat("linf", cell.eps), rng=rng, steps=a.steps)
