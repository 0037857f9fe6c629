"""One optimizer step: views, forward, backward and update, with the batch in one piece or in micro-batches."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from sslkit.data.loaders.base import RawBatch
from sslkit.machine import distributed
from sslkit.methods.base import Batch, Method

if TYPE_CHECKING:
    from sslkit.training.setup import Parts

Scalars = dict[str, Tensor]


def train_step(parts: "Parts", raws: list[RawBatch], step: int, micro_batch: int | None = None) -> Scalars:
    """One optimizer step on `accumulate` raw batches; returns detached scalars, still on the device.

    `micro_batch` overrides the run's setting.
    """
    micro_batch = micro_batch or parts.config.micro_batch
    parts.execution.mark_step()
    sums: Scalars = {}
    for number, raw in enumerate(raws):
        pieces = _Pieces(parts, raw, step, number, micro_batch or len(raw.indices))
        last = number == len(raws) - 1
        for name, value in _backward(pieces, 1 / len(raws), last).items():
            sums[name] = sums.get(name, 0) + value.detach().float() / len(raws)
    if parts.trained is parts.method:
        distributed.average_gradients(parts.method.parameters())
    sums |= update(parts)
    parts.method.after_step((step + 1) / parts.steps)
    return sums


def update(parts: "Parts") -> Scalars:
    """What the optimizer makes of the gradients, clipped where the settings say so; scalars of that."""
    scalars: Scalars = {}
    if parts.config.optimizer.clip_grad:
        parts.scaler.unscale_(parts.optimizer)
        trained = [p for group in parts.optimizer.param_groups for p in group["params"]]
        scalars["grad_norm"] = nn.utils.clip_grad_norm_(trained, parts.config.optimizer.clip_grad)
    parts.scaler.step(parts.optimizer)
    parts.scaler.update()
    parts.optimizer.zero_grad(set_to_none=True)
    return scalars


class _Pieces:
    """A raw batch in pieces; making a piece's views again, from the same seed, gives the same views."""

    def __init__(self, parts: "Parts", raw: RawBatch, step: int, number: int, size: int) -> None:
        self.parts = parts
        self._size = size
        self._raws = [rows_of(raw, slice(start, start + size)) for start in range(0, len(raw.indices), size)]
        self._step, self._number = step, number

    def __len__(self) -> int:
        return len(self._raws)

    def __getitem__(self, piece: int) -> Batch:
        """The views of one piece; torch's global generator is seeded for what the method draws from it."""
        raw = self._raws[piece]
        generator = _seeded(self.parts, self._step, self._number << 16 | piece)
        labels = raw.labels if self.parts.method.uses_labels else None
        views = self.parts.execution.laid_out(self.parts.views(raw.images, generator))
        return Batch(views, raw.indices, labels)


def rows_of(raw: RawBatch, rows: slice) -> RawBatch:
    """Some images of a batch, with what belongs to them."""
    return RawBatch(raw.images[rows], raw.indices[rows], None if raw.labels is None else raw.labels[rows])


def _seeded(parts: "Parts", step: int, piece: int) -> torch.Generator:
    """All randomness of a step is a pure function of seed, step and rank, so a resumed run needs no generator state."""
    numbers = [parts.config.seed, step, distributed.rank(), piece]
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
    torch.manual_seed(seed)
    return torch.Generator(parts.device).manual_seed(seed)


def _backward(pieces: _Pieces, share: float, last: bool) -> Scalars:
    """Gradients of `share` times the loss, added to what is there. `last`: other processes' are averaged in."""
    parts = pieces.parts
    if len(pieces) > 1 and couples_images(parts.method):
        return _backward_twice(pieces, share)
    sums: Scalars = {}
    with nullcontext() if last else _alone(parts.trained):
        for piece in range(len(pieces)):
            batch = pieces[piece]
            with parts.execution.context(parts.device):
                out = parts.trained(batch)
            parts.scaler.scale(out["loss"] * share / len(pieces)).backward()
            for name, value in out.items():
                sums[name] = sums.get(name, 0) + value.detach().float() / len(pieces)
    return sums


def _alone(trained: nn.Module) -> AbstractContextManager[None]:
    """Backward passes inside leave other processes' gradients out."""
    return trained.no_sync() if isinstance(trained, DistributedDataParallel) else nullcontext()


def couples_images(method: Method) -> bool:
    """Whether the loss compares images with each other, so that it is no mean over them."""
    return type(method).embed is not Method.embed


def _backward_twice(pieces: _Pieces, share: float) -> Scalars:
    """The gradient of the loss of the whole batch in the memory of one piece (GradCache: Gao et al. 2021, section 3).

    Embed every piece without a graph; from the loss of all, the gradient of each embedding; then embed every
    piece again, with a graph, and go back from its embeddings.
    """
    parts, method = pieces.parts, pieces.parts.method
    leaves = _leaves(pieces)
    with parts.execution.context(parts.device):
        out = method.loss({name: distributed.gather(rows) for name, rows in leaves.items()})
    parts.scaler.scale(out["loss"] * share).backward()
    grads = {name: rows.grad for name, rows in leaves.items() if rows.grad is not None}
    done = 0
    for piece in range(len(pieces)):
        batch = pieces[piece]
        with parts.execution.context(parts.device):
            embedded = method.embed(batch)
        rows = slice(done, done := done + len(batch.indices))
        pulled = [name for name in grads if embedded[name].requires_grad]
        torch.autograd.backward([embedded[name] for name in pulled], [grads[name][rows] for name in pulled])
    return out


def _leaves(pieces: _Pieces) -> dict[str, Tensor]:
    """The embeddings of the whole batch, as leaves of a new graph."""
    method = pieces.parts.method
    with torch.no_grad(), _kept_statistics(method):
        embedded = []
        for piece in range(len(pieces)):
            batch = pieces[piece]
            with pieces.parts.execution.context(pieces.parts.device):
                embedded.append(method.embed(batch))
    whole = {name: torch.cat([one[name] for one in embedded]) for name in embedded[0]}
    return {name: rows.requires_grad_(rows.is_floating_point()) for name, rows in whole.items()}


@contextmanager
def _kept_statistics(method: nn.Module) -> Iterator[None]:
    """Batch norm's running statistics must count each image once."""
    norms = [module for module in method.modules() if isinstance(module, _BatchNorm)]
    before = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    yield
    for buffer, value in before:
        buffer.copy_(value)
