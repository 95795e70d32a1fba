"""Settings are chosen by the experiment: the best of a declared grid by a declared rule, as a step like any other.

    k* = argmax_k  1/n Σ_i score(candidate k, example i),      the earlier one where several are best

So the grid, the rule, every score and the outcome have keys, and are drawn. Two things are up to the paper: the grid
holds the setting of the paper itself, with as many candidates for every method; and the rule reads validation examples
that the method may see.

What is trained over several seeds is chosen on one of them: steps hold the choice in place of a setting, so other seeds
train only what it has settled on.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from shared.experiment.step import Lab, Measured, Tensors, Trained, Values, content, free
from shared.experiment.store import slug


class Rule(Protocol):
    """What a candidate is judged by, a dataclass; its docstring says why the method may know it."""

    def score(self, lab: Lab, candidate: object) -> Tensor:
        """One number per validation example (n,), larger is better; the same examples for every candidate."""


@dataclass(frozen=True)
class Choice(Trained):
    """See the module docstring. candidates: steps, which are then made first, or settings (numbers, dataclasses)."""

    candidates: tuple[object, ...]
    rule: Rule
    title: str = free("")

    @property
    def name(self) -> str:
        return slug("choice", *filter(None, [self.title]))

    def make(self, lab: Lab) -> tuple[Tensors, dict[str, str]]:
        scores = torch.stack([self.rule.score(lab, candidate).double().cpu() for candidate in self.candidates])
        means = scores.mean(1).tolist()
        return {"scores": scores}, {"chosen": str(means.index(max(means)))}

    def place(self, lab: Lab) -> int:
        """Which one it is, from 0, once it is made."""
        return int(lab.facts(self)["chosen"])

    def settle(self, lab: Lab) -> object:
        """The chosen candidate, once it is made."""
        return self.candidates[self.place(lab)]


def settled(lab: Lab, setting: object) -> object:
    """A setting; one that holds a choice, or anything else that only a Lab can tell, as it has settled."""
    return setting.settle(lab) if hasattr(setting, "settle") else setting


@dataclass(frozen=True)
class Settings:
    """A leaf, the field `tuning` of a step: options that are given, or those of the step that a choice has settled on.

    It is known by the options alone, so that what a candidate has trained is not trained again. changes: (field,
    value) of options that differ from what was chosen.
    """

    given: object = None
    choice: Choice | None = None
    changes: tuple[tuple[str, float], ...] = ()

    def identity(self, lab: Lab) -> object:
        """The options."""
        return content(self.open(lab), lab)

    def open(self, lab: Lab) -> object:
        """The options, once the choice is made."""
        options = self.given if self.choice is None else self.choice.settle(lab).tuning.open(lab)
        return replace(options, **dict(self.changes))


@dataclass(frozen=True)
class CandidateScore(Measured):
    """The scores of one candidate, or (`chosen`) whether it was taken."""

    choice: Choice
    candidate: int
    unit: str
    chosen: bool = False

    def make(self, lab: Lab) -> Values:
        if self.chosen:
            return Values(torch.tensor([float(self.choice.place(lab) == self.candidate)]).numpy(), "yes or no")
        return Values(lab.weights(self.choice)["scores"][self.candidate].numpy(), self.unit)
