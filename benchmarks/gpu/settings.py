"""What every part of the benchmark is given, and how it says that it cannot measure something here."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Result = dict[str, Any]
"""Figures of one item, for JSON; `passed` is True or False if they were compared with what is expected."""


@dataclass(frozen=True)
class Settings:
    """Settings that hold for all parts."""

    device: str
    """Device to measure, as in `sslkit run`: cuda, cuda:1, cpu."""
    toy: bool
    """True for sizes at which every part runs in seconds on a CPU, and no figure means anything."""
    data: Path | None = None
    """Folder of CIFAR-10's binary files."""
    deadline: float = math.inf
    """Time of `time.monotonic()` by which the part must have ended."""

    @property
    def on_card(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def sized(self, full: Any, toy: Any) -> Any:
        """Return the full size, or the toy one."""
        return toy if self.toy else full


class Skipped(Exception):
    """Raised by an item that cannot be measured here; the message is the reason."""
