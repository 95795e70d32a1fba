from functools import partial

import pytest


@pytest.fixture(scope="session")
def script(run_here):
    return partial(run_here, "distshift")


@pytest.fixture(scope="session")
def measured(contents):
    return partial(contents, "distshift")
