"""Build a run from its configuration and train it. Nothing here knows any particular method.

Reading order: `run` and `resume` at the top, `build`, then `_train` with one epoch and one step below it.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sslkit import evaluation, plugins
from sslkit.backbones import create_backbone, save_backbone
from sslkit.config import Mistakes, Resolved, RunConfig, resolve_layers
from sslkit.data import Stores, make_loader, open_stores
from sslkit.errors import UserError
from sslkit.health import collapse_warning
from sslkit.memory import is_out_of_memory, out_of_memory
from sslkit.meter import Meter
from sslkit.methods.base import Batch, Method, RunInfo
from sslkit.optim import make_optimizer, make_schedule, optimizer_tensors, restore_optimizer, scaled_lr
from sslkit.progress import Display
from sslkit.runs import Checkpoint, Run, settings_layer
from sslkit.stopping import Interrupted, Stopper


@dataclass
class Parts:
    """Everything a run is made of, built once."""

    config: RunConfig
    stores: Stores
    loader: Any
    views: nn.Module
    method: Method
    optimizer: torch.optim.Optimizer
    schedule: Any
    scaler: torch.amp.GradScaler
    device: torch.device
    autocast: torch.dtype | None
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.config.epochs


def run_settings(settings: dict[str, Any], display: Display | None = None) -> Run:
    """`sslkit.run(...)`: a new run from keyword settings, on the command line's own path."""
    mistakes = Mistakes()
    layer = settings_layer("sslkit.run", settings, mistakes)
    return run(resolve_layers([layer], mistakes), display)


def run(resolved: Resolved, display: Display | None = None) -> Run:
    """Train from the start; returns the finished run. Raises UserError, or Interrupted after saving."""
    display = display or Display()
    parts = build(resolved.config, display.say)
    new = Run.create(resolved)
    _note(new, parts)
    _finish(new, lambda: _train(new, parts, 0, display))
    return new


def resume(path: str | Path, display: Display | None = None) -> Run:
    """Go on from the newest undamaged checkpoint, bit for bit as if the run had never stopped."""
    display = display or Display()
    old = Run.open(path)
    parts = build(old.config, display.say)
    checkpoint, complaints = old.newest_checkpoint()
    for complaint in complaints:
        display.say(complaint)
    if checkpoint is None:
        display.say(f"{old.path} has no usable checkpoint yet: starting from the beginning")
    else:
        _restore(parts, checkpoint)
        display.say(f"going on from step {checkpoint.step} of {parts.steps}")
    step = checkpoint.step if checkpoint else 0
    old.forget_after(step)
    _finish(old, lambda: _train(old, parts, step, display))
    return old


def build(config: RunConfig, say: Callable[[str], None]) -> Parts:
    """Data, views, method, optimizer and schedule, on their device."""
    device = pick_device(config.device)
    autocast = pick_precision(config.precision, device)
    _set_kernels(config.deterministic, device)
    stores = open_stores(config.data, config.eval_data, config.seed, say=say)
    torch.manual_seed(config.seed)
    method = _build_method(config, stores).to(device)
    if config.channels_last:
        method.to(memory_format=torch.channels_last)
    recipe = plugins.find("augmentations", config.augment.name)
    views = recipe(config.augment.options, stores.image_size, stores.mean, stores.std).to(device)
    loader = make_loader(
        stores.pretrain,
        batch_size=config.batch_size,
        seed=config.seed,
        device=device,
        kind=config.loader,
        workers=config.workers,
        say=say,
    )
    steps_per_epoch = loader.steps_per_epoch // config.accumulate
    if steps_per_epoch == 0:
        raise UserError(
            f"one step takes batch_size × accumulate = {config.batch_size * config.accumulate} images, "
            f"but the data has {len(stores.pretrain)}; lower one of them"
        )
    lr = scaled_lr(config.optimizer, config.batch_size * config.accumulate)
    optimizer = make_optimizer(method, config.optimizer, lr)
    schedule = make_schedule(optimizer, config.optimizer, steps_per_epoch * config.epochs, steps_per_epoch)
    scaler = torch.amp.GradScaler(device.type, enabled=autocast == torch.float16)
    return Parts(config, stores, loader, views, method, optimizer, schedule, scaler, device, autocast, steps_per_epoch)


def pick_device(name: str) -> torch.device:
    """auto: the first GPU, else Apple's, else the CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_precision(name: str, device: torch.device) -> torch.dtype | None:
    """The autocast type, or None for plain float32."""
    if name == "auto":
        name = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def _set_kernels(deterministic: bool, device: torch.device) -> None:
    if device.type != "cuda":
        return
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True


def _build_method(config: RunConfig, stores: Stores) -> Method:
    backbone = create_backbone(config.backbone, image_size=stores.image_size)
    info = RunInfo(len(stores.pretrain), len(stores.pretrain.classes), stores.image_size)
    method = plugins.find("methods", config.method.name)(config.method.options, backbone, info)
    if method.uses_labels and stores.pretrain.labels is None:
        raise UserError(f"method {config.method.name} needs labels, and {config.data.name} has none")
    return method


def _note(run: Run, parts: Parts) -> None:
    run.note(
        images=len(parts.stores.pretrain),
        skipped=len(parts.stores.pretrain.skipped),
        image_size=parts.stores.image_size,
        loader=parts.loader.kind,
        loader_why=parts.loader.why,
        device=str(parts.device),
        precision=str(parts.autocast or torch.float32).removeprefix("torch."),
        stem=parts.method.backbone.stem_kind,
        width=parts.method.backbone.width,
        parameters=sum(p.numel() for p in parts.method.backbone.parameters()),
        steps_per_epoch=parts.steps_per_epoch,
        peak_lr=scaled_lr(run.config.optimizer, run.config.batch_size * run.config.accumulate),
    )


def _finish(run: Run, work: Callable[[], None]) -> None:
    error: BaseException | None = None
    try:
        work()
    except BaseException as raised:
        error = raised
        raise
    finally:
        plugins.hooks().run_finished(run=run, error=error)


def _train(run: Run, parts: Parts, step: int, display: Display) -> None:
    """The loop: epochs, with checkpoints and evaluations between them."""
    first = step // parts.steps_per_epoch
    meter = Meter(parts.method.backbone, parts.device, run.metrics[-1]["seconds"] if step else 0.0)
    saved = time.monotonic()
    plugins.hooks().run_started(run=run)
    with Stopper(display.say) as stopper, display.bar(parts.steps, step), meter:
        try:
            _evaluate_if_due(run, parts, first, step, display, stopper)
            for epoch in range(first, parts.config.epochs):
                for done in _epoch(run, parts, epoch, step, meter, display):
                    step = done
                    stopper.stop_if_asked()
                if _checkpoint_due(parts.config, epoch + 1, time.monotonic() - saved):
                    _save(run, parts, step)
                    saved = time.monotonic()
                _evaluate_if_due(run, parts, epoch + 1, step, display, stopper)
        except Interrupted as stopped:
            _leave(run, parts, step, meter, display, stopped)
            raise
    display.say(f"backbone: {run.backbone_file}")


def _leave(run: Run, parts: Parts, step: int, meter: Meter, display: Display, stopped: Interrupted) -> None:
    """Save on the way out, unless the signal cut a step in two: half a step is no state to go on from."""
    if stopped.within_step:
        display.say(f"stopped within a step, not saved; go on from the last checkpoint with: sslkit resume {run.path}")
        return
    if meter.pending:
        _log(run, parts, meter.read(run, _lr(parts), step / parts.steps_per_epoch), display)
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
        meter.add(step, scalars, images=accumulate * parts.config.batch_size)
        if step % parts.config.log_every == 0 or step == end:
            _log(run, parts, meter.read(run, _lr(parts), step / parts.steps_per_epoch), display)
        yield step


def train_step(parts: Parts, raws: list[Any], step: int) -> dict[str, Tensor]:
    """One optimizer step on `accumulate` raw batches; returns detached scalars, still on the device."""
    generator = _seed_step(parts, step)
    sums: dict[str, Tensor] = {}
    for raw in raws:
        labels = raw.labels if parts.method.uses_labels else None
        batch = Batch(parts.views(raw.images, generator), raw.indices, labels)
        with _autocast(parts):
            out = parts.method(batch)
        parts.scaler.scale(out["loss"] / len(raws)).backward()
        for name, value in out.items():
            sums[name] = sums.get(name, 0) + value.detach().float() / len(raws)
    if parts.config.optimizer.clip_grad:
        parts.scaler.unscale_(parts.optimizer)
        trained = [p for group in parts.optimizer.param_groups for p in group["params"]]
        sums["grad_norm"] = nn.utils.clip_grad_norm_(trained, parts.config.optimizer.clip_grad)
    parts.scaler.step(parts.optimizer)
    parts.scaler.update()
    parts.optimizer.zero_grad(set_to_none=True)
    parts.method.after_step((step + 1) / parts.steps)
    return sums


def _seed_step(parts: Parts, step: int) -> torch.Generator:
    """All randomness of a step is a pure function of (seed, step), so a resumed run needs no generator state."""
    seed = int(np.random.SeedSequence([parts.config.seed, step]).generate_state(1, np.uint64)[0] >> 1)
    torch.manual_seed(seed)
    return torch.Generator(parts.device).manual_seed(seed)


def _autocast(parts: Parts) -> Any:
    return torch.autocast(parts.device.type, parts.autocast) if parts.autocast else nullcontext()


def _lr(parts: Parts) -> float:
    """The rate of the last step."""
    return parts.optimizer.param_groups[0]["lr"]


def _log(run: Run, parts: Parts, metrics: dict[str, Any], display: Display) -> None:
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
        parts.method.backbone,
        run.backbone_file,
        name=run.config.backbone.name,
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
    todo = [e for e in parts.config.evaluators if e.name not in known]
    if not todo or parts.stores.train is None:
        return
    with stopper.at_once():
        for record in evaluation.evaluate(parts.method.backbone, todo, parts.stores, parts.device, parts.config.seed):
            record = {"epoch": epoch, "step": step, "during_run": True} | record
            run.log_evaluation(record)
            display.evaluation(record)
            plugins.hooks().run_logged(run=run, step=step, metrics=evaluation.as_metrics(record))
