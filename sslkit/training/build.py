"""Build the objects of a training run from its configuration."""

import os
from collections.abc import Callable
from contextlib import suppress
from inspect import signature
from threading import Thread
from typing import Any

import torch
from torch import nn

from sslkit import plugins
from sslkit.augment.multi_view import numba_missing
from sslkit.config.run import RunConfig
from sslkit.data import Loader, Stores, make_loader, open_stores
from sslkit.data.loaders import workers
from sslkit.errors import UserError
from sslkit.machine import distributed
from sslkit.machine.devices import pick_device
from sslkit.methods.base import Method
from sslkit.methods.build import build_method
from sslkit.training.contract import check_augmentation_once, check_method_once
from sslkit.training.execution import Execution, multi_view_augmentations, possible_here, usual
from sslkit.training.optim.optimizer import make_optimizer
from sslkit.training.optim.schedule import make_schedule, scaled_lr
from sslkit.training.setup import TrainingSetup
from sslkit.training.tune import tune
from sslkit.training.tune.timings import images_per_second


def build(config: RunConfig, log: Callable[[str], None], execution: Execution | None = None) -> TrainingSetup:
    """Build the objects of a run on its device, with the fastest execution that `tune` finds.

    execution: the one to use instead of tuning. Raises UserError if the data or the batch size do not fit the run.
    """
    device = pick_device(config.device)
    _set_determinism(config.deterministic, device)
    if device.type == "cpu" and config.kernels == "auto" and not numba_missing():
        # The first compilation on a machine takes seconds, during which data can be packed and networks built.
        Thread(target=_compile_kernels, name="sslkit-kernels").start()
    # The first process packs data that is not packed yet, before the others open it.
    with distributed.main_first():
        stores = open_stores(config.data, config.eval_data, config.seed, log=log)
    setup = _assemble(config, stores, device, log)
    _choose_execution(setup, execution, log)
    return setup


def _assemble(config: RunConfig, stores: Stores, device: torch.device, log: Callable[[str], None]) -> TrainingSetup:
    torch.manual_seed(config.seed)
    execution = usual(config, device)
    method = build_method(config, stores).to(device)
    check_method_once(method, config.method.name)
    method.to(memory_format=execution.memory_format)
    loader = _make_loader(config, stores, device, log)
    steps_per_epoch = _steps_per_epoch(config, loader)
    optimizer = make_optimizer(
        method, config.optimizer, scaled_lr(config.optimizer, config.batch_size * config.accumulate), method.constant_lr
    )
    return TrainingSetup(
        config=config,
        stores=stores,
        loader=loader,
        augmentation=_make_augmentation(config, stores, device),
        method=method,
        trained=method,
        optimizer=optimizer,
        schedule=make_schedule(optimizer, config.optimizer, steps_per_epoch * config.epochs, steps_per_epoch),
        scaler=torch.amp.GradScaler(device.type, enabled=config.precision == "fp16"),
        device=device,
        execution=execution,
        steps_per_epoch=steps_per_epoch,
    )


def _choose_execution(setup: TrainingSetup, execution: Execution | None, log: Callable[[str], None]) -> None:
    """Choose the execution of the network and the views and the number of decoding threads, and apply them in place."""
    setup.execution = possible_here(execution, setup.device) if execution else tune(setup, log)
    setup.execution.apply_to_augmentation(setup.augmentation)
    if setup.config.workers == "auto":
        workers.decide(setup.loader, images_per_second(setup), log, distributed.local_world())
    # Only after tuning, which tries executions in each process separately.
    setup.method = _with_synchronised_norm(setup.method, setup.device)
    setup.execution.apply(setup.method)
    setup.trained = _with_averaged_gradients(setup.method, setup.config, setup.device)


def _make_loader(config: RunConfig, stores: Stores, device: torch.device, log: Callable[[str], None]) -> Loader:
    return make_loader(
        stores.pretrain,
        batch_size=_own_share(config),
        seed=config.seed,
        device=device,
        kind=config.loader,
        workers=config.workers,
        rank=distributed.rank(),
        world=distributed.world(),
        drop_last=config.drop_last,
        log=log,
    )


def _steps_per_epoch(config: RunConfig, loader: Loader) -> int:
    whole, rest = divmod(loader.steps_per_epoch, config.accumulate)
    if whole == 0:
        raise UserError(
            f"one step takes batch_size × accumulate = {config.batch_size * config.accumulate} images, "
            f"but the data has {len(loader.store)}; lower one of them"
        )
    return whole + (rest > 0 and not config.drop_last)


def _make_augmentation(config: RunConfig, stores: Stores, device: torch.device) -> nn.Module:
    augmentation_class = plugins.find("augmentations", config.augment.name)
    augmentation: nn.Module = augmentation_class(config.augment.options, stores.image_size, stores.mean, stores.std).to(
        device
    )
    for multi_view in multi_view_augmentations(augmentation):
        multi_view.kernels = config.kernels
    check_augmentation_once(augmentation, config.augment.name)
    return augmentation


def _compile_kernels() -> None:
    from sslkit.augment import cpu_kernels

    # What fails here fails again in the first step, unless the command has ended with a mistake in between.
    with suppress(Exception):
        cpu_kernels.prepare()


def _set_determinism(deterministic: bool, device: torch.device) -> None:
    if device.type != "cuda":
        return
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True


def _own_share(config: RunConfig) -> int:
    """Return the number of images per batch of this process."""
    share, rest = divmod(config.batch_size, distributed.world())
    if rest or (config.micro_batch and share % config.micro_batch):
        raise UserError(
            f"batch_size={config.batch_size} cannot be divided among {distributed.world()} processes"
            + (f" in micro-batches of {config.micro_batch}" if config.micro_batch else "")
            + "; make it a multiple"
        )
    return share


def _with_synchronised_norm(method: Method, device: torch.device) -> Method:
    """Return the method with batch norm synchronised over all GPUs, with the same parameters; unchanged on the CPU."""
    if distributed.world() == 1 or device.type != "cuda" or not method.sync_batchnorm:
        return method
    # timm's conversion, because torch's would lose the activation inside timm's batch-norm layers.
    from timm.layers import convert_sync_batchnorm

    result: Method = convert_sync_batchnorm(method)
    return result


def _with_averaged_gradients(method: Method, config: RunConfig, device: torch.device) -> nn.Module:
    # With micro-batches, `train_step` averages gradients once; DistributedDataParallel would do so for each of them.
    if distributed.world() == 1 or config.micro_batch:
        return method
    wrap = nn.parallel.DistributedDataParallel
    # Queues and memory banks are equal by construction; batch-norm statistics are those of the first process.
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in signature(wrap).parameters else "broadcast_buffers"
    options: dict[str, Any] = {buffers: False, "device_ids": [device] if device.type == "cuda" else None}
    return wrap(method, gradient_as_bucket_view=True, **options)
