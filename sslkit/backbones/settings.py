"""Settings of a backbone factory that differ from the common ones."""

from collections.abc import Callable
from typing import Any, TypeVar

from sslkit.config.base import Config

Factory = TypeVar("Factory", bound=Callable[..., Any])


def takes(config: type[Config]) -> Callable[[Factory], Factory]:
    """Decorate a backbone factory, a plain function, with its own settings, which become its `Config`."""

    def with_config(factory: Factory) -> Factory:
        vars(factory)["Config"] = config
        return factory

    return with_config
