"""One optimizer step: views, forward, backward and update, with the batch whole or in micro-batches."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from sslkit.data.loaders.base import ImageBatch
from sslkit.machine import distributed
from sslkit.methods.base import Batch, Method

if TYPE_CHECKING:
    from sslkit.training.setup import TrainingSetup

Scalars = dict[str, Tensor]


def train_step(setup: "TrainingSetup", batches: list[ImageBatch], step: int, micro_batch: int | None = None) -> Scalars:
    """Take one optimizer step on `accumulate` batches of images; return detached scalars, still on the device.

    micro_batch: overrides the run's setting.
    """
    micro_batch = micro_batch or setup.config.micro_batch
    setup.execution.mark_step()
    sums: Scalars = {}
    for number, images in enumerate(batches):
        micro_batches = _MicroBatches(setup, images, step, number, micro_batch or len(images.indices))
        last = number == len(batches) - 1
        for name, value in _backward(micro_batches, 1 / len(batches), last).items():
            sums[name] = sums.get(name, 0) + value.detach().float() / len(batches)
    if setup.trained is setup.method:
        distributed.average_gradients(setup.method.parameters())
    sums |= update(setup)
    setup.method.after_step((step + 1) / setup.steps)
    return sums


def update(setup: "TrainingSetup") -> Scalars:
    """Clip the gradients if the settings ask for it, and step the optimizer; return the scalars of that (grad_norm)."""
    scalars: Scalars = {}
    if setup.config.optimizer.clip_grad:
        setup.scaler.unscale_(setup.optimizer)
        trained = [p for group in setup.optimizer.param_groups for p in group["params"]]
        scalars["grad_norm"] = nn.utils.clip_grad_norm_(trained, setup.config.optimizer.clip_grad)
    setup.scaler.step(setup.optimizer)
    setup.scaler.update()
    setup.optimizer.zero_grad(set_to_none=True)
    return scalars


class _MicroBatches:
    """The micro-batches of a batch. Their views are seeded, so that making them again gives the same views."""

    def __init__(self, setup: "TrainingSetup", images: ImageBatch, step: int, number: int, size: int) -> None:
        self.setup = setup
        self._size = size
        self._batches = [rows_of(images, slice(start, start + size)) for start in range(0, len(images.indices), size)]
        self._step, self._number = step, number

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Batch:
        """Return the views of one micro-batch, and seed torch's global generator for the method's own draws."""
        images = self._batches[index]
        generator = _seeded(self.setup, self._step, self._number << 16 | index)
        labels = images.labels if self.setup.method.uses_labels else None
        views = self.setup.execution.laid_out(self.setup.augmentation(images.images, generator))
        return Batch(views, images.indices, labels)


def rows_of(images: ImageBatch, rows: slice) -> ImageBatch:
    """Return the selected images of a batch with their indices and labels."""
    return ImageBatch(
        images.images[rows],
        images.indices[rows],
        None if images.labels is None else images.labels[rows],
    )


def _seeded(setup: "TrainingSetup", step: int, index: int) -> torch.Generator:
    """Seed torch's global generator, and return one for the views.

    All randomness of a step is a pure function of seed, step and rank, so that resuming needs no generator state.
    """
    numbers = [setup.config.seed, step, distributed.rank(), index]
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
    torch.manual_seed(seed)
    return torch.Generator(setup.device).manual_seed(seed)


def _backward(micro_batches: _MicroBatches, share: float, last: bool) -> Scalars:
    """Add the gradients of `share` times the loss to the existing ones.

    last: average over the processes in this backward pass (with DistributedDataParallel).
    """
    setup = micro_batches.setup
    if len(micro_batches) > 1 and couples_images(setup.method):
        return _backward_twice(micro_batches, share)
    sums: Scalars = {}
    with nullcontext() if last else _without_sync(setup.trained):
        for index in range(len(micro_batches)):
            batch = micro_batches[index]
            with setup.execution.context(setup.device):
                out = setup.trained(batch)
            setup.scaler.scale(out["loss"] * share / len(micro_batches)).backward()
            for name, value in out.items():
                sums[name] = sums.get(name, 0) + value.detach().float() / len(micro_batches)
    return sums


def _without_sync(trained: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which backward passes do not average gradients over the processes."""
    return trained.no_sync() if isinstance(trained, DistributedDataParallel) else nullcontext()


def couples_images(method: Method) -> bool:
    """Return True if the loss compares images with each other, so that it is not a mean over images."""
    return type(method).embed is not Method.embed


def _backward_twice(micro_batches: _MicroBatches, share: float) -> Scalars:
    """Compute the gradient of the whole batch in the memory of one micro-batch (GradCache: Gao et al. 2021, section 3).

    First embed every micro-batch without a graph and compute the loss of all embeddings and its gradient with respect
    to each of them; then embed every micro-batch again, with a graph, and backpropagate from its embeddings.
    """
    setup, method = micro_batches.setup, micro_batches.setup.method
    leaves = _leaves(micro_batches)
    with setup.execution.context(setup.device):
        out = method.loss({name: distributed.gather(rows) for name, rows in leaves.items()})
    setup.scaler.scale(out["loss"] * share).backward()
    grads = {name: rows.grad for name, rows in leaves.items() if rows.grad is not None}
    done = 0
    for index in range(len(micro_batches)):
        batch = micro_batches[index]
        with setup.execution.context(setup.device):
            embedded = method.embed(batch)
        rows = slice(done, done := done + len(batch.indices))
        trained = [name for name in grads if embedded[name].requires_grad]
        torch.autograd.backward([embedded[name] for name in trained], [grads[name][rows] for name in trained])
    return out


def _leaves(micro_batches: _MicroBatches) -> dict[str, Tensor]:
    """Return the embeddings of the whole batch, as leaves of a new graph."""
    method = micro_batches.setup.method
    with torch.no_grad(), _kept_statistics(method):
        embedded = []
        for index in range(len(micro_batches)):
            batch = micro_batches[index]
            with micro_batches.setup.execution.context(micro_batches.setup.device):
                embedded.append(method.embed(batch))
    whole = {name: torch.cat([one[name] for one in embedded]) for name in embedded[0]}
    return {name: rows.requires_grad_(rows.is_floating_point()) for name, rows in whole.items()}


@contextmanager
def _kept_statistics(method: nn.Module) -> Iterator[None]:
    """Restore batch norm's running statistics after the block, because they must count each image once."""
    norms = [module for module in method.modules() if isinstance(module, _BatchNorm)]
    before = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    yield
    for buffer, value in before:
        buffer.copy_(value)
