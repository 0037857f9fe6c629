"""Rendered coloured shapes: any size, any number, no download; for benchmarks and tests."""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydantic import Field

from sslkit.data.images import Images, Role
from sslkit.data.sources.base import Source
from sslkit.machine.cache import digest

SUPERSAMPLED = 2
"""Factor by which shapes are drawn larger and then reduced, for smooth edges."""
TEST = 1 << 32
"""Number of the first test image, far enough away that both splits can grow."""

Outline = NDArray[np.float64]
"""Polygon [corners, 2] around the origin, within a circle of radius 1."""


class Shapes(Source):
    """Rendered coloured shapes of 10 classes, deterministic, 32 to 256 px; for benchmarks and tests.

    Image i is a pure function of (seed, i, size): its shape is its class; colours, position, size, rotation,
    background and noise are random.
    """

    class Config(Source.Config):
        image_size: int | None = Field(64, ge=32, le=256)
        """Height and width of a view, in pixels."""
        n_train: int = Field(2000, ge=1)
        """Number of training images."""
        n_test: int = Field(500, ge=0)
        """Number of test images; 0: a fifth of the training images is held out."""
        seed: int = Field(0, ge=0)
        """Seed of the images; other seeds give other images."""

    def images(self, role: Role) -> "RenderedShapes | None":
        config = self.config
        size = self.store_size(self.image_size())
        if role != "test":
            return RenderedShapes(config.seed, 0, config.n_train, size)
        return RenderedShapes(config.seed, TEST, config.n_test, size) if config.n_test else None

    def natural_size(self) -> int:
        return 64


class RenderedShapes(Images):
    """Images number `first` and up, rendered on loading; the classes alternate."""

    def __init__(self, seed: int, first: int, count: int, size: int) -> None:
        self.seed, self.first, self.size = seed, first, size
        self.count = count
        self.classes = tuple(OUTLINES)
        self.labels = np.arange(count, dtype=np.int64) % len(OUTLINES)

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"shapes[{self.first + index}]"

    def load(self, index: int) -> NDArray[np.uint8]:
        seeds = np.random.SeedSequence([self.seed, self.first + index])
        draw = np.random.Generator(np.random.Philox(seeds))
        return render(self.classes[index % len(OUTLINES)], draw, self.size)

    def fingerprint(self) -> str:
        return digest("shapes", 1, self.seed, self.first, len(self), self.size)


def render(shape: str, draw: Generator, size: int) -> NDArray[np.uint8]:
    """Render one shape on a shaded, noisy background, uint8 [size, size, 3]."""
    background = _background(draw, size)
    cover = _cover(_placed(OUTLINES[shape](), draw, size), size)
    pixels = background + cover * (_colour(draw) - background)
    pixels += draw.uniform(0, 12) * draw.standard_normal(pixels.shape, np.float32)
    return pixels.clip(0, 255).astype(np.uint8)


def _background(draw: Generator, size: int) -> NDArray[np.float32]:
    """Gradient from one colour to another in a random direction, [size, size, 3] within 64..191."""
    angle = draw.uniform(0, 2 * np.pi)
    along = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    blend = np.float32(np.cos(angle)) * along[:, None] + np.float32(np.sin(angle)) * along + 0.5
    first, second = _colour(draw), _colour(draw)
    # Half the contrast of the shape, so that the shape stands out.
    mixed = first + blend.clip(0, 1)[..., None] * (second - first)
    result: NDArray[np.float32] = (64 + mixed / 2).astype(np.float32)
    return result


def _cover(corners: Outline, size: int) -> NDArray[np.float32]:
    """Coverage of each pixel by the outline, [size, size, 1] within 0..1."""
    large = Image.new("L", (SUPERSAMPLED * size,) * 2)
    ImageDraw.Draw(large).polygon([tuple(c) for c in (SUPERSAMPLED * corners).tolist()], fill=255)
    cover = np.asarray(large.reduce(SUPERSAMPLED), np.float32)
    return cover[..., None] / np.float32(255)


def _colour(draw: Generator) -> NDArray[np.float32]:
    return draw.integers(0, 256, 3).astype(np.float32)


def _placed(outline: Outline, draw: Generator, size: int) -> Outline:
    """Scale, move and rotate the outline, in pixels; rotation is up to 30 degrees, as more makes squares diamonds."""
    angle = np.deg2rad(draw.uniform(-30, 30))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    radius = draw.uniform(0.22, 0.42) * size
    centre = draw.uniform(radius, size - radius, 2)
    result: Outline = outline @ turn.T * radius + centre
    return result


def _regular(corners: int, phase: float = -90) -> Outline:
    angles = np.deg2rad(phase + np.arange(corners) * 360 / corners)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star(points: int, inner: float) -> Outline:
    return _regular(2 * points) * np.where(np.arange(2 * points) % 2, inner, 1.0)[:, None]


def _ring() -> Outline:
    circle = _regular(48)
    # One polygon, out and back: the seam has no width.
    return np.concatenate([circle, circle[:1], 0.55 * circle[:1], 0.55 * circle[::-1]])


def _crescent() -> Outline:
    outer = _regular(48)[:25]
    inner = outer[::-1] * [0.45, 1]
    return np.concatenate([outer, inner]) - [0.5, 0]


def _heart() -> Outline:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y], axis=1) / 17


def _arrow() -> Outline:
    return np.array([[-0.9, -0.3], [0.1, -0.3], [0.1, -0.8], [0.95, 0], [0.1, 0.8], [0.1, 0.3], [-0.9, 0.3]])


def _cross() -> Outline:
    arm = np.array([[-0.3, -0.3], [-0.3, -0.95], [0.3, -0.95], [0.3, -0.3]])
    quarter = np.array([[0, -1], [1, 0]]).T
    return np.concatenate([arm @ np.linalg.matrix_power(quarter, k) for k in range(4)])


OUTLINES: dict[str, Callable[[], Outline]] = {
    "circle": lambda: _regular(48),
    "square": lambda: _regular(4, 45),
    "triangle": lambda: _regular(3),
    "hexagon": lambda: _regular(6),
    "star": lambda: _star(5, 0.42),
    "cross": _cross,
    "ring": _ring,
    "crescent": _crescent,
    "heart": _heart,
    "arrow": _arrow,
}
"""Class name -> its outline; the order defines the class numbers."""
