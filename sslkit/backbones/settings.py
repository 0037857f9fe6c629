"""What can be set of any backbone, and how a factory says that it takes other settings."""

from collections.abc import Callable
from typing import Any, TypeVar

from sslkit.config.base import Config

Factory = TypeVar("Factory", bound=Callable[..., Any])


def takes(config: type[Config]) -> Callable[[Factory], Factory]:
    """Decorator for a backbone's factory, a plain function, that has settings of its own: they become its `Config`."""

    def with_config(factory: Factory) -> Factory:
        vars(factory)["Config"] = config
        return factory

    return with_config
