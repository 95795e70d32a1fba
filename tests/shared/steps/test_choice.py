"""A choice takes the candidate that its rule scores highest, once, for all who hold it; its scores are measurements."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from shared.data.catalogue import Source
from shared.errors import UserError
from shared.experiment.lab import Lab
from shared.experiment.step import Trained
from shared.steps.choice import CandidateScore, Choice, Settings


@dataclass(frozen=True)
class Setting:
    value: float


@dataclass(frozen=True)
class Fitted(Trained):
    setting: Setting | Choice
    seed: int

    def make(self, lab):
        setting = self.setting.settle(lab).setting if isinstance(self.setting, Choice) else self.setting
        return {"w": torch.tensor([setting.value + self.seed])}


@dataclass(frozen=True)
class Near:
    """Near 2, example by example."""

    offsets: tuple[float, ...] = (0.0, 0.1)

    def score(self, lab, candidate):
        value = lab.weights(candidate)["w"] if isinstance(candidate, Trained) else torch.tensor([candidate.value])
        return -(value + torch.tensor(self.offsets) - 2).abs()


@pytest.fixture
def lab(tmp_path):
    alone = SimpleNamespace(
        device=torch.device("cpu"), num_processes=1, is_main_process=True, wait_for_everyone=lambda: None
    )
    return Lab(tmp_path, Source(), alone, room=1 << 20)


def test_the_best_candidate_is_taken_and_the_earlier_of_equals(lab):
    choice = Choice(tuple(map(Setting, (5.0, 1.9, 1.9, 3.0))), Near(), "value")
    lab.make([choice])
    assert choice.place(lab) == 1 and choice.settle(lab) == Setting(1.9)
    scores = [CandidateScore(choice, k, "score").make(lab).values for k in range(4)]
    torch.testing.assert_close(torch.tensor(scores[3], dtype=torch.float32), torch.tensor([-1.0, -1.1]))
    taken = [CandidateScore(choice, k, "score", chosen=True).make(lab).values.item() for k in range(4)]
    assert taken == [0, 1, 0, 0]


def test_candidates_are_trained_and_other_seeds_train_only_what_was_chosen(lab):
    choice = Choice(tuple(Fitted(Setting(v), seed=0) for v in (0.0, 2.0, 4.0)), Near(), "fits")
    lab.make([Fitted(choice, seed=7)])
    assert len(list((lab.root / "checkpoints").glob("fitted-*.safetensors"))) == 4
    assert lab.weights(Fitted(choice, seed=7))["w"].item() == 9


def test_the_grid_and_the_rule_and_what_was_chosen_are_part_of_the_key(lab):
    grid = tuple(map(Setting, (1.0, 2.0)))
    choices = Choice(grid, Near()), Choice(grid[::-1], Near()), Choice(grid, Near((0.0,)))
    lab.make(choices)
    assert len({lab.key(Fitted(choice, seed=0)) for choice in choices}) == 3
    assert lab.key(Choice(grid, Near(), "another title")) == lab.key(choices[0])


def test_a_score_that_is_no_number_is_refused(lab):
    with pytest.raises(UserError, match="NaN or an infinite number"):
        lab.make([Choice((Setting(float("nan")), Setting(1.0)), Near())])


@dataclass(frozen=True)
class Tuned(Trained):
    tuning: Settings
    seed: int

    def make(self, lab):
        return {"w": torch.tensor([self.tuning.open(lab).value + self.seed])}


def test_what_a_candidate_has_trained_is_not_trained_again(lab):
    choice = Choice(tuple(Tuned(Settings(Setting(v)), 0) for v in (5.0, 1.9)), Near(), "value")
    lab.make([choice])
    taken, other = Tuned(Settings(choice=choice), 0), Tuned(Settings(choice=choice), 1)
    assert lab.is_made(taken) and lab.weights(taken)["w"].item() == pytest.approx(1.9)
    assert not lab.is_made(other) and lab.key(other) == lab.key(Tuned(Settings(Setting(1.9)), 1))
    changed = Tuned(Settings(choice=choice, changes=(("value", 5.0),)), 0)
    assert lab.is_made(changed) and Settings(choice=choice).open(lab) == Setting(1.9)
