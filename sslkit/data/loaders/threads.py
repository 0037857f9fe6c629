"""Loader that decodes images in threads, a few batches ahead."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sslkit.data.loaders.base import Loader, _to_device
from sslkit.data.threads import ordered_map


class Threads(Loader):
    """Loader that decodes images in threads, a few batches ahead; it needs only torch and simplejpeg."""

    kind = "torch"

    def _pixels(self, batches: NDArray[np.int64]) -> Iterator[Tensor]:
        decoded = ordered_map(self.store.read, batches, self.workers, ahead=self.workers + 2)
        return (_to_device(pixels, self.device) for pixels in decoded)
