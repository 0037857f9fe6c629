"""Contract checks for the tests of plugin authors: one call checks a component as built-in ones are checked.

    from sslkit.testing import check_method

    def test_contract():
        check_method(MyMethod, temperature=0.2)

Each takes the component and its options, runs it on a few small images on the CPU, and raises AssertionError
with a sentence that says what the contract wants. None draws from or changes torch's global random numbers
for the caller. Beside the checks stand what tests of methods need: `check_precision` of a loss, `steps_on` a batch,
`in_two_processes`.

`contract.py` holds what every check begins with, `examples.py` what components are tried on; then a file a kind.
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
