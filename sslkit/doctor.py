"""What this machine offers sslkit, and the exact command for what is missing."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sslkit import __version__, plugins
from sslkit.runs import package_version

LIBRARIES = "libopencv-dev libturbojpeg0-dev pkg-config"
"""What FFCV compiles against, by Debian's names."""


def print_report() -> None:
    """One line a fact: Python, torch, device, memory, FFCV, plugins, data caches."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for topic, fact in _facts():
        table.add_row(Text(topic, style="bold"), Text(fact, overflow="fold"))
    Console(highlight=False, soft_wrap=True).print(table)


def ffcv_mend() -> str | None:
    """None where FFCV imports; else why it does not, and the command that mends it."""
    from sslkit.data.loaders import import_ffcv

    try:
        import_ffcv()
    except ImportError as error:
        return f"not installed ({error}); {_install_command()}"
    except Exception as error:
        return f"does not import ({type(error).__name__}: {error}); {_install_command()}"
    return None


def _install_command() -> str:
    pip = 'pip install "sslkit[ffcv]"'
    if _have_libraries():
        return f"get it with: {pip}"
    if shutil.which("apt-get"):
        sudo = "" if os.geteuid() == 0 else "sudo "
        return f"get it with: {sudo}apt-get install -y {LIBRARIES} && {pip}"
    if platform.system() == "Darwin":
        return f"get it with: brew install opencv jpeg-turbo pkg-config && {pip}"
    return f"get it with: conda install -c conda-forge opencv libjpeg-turbo pkg-config && {pip}"


def _have_libraries() -> bool:
    command = ["pkg-config", "--exists", "opencv4", "libturbojpeg"]
    return bool(shutil.which(command[0])) and subprocess.run(command, check=False).returncode == 0


def _facts() -> Iterator[tuple[str, str]]:
    yield "sslkit", __version__
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    yield from _torch_facts()
    yield "memory", _memory()
    yield "ffcv", ffcv_mend() or f"{package_version('ffcv')}, used to read ahead from .beton files"
    yield from _plugin_facts()
    yield from _cache_facts()


def _torch_facts() -> Iterator[tuple[str, str]]:
    import torch

    for package in ("torch", "torchvision", "timm", "kornia"):
        yield package, package_version(package) or "not installed"
    yield "cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads for torch"
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(i)
            yield (
                f"cuda:{i}",
                f"{torch.cuda.get_device_name(i)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free",
            )
    elif torch.backends.mps.is_available():
        yield "device", "mps (Apple)"
    else:
        yield "device", "cpu: no GPU that this torch can use"


def _memory() -> str:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        free, total = page * os.sysconf("SC_AVPHYS_PAGES"), page * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return "not known on this system"
    return f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"


def _plugin_facts() -> Iterator[tuple[str, str]]:
    loaded = plugins.host()
    found = {name: d for name, d in loaded.distributions.items() if name not in plugins.BUILTINS}
    for name, distribution in found.items():
        yield "plugin", f"{name} ({distribution} {package_version(distribution) or 'of no known version'})"
    if not found:
        yield "plugins", "none installed"
    for problem in loaded.problems:
        yield "problem", problem


def _cache_facts() -> Iterator[tuple[str, str]]:
    from sslkit.data import cache_dir

    folder = cache_dir()
    files = sorted(folder.glob("**/*.beton")) if folder.is_dir() else []
    size = sum(f.stat().st_size for f in files)
    yield "data cache", f"{folder}: {len(files)} packed data sets, {size / 2**20:.0f} MiB"
