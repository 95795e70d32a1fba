"""What all tests of the judge have."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def users_folder():
    """Where `mine` is, as the folder that a command is started in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        yield
