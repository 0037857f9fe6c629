"""Loader that decodes images with FFCV, and instructions to install FFCV."""

import contextlib
import os
import platform
import queue
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.data.loaders.base import Loader, _to_device
from sslkit.data.packing.store import Store
from sslkit.machine.environment import core_count


class FFCV(Loader):
    """Loader that decodes with FFCV, a few batches ahead; FFCV's augmentations are not used, as they write in place."""

    kind = "ffcv"

    @cached_property
    def _stream(self) -> Any:
        """FFCV's loader; created at the first epoch, because its number of workers is fixed."""
        return _ffcv_loader(self.store, self.order.batch_size, self.workers)

    def _pixels(self, batches: NDArray[np.int64]) -> Iterator[Tensor]:
        order = _Fixed(self.store.rows[batches.reshape(-1)])
        self._stream.traversal_order, self._stream.first_traversal_order = order, order.rows
        ahead = iter(self._stream)
        try:
            for _ in batches:
                self.store.beton.check_whole()
                yield _to_device(_next_buffer(ahead), self.device, reused=True)
        finally:
            _stop(ahead)


class _Fixed:
    """A traversal order of FFCV that returns given rows."""

    def __init__(self, rows: NDArray[np.int64]) -> None:
        self.rows = rows

    def sample_order(self, epoch: int) -> NDArray[np.int64]:
        return self.rows


def import_ffcv() -> Any:
    """Import FFCV, and prevent it from changing torch's number of threads. Raises what the import raises.

    Importing FFCV, creating a loader and starting an epoch each call torch.set_num_threads, with 1 or the number of
    decoding threads, once even from another thread. The network would then train with that number of threads.
    """
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ffcv.loader
            from ffcv.pipeline.compiler import Compiler
    finally:
        torch.set_num_threads(threads)

    from numba import set_num_threads as set_decoders

    def set_num_threads(cls: Any, n: int) -> None:
        cls.num_threads = n
        set_decoders(n)

    Compiler.set_num_threads = classmethod(set_num_threads)
    return ffcv


_COMPILED: list[Any] = []
"""References to numba's compiled code, to keep it alive: its finalizer can print a traceback at garbage collection."""


def _ffcv_loader(store: Store, batch_size: int, workers: int) -> Any:
    import_ffcv()
    from ffcv.fields.decoders import SimpleRGBImageDecoder
    from ffcv.loader import Loader as FFCVLoader

    image = store.beton.image_field
    pipelines = {name: [SimpleRGBImageDecoder()] if name == image else None for name in store.beton.fields}
    threads = min(workers, core_count())
    stream = FFCVLoader(str(store.path), batch_size, num_workers=threads, os_cache=True, pipelines=pipelines)
    _COMPILED.append(stream.code)
    return stream


def _next_buffer(ahead: Any) -> NDArray[np.uint8]:
    """Return the next batch of FFCV's iterator, whose own `next` waits for ever if its thread has died."""
    while True:
        try:
            result = ahead.output_queue.get(timeout=1)
        except queue.Empty:
            if ahead.is_alive() or not ahead.output_queue.empty():
                continue
            raise RuntimeError("FFCV's decoding thread has died (its traceback is above); use loader=torch") from None
        pixels: NDArray[np.uint8]
        _, (pixels,) = result
        return pixels


def _stop(ahead: Any) -> None:
    """Stop FFCV's thread, also within an epoch: two such threads in numba's thread pool can crash the process."""
    ahead.iter_ixes = iter(())
    ahead.close()
    while ahead.is_alive():
        # It may be waiting, without a timeout, to put a batch into its full queue.
        with contextlib.suppress(queue.Empty):
            ahead.output_queue.get(timeout=0.05)


LIBRARIES = "libopencv-dev libturbojpeg0-dev pkg-config"
"""Debian packages of the libraries that FFCV is compiled against."""


def ffcv_missing() -> str | None:
    """Return None if FFCV can be used; otherwise the reason, and the command that installs it."""
    try:
        import_ffcv()
    except ImportError as error:
        return f"not installed ({error}); {_install_command()}"
    except Exception as error:
        return f"cannot be imported ({type(error).__name__}: {error}); {_install_command()}"
    return None


def _install_command() -> str:
    pip = 'pip install "sslkit[ffcv]"'
    if _have_libraries():
        return f"install it with: {pip}"
    if shutil.which("apt-get"):
        sudo = "" if os.geteuid() == 0 else "sudo "
        return f"install it with: {sudo}apt-get install -y {LIBRARIES} && {pip}"
    if platform.system() == "Darwin":
        return f"install it with: brew install opencv jpeg-turbo pkg-config && {pip}"
    return f"install it with: conda install -c conda-forge opencv libjpeg-turbo pkg-config && {pip}"


def _have_libraries() -> bool:
    command = ["pkg-config", "--exists", "opencv4", "libturbojpeg"]
    return bool(shutil.which(command[0])) and subprocess.run(command, check=False).returncode == 0
