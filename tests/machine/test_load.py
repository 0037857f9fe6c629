"""Sharing the processor: fewer threads beside busy programs, all of them once those are gone."""

import pytest
import torch

from sslkit.machine import load
from sslkit.machine.load import Load, LoadMeter, ThreadGovernor, computing_threads

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("seen", "current", "cores", "threads"),
    [
        (Load(others=0.0, idle=0.0), 2, 2, 2),
        (Load(others=1.0, idle=0.0), 2, 2, 1),
        (Load(others=0.7, idle=0.05), 2, 2, 1),
        (Load(others=0.3, idle=0.0), 2, 2, 2),
        (Load(others=1.0, idle=0.9), 2, 4, 3),
        (Load(others=1.0, idle=0.0), 1, 2, 1),
        (Load(others=0.0, idle=1.0), 1, 2, 2),
        (Load(others=0.1, idle=0.9), 1, 2, 2),
        (Load(others=6.0, idle=0.0), 8, 8, 2),
        (Load(others=30.0, idle=0.0), 8, 8, 1),
        (Load(others=1.0, idle=3.0), 4, 8, 7),
    ],
)
def test_threads_are_the_cores_that_others_leave(seen, current, cores, threads):
    assert seen.threads(current, cores) == threads


def test_the_meter_takes_its_own_time_from_that_of_all(monkeypatch):
    samples = iter([(10.0, 5.0, 20.0, 100.0), (12.0, 6.0, 23.0, 101.0), (13.0, 6.0, 22.9, 101.0)])
    monkeypatch.setattr(LoadMeter, "_sample", lambda self: next(samples))
    meter = LoadMeter()
    assert meter.read() == Load(others=1.0, idle=0.5)
    assert meter.read().others == 0, "clocks of different grain never make a negative load"


def test_the_real_meter_counts_this_process_as_its_own():
    meter = LoadMeter()
    began = load.time.monotonic()
    while load.time.monotonic() - began < 0.3:
        torch.randn(100).sum()
    seen = meter.read()
    assert seen.others >= 0
    assert seen.idle >= 0


@pytest.fixture
def governed(monkeypatch):
    """A governor of two cores, the clock it looks at, and the loads that it will see."""
    now, loads, calls = [0.0], [], []
    monkeypatch.setattr(load.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(LoadMeter, "_sample", lambda self: (0, 0, 0, 0))
    monkeypatch.setattr(LoadMeter, "read", lambda self: loads.pop(0))
    return ThreadGovernor(calls.append, 2), now, loads, calls


def test_the_governor_looks_once_a_second_and_speaks_of_changes_alone(governed):
    governor, now, loads, calls = governed
    loads += [Load(1.0, 0.0), Load(1.0, 0.0), Load(0.0, 1.0)]
    assert not governor.adjust(), "no second has passed"
    changes = []
    for now[0] in (1.0, 1.5, 2.0, 3.0):
        if governor.adjust():
            changes.append(governor.describe())
    assert calls == [1, 2]
    assert changes == [
        "other programs use 1.0 of 2 cores: computing with 1 thread",
        "the machine is free again: computing with 2 threads",
    ]


def test_threads_are_afterwards_what_they_were():
    before = torch.get_num_threads()
    with computing_threads(before + 1, CPU) as governor:
        assert torch.get_num_threads() == before + 1
        assert governor.cores == 1, "a fixed number is never changed"
    assert torch.get_num_threads() == before
    with computing_threads("auto", torch.device("cuda")) as governor:
        assert governor.cores == 1


def test_processes_of_one_run_do_not_take_each_other_for_other_programs(monkeypatch):
    monkeypatch.setattr(load.distributed, "local_world", lambda: 2)
    with computing_threads("auto", CPU) as governor:
        assert governor.cores == 1
