"""What every check begins with: the sentence that a broken contract raises, settings with help, seeded numbers."""

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sslkit.config.base import Config
from sslkit.config.components import config_class


def expect(condition: bool, contract: str) -> None:
    """Raise AssertionError with what the contract wants, unless it is so."""
    if not condition:
        raise AssertionError(contract)


def checked_settings(component: Any, options: dict[str, Any]) -> Any:
    """The component's validated settings, after checking that users can be told what they mean."""
    name = component.__name__
    expect(
        bool(inspect.getdoc(component)),
        f"{name} needs a docstring: its first line is what `sslkit list` prints",
    )
    cls = getattr(component, "Config", None)
    proper = isinstance(cls, type) and issubclass(cls, Config)
    expect(proper, f"{name}.Config must be a subclass of sslkit.Config")
    silent = [field for field, info in config_class(component).model_fields.items() if not info.description]
    expect(not silent, f"{name}.Config: write a string under {', '.join(silent)}; it is the help that users see")
    config = config_class(component).model_validate(options)
    plain = json.loads(json.dumps(config.model_dump(mode="json")))
    expect(
        config_class(component).model_validate(plain) == config,
        f"{name}.Config must survive JSON: a run's settings are written to its config.yaml and read back",
    )
    return config


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's global random numbers start at `seed` inside; the caller's go on afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
