"""The training loop: epochs and steps, with metrics, checkpoints and evaluations between them."""

import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

from sslkit import plugins
from sslkit.config.base import Choice
from sslkit.config.run import RunConfig
from sslkit.evaluation import evaluate as evaluation
from sslkit.machine import distributed
from sslkit.machine.load import ThreadGovernor, computing_threads
from sslkit.machine.precision import uncompiled
from sslkit.machine.signals import Interrupted
from sslkit.nn.collapse import collapse_warning
from sslkit.runs import energy, report
from sslkit.runs.display import Display
from sslkit.runs.records import CHANCE, FLOORS, RAW_PIXELS, as_metrics, known_floors
from sslkit.runs.run import Run
from sslkit.training.first_views import keep_first_views
from sslkit.training.meter import Meter
from sslkit.training.out_of_memory import is_out_of_memory, out_of_memory
from sslkit.training.resume import save
from sslkit.training.setup import TrainingSetup
from sslkit.training.step import train_step
from sslkit.training.stopping import Stopper


def train(run: Run, setup: TrainingSetup, step: int, display: Display) -> None:
    """Train from `step` to the end, with progress, energy and metrics recorded; then log the outcome."""
    meter = Meter(setup.method.backbone, setup.device, _seconds_before(run) if step else 0.0)
    if distributed.is_main():
        plugins.hooks().run_started(run=run)
        if setup.config.report:
            keep_first_views(run, setup)
    with (
        Stopper(display.log) as stopper,
        display.bar(setup.steps, step),
        energy.recorded(run, setup.device),
        computing_threads(setup.config.threads, setup.device) as governor,
        meter,
    ):
        _epochs(run, setup, step, meter, display, stopper, governor)
    if distributed.is_main():
        display.log(f"took:     {energy.in_words(run.derived)}")
    display.log(f"backbone: {run.backbone_file}")
    if setup.config.report and distributed.is_main():
        display.log(f"report:   {report.write([run.path])}")


def _seconds_before(run: Run) -> float:
    """Return the seconds that a resumed run has trained, from its costs where its metrics are lost."""
    known: float = run.metrics[-1].get("seconds", 0.0) if run.metrics else 3600 * run.derived.get("hours", 0.0)
    return known


def _epochs(
    run: Run,
    setup: TrainingSetup,
    step: int,
    meter: Meter,
    display: Display,
    stopper: Stopper,
    governor: ThreadGovernor,
) -> None:
    """Train the remaining epochs, with checkpoints and evaluations between them. Raises Interrupted after saving."""
    first = step // setup.steps_per_epoch
    if left_out := evaluation.without_their_labels(setup.config.evaluators, setup.stores):
        display.log(left_out)
    saved = time.monotonic()
    try:
        _evaluate_if_due(run, setup, first, step, display, stopper)
        for epoch in range(first, setup.config.epochs):
            for done in _epoch(run, setup, epoch, step, meter, display):
                step = done
                if governor.adjust():
                    display.log(f"step {step}: {governor.describe()}")
                stopper.stop_if_asked()
            if distributed.is_main() and _checkpoint_due(setup.config, epoch + 1, time.monotonic() - saved):
                save(run, setup, step)
                saved = time.monotonic()
            _evaluate_if_due(run, setup, epoch + 1, step, display, stopper)
    except Interrupted as stopped:
        _save_interrupted(run, setup, step, meter, display, stopped)
        raise


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
        meter.add(step, scalars, images=setup.config.batch_size * len(image_batches))
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


def _save_interrupted(
    run: Run, setup: TrainingSetup, step: int, meter: Meter, display: Display, stopped: Interrupted
) -> None:
    """Save the state, unless the signal interrupted a step: the state within a step cannot be resumed."""
    if stopped.within_step:
        place = f"go on from {run.checkpoints[-1].name}" if run.checkpoints else "no checkpoint yet, so begin again"
        display.log(f"stopped within a step, not saved; {place} with: {run.resume_command}")
        return
    if meter.pending:
        _log(run, setup, meter.read(run, _lr(setup), step / setup.steps_per_epoch), display)
    if distributed.is_main():
        display.log(f"stopped; saved {save(run, setup, step)}; resume with: {run.resume_command}")


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
        floors=known_floors(run.evaluations, setup.stores.protocol, todo),
        wanted_floors=FLOORS if when["epoch"] else (RAW_PIXELS, CHANCE),
    )
    for record in records:
        record = {**when, "during_run": True} | record
        run.log_evaluation(record)
        display.evaluation(record)
        plugins.hooks().run_logged(run=run, step=when["step"], metrics=as_metrics(record))
