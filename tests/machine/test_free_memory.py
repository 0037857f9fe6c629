"""What is free for new tensors, as containers and batch jobs limit it."""

import pytest
import torch

from sslkit.machine import distributed
from sslkit.machine import memory as free_memory

MIB = 1 << 20
CPU = torch.device("cpu")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 1,000 MiB to be had; returns a function that puts a file into its /proc or /sys/fs/cgroup."""
    monkeypatch.setattr(free_memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(free_memory, "GROUPS", tmp_path / "cgroup")

    def put(name, text):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    put("proc/meminfo", f"MemTotal: 9999999 kB\nMemAvailable: {1000 * 1024} kB\n")
    return put


def limit(put, group, most, now, unused=0):
    """In MiB. A group of version 1 lies below memory/."""
    first = group.startswith("memory")
    names = free_memory.V1 if first else free_memory.V2
    put(f"cgroup/{group}/{names[0]}", f"{most if most == 'max' else most * MIB}\n")
    put(f"cgroup/{group}/{names[1]}", f"{now * MIB}\n")
    put(f"cgroup/{group}/memory.stat", f"anon 5\n{names[2]} {unused * MIB}\n")


def test_this_machine_has_some():
    assert MIB < free_memory.free_memory(CPU) < 1 << 50


def test_without_limits_it_is_the_machines(machine):
    assert free_memory.free_memory(CPU) == 1000 * MIB
    machine("proc/self/cgroup", "4:memory:/\n0::/\n")
    limit(machine, "memory", 1 << 40, 10)
    limit(machine, ".", "max", 10)
    assert free_memory.free_memory(CPU) == 1000 * MIB


@pytest.mark.parametrize(
    ("listed", "group"),
    [
        ("0::/", "."),
        ("0::/slurm/job_7/step_0", "slurm/job_7"),
        ("0::/only/visible/outside", "."),
        ("5:cpu,memory:/", "memory"),
        ("9:pids:/elsewhere\n4:memory:/docker/abc", "memory/docker/abc"),
        ("4:memory:/docker/abc\n0::/", "memory"),
    ],
)
def test_the_limit_of_any_group_around_the_process_counts(machine, listed, group):
    machine("proc/self/cgroup", listed + "\n")
    limit(machine, group, 500, 300)
    assert free_memory.free_memory(CPU) == 200 * MIB
    limit(machine, group, 500, 300, unused=150)
    assert free_memory.free_memory(CPU) == 350 * MIB, "pages of files make room"
    limit(machine, group, 500, 600)
    assert free_memory.free_memory(CPU) == 0


def test_processes_of_one_machine_share_what_is_free(machine, monkeypatch):
    monkeypatch.setattr(distributed, "local_world", lambda: 8)
    assert free_memory.free_memory(CPU) == 125 * MIB
