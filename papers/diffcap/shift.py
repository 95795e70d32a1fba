"""τ away from where it was calibrated: handwritten digits (scikit-learn's), classified by a linear probe on the victim's embeddings."""

import torch
from torch import Tensor, nn

from papers.diffcap.cells import Cell
from papers.diffcap.method import calibrate_tau
from shared.attacks import Threat, pgd
from shared.data.base import subset
from shared.experiment.evaluation import Values
from shared.rng import SampleRng

SET = "digits:all"


class Probe(nn.Module):
    """Multinomial logistic regression on the embeddings of a tower: x (N, 3, H, W) in [0, 1] -> logits (N, 10)."""

    def __init__(self, embed, weight: Tensor, bias: Tensor):
        super().__init__()
        self.embed = embed
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x) @ self.weight.T + self.bias


def probe(m) -> Probe:
    """The probe, fitted on the training split."""
    from sklearn.linear_model import LogisticRegression

    if "probe" not in m.held:
        data = m.bench.labelled(SET, "train")
        embed = m.bench.classifier(m.config.data.classes[0]).embed
        x, y = data.__getitems__(list(range(len(data))))
        with torch.no_grad():
            features = torch.cat([embed(part.to(m.bench.device)) for part in x.split(256)]).cpu()
        mean, scale = features.mean(dim=0), features.std(dim=0).clamp_min(1e-6)
        fitted = LogisticRegression(max_iter=1000).fit(((features - mean) / scale).numpy(), y.numpy())
        weight = torch.tensor(fitted.coef_, dtype=torch.float32) / scale
        bias = torch.tensor(fitted.intercept_, dtype=torch.float32) - weight @ mean
        m.held["probe"] = Probe(embed, weight, bias).to(m.bench.device).eval()
    return m.held["probe"]


def _pictures(m, cell: Cell) -> tuple[Tensor, Tensor, list[int]]:
    """Test digits as the cell wants them, with labels and indices."""
    data = m.bench.labelled(SET)
    indices = subset(data, m.config.sweeps.digits_n, 0)
    x, y = (part.to(m.bench.device) for part in data.__getitems__(indices))
    if cell.eps == 0:
        return x, y, indices
    if ("digits", cell.eps) not in m.held:
        rng = SampleRng(m.config.attack.seed, indices, "digits")
        m.held["digits", cell.eps] = pgd(probe(m), x, y, Threat("linf", cell.eps), steps=m.config.attack.steps,
                                         step_size=2.5 * cell.eps / m.config.attack.steps, rng=rng)
    return m.held["digits", cell.eps], y, indices


def digits_pairs(m) -> tuple[Tensor, Tensor]:
    """Clean and adversarial digits of the training split, made as the other calibration pairs are."""
    from papers.diffcap.kinds import away

    if "digits pairs" not in m.held:
        c, data = m.config.method, m.bench.labelled(SET, "train")
        indices = subset(data, min(c.calibration_n, len(data)), 0)
        x = data.__getitems__(indices)[0].to(m.bench.device)
        embed = m.bench.classifier(m.config.data.classes[0]).embed
        rng = SampleRng(m.config.attack.seed, indices, "calibration")
        m.held["digits pairs"] = x, away(embed, x, c.calibration_eps, c.calibration_steps, rng, m.config.attack.batch)
    return m.held["digits pairs"]


def _diffcap(m, cell: Cell):
    """DiffCAP with the τ of the six sets, or with that of digits."""
    own = cell.method == "diffcap_own"
    tau = calibrate_tau({SET: digits_pairs(m)}, m.bench.diffcap(0.0), batch=m.config.method.batch).tau if own else m.tau
    return m.bench.diffcap(tau)


def digits(m, cell: Cell) -> Values:
    """Whether the probe is right behind no defence, DiffPure, DiffCAP as calibrated, or DiffCAP calibrated on digits."""
    from papers.diffcap.kinds import purified

    x, y, indices = _pictures(m, cell)
    defence = {"none": lambda: None, "diffpure": m.bench.diffpure}.get(cell.method, lambda: _diffcap(m, cell))()
    x = x if defence is None else purified(m, cell, x, indices, defence)
    with torch.no_grad():
        return Values((probe(m)(x).argmax(1) == y).double().cpu().numpy(), "share")


def digits_stop(m, cell: Cell) -> Values:
    """t* on digits, in steps."""
    from papers.diffcap.kinds import STREAM

    x, _, indices = _pictures(m, cell)
    return Values(_diffcap(m, cell).stop_times(x, SampleRng(cell.seed, indices, STREAM)).t.cpu().numpy(), "steps")
