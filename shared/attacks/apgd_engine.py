"""The engine of `apgd`: many runs (a sample with one target, or one restart) streamed through a batch of limited size.

A run leaves at its first success and takes the sample's later runs with it; the freed rows take up waiting runs, so the
batch stays full while samples break. The success of a sample's earliest run wins, hence the result is that of running
one after another, whatever the batch. The update rule is in `shared.attacks.apgd`.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from shared.attacks.goal import Goal, check_batch, check_rng
from shared.attacks.reach import has_score, reach, score
from shared.attacks.threat import Threat, per_sample
from shared.errors import UserError
from shared.options import Count, Positive, Share, bounded
from shared.repeat import EARLY, joined, most
from shared.rng import SampleRng

MOMENTUM = 0.75  # a of the update rule
WINDOW = 5  # points whose gradients say together whether a run may be given up
NEVER = 1 << 30  # the rank of a success that has not happened

Rows = dict[str, Tensor]  # the runs under way, one entry per row in every tensor


def checkpoint_windows(steps: int) -> list[int]:
    """For k = 0 … steps: the number of steps since the previous checkpoint if k is one, else 0."""
    windows = [0] * (steps + 1)
    gap, smallest, shrink = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    at = gap
    while at <= steps:
        windows[at] = gap
        gap = max(gap - shrink, smallest)
        at += gap
    return windows


class Runs:
    """All runs of one attack on one batch. Make it, look at `clean`, then call `ascend` once."""

    @bounded
    def __init__(
        self,
        victim: nn.Module,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        *,
        rng: SampleRng,
        steps: Count = 100,
        eot_iter: Count = 1,
        first_step: Positive = 2.0,
        rho: Share = 0.75,
        batch_size: Count | None = None,
        drop: bool = True,
        give_up: Positive | None = 7.0,
        start: Tensor | None = None,
        autocast: str | None = None,
    ):
        """start: where every run of a sample begins, a point of B(x) shaped as x (default: random points). autocast:
        see `input_gradient`."""
        check_batch(x, y)
        check_rng(x, rng)
        self.victim, self.x, self.y, self.threat, self.rng = victim, x.detach(), y, threat, rng
        self.start, self.autocast = start, autocast
        self.steps, self.eot_iter, self.rho, self.drop = steps, eot_iter, rho, drop
        self.first_step = first_step * threat.eps
        self.limit = max(len(x), 1) if batch_size is None else batch_size
        windows = checkpoint_windows(steps)
        self.windows = torch.tensor(windows, device=x.device)
        self.give_up = give_up if drop else None
        self.patience = max(next(k for k, window in enumerate(windows) if window), WINDOW - 1)
        self.x_adv = self.x.clone()
        self.won = torch.full_like(y, NEVER)  # rank of the run whose success is in x_adv; −1: x itself
        self.loss = torch.full(y.shape, -torch.inf, device=x.device)  # of x_adv, while no run has succeeded
        self.rank = torch.full_like(y, NEVER)  # of the run that gave that x_adv

    def clean(self) -> Tensor:
        """The victim's logits on the clean images, (N, K). With `drop`, images it gets wrong need no run."""
        goal = Goal(self.victim, "margin", eot_iter=self.eot_iter)
        logits = joined(goal.logits, self.x.split(self.limit))
        if logits.shape[1] < 2:
            raise UserError("the victim has one class: there is nothing to attack.")
        goal.hold(logits, self.y)
        if self.drop:
            self.won[goal.done(logits, self.y)] = -1
        return logits

    def ascend(self, loss: str | Callable, ranks: int, *more: Tensor) -> Tensor:
        """Raise `loss` in `ranks` runs per sample; `more` are its further arguments, (ranks, N) each. Returns x_adv."""
        goal = Goal(self.victim, loss, eot_iter=self.eot_iter, autocast=self.autocast)
        open_samples = (self.won > -1).nonzero().flatten().tolist()
        queue = [(rank, sample) for rank in range(ranks) for sample in open_samples][::-1]
        rows: Rows | None = None
        project = None
        passes = math.ceil(len(queue) / self.limit) * (self.steps + 1)
        for _ in most(passes, EARLY if self.drop else 1.0):
            changed = False
            if fresh := self._admit(queue, self.limit - (len(rows["k"]) if rows else 0)):
                rows = {name: torch.cat([rows[name], fresh[name]]) for name in rows} if rows else fresh
                changed = True
            if not rows:
                break
            extra = [part[rows["rank"], rows["sample"]] for part in more]
            rows["loss"], done, rows["grad"] = goal.gradient(rows["x_adv"], self.y[rows["sample"]], *extra)
            self._remember_best(rows)
            leave = self._settle(rows, done, self._hopeless(rows, loss))
            if leave.any():
                stay = (~leave).nonzero().flatten()
                rows = {name: value[stay] for name, value in rows.items()} if len(stay) else None
                changed = True
            if rows:
                project = self.threat.projector(rows["x"]) if changed else project
                self._check(rows)
                self._step(rows, project)
        return self.x_adv

    def _admit(self, queue: list[tuple[int, int]], free: int) -> Rows | None:
        """Rows for the next runs in the queue that still matter; None if there are none, or too few free rows to be
        worth it."""
        if not queue or free < max(1, self.limit // 8):
            return None
        won, taken = self.won.tolist(), []
        while queue and len(taken) < free:
            rank, sample = queue.pop()
            if won[sample] > rank:
                taken.append((rank, sample))
        if not taken:
            return None
        rank, sample = torch.tensor(taken, device=self.x.device).T
        starts = [  # the queue is in the order of ranks, so the parts line up with `taken`
            self.threat.random_start(self.x[part], self.rng.child(f"run{r}").subset(part))
            if self.start is None
            else self.start[part].detach()
            for r in sorted({r for r, _ in taken})
            for part in [torch.tensor([s for k, s in taken if k == r], device=self.x.device)]
        ]
        x, x_adv, zero = self.x[sample], torch.cat(starts), torch.zeros(len(taken), device=self.x.device)
        return {
            "sample": sample, "rank": rank, "k": torch.zeros_like(rank), "x": x, "x_adv": x_adv, "previous": x_adv,
            "grad": x_adv, "best_x": x_adv, "best_grad": x_adv, "loss": zero, "best": zero - torch.inf, "last": zero + torch.inf,
            "rises": zero, "step": zero + self.first_step, "halved": zero == 0, "best_at_check": zero - torch.inf,
            "promise": zero + torch.inf, "trusted": zero == 0, "gains": zero[:, None].expand(-1, WINDOW),
        }  # fmt: skip

    def _remember_best(self, rows: Rows) -> None:
        better = rows["loss"] > rows["best"]
        mask = per_sample(better, rows["x"])
        rows["best"] = torch.where(better, rows["loss"], rows["best"])
        rows["best_x"] = torch.where(mask, rows["x_adv"], rows["best_x"])
        rows["best_grad"] = torch.where(mask, rows["grad"], rows["best_grad"])

    def _hopeless(self, rows: Rows, loss: object) -> Tensor:
        """Runs that may be given up (see `shared.attacks.reach`), (R,) bool."""
        if self.give_up is None or not has_score(loss):
            return torch.zeros_like(rows["trusted"])
        best, gain = score(loss, rows["best"], rows["loss"], reach(self.threat, rows["x"], rows["x_adv"], rows["grad"]))
        rows["gains"] = torch.cat((gain[:, None], rows["gains"][:, :-1]), dim=1)
        promise = best + self.give_up * rows["gains"].sum(dim=1) / (rows["k"] + 1).clamp(max=WINDOW)
        late = rows["k"] >= self.patience
        rows["promise"] = torch.where(late | (rows["k"] == 0), torch.fmin(rows["promise"], promise), rows["promise"])
        rows["trusted"] = rows["trusted"] & ~(best > rows["promise"])
        return rows["trusted"] & late & (promise < 0)

    def _settle(self, rows: Rows, done: Tensor, hopeless: Tensor) -> Tensor:
        """Write down the results of the runs that end here; returns which rows leave, (R,) bool."""
        sample, rank, ended = rows["sample"], rows["rank"], (rows["k"] == self.steps) | hopeless
        if self.drop:
            if done.any():
                self.won.scatter_reduce_(0, sample[done], rank[done], "amin")
                winner = done & (rank == self.won[sample])
                self.x_adv[sample[winner]] = rows["x_adv"][winner]
            lost = rank >= self.won[sample]  # succeeded, or another run of the sample of lower rank did
            candidates = ended & ~lost & (self.won[sample] == NEVER)
        else:
            lost, candidates = torch.zeros_like(done), ended
        if candidates.any():
            for r in rank[candidates].unique():  # one rank at a time: a sample may end two runs in one step
                at = (candidates & (rank == r)).nonzero().flatten()
                old, new, who = self.loss[sample[at]], rows["best"][at], sample[at]
                at, who = (part[(new > old) | ((new == old) & (r < self.rank[who]))] for part in (at, who))
                self.x_adv[who], self.loss[who], self.rank[who] = rows["best_x"][at], rows["best"][at], r
        return lost | ended

    def _check(self, rows: Rows) -> None:
        """At checkpoints: halve the step of the runs that are stuck and take them back to their best point."""
        rows["rises"] = rows["rises"] + (rows["loss"] > rows["last"])
        rows["last"] = rows["loss"]
        window = self.windows[rows["k"]]
        check = window > 0
        if not check.any():
            return
        stuck = check & (
            (rows["rises"] <= self.rho * window) | (~rows["halved"] & (rows["best"] <= rows["best_at_check"]))
        )
        mask = per_sample(stuck, rows["x"])
        rows["step"] = torch.where(stuck, rows["step"] / 2, rows["step"])
        rows["x_adv"] = torch.where(mask, rows["best_x"], rows["x_adv"])
        rows["grad"] = torch.where(mask, rows["best_grad"], rows["grad"])
        rows["halved"] = torch.where(check, stuck, rows["halved"])
        rows["best_at_check"] = torch.where(check, rows["best"], rows["best_at_check"])
        rows["rises"] = rows["rises"].masked_fill(check, 0)

    def _step(self, rows: Rows, project: Callable[[Tensor], Tensor]) -> None:
        x_adv = rows["x_adv"]
        a = per_sample(torch.where(rows["k"] == 0, 1.0, MOMENTUM), x_adv)
        new = project(self.threat.direction(rows["grad"]).mul_(per_sample(rows["step"], x_adv)).add_(x_adv))
        new = new.sub_(x_adv).mul_(a).add_(x_adv).add_((1 - a) * (x_adv - rows["previous"]))
        rows["previous"], rows["x_adv"], rows["k"] = x_adv, project(new), rows["k"] + 1
