"""The subject of an evaluation: a frozen backbone and images, labelled in most cases."""

from collections.abc import Callable
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sslkit.errors import UserError
from sslkit.evaluation.attachments import Attachments
from sslkit.evaluation.cache import FeatureCache, weights_digest
from sslkit.evaluation.extraction import Features, Network, Preprocessing, feature_network, labelled_outputs, outputs
from sslkit.nn.modes import eval_mode, own_random

if TYPE_CHECKING:
    from sslkit.data import Store


class Subject(Attachments):
    """A frozen backbone and labelled images, whose features are extracted once for all evaluators.

    Files and notes that an evaluator attaches become part of its record.
    """

    def __init__(
        self,
        backbone: nn.Module,
        train: "Store",
        test: "Store",
        preprocessing: Preprocessing,
        *,
        seed: int = 0,
        labelled: bool = True,
        initial: Callable[[], nn.Module] | None = None,
        head: Callable[[], nn.Module | None] | None = None,
        folder: Path | None = None,
        cache: Path | None = None,
    ) -> None:
        """
        train, test: stores of labelled images; one store of any images if not `labelled`.
        initial: builds the backbone with random weights. head: returns the method's projection head.
        folder: for pictures and files; None: none are written. cache: folder of cached features; None: no cache.
        """
        super().__init__(folder)
        self.backbone = backbone
        self.train, self.test = train, test
        self.preprocessing = preprocessing
        self.seed = seed
        self.labelled = labelled
        self._initial, self._make_head = initial, head
        self._cache = cache
        self._features: dict[str | None, Features] = {}

    @property
    def device(self) -> torch.device:
        return self.preprocessing.device

    @property
    def image_size(self) -> int:
        """Height and width of a view, in pixels."""
        return self.preprocessing.image_size

    @property
    def features(self) -> Features:
        """Features of all labelled images, without augmentation, in eval mode.

        Raises UserError if a split has no labels, or if features are not finite.
        """
        return self.features_of(None)

    def features_of(self, layer: str | None) -> Features:
        """Return the features of the backbone's layer of that name, averaged over a grid to a width of about 9000.

        None is the backbone itself. Raises UserError if there is no such layer.
        """
        if layer not in self._features:
            with eval_mode(self.backbone), feature_network(self.backbone, layer) as network:
                self._features[layer] = self._both_splits(network, self._feature_cache(layer))
        return self._features[layer]

    def features_without_labels(self, rows: NDArray[np.int64]) -> Tensor:
        """Features of the test images in these rows of the store, labelled or not, float32 [n, width].

        Raises UserError if features are not finite.
        """
        with eval_mode(self.backbone):
            return outputs(self.test.subset(rows), self.backbone, self.preprocessing, self._feature_cache(None))

    def features_by(self, network: Network) -> Features:
        """Return the outputs of any function of views, float [B, 3, S, S] -> [B, width], for the labelled images."""
        return self._both_splits(network)

    def views(self, images: Tensor) -> Tensor:
        """Resize and normalise images: uint8 [B, 3, H, W] -> float [B, 3, S, S], channels_last."""
        return self.preprocessing.views(images)

    def outputs(self, store: "Store", network: Network) -> tuple[Tensor, Tensor]:
        """Return a function's outputs for a store's labelled images, float32 [N, width], and their classes [N]."""
        return labelled_outputs(store, network, self.preprocessing)

    @property
    def can_start_anew(self) -> bool:
        """True if it is known how the backbone is built, with random weights."""
        return self._initial is not None

    def fresh(self, initial: bool = False) -> nn.Module:
        """Return a trainable copy of the backbone in training mode.

        initial: with random weights, which depend on the seed only. Raises UserError if `initial` is True and there is
        no function to build the backbone.
        """
        if not initial:
            return deepcopy(self.backbone).requires_grad_().train()
        if self._initial is None:
            raise UserError("it is not known how this backbone was built, so it cannot be trained from scratch")
        with own_random(self.seed):
            return self._initial().to(self.device).train()

    @cached_property
    def head(self) -> nn.Module | None:
        """The method's projection head, [N, width] -> [N, d], in eval mode; None if there is none."""
        with own_random(self.seed):
            head = self._make_head() if self._make_head else None
        return None if head is None else head.to(self.device).eval()

    def _both_splits(self, network: Network, cache: FeatureCache | None = None) -> Features:
        (train_x, train_y), (test_x, test_y) = (
            labelled_outputs(split, network, self.preprocessing, cache) for split in (self.train, self.test)
        )
        named = max(len(self.train.classes), len(self.test.classes))
        classes = max(named, int(train_y.max()) + 1, int(test_y.max()) + 1)
        return Features(train_x, train_y, test_x, test_y, classes)

    def _feature_cache(self, layer: str | None) -> FeatureCache | None:
        if self._cache is None:
            return None
        return FeatureCache(self._cache, self._weights, [layer, *self.preprocessing.identity()])

    @cached_property
    def _weights(self) -> str:
        return weights_digest(self.backbone)
