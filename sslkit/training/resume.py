"""Save the state of training, and restore it, so that a resumed run is bit-identical to an uninterrupted one."""

from pathlib import Path
from typing import Any

from sslkit.backbones import save_backbone
from sslkit.data import Stores
from sslkit.errors import UserError
from sslkit.machine import distributed
from sslkit.machine.files import reading
from sslkit.runs.checkpoint import Checkpoint
from sslkit.runs.display import Display
from sslkit.runs.run import Run
from sslkit.training.optim.state import optimizer_tensors, restore_optimizer
from sslkit.training.setup import TrainingSetup


def save(run: Run, setup: TrainingSetup, step: int) -> Path:
    """Write the backbone file and a checkpoint: epoch-0005 at the end of an epoch, epoch-0005+0012 12 steps later."""
    epoch, extra = divmod(step, setup.steps_per_epoch)
    name = f"epoch-{epoch:04d}" + (f"+{extra:04d}" if extra else "")
    tensors, optimizer = optimizer_tensors(setup.optimizer)
    state = {
        "epoch": step / setup.steps_per_epoch,
        "optimizer": optimizer,
        "scaler": setup.scaler.state_dict(),
        "steps_per_epoch": setup.steps_per_epoch,
        "data": setup.stores.digests,
    }
    # The backbone first: a kill between the two must not leave it older than the newest checkpoint.
    with run.written(run.backbone_file):
        save_backbone(
            setup.method.exported,
            run.backbone_file,
            name=setup.method.trained_backbone(run.config.backbone).name,
            image_size=setup.stores.image_size,
            mean=setup.stores.mean,
            std=setup.stores.std,
            epoch=state["epoch"],
            step=step,
            config=run.config.model_dump(mode="json"),
        )
    checkpoint = Checkpoint(step, setup.method.state_dict(), tensors, state)
    return run.save_checkpoint(checkpoint, name, run.config.checkpoint_every)


def restore_newest(run: Run, setup: TrainingSetup, display: Display) -> int:
    """Restore the newest checkpoint, if there is one; return the number of steps done."""
    before = run.derived.get("processes")
    if before and before != distributed.world():
        display.log(
            f"started with {_processes(before)}, resuming with {distributed.world()}: same batches, different views"
        )
    checkpoint, complaints = run.newest_checkpoint()
    for complaint in [*complaints, *run.remarks]:
        display.log(complaint)
    check_images(checkpoint.state.get("data") if checkpoint else run.derived.get("data"), setup.stores)
    if checkpoint is not None:
        with reading(run.checkpoints[-1], "delete it to go on from the one before it, or start a new run"):
            _restore(setup, checkpoint)
        display.log(f"resuming from step {checkpoint.step} of {setup.steps}")
    elif before:
        display.log(f"{run.path} has no usable checkpoint yet: starting from the beginning")
    step = checkpoint.step if checkpoint else 0
    if distributed.is_main():
        recorded = run.metrics[-1]["step"] if run.metrics else 0
        if recorded < step:
            display.log(f"the metrics of steps {recorded:g} to {step} are lost; the weights are not")
        run.forget_after(step)
    return step


def check_images(before: Any, stores: Stores) -> None:
    """Raise UserError unless the images are those of before: {part: digest}; None or {} if these are not known."""
    now = stores.digests
    changed = [part for part, digest in (before or {}).items() if now.get(part) != digest]
    if changed:
        raise UserError(
            f"the images have changed since the run was stopped ({', '.join(changed)}): other pictures, another "
            f"order, other labels or another size; bring the same images back (data=PATH, eval_data=PATH if they have "
            f"moved), or start a new run"
        )


def _restore(setup: TrainingSetup, checkpoint: Checkpoint) -> None:
    if checkpoint.state["steps_per_epoch"] != setup.steps_per_epoch:
        raise UserError(
            f"an epoch had {checkpoint.state['steps_per_epoch']} steps and now has {setup.steps_per_epoch}: "
            f"batch_size, accumulate, drop_last or the number of images has changed; set it back, or start a new run"
        )
    state = setup.method.state_dict()
    if state.keys() != checkpoint.model.keys():
        raise UserError("the method or the backbone has changed since the checkpoint; start a new run")
    # Update the state dict instead of replacing it: it also holds version numbers, which some networks read.
    state.update(checkpoint.model)
    setup.method.load_state_dict(state)
    restore_optimizer(setup.optimizer, checkpoint.optimizer, checkpoint.state["optimizer"])
    setup.scaler.load_state_dict(checkpoint.state["scaler"])


def _processes(count: int) -> str:
    return f"{count} process{'es' if count > 1 else ''}"
