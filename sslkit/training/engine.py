"""Build a run from its configuration and train it, independently of the method.

`build.py` builds the setup, `loop.py` trains it, `step.py` takes one step, `resume.py` saves and restores. With
several processes each runs all of this code; the first one logs, evaluates and saves.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sslkit import plugins
from sslkit.backbones.flops import flops
from sslkit.config.layers import Mistakes, settings_layer
from sslkit.config.resolve import Resolved
from sslkit.errors import UserError
from sslkit.machine import distributed
from sslkit.machine.files import reading
from sslkit.nn.modes import own_random
from sslkit.runs import trackers
from sslkit.runs.directory import ENVIRONMENT
from sslkit.runs.display import Display
from sslkit.runs.place import Place, claim
from sslkit.runs.run import Run
from sslkit.training import launch
from sslkit.training.budget import fit_budget
from sslkit.training.build import build
from sslkit.training.execution import Execution
from sslkit.training.loop import train
from sslkit.training.moved_data import with_moved_data
from sslkit.training.preflight import resolve_new_layers
from sslkit.training.resume import restore_newest
from sslkit.training.setup import TrainingSetup


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
    with launch.joined(resolved.config.device), own_random(resolved.config.seed):
        display = display or Display(quiet=not distributed.is_main())
        # Before images are packed, which may take long.
        with _claimed(resolved) as place:
            resolved = fit_budget(resolved, display.log)
            setup = build(resolved.config, display.log)
            new = _create(resolved, place)
            _note(new, setup)
            _finish(new, lambda: train(new, setup, 0, display))
    return new


def resume(
    path: str | Path, display: Display | None = None, devices: int | None = None, words: Iterable[str] = ()
) -> Run:
    """Resume a run from its newest undamaged checkpoint, bit-identical to an uninterrupted run; return it.

    devices: number of processes, if it is to differ from before (then the views differ). words: `data=PATH` and
    `eval_data=PATH` of images that have moved; they must be the same.
    """
    old = with_moved_data(Run.open(path), words)
    trackers.check(old.config.trackers)
    if launch.needed(devices or old.config.devices):
        return launch.start(old, devices or old.config.devices, words)
    with launch.joined(old.config.device), own_random(old.config.seed), _held(old):
        display = display or Display(quiet=not distributed.is_main())
        setup = build(old.config, display.log, _execution(old))
        step = restore_newest(old, setup, display)
        if words and distributed.is_main():
            old.keep_settings()
        _note(old, setup)
        _finish(old, lambda: train(old, setup, step, display))
    return old


def _launch_new(run: Run) -> Run:
    try:
        return launch.start(run, run.config.devices)
    except UserError:
        run.discard_untrained()
        raise


@contextmanager
def _claimed(resolved: Resolved) -> Iterator[Place | None]:
    """Claim the folder of a new run in the first process, and hold it; a folder without a run in it is removed."""
    place = claim(resolved.config) if distributed.is_main() else None
    try:
        yield place
    finally:
        if place:
            place.discard()


@contextmanager
def _held(run: Run) -> Iterator[None]:
    """Hold the folder of a run in the first process. Raises UserError if another process holds it."""
    if not distributed.is_main():
        yield
        return
    run.place.take()
    try:
        yield
    finally:
        run.place.release()


def _create(resolved: Resolved, place: Place | None) -> Run:
    """Create the run directory in the first process, and return the run in all of them."""
    path = distributed.from_main(Run.create(resolved, place).path if place else None)
    return Run(path, resolved.config, resolved.origins)


def _execution(run: Run) -> Execution | None:
    """Return the execution that a run has used; None if it is not known."""
    noted = run.derived.get("execution")
    if noted is None:
        return None
    with reading(run.path / ENVIRONMENT, "bring it back, or take `execution` out of it"):
        return Execution.of(noted)


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
        data=setup.stores.digests,
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
