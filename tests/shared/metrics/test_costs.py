"""What an update costs, on updates whose cost is known."""

import pytest
import torch
import torch.nn.functional as F

from shared.metrics.costs import activation_megabytes


def test_memory_is_counted_once_per_storage_and_forgotten_after_the_backward_pass():
    def two_updates(steps: int, after: object) -> None:
        for _ in range(2):
            x = torch.ones(1_000_000, requires_grad=True)  # 4 MB
            y = x.view(1000, 1000)
            z = (y * y).sum() + F.relu(
                x
            ).sum()  # x kept three times in one storage; relu keeps its result, another 4 MB
            z.backward()

    assert activation_megabytes(two_updates, torch.device("cpu"))[0] == pytest.approx(8.0, rel=0.01)
