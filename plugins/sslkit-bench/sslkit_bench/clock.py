"""Contestants take turns, so that whatever slows the machine for a while slows all of them; and what they took."""

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
"""A turn takes as many steps as fill about this time: one short step alone would measure the scheduler."""
MOST_STEPS = 1000


@dataclass(frozen=True)
class Protocol:
    """How often everything is measured."""

    repeats: int = 5
    """Rounds that count; in each, every contestant has one turn."""
    warmup: int = 1
    """Rounds before them; the last shows how many steps fill a turn."""
    seconds: float = 600.0
    """No round begins later than this after the first that counts; that one always runs."""


class NotTheSame(Exception):
    """A peer cannot do what the run does: in words, what it lacks."""


class Contestant:
    """Something that does steps on `images` images each. A subclass defines `step`."""

    name: str
    images: int
    least: int = 1
    """Steps of a turn come in multiples of this: with several workers batches arrive in bursts."""
    foreign: bool = False
    """A peer whose failure is told, and costs the others nothing."""
    note: str = ""
    """How it was run, in words."""

    def begin(self) -> None:
        """Before each turn; not timed."""

    def step(self) -> dict[str, float] | None:
        """One step; seconds of its parts by name, where it measures those."""
        raise NotImplementedError(f"{type(self).__name__} defines no step")

    def end(self) -> None:
        """After each turn; not timed. Nothing of it may go on while the others have theirs."""

    def close(self) -> None:
        """After the last turn."""


@dataclass
class TurnTimes:
    """What one contestant took, a figure a round."""

    steps: int
    """Timed steps a turn."""
    seconds: list[float] = field(default_factory=list)
    """Mean seconds of a step."""
    parts: dict[str, list[float]] = field(default_factory=dict)
    """The same of each part of a step."""

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
    """({name: turn_times}, {name of a foreign contestant: why it could not take part}).

    `wait` returns when the device has done all it was given.
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
        # There and back: what drifts steadily is the same for all after two rounds.
        for contestant in contestants[:: -1 if number % 2 else 1]:
            race.count(contestant)
    return race.times, race.failed


class _Race:
    def __init__(self, wait: Callable[[], None]) -> None:
        self._wait = wait
        self.times: dict[str, TurnTimes] = {}
        self.failed: dict[str, str] = {}

    def count(self, contestant: Contestant) -> None:
        """One turn that counts."""
        turn_times = self.times.get(contestant.name)
        if turn_times and (took := self.turn(contestant, turn_times.steps)):
            turn_times.add(*took)

    def turn(self, contestant: Contestant, steps: int) -> tuple[float, dict[str, float]] | None:
        """None for a peer that fails, now or before: rounds without it have no pair, so that none of it counts."""
        if contestant.name in self.failed:
            return None
        try:
            # Peers have the allocator as their users have it.
            with freed_memory(keep=not contestant.foreign):
                return turn(contestant, steps, self._wait)
        except Exception as error:
            if not contestant.foreign:
                raise
            self.failed[contestant.name] = f"failed: {in_one_line(error)}"
            self.times.pop(contestant.name, None)
            return None


def turn(contestant: Contestant, steps: int, wait: Callable[[], None]) -> tuple[float, dict[str, float]]:
    """(mean seconds of a step, of each of its parts), after one step that is not timed.

    That one fills caches and queues again, which the contestant before has emptied.
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
    """Steps that fill a turn, a multiple of `least`."""
    wanted = min(MOST_STEPS, math.ceil(TURN_SECONDS / seconds))
    return max(1, math.ceil(wanted / least)) * least


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles (inclusive: of the samples, not of what they are drawn from), their number, and all."""
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
    """The quotient of each round: what slowed the whole round cancels."""
    return [a / b for a, b in zip(above, below, strict=True)]
