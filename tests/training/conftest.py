"""Clips that the tests of trainings share."""

import pytest

from tests.training.small import clips


@pytest.fixture(scope="package")
def data(own_cache):
    return clips()
