"""Settings of a run and of its optimizer."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, field_serializer, field_validator

from sslkit.config.base import Choice, Config
from sslkit.config.carbon import Carbon

UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def _seconds(value: Any) -> Any:
    """Convert 90, "90s", "10m" or "1.5h" to seconds."""
    if value is None or isinstance(value, int | float):
        return value
    match = re.fullmatch(r"([\d.]+)\s*(\w*)", str(value).strip())
    if match is None or match[2] not in UNITS:
        raise ValueError("must be a time such as 90s, 10m or 1.5h")
    return float(match[1]) * UNITS[match[2]]


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_seconds)]


def _keep(value: Any) -> Any:
    """Convert a number to that of the last checkpoints."""
    return {"last": value} if isinstance(value, int | str) and not isinstance(value, bool) else value


class Optimizer(Config):
    """Optimizer, and schedules that are updated once per optimizer step."""

    name: str = "adamw"
    """sgd, adam, adamw, lars, or timm:NAME for any other optimizer of timm."""
    lr: float = Field(1e-3, gt=0)
    """Base learning rate, before scaling."""
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """linear: lr × batch/256 (Goyal et al. 2017); sqrt: lr × √batch (SimCLR, B.1)."""
    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay; biases and normalisation parameters are exempt."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum coefficient of SGD and LARS."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of Adam's first and second moments."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning-rate schedule after the warm-up; cosine ends at zero."""
    warmup_epochs: float = Field(10, ge=0)
    """Epochs of linear warm-up, but at most a tenth of the run."""
    exempt_lr: float | None = Field(None, gt=0)
    """Learning rate of biases and normalisation parameters, scaled like lr; null: lr."""
    weight_decay_end: float | None = Field(None, ge=0)
    """Weight decay at the end of the run, reached along a cosine schedule; null: constant."""
    clip_grad: float | None = Field(None, gt=0)
    """Maximum norm to which the gradient of all parameters together is clipped; null: no clipping."""


class Keep(Config):
    """Checkpoints that stay on disk; each holds the weights of the whole method and the optimizer's state."""

    last: int = Field(2, ge=1)
    """Newest checkpoints to keep; with two, damage to one loses little."""
    every: int = Field(0, ge=0)
    """Also keep the checkpoint of each of so many epochs, for `sslkit evaluate --all-checkpoints`; 0: none."""
    best: bool = False
    """Also keep the checkpoint of the evaluated epoch with the highest figure of the first evaluator, which is
    selected on the test images; it is that of top1, or without labels of view retrieval."""


class RunConfig(Config):
    """All settings of a run. Dotted keys (`method.temperature`) are settings of the named component."""

    method: Choice
    """Self-supervised method: `sslkit list methods`."""
    backbone: Choice
    """Network to pre-train: a name of `sslkit list backbones`, timm:NAME or torchvision:NAME."""
    data: Choice
    """Images to pre-train on: a folder, a .beton file, or a name of `sslkit list datasets`."""
    augment: Choice
    """Augmentation that makes the views: `sslkit list augmentations`; each method has its own default."""
    evaluators: tuple[Choice, ...]
    """Evaluators to run: `sslkit list evaluators`; an empty list runs none."""
    eval_data: Choice | None = None
    """Images to evaluate on, specified like `data`; null: the labelled part of `data`."""
    optimizer: Optimizer = Optimizer()
    """Optimizer and learning-rate schedule."""
    trackers: tuple[str, ...] = ()
    """Further destinations of the metrics: `sslkit list trackers`."""
    carbon: Carbon = Carbon()
    """Settings for computing energy and CO2e."""
    epochs: int = Field(100, ge=1)
    """Passes over the pre-training images."""
    budget: Seconds | None = None
    """Time for training, such as 90s, 10m or 1.5h, evaluations and preparation apart: the run replaces it by the
    `epochs` that fit, from its measured speed; null: `epochs` decides."""
    batch_size: int = Field(256, ge=2)
    """Images per loss, on all processes together."""
    drop_last: bool = False
    """Leave out the images of an epoch's last incomplete batch; false: fill it up with the epoch's first images."""
    micro_batch: int | None = Field(None, ge=2)
    """Images per forward pass of one process, for batches larger than memory; the gradient is that of the whole
    batch; null: no micro-batches."""
    accumulate: int = Field(1, ge=1)
    """Batches per optimizer step, whose gradients are averaged; each loss sees one batch."""
    devices: int = Field(1, ge=1)
    """Number of processes that train together, each on its own GPU or on an equal share of the CPU's cores."""
    stall_timeout: Seconds | None = 600.0
    """Time without a step, where several processes train together, after which the one that is silent ends the run,
    such as 90s, 10m or 1.5h, evaluations apart; null: the others wait for ever."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast precision; auto: the faster of fp32 and bf16 according to `tune`; without tuning, bf16 on GPUs that
    support it, else fp32."""
    depthwise_fp32: bool | Literal["auto"] = "auto"
    """Keep depthwise convolutions in fp32 under autocast; auto: whichever `tune` finds faster; without tuning, off."""
    channels_last: bool | Literal["auto"] = "auto"
    """Use the channels_last memory format; auto: whichever `tune` finds faster; without tuning, on."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the backbone, which takes about a minute; auto: if `tune` finds that the run is long enough to benefit;
    false: do not compile a GPU's augmentation either."""
    tune: Literal["auto", "off", "always"] = "auto"
    """auto: time a few steps of every execution that the four settings above leave open, and choose the fastest, if the
    run has enough steps to benefit; always: do so for short runs too."""
    kernels: Literal["auto", "plain"] = "auto"
    """Implementation of the augmentation; auto: compiled kernels, equal to the reference up to 1e-4; plain: the
    reference in torch operations."""
    deterministic: bool = False
    """Use only deterministic CUDA kernels, some of which are slower; CPU kernels are always deterministic."""
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """auto, cpu, mps, cuda or cuda:N; auto: the first GPU, if there is one."""
    loader: Literal["auto", "resident", "ffcv", "torch"] = "auto"
    """resident: decoded images stay on the device; ffcv, torch: images are decoded for each batch; auto: resident if
    the images fit in a quarter of the device's free memory, else ffcv if installed, else torch."""
    workers: Annotated[int, Field(ge=1, le=1024)] | Literal[-1, "auto"] = "auto"
    """Number of decoding threads; auto: the smallest number that keeps up with training, as measured; -1: all cores."""
    threads: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    """Threads that compute on the CPU; auto: as many as other programs leave room for, by looking once a second. On a
    shared machine a fixed number keeps a run reproducible to the bit."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of weights, data order and augmentation."""
    out: Path | None = None
    """Run directory; null: runs/METHOD-BACKBONE-DATA, with a number appended if that exists."""
    log_every: int = Field(50, ge=1)
    """Steps between two records of metrics; the end of an epoch always has one."""
    eval_every: int = Field(10, ge=0)
    """Epochs between two evaluations; 0: only the first and the last."""
    checkpoint_every: int = Field(10, ge=0)
    """Epochs between two checkpoints, of which `keep_checkpoints` stay; 0: only at the end."""
    keep_checkpoints: Annotated[Keep, BeforeValidator(_keep)] = Keep()
    """Checkpoints that stay on disk: keep_checkpoints.last, .every and .best; a number is that of the last ones."""
    report: bool = True
    """Write report.html at the end of the run; `sslkit report RUN` writes it later."""

    @field_validator("tune", mode="before")
    @classmethod
    def _undo_yaml_boolean(cls, tune: Any) -> Any:
        """Undo YAML 1.1's reading of `off` as false."""
        return {False: "off", True: "auto"}.get(tune, tune) if isinstance(tune, bool) else tune

    @field_validator("trackers", mode="before")
    @classmethod
    def _as_tuple(cls, trackers: Any) -> Any:
        return (trackers,) if isinstance(trackers, str) else trackers

    @field_serializer("method", "backbone", "data", "augment", "eval_data")
    def _flat(self, choice: Choice | None) -> dict[str, Any] | None:
        return choice.flat() if choice else None

    @field_serializer("evaluators")
    def _flat_all(self, choices: tuple[Choice, ...]) -> list[dict[str, Any]]:
        return [choice.flat() for choice in choices]

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
