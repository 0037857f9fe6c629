"""Saliency maps: which pixels the decision of a linear probe depends on."""

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.backbones.layers import layer_names, tap
from sslkit.backbones.stems import is_token_net
from sslkit.errors import UserError
from sslkit.evaluation.drawing.images import class_names, labelled_rows, read
from sslkit.evaluation.evaluator import Evaluator, accuracy
from sslkit.evaluation.evaluators import logistic
from sslkit.evaluation.subject import Subject
from sslkit.nn.modes import eval_mode, own_random

POSITIONS = 4
"""Least side of a map that still locates objects: Grad-CAM uses the deepest layer with a map as fine as this."""


class Saliency(Evaluator):
    """Gradient, SmoothGrad and Grad-CAM maps of each class's best and worst test images.

    Simonyan et al. 2014 (gradient of the class score, maximum over the channels); Smilkov et al. 2017 (its mean over
    noisy copies); Selvaraju et al. 2017 (maps of a late layer, weighted by their mean gradient). The class score is the
    logit of a linear probe trained on the training images. As in Sonawane et al. 2021, section 5.2, figures show each
    class's true positive of the highest probability and its false negative of the lowest. The results, top1 and top5,
    are those of the probe.
    """

    class Config(Evaluator.Config):
        per_class: int = Field(1, ge=1)
        """Images per class and kind."""
        max_classes: int = Field(10, ge=1)
        """Largest number of classes shown; the first ones."""
        samples: int = Field(25, ge=1)
        """SmoothGrad: number of noisy copies."""
        noise: float = Field(0.15, gt=0)
        """SmoothGrad: standard deviation of the noise, as a share of the image's range (the paper: 0.1 to 0.2)."""
        layer: str | None = None
        """Grad-CAM: layer by its name in the network; null: the deepest with a map of at least 4×4 and a gradient."""
        l2: float = Field(1.0, ge=0)
        """L2 penalty of the probe: l2/2 · ‖W‖² is added to the summed loss (scikit-learn's 1/C)."""

    config: Config

    @property
    def protocol(self) -> str:
        c = self.config
        return (
            f"frozen features, standardized on train; logistic regression, L-BFGS, l2={c.l2:g}; SmoothGrad of "
            f"{c.samples} samples, noise {c.noise:g}; Grad-CAM of {c.layer or 'the last layer with a map'}"
        )

    def __call__(self, subject: Subject) -> dict[str, float]:
        f = subject.features
        probe = logistic.fit(f.train_x, f.train_y, f.classes, l2=self.config.l2)
        ranking = probe.ranking(f.test_x)
        with torch.no_grad():
            probabilities = probe(f.test_x).softmax(1)
        best, worst = extremes(probabilities, f.test_y, self.config.per_class, self.config.max_classes)
        names = class_names(subject, f.classes)
        for name, rows, kind in (
            ("true-positives.png", best, "recognised most surely"),
            ("false-negatives.png", worst, "missed most surely"),
        ):
            self._draw(subject, probe, rows, probabilities, names, name, kind)
        return accuracy(ranking, f.test_y, f.classes)

    def _draw(
        self,
        subject: Subject,
        probe: logistic.Probe,
        rows: NDArray[np.int64],
        probabilities: Tensor,
        names: list[str],
        name: str,
        kind: str,
    ) -> None:
        from sslkit.evaluation.drawing import pictures

        labels, guesses = subject.features.test_y[rows], probabilities[rows].argmax(1)
        classes = ", ".join(pictures.label(names[c]) for c in labels.tolist())
        alt = f"Test images that are {kind}, with gradient, SmoothGrad and Grad-CAM maps of their true class: {classes}"
        if not len(rows) or not (path := pictures.place(subject, name, alt)):
            return
        images = read(subject.test, labelled_rows(subject.test)[rows], subject.device, subject.image_size)
        maps = self._maps(subject, probe, images, labels)
        shown = images.permute(0, 2, 3, 1).cpu().numpy()
        captions = [f"{p:.0%} {names[g]}" for g, p in zip(guesses.tolist(), probabilities[rows].amax(1).tolist())]
        cells = [
            [
                pictures.Cell(image, captions[k], bool(labels[k] == guesses[k])),
                *(pictures.Cell(pictures.overlaid(image, heat[k])) for heat in maps.values()),
            ]
            for k, image in enumerate(shown)
        ]
        pictures.image_table(path, cells, [names[c] for c in labels.tolist()], ["image", *maps])

    def _maps(
        self, subject: Subject, probe: logistic.Probe, images: Tensor, labels: Tensor
    ) -> dict[str, NDArray[np.floating]]:
        """Compute the maps of all three methods by name, each [n, S, S] >= 0."""
        scorer = nn.Sequential(subject.backbone, probe)
        views = subject.views(images)
        c = self.config
        with eval_mode(subject.backbone), torch.enable_grad():
            layer = c.layer or cam_layer(subject.backbone, scorer, views[:1], labels[:1])
            maps = {
                "gradient": gradient(scorer, views, labels),
                "SmoothGrad": smooth_gradient(scorer, views, labels, c.samples, c.noise, subject.seed),
                "Grad-CAM": grad_cam(subject.backbone, scorer, layer, views, labels),
            }
        return {name: heat.cpu().numpy() for name, heat in maps.items()}


def extremes(
    probabilities: Tensor, labels: Tensor, per_class: int, max_classes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of each class's most confident true positives, and of its false negatives with the lowest probability."""
    guesses = probabilities.argmax(1)
    best: list[Tensor] = []
    worst: list[Tensor] = []
    for c in labels.unique().tolist()[:max_classes]:
        for chosen, hit, highest in ((best, guesses == c, True), (worst, guesses != c, False)):
            rows = ((labels == c) & hit).nonzero()[:, 0]
            order = probabilities[rows, c].argsort(descending=highest, stable=True)
            chosen.append(rows[order[:per_class]])
    return torch.cat(best).cpu().numpy(), torch.cat(worst).cpu().numpy()


def gradient(scorer: nn.Module, views: Tensor, labels: Tensor) -> Tensor:
    """Return max over the channels of |∂score/∂pixel| (Simonyan et al. 2014, section 3.1), [n, S, S]."""
    from captum.attr import Saliency as Gradient

    out: Tensor = Gradient(scorer).attribute(views.clone().requires_grad_(), target=labels, abs=False).abs().amax(1)
    return out


def smooth_gradient(scorer: nn.Module, views: Tensor, labels: Tensor, samples: int, noise: float, seed: int) -> Tensor:
    """Return max over the channels of |gradient, averaged over noisy copies| (Smilkov et al. 2017), [n, S, S]."""
    from captum.attr import NoiseTunnel
    from captum.attr import Saliency as Gradient

    tunnel = NoiseTunnel(Gradient(scorer))
    out = []
    with own_random(seed):
        # One image at a time, because each has its own range.
        for view, label in zip(views.split(1), labels.split(1)):
            spread = noise * (view.max() - view.min()).item()
            options = {"nt_type": "smoothgrad", "nt_samples": samples, "stdevs": max(spread, 1e-12)}
            mean = tunnel.attribute(view.clone().requires_grad_(), target=label, abs=False, **options)
            out.append(mean.abs().amax(1))
    return torch.cat(out).detach()


def grad_cam(backbone: nn.Module, scorer: nn.Module, layer: str, views: Tensor, labels: Tensor) -> Tensor:
    """Return ReLU(Σ α_k A^k), α_k being the mean gradient of map A^k (Selvaraju et al. 2017, Eq. 1 and 2), [n, S, S].

    Captum's own version averages a vision transformer's tokens over the wrong dimension; this uses them as a grid.
    """
    maps, slopes = _map_and_slopes(backbone, scorer, layer, views, labels)
    heat = (slopes.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).relu()
    return F.interpolate(heat.float(), views.shape[2:], mode="bilinear")[:, 0]


def cam_layer(backbone: nn.Module, scorer: nn.Module, view: Tensor, label: Tensor) -> str:
    """Return the deepest layer whose map is fine enough and has a gradient of the score.

    In a transformer that reads its class token, the last block's other tokens have no gradient. Raises UserError if
    there is no such layer.
    """
    shapes = layer_names(backbone, view.shape[-1])
    finest = max((height for _, height, _ in shapes.values()), default=0)
    fine = [name for name, (_, height, _) in shapes.items() if height >= min(POSITIONS, finest) > 1]
    if is_token_net(backbone) and fine:
        # Neither the queries, keys and values nor the wide layer of an MLP.
        fine = [name for name in fine if shapes[name][0] == shapes[fine[-1]][0]]
    for name in reversed(fine):
        if _map_and_slopes(backbone, scorer, name, view, label)[1].any():
            return name
    raise UserError("this backbone has no layer with a map for Grad-CAM; choose another backbone")


def _map_and_slopes(
    backbone: nn.Module, scorer: nn.Module, layer: str, views: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """A layer's maps and the gradient of the score with respect to them, both [n, C, h, w]."""
    with torch.enable_grad(), tap(backbone, layer) as tapped:
        scores = scorer(views.clone().requires_grad_()).gather(1, labels[:, None]).sum()
        maps = tapped.output.detach()
        (tapped.raw,) = torch.autograd.grad(scores, tapped.raw)
        return maps, tapped.output
