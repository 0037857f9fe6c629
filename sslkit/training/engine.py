"""Build a run from its configuration and train it, independently of the method.

Reading order: `run` and `resume`, then `_train`, then `_epoch`; `build.py` builds the setup, `step.py` takes one step.
With several processes each runs all of this code; the first one logs, evaluates and saves.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from sslkit import plugins
from sslkit.backbones import save_backbone
from sslkit.backbones.flops import flops
from sslkit.config.base import Choice
from sslkit.config.layers import Mistakes, settings_layer
from sslkit.config.resolve import Resolved
from sslkit.config.run import RunConfig
from sslkit.errors import UserError
from sslkit.evaluation import evaluate as evaluation
from sslkit.machine import distributed
from sslkit.machine.precision import uncompiled
from sslkit.nn.health import collapse_warning
from sslkit.runs import energy, report, trackers
from sslkit.runs.checkpoint import Checkpoint
from sslkit.runs.display import Display
from sslkit.runs.records import as_metrics
from sslkit.runs.run import Run
from sslkit.training import launch
from sslkit.training.build import build
from sslkit.training.execution import Execution
from sslkit.training.first_views import keep_first_views
from sslkit.training.meter import Meter
from sslkit.training.optim.state import optimizer_tensors, restore_optimizer
from sslkit.training.out_of_memory import is_out_of_memory, out_of_memory
from sslkit.training.preflight import resolve_new_layers
from sslkit.training.setup import TrainingSetup
from sslkit.training.step import train_step
from sslkit.training.stopping import Interrupted, Stopper


def run_settings(settings: dict[str, Any], display: Display | None = None) -> Run:
    """Train a new run from the keyword settings of `sslkit.run(...)`, exactly as the command line does."""
    mistakes = Mistakes()
    layer = settings_layer("sslkit.run", settings, mistakes)
    return run(resolve_new_layers([layer], mistakes), display)


def run(resolved: Resolved, display: Display | None = None) -> Run:
    """Train a new run and return it. Raises UserError, or Interrupted after saving."""
    trackers.check(resolved.config.trackers)
    if launch.needed(resolved.config.devices):
        return _launch_new(Run.create(resolved))
    with launch.joined(resolved.config.device):
        display = display or Display(quiet=not distributed.is_main())
        setup = build(resolved.config, display.log)
        new = _create(resolved)
        _note(new, setup)
        _finish(new, lambda: _train(new, setup, 0, display))
    return new


def resume(path: str | Path, display: Display | None = None, devices: int | None = None) -> Run:
    """Resume a run from its newest undamaged checkpoint, bit-identical to an uninterrupted run; return it.

    devices: number of processes, if it is to differ from before (then the views differ).
    """
    old = Run.open(path)
    trackers.check(old.config.trackers)
    if launch.needed(devices or old.config.devices):
        return launch.start(old, devices or old.config.devices)
    with launch.joined(old.config.device):
        display = display or Display(quiet=not distributed.is_main())
        noted = old.derived.get("execution")
        setup = build(old.config, display.log, Execution(**noted) if noted else None)
        step = _restore_newest(old, setup, display)
        _finish(old, lambda: _train(old, setup, step, display))
    return old


def _launch_new(run: Run) -> Run:
    try:
        return launch.start(run, run.config.devices)
    except UserError:
        run.discard_untrained()
        raise


def _create(resolved: Resolved) -> Run:
    """Create the run directory in the first process, and return the run in all of them."""
    path = distributed.from_main(Run.create(resolved).path if distributed.is_main() else None)
    return Run(path, resolved.config, resolved.origins)


def _restore_newest(run: Run, setup: TrainingSetup, display: Display) -> int:
    """Restore the newest checkpoint, if there is one; return the number of steps done."""
    before = run.derived.get("processes")
    if before and before != distributed.world():
        display.log(
            f"started with {_processes(before)}, resuming with {distributed.world()}: same batches, different views"
        )
    checkpoint, complaints = run.newest_checkpoint()
    for complaint in complaints:
        display.log(complaint)
    if checkpoint is not None:
        _restore(setup, checkpoint)
        display.log(f"resuming from step {checkpoint.step} of {setup.steps}")
    elif before:
        display.log(f"{run.path} has no usable checkpoint yet: starting from the beginning")
    step = checkpoint.step if checkpoint else 0
    if distributed.is_main():
        run.forget_after(step)
        _note(run, setup)
    return step


def _processes(count: int) -> str:
    return f"{count} process{'es' if count > 1 else ''}"


def _note(run: Run, setup: TrainingSetup) -> None:
    if not distributed.is_main():
        return
    # Counting FLOPs takes a slow forward pass, and a resumed run has the same network.
    gflops = run.derived.get("gflops") or flops(setup.method.backbone, setup.stores.image_size) / 1e9
    run.note(
        images=len(setup.stores.pretrain),
        skipped=len(setup.stores.pretrain.skipped),
        skipped_images=setup.stores.pretrain.skipped[:100],
        image_size=setup.stores.image_size,
        loader=setup.loader.kind,
        loader_why=setup.loader.why,
        workers=setup.loader.workers,
        device=str(setup.device),
        execution=asdict(setup.execution),
        stem=setup.method.backbone.stem_kind,
        width=setup.method.backbone.width,
        parameters=sum(p.numel() for p in setup.method.backbone.parameters()),
        gflops=gflops,
        steps_per_epoch=setup.steps_per_epoch,
        peak_lr=setup.peak_lr,
        processes=distributed.world(),
    )


def _finish(run: Run, work: Callable[[], None]) -> None:
    """Run `work`, and call the hook `run_finished` with the error that ended it, if any."""
    error: BaseException | None = None
    try:
        work()
    except BaseException as raised:
        error = raised
        raise
    finally:
        if distributed.is_main():
            plugins.hooks().run_finished(run=run, error=error)


def _train(run: Run, setup: TrainingSetup, step: int, display: Display) -> None:
    """Train from `step` to the end, with progress, energy and metrics recorded; then log the outcome."""
    meter = Meter(setup.method.backbone, setup.device, run.metrics[-1]["seconds"] if step else 0.0)
    if distributed.is_main():
        plugins.hooks().run_started(run=run)
        if setup.config.report:
            keep_first_views(run, setup)
    with Stopper(display.log) as stopper, display.bar(setup.steps, step), energy.recorded(run, setup.device), meter:
        _epochs(run, setup, step, meter, display, stopper)
    if distributed.is_main():
        display.log(f"took:     {energy.in_words(run.derived)}")
    display.log(f"backbone: {run.backbone_file}")
    if setup.config.report and distributed.is_main():
        display.log(f"report:   {report.write([run.path])}")


def _epochs(run: Run, setup: TrainingSetup, step: int, meter: Meter, display: Display, stopper: Stopper) -> None:
    """Train the remaining epochs, with checkpoints and evaluations between them. Raises Interrupted after saving."""
    first = step // setup.steps_per_epoch
    saved = time.monotonic()
    try:
        _evaluate_if_due(run, setup, first, step, display, stopper)
        for epoch in range(first, setup.config.epochs):
            for done in _epoch(run, setup, epoch, step, meter, display):
                step = done
                stopper.stop_if_asked()
            if distributed.is_main() and _checkpoint_due(setup.config, epoch + 1, time.monotonic() - saved):
                _save(run, setup, step)
                saved = time.monotonic()
            _evaluate_if_due(run, setup, epoch + 1, step, display, stopper)
    except Interrupted as stopped:
        _save_interrupted(run, setup, step, meter, display, stopped)
        raise


def _save_interrupted(
    run: Run, setup: TrainingSetup, step: int, meter: Meter, display: Display, stopped: Interrupted
) -> None:
    """Save the state, unless the signal interrupted a step: the state within a step cannot be resumed."""
    if stopped.within_step:
        display.log(f"stopped within a step, not saved; resume from the last checkpoint with: sslkit resume {run.path}")
        return
    if meter.pending:
        _log(run, setup, meter.read(run, _lr(setup), step / setup.steps_per_epoch), display)
    if distributed.is_main():
        display.log(f"stopped; saved {_save(run, setup, step)}; resume with: sslkit resume {run.path}")


def _epoch(run: Run, setup: TrainingSetup, epoch: int, step: int, meter: Meter, display: Display) -> Iterator[int]:
    """Take the steps of one epoch from `step` on; yield the number of steps done after each."""
    end = (epoch + 1) * setup.steps_per_epoch
    accumulate = setup.config.accumulate
    batches = setup.loader.epoch(epoch, (step - epoch * setup.steps_per_epoch) * accumulate)
    meter.start()
    while step < end:
        with meter.waiting():
            image_batches = list(islice(batches, accumulate))
        setup.schedule.set(step)
        try:
            scalars = train_step(setup, image_batches, step)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise out_of_memory(setup, image_batches[0], error) from error
            raise
        step += 1
        meter.add(step, scalars, images=setup.images_per_step)
        if step % setup.config.log_every == 0 or step == end:
            _log(run, setup, meter.read(run, _lr(setup), step / setup.steps_per_epoch), display)
        yield step


def _lr(setup: TrainingSetup) -> float:
    """Return the learning rate of the last step."""
    number: float = setup.optimizer.param_groups[0]["lr"]
    return number


def _log(run: Run, setup: TrainingSetup, metrics: dict[str, Any], display: Display) -> None:
    if not distributed.is_main():
        return
    run.log_metrics(metrics)
    display.metrics(metrics)
    if warning := _signs_of_collapse(setup, metrics):
        display.warn_once("collapse", f"step {metrics['step']}: {warning}")
    plugins.hooks().run_logged(run=run, step=metrics["step"], metrics=metrics)


def _signs_of_collapse(setup: TrainingSetup, metrics: dict[str, Any]) -> str | None:
    std, rank = metrics.get("feature_std"), metrics.get("effective_rank")
    if std is None or rank is None:
        return None
    return collapse_warning(std, rank, setup.method.width)


def _checkpoint_due(config: RunConfig, epoch: int, since: float) -> bool:
    """Return True at epochs requested by the settings, at the last one, and 60 seconds after the last checkpoint."""
    requested = config.checkpoint_every and epoch % config.checkpoint_every == 0
    return bool(requested) or epoch == config.epochs or since > 60


def _save(run: Run, setup: TrainingSetup, step: int) -> Path:
    """Write the backbone file and a checkpoint: epoch-0005 at the end of an epoch, epoch-0005+0012 12 steps later."""
    epoch, extra = divmod(step, setup.steps_per_epoch)
    name = f"epoch-{epoch:04d}" + (f"+{extra:04d}" if extra else "")
    tensors, optimizer = optimizer_tensors(setup.optimizer)
    state = {
        "epoch": step / setup.steps_per_epoch,
        "optimizer": optimizer,
        "scaler": setup.scaler.state_dict(),
        "steps_per_epoch": setup.steps_per_epoch,
    }
    # The backbone first: a kill between the two must not leave it older than the newest checkpoint.
    save_backbone(
        setup.method.exported,
        run.backbone_file,
        name=setup.method.trained_backbone(run.config.backbone).name,
        image_size=setup.stores.image_size,
        mean=setup.stores.mean,
        std=setup.stores.std,
        config=run.config.model_dump(mode="json"),
    )
    checkpoint = Checkpoint(step, setup.method.state_dict(), tensors, state)
    return run.save_checkpoint(checkpoint, name, run.config.checkpoint_every)


def _restore(setup: TrainingSetup, checkpoint: Checkpoint) -> None:
    if checkpoint.state["steps_per_epoch"] != setup.steps_per_epoch:
        raise UserError(
            f"the data has changed: an epoch had {checkpoint.state['steps_per_epoch']} steps and now has "
            f"{setup.steps_per_epoch}; bring the same images back, or start a new run"
        )
    state = setup.method.state_dict()
    if state.keys() != checkpoint.model.keys():
        raise UserError("the method or the backbone has changed since the checkpoint; start a new run")
    # Update the state dict instead of replacing it: it also holds version numbers, which some networks read.
    state.update(checkpoint.model)
    setup.method.load_state_dict(state)
    restore_optimizer(setup.optimizer, checkpoint.optimizer, checkpoint.state["optimizer"])
    setup.scaler.load_state_dict(checkpoint.state["scaler"])


def _evaluate_if_due(run: Run, setup: TrainingSetup, epoch: int, step: int, display: Display, stopper: Stopper) -> None:
    """Evaluate after `epoch` epochs if the settings ask for it and results are missing."""
    every, last = setup.config.eval_every, setup.config.epochs
    if step % setup.steps_per_epoch or not (epoch in (0, last) or (every and epoch % every == 0)):
        return
    known = {r["evaluator"] for r in run.evaluations if r["epoch"] == epoch and r["during_run"]}
    todo = [e for e in evaluation.possible(setup.config.evaluators, setup.stores) if e.name not in known]
    stopper.stop_if_asked()
    if todo and distributed.is_main():
        with uncompiled():
            stopper.at_once(lambda: _evaluate(run, setup, todo, {"epoch": epoch, "step": step}, display))
    stopper.stop_if_asked()


def _evaluate(run: Run, setup: TrainingSetup, todo: list[Choice], when: dict[str, int], display: Display) -> None:
    records = evaluation.evaluate(
        setup.method.exported,
        todo,
        setup.stores,
        setup.device,
        setup.config.seed,
        initial=lambda: evaluation.untrained(run.config, setup.stores.image_size),
        head=lambda: evaluation.projection_head(setup.method),
        folder=run.path,
    )
    for record in records:
        record = {**when, "during_run": True} | record
        run.log_evaluation(record)
        display.evaluation(record)
        plugins.hooks().run_logged(run=run, step=when["step"], metrics=as_metrics(record))
