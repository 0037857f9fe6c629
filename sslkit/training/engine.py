"""Build a run from its configuration and train it. Nothing here knows any particular method.

Reading order: `run` and `resume` at the top, then `_train` with one epoch below it; `build.py` makes the parts,
`step.py` takes a step. With several processes each runs all of this; the first one logs, evaluates and saves.
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
from sslkit.machine.allocator import freed_memory
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
from sslkit.training.setup import Parts
from sslkit.training.step import train_step
from sslkit.training.stopping import Interrupted, Stopper


def run_settings(settings: dict[str, Any], display: Display | None = None) -> Run:
    """`sslkit.run(...)`: a new run from keyword settings, on the command line's own path."""
    mistakes = Mistakes()
    layer = settings_layer("sslkit.run", settings, mistakes)
    return run(resolve_new_layers([layer], mistakes), display)


@freed_memory(keep=True)
def run(resolved: Resolved, display: Display | None = None) -> Run:
    """Train from the start; returns the finished run. Raises UserError, or Interrupted after saving."""
    trackers.check(resolved.config.trackers)
    if launch.needed(resolved.config.devices):
        return _launch_new(Run.create(resolved))
    with launch.joined(resolved.config.device):
        display = display or Display(quiet=not distributed.is_main())
        parts = build(resolved.config, display.say)
        new = _create(resolved)
        _note(new, parts)
        _finish(new, lambda: _train(new, parts, 0, display))
    return new


@freed_memory(keep=True)
def resume(path: str | Path, display: Display | None = None, devices: int | None = None) -> Run:
    """Go on from the newest undamaged checkpoint, bit for bit as if the run had never stopped.

    `devices`: number of processes, where it is to be another than before.
    """
    old = Run.open(path)
    trackers.check(old.config.trackers)
    if launch.needed(devices or old.config.devices):
        return launch.start(old, devices or old.config.devices)
    with launch.joined(old.config.device):
        display = display or Display(quiet=not distributed.is_main())
        noted = old.derived.get("execution")
        parts = build(old.config, display.say, Execution(**noted) if noted else None)
        step = _go_on(old, parts, display)
        _finish(old, lambda: _train(old, parts, step, display))
    return old


def _launch_new(run: Run) -> Run:
    try:
        return launch.start(run, run.config.devices)
    except UserError:
        run.discard_untrained()
        raise


def _create(resolved: Resolved) -> Run:
    """The first process makes the directory; the others only look into it."""
    path = distributed.from_main(Run.create(resolved).path if distributed.is_main() else None)
    return Run(path, resolved.config, resolved.origins)


def _go_on(run: Run, parts: Parts, display: Display) -> int:
    """Restore the newest checkpoint; the step it was made after, or 0."""
    before = run.derived.get("processes")
    if before and before != distributed.world():
        display.say(
            f"begun with {_processes(before)}, going on with {distributed.world()}: the same batches, other views"
        )
    checkpoint, complaints = run.newest_checkpoint()
    for complaint in complaints:
        display.say(complaint)
    if checkpoint is not None:
        _restore(parts, checkpoint)
        display.say(f"going on from step {checkpoint.step} of {parts.steps}")
    elif before:
        display.say(f"{run.path} has no usable checkpoint yet: starting from the beginning")
    step = checkpoint.step if checkpoint else 0
    if distributed.is_main():
        run.forget_after(step)
        _note(run, parts)
    return step


def _processes(count: int) -> str:
    return f"{count} process{'es' if count > 1 else ''}"


def _note(run: Run, parts: Parts) -> None:
    if not distributed.is_main():
        return
    # Counting takes a slow pass, and a run that goes on has the network it began with.
    gflops = run.derived.get("gflops") or flops(parts.method.backbone, parts.stores.image_size) / 1e9
    run.note(
        images=len(parts.stores.pretrain),
        skipped=len(parts.stores.pretrain.skipped),
        skipped_images=parts.stores.pretrain.skipped[:100],
        image_size=parts.stores.image_size,
        loader=parts.loader.kind,
        loader_why=parts.loader.why,
        workers=parts.loader.workers,
        device=str(parts.device),
        execution=asdict(parts.execution),
        stem=parts.method.backbone.stem_kind,
        width=parts.method.backbone.width,
        parameters=sum(p.numel() for p in parts.method.backbone.parameters()),
        gflops=gflops,
        steps_per_epoch=parts.steps_per_epoch,
        peak_lr=parts.peak_lr,
        processes=distributed.world(),
    )


def _finish(run: Run, work: Callable[[], None]) -> None:
    error: BaseException | None = None
    try:
        work()
    except BaseException as raised:
        error = raised
        raise
    finally:
        if distributed.is_main():
            plugins.hooks().run_finished(run=run, error=error)


def _train(run: Run, parts: Parts, step: int, display: Display) -> None:
    """The loop: epochs, with checkpoints and evaluations between them."""
    first = step // parts.steps_per_epoch
    meter = Meter(parts.method.backbone, parts.device, run.metrics[-1]["seconds"] if step else 0.0)
    saved = time.monotonic()
    if distributed.is_main():
        plugins.hooks().run_started(run=run)
        if parts.config.report:
            keep_first_views(run, parts)
    with Stopper(display.say) as stopper, display.bar(parts.steps, step), energy.recorded(run, parts.device), meter:
        try:
            _evaluate_if_due(run, parts, first, step, display, stopper)
            for epoch in range(first, parts.config.epochs):
                for done in _epoch(run, parts, epoch, step, meter, display):
                    step = done
                    stopper.stop_if_asked()
                if distributed.is_main() and _checkpoint_due(parts.config, epoch + 1, time.monotonic() - saved):
                    _save(run, parts, step)
                    saved = time.monotonic()
                _evaluate_if_due(run, parts, epoch + 1, step, display, stopper)
        except Interrupted as stopped:
            _leave(run, parts, step, meter, display, stopped)
            raise
    if distributed.is_main():
        display.say(f"took:     {energy.in_words(run.derived)}")
    display.say(f"backbone: {run.backbone_file}")
    if parts.config.report and distributed.is_main():
        display.say(f"report: {report.write([run.path])}")


def _leave(run: Run, parts: Parts, step: int, meter: Meter, display: Display, stopped: Interrupted) -> None:
    """Save on the way out, unless the signal cut a step in two: half a step is no state to go on from."""
    if stopped.within_step:
        display.say(f"stopped within a step, not saved; go on from the last checkpoint with: sslkit resume {run.path}")
        return
    if meter.pending:
        _log(run, parts, meter.read(run, _lr(parts), step / parts.steps_per_epoch), display)
    if distributed.is_main():
        display.say(f"stopped; saved {_save(run, parts, step)}; go on with: sslkit resume {run.path}")


def _epoch(run: Run, parts: Parts, epoch: int, step: int, meter: Meter, display: Display) -> Iterator[int]:
    """The steps of one epoch from `step` on; yields the number of steps done after each."""
    end = (epoch + 1) * parts.steps_per_epoch
    accumulate = parts.config.accumulate
    batches = parts.loader.epoch(epoch, (step - epoch * parts.steps_per_epoch) * accumulate)
    meter.start()
    while step < end:
        with meter.waiting():
            raws = list(islice(batches, accumulate))
        parts.schedule.set(step)
        try:
            scalars = train_step(parts, raws, step)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise out_of_memory(parts, raws[0], error) from error
            raise
        step += 1
        meter.add(step, scalars, images=parts.images_per_step)
        if step % parts.config.log_every == 0 or step == end:
            _log(run, parts, meter.read(run, _lr(parts), step / parts.steps_per_epoch), display)
        yield step


def _lr(parts: Parts) -> float:
    """The rate of the last step."""
    return parts.optimizer.param_groups[0]["lr"]


def _log(run: Run, parts: Parts, metrics: dict[str, Any], display: Display) -> None:
    if not distributed.is_main():
        return
    run.log_metrics(metrics)
    display.metrics(metrics)
    if warning := _signs_of_collapse(parts, metrics):
        display.warn_once("collapse", f"step {metrics['step']}: {warning}")
    plugins.hooks().run_logged(run=run, step=metrics["step"], metrics=metrics)


def _signs_of_collapse(parts: Parts, metrics: dict[str, Any]) -> str | None:
    std, rank = metrics.get("feature_std"), metrics.get("effective_rank")
    if std is None or rank is None:
        return None
    width: Any = parts.method.backbone.width
    return collapse_warning(std, rank, width)


def _checkpoint_due(config: RunConfig, epoch: int, since: float) -> bool:
    """At the epochs asked for and the last; between them where more than a minute's work would be lost."""
    asked = config.checkpoint_every and epoch % config.checkpoint_every == 0
    return bool(asked) or epoch == config.epochs or since > 60


def _save(run: Run, parts: Parts, step: int) -> Path:
    """Checkpoint and backbone file of this moment. An epoch's own checkpoint has the epoch's plain name."""
    epoch, extra = divmod(step, parts.steps_per_epoch)
    name = f"epoch-{epoch:04d}" + (f"+{extra:04d}" if extra else "")
    tensors, optimizer = optimizer_tensors(parts.optimizer)
    state = {
        "epoch": step / parts.steps_per_epoch,
        "optimizer": optimizer,
        "scaler": parts.scaler.state_dict(),
        "steps_per_epoch": parts.steps_per_epoch,
    }
    # The backbone first: a kill between the two must not leave it older than the checkpoint one goes on from.
    save_backbone(
        parts.method.exported,
        run.backbone_file,
        name=parts.method.trained_backbone(run.config.backbone).name,
        image_size=parts.stores.image_size,
        mean=parts.stores.mean,
        std=parts.stores.std,
        config=run.config.model_dump(mode="json"),
    )
    checkpoint = Checkpoint(step, parts.method.state_dict(), tensors, state)
    return run.save_checkpoint(checkpoint, name, run.config.checkpoint_every)


def _restore(parts: Parts, checkpoint: Checkpoint) -> None:
    if checkpoint.state["steps_per_epoch"] != parts.steps_per_epoch:
        raise UserError(
            f"the data has changed: an epoch had {checkpoint.state['steps_per_epoch']} steps and now has "
            f"{parts.steps_per_epoch}; bring the same images back, or start a new run"
        )
    state = parts.method.state_dict()
    if state.keys() != checkpoint.model.keys():
        raise UserError("the method or the backbone has changed since the checkpoint; start a new run")
    # Updated, not replaced: a state dict also carries version numbers, which some networks look at.
    state.update(checkpoint.model)
    parts.method.load_state_dict(state)
    restore_optimizer(parts.optimizer, checkpoint.optimizer, checkpoint.state["optimizer"])
    parts.scaler.load_state_dict(checkpoint.state["scaler"])


def _evaluate_if_due(run: Run, parts: Parts, epoch: int, step: int, display: Display, stopper: Stopper) -> None:
    """Evaluate after `epoch` epochs if that is asked for and the results are not there yet."""
    every, last = parts.config.eval_every, parts.config.epochs
    if step % parts.steps_per_epoch or not (epoch in (0, last) or (every and epoch % every == 0)):
        return
    known = {r["evaluator"] for r in run.evaluations if r["epoch"] == epoch and r["during_run"]}
    todo = [e for e in evaluation.possible(parts.config.evaluators, parts.stores) if e.name not in known]
    stopper.stop_if_asked()
    if todo and distributed.is_main():
        with uncompiled():
            stopper.at_once(lambda: _evaluate(run, parts, todo, {"epoch": epoch, "step": step}, display))
    stopper.stop_if_asked()


def _evaluate(run: Run, parts: Parts, todo: list[Choice], when: dict[str, int], display: Display) -> None:
    records = evaluation.evaluate(
        parts.method.exported,
        todo,
        parts.stores,
        parts.device,
        parts.config.seed,
        initial=lambda: evaluation.untrained(run.config, parts.stores.image_size),
        head=lambda: evaluation.projection_head(parts.method),
        folder=run.path,
    )
    for record in records:
        record = {**when, "during_run": True} | record
        run.log_evaluation(record)
        display.evaluation(record)
        plugins.hooks().run_logged(run=run, step=when["step"], metrics=as_metrics(record))
