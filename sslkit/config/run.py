"""The settings of a run, and of its optimizer."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_serializer, field_validator

from sslkit.config.base import Choice, Config
from sslkit.config.carbon import Carbon


class Optimizer(Config):
    """Optimizer and schedule, stepped once an optimizer step."""

    name: str = "adamw"
    """sgd, adam, adamw, lars, or timm:NAME for any other optimizer of timm."""
    lr: float = Field(1e-3, gt=0)
    """Learning rate before scaling."""
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """linear: lr × batch/256 (Goyal et al. 2017); sqrt: lr × √batch (SimCLR, B.1)."""
    weight_decay: float = Field(1e-4, ge=0)
    """Decay of the weights; biases and normalisation parameters are exempt."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD and LARS."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's two decay rates."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Shape after the warm-up; cosine ends at zero."""
    warmup_epochs: float = Field(10, ge=0)
    """Linear warm-up, in epochs, but at most a tenth of the run."""
    exempt_lr: float | None = Field(None, gt=0)
    """Learning rate of biases and normalisation parameters, scaled as lr is; null: lr."""
    weight_decay_end: float | None = Field(None, ge=0)
    """Weight decay at the end of the run, reached along a cosine; null: constant."""
    clip_grad: float | None = Field(None, gt=0)
    """Largest norm of the whole gradient; null clips nothing."""


class RunConfig(Config):
    """Everything that decides a run. Dotted keys (`method.temperature`) belong to the named component."""

    method: Choice
    """Self-supervised method: `sslkit list methods`."""
    backbone: Choice
    """Network to pre-train: a name of `sslkit list backbones`, timm:NAME or torchvision:NAME."""
    data: Choice
    """What to pre-train on: a folder, a .beton file, or a name of `sslkit list datasets`."""
    augment: Choice
    """View recipe: `sslkit list augmentations`; each method has its own default."""
    evaluators: tuple[Choice, ...]
    """What to measure: `sslkit list evaluators`; an empty list measures nothing."""
    eval_data: Choice | None = None
    """What to evaluate on, in the forms of `data`; null: the labelled part of `data`."""
    optimizer: Optimizer = Optimizer()
    """Optimizer and learning-rate schedule."""
    trackers: tuple[str, ...] = ()
    """Where else the metrics go: `sslkit list trackers`."""
    carbon: Carbon = Carbon()
    """What energy and CO2e are worked out with."""
    epochs: int = Field(100, ge=1)
    """Passes over the pre-training images."""
    batch_size: int = Field(256, ge=2)
    """Images that a loss sees at once, on all processes together."""
    micro_batch: int | None = Field(None, ge=2)
    """Images a forward pass of one process: batches larger than memory, with the gradient of the whole; null: all."""
    accumulate: int = Field(1, ge=1)
    """Batches an optimizer step; losses see one batch at a time."""
    devices: int = Field(1, ge=1)
    """Processes that train together, each on a GPU of its own, or on a share of the CPU's cores."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast precision; auto: fp32 or bf16, whichever `tune` finds faster, untuned bf16 on GPUs that have it."""
    depthwise_fp32: bool | Literal["auto"] = "auto"
    """Keep depthwise convolutions in fp32 at a lower precision; auto: as `tune` finds faster, untuned off."""
    channels_last: bool | Literal["auto"] = "auto"
    """Memory format of the network; auto: as `tune` finds faster, untuned on."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the backbone, for a minute or so; auto: where `tune` finds that the run is long enough to gain by it;
    false: a GPU's views neither."""
    tune: Literal["auto", "off", "always"] = "auto"
    """auto: time a few steps of every combination that the four settings above leave open, and take the fastest; only
    where the run has enough steps to gain by it, unless always."""
    kernels: Literal["auto", "plain"] = "auto"
    """What makes views; auto: compiled kernels, equal to 1e-4; plain: torch operations alone, the reference."""
    deterministic: bool = False
    """Only deterministic kernels on CUDA, where some are slower; the CPU's always are."""
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """auto, cpu, mps, cuda or cuda:N; auto takes the first GPU."""
    loader: Literal["auto", "resident", "ffcv", "torch"] = "auto"
    """resident keeps the decoded images on the device; auto does so when they fit in a quarter of its free memory."""
    workers: Annotated[int, Field(ge=1)] | Literal[-1, "auto"] = "auto"
    """Threads that decode; auto: as few as keep up with the steps, by measuring; -1: as many as there are cores."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of weights, order and augmentation."""
    out: Path | None = None
    """Run directory; null: runs/METHOD-BACKBONE-DATA, numbered where that is taken."""
    log_every: int = Field(50, ge=1)
    """Steps between two lines of metrics; the end of an epoch always has one."""
    eval_every: int = Field(10, ge=0)
    """Epochs between two evaluations; 0: only the first and the last."""
    checkpoint_every: int = Field(10, ge=0)
    """Epochs between two checkpoints that are kept; 0: only the last."""
    report: bool = True
    """Write report.html at the end: `sslkit report RUN` does so later."""

    @field_validator("tune", mode="before")
    @classmethod
    def _word_for_switch(cls, tune: Any) -> Any:
        """YAML reads off as false."""
        return {False: "off", True: "auto"}.get(tune, tune) if isinstance(tune, bool) else tune

    @field_validator("trackers", mode="before")
    @classmethod
    def _several(cls, trackers: Any) -> Any:
        return (trackers,) if isinstance(trackers, str) else trackers

    @field_serializer("method", "backbone", "data", "augment", "eval_data")
    def _flat(self, choice: Choice | None) -> dict[str, Any] | None:
        return choice.flat() if choice else None

    @field_serializer("evaluators")
    def _flat_all(self, choices: tuple[Choice, ...]) -> list[dict[str, Any]]:
        return [choice.flat() for choice in choices]

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
