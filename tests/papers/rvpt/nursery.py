"""CLIPs and triggers for tests of steps, in the place of what is trained."""

from dataclasses import dataclass

from torch import Tensor, nn

from papers.rvpt.defences import Model
from papers.rvpt.method import DeepPrompts
from shared.attacks.triggers import Trigger


@dataclass(frozen=True)
class Given:
    """A CLIP in the place of a poisoned one; prompts: of a seed, random ones, in the place of a defended one."""

    clip: nn.Module
    prompts: int | None = None
    name: str = "given"

    def open(self, lab) -> nn.Module:
        return self.clip.requires_grad_(False).eval()

    def model(self, lab) -> Model:
        clip = self.open(lab)
        visual = (
            clip.visual
            if self.prompts is None
            else DeepPrompts(clip.visual, 1, 3, std=1.0, seed=self.prompts).requires_grad_(False)
        )
        return Model(clip, visual)


@dataclass(frozen=True)
class Stamped:
    """A trigger in the place of one that is known by its numbers."""

    trigger: Trigger
    attack: str = "given"
    preset: str = "cleanclip"
    like: str = "scenes:colour"
    patch: Tensor | None = None

    def open(self, lab) -> Trigger:
        return self.trigger
