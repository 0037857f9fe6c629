"""`sslkit doctor`: report what this machine offers sslkit, and the exact command that installs what is missing."""

import platform
from collections.abc import Iterator
from pathlib import Path

from rich.table import Table
from rich.text import Text

from sslkit import plugins
from sslkit.data.loaders.ffcv import ffcv_missing
from sslkit.machine.console import PlainConsole
from sslkit.machine.environment import core_count, device_name, package_version


def print_report() -> None:
    """Print one line per fact: Python, torch, device, memory, FFCV, plugins, caches and runs here."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for topic, fact in _facts():
        table.add_row(Text(topic, style="bold"), Text(fact, overflow="fold"))
    PlainConsole(soft_wrap=True).print(table)


def _facts() -> Iterator[tuple[str, str]]:
    yield "sslkit", package_version("sslkit") or "not installed"
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    yield from _torch_facts()
    yield "memory", _memory()
    yield "ffcv", ffcv_missing() or f"{package_version('ffcv')}, used to read ahead from .beton files"
    yield from _plugin_facts()
    yield from _cache_facts()
    yield from _run_facts()


def _torch_facts() -> Iterator[tuple[str, str]]:
    import torch

    for package in ("torch", "torchvision", "timm", "kornia"):
        yield package, package_version(package) or "not installed"
    yield "cpu", f"{core_count()} cores, {torch.get_num_threads()} threads for torch"
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(i)
            card = device_name(torch.device("cuda", i))
            yield f"cuda:{i}", f"{card}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    elif torch.backends.mps.is_available():
        yield "device", "mps (Apple)"
    else:
        yield "device", "cpu: no GPU that this torch can use"


def _memory() -> str:
    import psutil
    import torch

    from sslkit.machine.memory import free_memory

    free, total = free_memory(torch.device("cpu")), psutil.virtual_memory().total
    return f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"


def _plugin_facts() -> Iterator[tuple[str, str]]:
    loaded = plugins.host()
    found = {name: d for name, d in loaded.distributions.items() if name not in plugins.BUILTINS}
    for name, distribution in found.items():
        yield "plugin", f"{name} ({distribution} {package_version(distribution) or 'version unknown'})"
    if not found:
        yield "plugins", "none installed"
    for problem in loaded.problems:
        yield "problem", problem


def _cache_facts() -> Iterator[tuple[str, str]]:
    from sslkit.data import cache_dir
    from sslkit.machine import atomic
    from sslkit.machine.sizes import free_at, in_words, size_of
    from sslkit.runs.clean import CACHES

    folder = cache_dir()
    yield "cache", f"{folder}: {in_words(size_of(folder))}, {in_words(free_at(folder))} free"
    for name, pattern in CACHES.items():
        files = list(folder.glob(pattern))
        yield "", f"{name}: {len(files)} files, {in_words(sum(map(size_of, files)))}"
    yield "", f"downloads: {in_words(size_of(folder / 'downloads'))}"
    if left := atomic.left_over(folder):
        yield "", f"left by killed processes: {in_words(sum(map(size_of, left)))}; remove it with: sslkit clean --cache"


def _run_facts() -> Iterator[tuple[str, str]]:
    from sslkit.machine.sizes import free_at, in_words, size_of

    found = sorted(path.parent for path in Path("runs").glob("*/config.yaml"))
    free = in_words(free_at(Path("runs")))
    yield "runs", f"{Path('runs').resolve()}: {len(found)} runs, {in_words(size_of(Path('runs')))}, {free} free"
    for run in sorted(found, key=size_of, reverse=True)[:3]:
        yield "", f"{run}: {in_words(size_of(run))}, {in_words(size_of(run / 'checkpoints'))} of it checkpoints"
