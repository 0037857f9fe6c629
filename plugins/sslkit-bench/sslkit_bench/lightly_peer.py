"""lightly in a plain training loop, as in its examples: its transforms, data set, heads and losses.

lightly 1.6, examples/pytorch/{simclr,byol,moco}.py. The network, the optimizer and the batch size are the run's.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sslkit.augment.draws import per_view
from sslkit.augment.multi_view import MultiViewAugmentation
from sslkit.backbones import create_backbone
from sslkit.data.packing.pack import concrete_mode
from sslkit.machine.environment import core_count
from sslkit.training.optim.optimizer import make_optimizer
from sslkit.training.setup import TrainingSetup
from sslkit_bench.clock import Contestant, NotTheSame
from sslkit_bench.workers import Workers

LR = 0.06
"""Learning rate of lightly's examples."""
IMAGES = 2048
"""Minimum number of images in the folder, at least a batch: enough for variety, few enough to write quickly."""


def train(
    model: nn.Module,
    batches: Iterable[Any],
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    precision: torch.dtype | None = None,
) -> Iterator[Tensor]:
    """Train on all batches of ((view, view), ...); yield the detached loss of each step."""
    for (x0, x1), *_ in batches:
        with torch.autocast(device.type, precision) if precision else nullcontext():
            loss = model(x0.to(device), x1.to(device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield loss.detach()


class SimCLR(nn.Module):
    """SimCLR: the loss of two views, [B, 3, H, W] each, with one forward pass per view."""

    def __init__(self, backbone: nn.Module, width: int, options: Any) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead

        super().__init__()
        self.backbone = backbone
        self.projection_head = SimCLRProjectionHead(width, options.hidden or width, options.dim)
        self.criterion = NTXentLoss(temperature=options.temperature)

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        out: Tensor = self.criterion(self._project(x0), self._project(x1))
        return out

    def _project(self, x: Tensor) -> Tensor:
        out: Tensor = self.projection_head(self.backbone(x).flatten(start_dim=1))
        return out


class _WithMomentum(nn.Module):
    """A network with its momentum encoder, which is updated at the beginning of each step."""

    def __init__(self, backbone: nn.Module, projection_head: nn.Module, momentum: float) -> None:
        from lightly.models.utils import deactivate_requires_grad

        super().__init__()
        self.backbone, self.projection_head, self.momentum = backbone, projection_head, momentum
        self.backbone_momentum = copy.deepcopy(backbone)
        self.projection_head_momentum = copy.deepcopy(projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)

    def project(self, x: Tensor) -> Tensor:
        out: Tensor = self.projection_head(self.backbone(x).flatten(start_dim=1))
        return out

    def project_momentum(self, x: Tensor) -> Tensor:
        out: Tensor = self.projection_head_momentum(self.backbone_momentum(x).flatten(start_dim=1)).detach()
        return out

    def update_momentum_encoder(self) -> None:
        from lightly.models.utils import update_momentum

        update_momentum(self.backbone, self.backbone_momentum, m=self.momentum)
        update_momentum(self.projection_head, self.projection_head_momentum, m=self.momentum)


class BYOL(_WithMomentum):
    """BYOL: the loss of two views, [B, 3, H, W] each."""

    def __init__(self, backbone: nn.Module, width: int, options: Any) -> None:
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead

        super().__init__(backbone, BYOLProjectionHead(width, options.hidden, options.dim), options.momentum)
        self.prediction_head = BYOLPredictionHead(options.dim, options.hidden, options.dim)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        self.update_momentum_encoder()
        p0, z0 = self.prediction_head(self.project(x0)), self.project_momentum(x0)
        p1, z1 = self.prediction_head(self.project(x1)), self.project_momentum(x1)
        out: Tensor = 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))
        return out


class MoCo(_WithMomentum):
    """MoCo: the loss of a query view and a key view, [B, 3, H, W] each."""

    def __init__(self, backbone: nn.Module, width: int, options: Any) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules import MoCoProjectionHead

        head = MoCoProjectionHead(width, options.hidden or width, options.dim)
        super().__init__(backbone, head, options.momentum)
        self.criterion = NTXentLoss(temperature=options.temperature, memory_bank_size=(options.queue, options.dim))

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        self.update_momentum_encoder()
        out: Tensor = self.criterion(self.project(x0), self.project_momentum(x1))
        return out


MODELS: dict[str, Callable[[nn.Module, int, Any], nn.Module]] = {"simclr": SimCLR, "byol": BYOL, "mocov2": MoCo}
"""Name of sslkit's method -> lightly's model, called with (backbone, its width, options of the method)."""


def transform_like(setup: TrainingSetup) -> tuple[Any, str]:
    """Return (lightly's transform with the settings of the run's augmentation, a description of how it differs)."""
    from lightly.transforms.multi_view_transform import MultiViewTransform

    options = setup.config.augment.options
    if not isinstance(options, MultiViewAugmentation.Config) or options.views != 2:
        view = _view(setup, {"gaussian_blur": 0.5})
        return MultiViewTransform([view, view]), "its own defaults, because it has no such augmentation"
    left_out = [name for name in ("shared", "either", "extra") if _used(getattr(options, name))]
    left_out += ["rotate.shear"] if _used(options.rotate) and options.rotate.shear else []
    views = [_view(setup, _settings(options, number)) for number in range(2)]
    return MultiViewTransform(views), f"without {', '.join(left_out)}" if left_out else "the run's settings"


def _used(step: Any) -> bool:
    p = getattr(step, "p", step)
    return any(p) if isinstance(p, tuple) else bool(p)


def _view(setup: TrainingSetup, settings: dict[str, Any]) -> Any:
    from lightly.transforms.byol_transform import BYOLView1Transform
    from lightly.transforms.simclr_transform import SimCLRViewTransform

    normalize = {"mean": list(setup.stores.mean), "std": list(setup.stores.std)}
    kind = BYOLView1Transform if "solarization_prob" in settings else SimCLRViewTransform
    return kind(input_size=setup.stores.image_size, normalize=normalize, **settings)


def _settings(options: MultiViewAugmentation.Config, number: int) -> dict[str, Any]:
    """Return view `number` of the augmentation as arguments of lightly's transforms."""

    def chance(step: Any) -> float:
        return per_view(step.p, 2)[number]

    jitter, rotate = options.jitter, options.rotate
    solarize = {"solarization_prob": chance(options.solarize)} if _used(options.solarize) else {}
    return {
        "cj_prob": chance(jitter),
        "cj_strength": jitter.strength,
        "cj_bright": jitter.brightness,
        "cj_contrast": jitter.contrast,
        "cj_sat": jitter.saturation,
        "cj_hue": min(jitter.hue, 0.5 / (jitter.strength or 1)),
        "min_scale": options.crop.scale[0],
        "random_gray_scale": chance(options.grayscale),
        "gaussian_blur": chance(options.blur),
        "sigmas": options.blur.sigma,
        "hf_prob": chance(options.flip),
        "rr_prob": chance(rotate),
        "rr_degrees": rotate.degrees,
        **solarize,
    }


class Lightly(Contestant):
    """Training steps of lightly on the images of the run, which worker processes read from files.

    precision: dtype of autocast; None: fp32, as in its examples. The memory format is NCHW.
    """

    foreign = True

    def __init__(self, setup: TrainingSetup, folder: Path, precision: torch.dtype | None = None) -> None:
        from lightly.data import LightlyDataset

        config = setup.config
        transform, likeness = transform_like(setup)
        workers = core_count(config.workers)
        self.name = "lightly" if precision is None else f"lightly-{str(precision).removeprefix('torch.')}"
        self.images = config.batch_size
        self.least = workers
        self.note = f"{workers} worker processes, {precision or 'fp32'}, NCHW; transforms: {likeness}"
        self._workers = Workers(LightlyDataset(str(folder), transform=transform), config.batch_size, workers)
        self.model = model_like(setup).to(setup.device)
        optimizer = make_optimizer(self.model, config.optimizer, LR)
        self._losses = train(self.model, self._workers, optimizer, setup.device, precision)
        self.loss: Tensor | None = None
        """Loss of the last step."""

    def begin(self) -> None:
        self._workers.wake()

    def step(self) -> None:
        self.loss = next(self._losses)

    def end(self) -> None:
        self._workers.rest()

    def close(self) -> None:
        self._workers.close()


def model_like(setup: TrainingSetup) -> nn.Module:
    """Return lightly's model of the run's method, with a backbone like the run's. Raises NotTheSame if it has none."""
    name, options = setup.config.method.name, setup.config.method.options
    if name not in MODELS:
        raise NotTheSame(f"compared only for {', '.join(MODELS)}, not for {name}")
    if getattr(options, "symmetric", False):
        raise NotTheSame("no equivalent of method.symmetric")
    torch.manual_seed(setup.config.seed)
    backbone = create_backbone(setup.config.backbone, image_size=setup.stores.image_size)
    return MODELS[name](backbone, setup.method.width, options)


def write_folder(setup: TrainingSetup, folder: Path) -> None:
    """Write images of the run as files: PNG if the store keeps raw pixels, JPEG if it compresses."""
    store = setup.stores.pretrain
    # Any, because each data set has settings of its own class, all of which include these two.
    options: Any = setup.config.data.options
    ending = "png" if concrete_mode(options.mode, store.size) == "raw" else "jpg"
    quality = {} if ending == "png" else {"quality": options.jpeg_quality}
    for row in range(min(len(store), max(IMAGES, setup.config.batch_size))):
        pixels = store.read(np.array([row]))[0]
        Image.fromarray(pixels).save(folder / f"{row:06d}.{ending}", **quality)
