"""How each kind of measurement is made: one function per kind, (measurer, cell) -> Values. Those that need more room have files of their own."""

import numpy as np
import torch
from torch import Tensor, nn

from papers.rvpt.adversary import adaptive, adversarial
from papers.rvpt.cells import Cell
from papers.rvpt.costs import cost
from papers.rvpt.downstream import caption, retrieval
from papers.rvpt.pictures import attention, embedding, perturbed, resistivity, triggers
from shared.experiment.evaluation import Values
from shared.metrics import backdoor


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, batch: int) -> np.ndarray:
    """(N,) the labels that a classifier gives to pictures."""
    return np.concatenate([model(part).argmax(1).cpu().numpy() for part in x.split(batch)])


def score(m, cell: Cell) -> Values:
    """Accuracy on clean pictures (ca), success on triggered ones (asr, asr_all), accuracy on triggered ones (ta)."""
    world, bench = m.bench.world(m.config.spec(cell.at)), m.bench
    truth, label = world.y.cpu().numpy(), bench.label(cell.place, cell.at)
    sanity = None if cell.measure == "ca" else m.sanity(cell)
    if cell.measure == "ca":
        said = _said(m, cell, "clean", lambda: predict(bench.classifier(cell), world.x, m.config.batch))
        return Values(backdoor.clean_accuracy(said, truth), "share")
    trigger = bench.trigger(cell.attack, cell.backbone)
    said = _said(m, cell, "triggered", lambda: predict(bench.classifier(cell, trigger), bench.triggered(cell), m.config.batch))
    values = {"asr": lambda: backdoor.asr(said, truth, label), "asr_all": lambda: backdoor.asr_all(said, label),
              "ta": lambda: backdoor.triggered_accuracy(said, truth)}[cell.measure]()
    return Values(values, "share", sanity=sanity)


def _said(m, cell: Cell, what: str, make) -> np.ndarray:
    """Predictions that several measures of a cell share; only the latest are kept."""
    name = ("said", cell.poison, cell.defence, cell.method, cell.attack if what == "triggered" else "", cell.at, what)
    if name not in m.held:
        for old in [k for k in m.held if k[0] == "said" and k[1] != cell.poison]:
            del m.held[old]
        m.held[name] = make()
    return m.held[name]


KINDS = {"score": score, "cross": score, "emerging": score, "shifted": score, "tuning": score, "hand": score, "sweep": score, "caption": caption,
         "retrieval": retrieval, "cost": cost, "adversarial": adversarial, "adaptive": adaptive, "resistivity": resistivity,
         "attention": attention, "embedding": embedding, "perturbed": perturbed, "triggers": triggers}
