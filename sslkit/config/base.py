"""The settings of a run and of its components: frozen pydantic models, whose field docstrings are the help text."""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, SerializeAsAny


class Config(BaseModel):
    """Base of every component's settings: frozen, extra keys forbidden, field docstrings are the help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def check(self) -> Iterable[str]:
        """Mistakes that only a look at the machine shows (a missing file), one sentence each, with the mend."""
        return ()


class Choice(Config):
    """A component by name, with its validated settings."""

    name: str
    options: SerializeAsAny[Config] = Config()

    def flat(self) -> dict[str, Any]:
        """{"name": ..., **options}: the form that recipes use."""
        return {"name": self.name, **self.options.model_dump(mode="json")}
