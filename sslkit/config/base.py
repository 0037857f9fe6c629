"""The settings of a run and of its components: frozen pydantic models, whose field docstrings are the help text."""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, SerializeAsAny


class Config(BaseModel):
    """Base class of every component's settings: frozen, extra keys forbidden, field docstrings are the help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

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
