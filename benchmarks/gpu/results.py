"""The results on disk: one JSON file, rewritten whole after every item, so that being cut off loses nothing.

    {"calls": [{command, settings, environment, seconds}, ...],
     "parts": {part: {"about": ..., "items": {item: {"status": ..., "call": ..., "seconds": ..., figures}}}}}

A status is running, done, failed (with the error), died (its process did), timed out, or skipped (with the reason).
`call` is the index of the call that attempted the item last. Items that are done are not measured again.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sslkit.errors import UserError
from sslkit.machine import atomic

Item = dict[str, Any]
BAD = ("failed", "died", "timed out")


class Results:
    """The file, of which one process at a time is the writer. Raises UserError if it is not such a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.report: dict[str, Any] = {"calls": [], "parts": {}}
        self.reload()

    def reload(self) -> None:
        """Read what another process has written."""
        if self.path.exists():
            try:
                self.report = json.loads(self.path.read_text(encoding="utf-8"))
                self.report["calls"], self.report["parts"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{self.path} holds no results of this benchmark; name another --out") from error

    def begin_call(self, about: dict[str, Any]) -> None:
        """Add a call; its settings must be those of the earlier ones, whose results it continues."""
        for call in self.report["calls"]:
            if call["settings"] != about["settings"]:
                raise UserError(
                    f"{self.path} holds results of {call['settings']}, not of {about['settings']}; name another --out"
                )
        self.report["calls"].append(about)
        self.write()

    def end_call(self, seconds: float) -> None:
        self.report["calls"][-1]["seconds"] = round(seconds, 1)
        self.write()

    def items(self, part: str) -> dict[str, Item]:
        items: dict[str, Item] = self.report["parts"].get(part, {}).get("items", {})
        return items

    def undone(self, part: str, names: Iterable[str]) -> list[str]:
        """Return the items without a result."""
        return [name for name in names if self.items(part).get(name, {}).get("status") != "done"]

    def pending(self, part: str, names: Iterable[str]) -> list[str]:
        """Return the items without a result that this call has not attempted yet."""
        return [name for name in self.undone(part, names) if self.items(part).get(name, {}).get("call") != self._call]

    def put(self, part: str, name: str, about: str = "", **entry: Any) -> None:
        """Write the entry of an item, in place of an earlier one. about: description of the part."""
        place = self.report["parts"].setdefault(part, {"about": about, "items": {}})
        place["items"][name] = {**entry, "call": self._call}
        self.write()

    def end_running(self, status: str, reason: str) -> list[str]:
        """Give items whose process is gone a status; return their names."""
        running = [
            (part, name, item)
            for part in self.report["parts"]
            for name, item in self.items(part).items()
            if item["status"] == "running"
        ]
        for part, name, item in running:
            self.report["parts"][part]["items"][name] = {**item, "status": status, "reason": reason}
        self.write()
        return [name for _, name, _ in running]

    def write(self) -> None:
        atomic.write_json(self.path, self.report)

    @property
    def _call(self) -> int:
        return len(self.report["calls"]) - 1


def is_bad(item: Item) -> bool:
    """Return True if an item broke, or its figures are not what is expected."""
    return item["status"] in BAD or item.get("passed") is False
