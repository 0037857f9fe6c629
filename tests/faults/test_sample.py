"""A small sample of the trials; `python -m faults` runs any number of others."""

import pytest

from faults.trials import one


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.mark.parametrize("seed", range(8))
def test_a_fault_loses_and_hides_nothing(seed, folder):
    one(folder, seed)
