"""Helpers of all checks: `expect`, validation of settings and their help texts, seeded random numbers."""

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sslkit.config.base import Config
from sslkit.config.components import config_class


def expect(condition: bool, contract: str) -> None:
    """Raise AssertionError with the sentence `contract` unless the condition holds."""
    if not condition:
        raise AssertionError(contract)


def checked_settings(component: Any, options: dict[str, Any]) -> Any:
    """Return the component's validated settings, after checking that each of them has a help text."""
    name = component.__name__
    expect(
        bool(inspect.getdoc(component)),
        f"{name} needs a docstring: its first line is what `sslkit list` prints",
    )
    cls = getattr(component, "Config", None)
    proper = isinstance(cls, type) and issubclass(cls, Config)
    expect(proper, f"{name}.Config must be a subclass of sslkit.Config")
    undocumented = [field for field, info in config_class(component).model_fields.items() if not info.description]
    expect(
        not undocumented,
        f"{name}.Config: write a string under {', '.join(undocumented)}; it is the help that users see",
    )
    config = config_class(component).model_validate(options)
    plain = json.loads(json.dumps(config.model_dump(mode="json")))
    expect(
        config_class(component).model_validate(plain) == config,
        f"{name}.Config must survive JSON: a run's settings are written to its config.yaml and read back",
    )
    return config


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator on the CPU inside the context, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
