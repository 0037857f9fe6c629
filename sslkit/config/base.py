"""The settings of a run and of its components: frozen pydantic models, whose field docstrings are the help text."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, SerializeAsAny, field_validator

from sslkit.machine.paths import at_home

LARGEST = 2**53
"""Largest whole number of a setting: no quantity of a run is larger, and every library can still take it."""


class Config(BaseModel):
    """Base class of every component's settings: frozen, extra keys forbidden, field docstrings are the help text.

    Numbers are finite, and `~` at the beginning of a path is the home folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _usable(cls, value: Any) -> Any:
        if isinstance(value, int) and abs(value) > LARGEST:
            raise ValueError(f"must be at most {LARGEST}")
        return at_home(value) if isinstance(value, Path) else value

    def check(self) -> Iterable[str]:
        """Yield mistakes that depend on the machine, such as a missing file: one sentence each, with its remedy."""
        return ()


class Choice(Config):
    """The name of a component, with its validated settings."""

    name: str
    options: SerializeAsAny[Config] = Config()

    def flat(self) -> dict[str, Any]:
        """Return {"name": ..., **options}, the form that recipes use."""
        return {"name": self.name, **self.options.model_dump(mode="json")}
