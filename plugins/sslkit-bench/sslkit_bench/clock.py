"""Time contestants in turns, so that a temporary slowdown of the machine affects all of them."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sslkit.errors import in_one_line
from sslkit.machine.allocator import freed_memory
from sslkit.machine.stopwatch import Stopwatch

TURN_SECONDS = 1.0
"""Approximate seconds of a turn, which takes as many steps as fit: single short steps would measure the scheduler."""
MOST_STEPS = 1000
"""Maximum number of steps per turn."""


@dataclass(frozen=True)
class Protocol:
    """Number of rounds and time limit of a measurement."""

    repeats: int = 5
    """Timed rounds; in each, every contestant has one turn."""
    warmup: int = 1
    """Rounds before the timed ones; the last one determines the number of steps per turn."""
    seconds: float = 600.0
    """Seconds after the start of the first timed round beyond which no further round starts."""


class NotTheSame(Exception):
    """Raised if a peer cannot do what the run does; the message says what it lacks."""


class Contestant:
    """Base class of what is timed: it takes steps on `images` images each. A subclass defines `step`."""

    name: str
    images: int
    least: int = 1
    """The number of steps per turn is a multiple of this, because several workers deliver batches in bursts."""
    foreign: bool = False
    """True for a peer, whose failure is reported but does not end the measurement."""
    note: str = ""
    """Description of how it was run."""

    def begin(self) -> None:
        """Prepare a turn; not timed."""

    def step(self) -> dict[str, float] | None:
        """Take one step; return the seconds of its parts by name, if it measures those."""
        raise NotImplementedError(f"{type(self).__name__} defines no step")

    def end(self) -> None:
        """End a turn; not timed. Nothing of the contestant may run during the turns of others."""

    def close(self) -> None:
        """Release resources after the last turn."""


@dataclass
class TurnTimes:
    """Times of one contestant, one value per timed round."""

    steps: int
    """Timed steps per turn."""
    seconds: list[float] = field(default_factory=list)
    """Mean seconds of a step in each round."""
    parts: dict[str, list[float]] = field(default_factory=dict)
    """Mean seconds of each part of a step in each round, by name."""

    def add(self, seconds: float, parts: dict[str, float]) -> None:
        self.seconds.append(seconds)
        for name, value in parts.items():
            self.parts.setdefault(name, []).append(value)


def take_turns(
    contestants: Sequence[Contestant],
    protocol: Protocol,
    wait: Callable[[], None],
    log: Callable[[str], None] = lambda text: None,
) -> tuple[dict[str, TurnTimes], dict[str, str]]:
    """Run the rounds and return ({name: times}, {name of a peer that failed: reason}).

    wait: returns when the device has finished its queued work.
    """
    race = _Race(wait)
    log(f"warming up: {', '.join(contestant.name for contestant in contestants)}")
    for _ in range(protocol.warmup):
        for contestant in contestants:
            if took := race.turn(contestant, contestant.least):
                race.times[contestant.name] = TurnTimes(_steps(took[0], contestant.least))
    began = time.perf_counter()
    for number in range(protocol.repeats):
        if number and time.perf_counter() - began > protocol.seconds:
            log(f"{number} of {protocol.repeats} rounds: the time is up")
            break
        log(f"round {number + 1} of {protocol.repeats}")
        # Reverse the order every second round, so that a linear drift affects all contestants alike.
        for contestant in contestants[:: -1 if number % 2 else 1]:
            race.count(contestant)
    return race.times, race.failed


class _Race:
    def __init__(self, wait: Callable[[], None]) -> None:
        self._wait = wait
        self.times: dict[str, TurnTimes] = {}
        self.failed: dict[str, str] = {}

    def count(self, contestant: Contestant) -> None:
        """Run one timed turn."""
        turn_times = self.times.get(contestant.name)
        if turn_times and (took := self.turn(contestant, turn_times.steps)):
            turn_times.add(*took)

    def turn(self, contestant: Contestant, steps: int) -> tuple[float, dict[str, float]] | None:
        """Run one turn; return None for a peer that fails or failed before, whose earlier times are discarded too."""
        if contestant.name in self.failed:
            return None
        try:
            # Peers run with the default settings of the allocator, as for their users.
            with freed_memory(keep=not contestant.foreign):
                return turn(contestant, steps, self._wait)
        except Exception as error:
            if not contestant.foreign:
                raise
            self.failed[contestant.name] = f"failed: {in_one_line(error)}"
            self.times.pop(contestant.name, None)
            return None


def turn(contestant: Contestant, steps: int, wait: Callable[[], None]) -> tuple[float, dict[str, float]]:
    """Run one turn; return (mean seconds of a step, mean seconds of each of its parts).

    One untimed step before the timed ones refills caches and queues after the turn of another contestant.
    """
    contestant.begin()
    try:
        contestant.step()
        with Stopwatch(wait=wait) as watch:
            parts = [contestant.step() or {} for _ in range(steps)]
    finally:
        contestant.end()
    return watch.seconds / steps, {name: sum(part[name] for part in parts) / steps for name in parts[0]}


def _steps(seconds: float, least: int) -> int:
    """Return the number of steps of a turn: about `TURN_SECONDS`, a multiple of `least`."""
    wanted = min(MOST_STEPS, math.ceil(TURN_SECONDS / seconds))
    return max(1, math.ceil(wanted / least)) * least


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """Return the median, quartiles (inclusive method, those of the samples themselves), number and list of samples."""
    many = len(samples) > 1
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive") if many else [samples[0]] * 3
    return {
        "median": statistics.median(samples),
        "q1": low,
        "q3": high,
        "n": len(samples),
        "samples": list(samples),
    }


def paired(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return the quotient in each round, in which a slowdown of the whole round cancels out."""
    return [a / b for a, b in zip(above, below, strict=True)]
