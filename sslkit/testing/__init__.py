"""Contract checks for the tests of plugin authors: one call checks a component like the built-in ones.

    from sslkit.testing import check_method

    def test_contract():
        check_method(MyMethod, temperature=0.2)

Each takes the component and its options, runs it on a few small images on the CPU, and raises AssertionError
with a sentence that states what the contract requires. None draws from or changes torch's global random state
of the caller. Besides the checks there are helpers for tests of methods: `check_precision` of a loss, `steps_on` a
batch, `in_two_processes`.

`contract.py` holds helpers of all checks, `examples.py` example components and images; then one file per kind.
"""

from sslkit.testing.augmentations import check_augmentation
from sslkit.testing.backbones import check_backbone
from sslkit.testing.datasets import check_dataset
from sslkit.testing.evaluators import check_evaluator
from sslkit.testing.examples import TinyBackbone
from sslkit.testing.losses import check_precision
from sslkit.testing.methods import check_method
from sslkit.testing.processes import in_two_processes
from sslkit.testing.training import steps_on

__all__ = [
    "TinyBackbone",
    "check_augmentation",
    "check_backbone",
    "check_dataset",
    "check_evaluator",
    "check_method",
    "check_precision",
    "in_two_processes",
    "steps_on",
]
