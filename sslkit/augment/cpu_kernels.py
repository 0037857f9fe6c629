"""Numba kernels for the CPU that apply all transforms to a view while it is in cache; equal to those of `ops.py`.

`render` distributes the views over threads, `_render` renders a range of them one after another; the transforms
follow, each on one image of three planes. Arithmetic is float32 throughout, so numeric constants are wrapped.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.augment.base import Triple
from sslkit.augment.ops import CONTRAST, HUE, LUMA, SATURATION, inverse_affine
from sslkit.augment.parameters import Parameters

Floats = NDArray[np.float32]

PADDINGS = {"zeros": 0, "border": 1, "reflection": 2}
CHUNKS_A_THREAD = 4
"""Views differ in cost, so threads that take several small chunks finish at about the same time."""

_ZERO, _ONE, _HALF, _SIX, _TWO = (np.float32(n) for n in (0, 1, 0.5, 6, 2))
_THIRD_TURNS = tuple(np.float32(n) for n in (1 / 2, 1 / 6, -1 / 6))
_RED, _GREEN, _BLUE = (np.float32(n) for n in LUMA)
_UNIT = np.float32(1 / 255)
_TINY = np.float32(1e-12)
_NEGLIGIBLE = np.float32(1e-8)
"""Weight of a blur, relative to the central one, below which float32 is not affected."""

# No value here is infinite or NaN, and a product and a sum may be fused. Sums are never reordered: the order would
# depend on the compiler, and a run must give the same result in the process that compiled as in the next.
_FLAGS = {"nnan", "ninf", "nsz", "contract"}


def _kernel(fastmath: Any) -> Callable[[Any], Any]:
    def compiled(function: Any) -> Any:
        options = {"nogil": True, "fastmath": fastmath, "error_model": "numpy"}
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:
            # Without a folder for compiled code, as in a container without a home directory, every process compiles.
            return numba.njit(**options)(function)

    return compiled


_jit, _exact = _kernel(_FLAGS), _kernel(False)


def render(images: Tensor, drawn: Parameters, size: int, mean: Triple, std: Triple) -> Tensor:
    """Render the views that `parameters.render_plain` gives for the same arguments, to 1e-4 of white, channels_last."""
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    count = len(drawn.boxes)
    out = torch.empty(count, 3, size, size, memory_format=torch.channels_last)
    arguments = (
        pixels,
        *_arrays(drawn, images.shape[3] / images.shape[2]),
        drawn.kernel_size,
        np.float32(drawn.threshold),
        np.array(mean, np.float32),
        1 / np.array(std, np.float32),
        out.permute(0, 2, 3, 1).numpy(),
    )
    threads = torch.get_num_threads()
    if threads == 1:
        _render(0, count, *arguments)
        return out
    edges = np.linspace(0, count, min(count, threads * CHUNKS_A_THREAD) + 1, dtype=np.int64)
    list(_pool(threads).map(lambda start, stop: _render(start, stop, *arguments), edges[:-1], edges[1:]))
    return out


def prepare() -> None:
    """Compile the kernels, or load what an earlier process compiled; takes seconds, once per machine and version."""
    identity = Parameters(boxes=torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
    render(torch.zeros(1, 3, 1, 1, dtype=torch.uint8), identity, 1, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="sslkit-views")


def _arrays(drawn: Parameters, aspect: float) -> tuple[Any, ...]:
    """Convert the parameters to arrays, each of a fixed type; empty for a transform that is not applied."""
    affine = None
    if drawn.rotation is not None:
        affine = inverse_affine(*drawn.rotation, aspect if drawn.shared is None else 1.0).view(-1, 6)
    factors, order = drawn.factors, drawn.order
    if factors is not None and order is not None and factors.shape[1] == HUE:
        # A hue shift of 0, applied last, changes nothing.
        factors, order = torch.nn.functional.pad(factors, (0, 1)), torch.nn.functional.pad(order, (0, 1), value=HUE)
    return (
        _floats(drawn.shared, 4),
        _floats(affine, 6),
        PADDINGS[drawn.padding],
        _floats(drawn.boxes, 4),
        _flags(drawn.flip),
        _floats(factors, 4),
        np.empty((0, 4), np.int64) if order is None else order.numpy(),
        _flags(drawn.gray),
        np.empty(0, np.float32) if drawn.sigma is None else drawn.sigma.numpy(),
        _flags(drawn.solarized),
    )


def _floats(values: Tensor | None, columns: int) -> Floats:
    return np.empty((0, columns), np.float32) if values is None else np.ascontiguousarray(values.numpy(), np.float32)


def _flags(values: Tensor | None) -> NDArray[np.bool_]:
    return np.empty(0, np.bool_) if values is None else values.numpy()


@_jit
def _render(
    start,
    stop,
    images,
    shared,
    affine,
    padding,
    boxes,
    flip,
    factors,
    order,
    gray,
    sigma,
    solarized,
    kernel_size,
    threshold,
    mean,
    inverse_std,
    out,
):
    """Render views `start` to `stop`; an empty array means that its transform is not applied."""
    size = out.shape[1]
    planes, spare = np.empty((3, size * size), np.float32), np.empty(size * size, np.float32)
    weights = np.empty(kernel_size // 2 + 1, np.float32)
    for n in range(start, stop):
        image = n % len(images)
        mirrored = len(flip) > 0 and flip[n]
        if len(shared) == 0 and len(affine) == 0:
            _resized_crop(images[image], _UNIT, boxes[n], mirrored, size, planes)
        else:
            source = _source(images[image], shared, image, size)
            if len(affine) > 0:
                source = _affine(source, affine[n], padding)
            _resized_crop(source, _ONE, boxes[n], mirrored, size, planes)
        if len(factors) > 0:
            _jitter(planes, factors[n], order[n])
        if len(gray) > 0 and gray[n]:
            _grayscale(planes)
        if len(sigma) > 0:
            _blur(planes, sigma[n], weights, size, spare)
        _finish(planes, len(solarized) > 0 and solarized[n], threshold, mean, inverse_std, out[n])


@_jit
def _source(pixels, shared, image, size):
    """Return float32 [H, W, 3] in [0, 1]: the image, or its shared crop at the size of the views."""
    if len(shared) > 0:
        planes = np.empty((3, size * size), np.float32)
        _resized_crop(pixels, _UNIT, shared[image], False, size, planes)
        boxed = np.empty((size, size, 3), np.float32)
        for i in range(size * size):
            for c in range(3):
                boxed[i // size, i % size, c] = planes[c, i]
        return boxed
    source = np.empty(pixels.shape, np.float32)
    for y in range(pixels.shape[0]):
        for x in range(pixels.shape[1]):
            for c in range(3):
                source[y, x, c] = np.float32(pixels[y, x, c]) * _UNIT
    return source


@_exact
def _affine(source, inverse, padding):
    """Resample the whole image bilinearly in normalised coordinates, as `grid_sample` without aligned corners."""
    height, width = source.shape[0], source.shape[1]
    out = np.empty(source.shape, np.float32)
    for y in range(height):
        v = np.float32((2 * y + 1) / height - 1)
        for x in range(width):
            u = np.float32((2 * x + 1) / width - 1)
            across = ((inverse[0] * u + inverse[1] * v + inverse[2] + _ONE) * width - _ONE) * _HALF
            down = ((inverse[3] * u + inverse[4] * v + inverse[5] + _ONE) * height - _ONE) * _HALF
            if padding == 1:
                across, down = min(max(across, 0), width - 1), min(max(down, 0), height - 1)
            elif padding == 2:
                across, down = _reflected(across, width), _reflected(down, height)
            left, top = int(np.floor(across)), int(np.floor(down))
            for c in range(3):
                total = _ZERO
                for row, share_down in ((top, top + 1 - down), (top + 1, down - top)):
                    for column, share_across in ((left, left + 1 - across), (left + 1, across - left)):
                        if 0 <= row < height and 0 <= column < width:
                            total += np.float32(share_down * share_across) * source[row, column, c]
                out[y, x, c] = total
    return out


@_exact
def _reflected(position, length):
    """Reflect a coordinate at the outer edges of the first and the last pixel."""
    distance = abs(position + 0.5) % (2 * length)
    inside = distance if distance < length else 2 * length - distance
    return min(max(inside - 0.5, 0), length - 1)


@_jit
def _resized_crop(source, unit, box, mirrored, size, planes):
    """Crop and resize source [H, W, 3], in [0, 1] after `unit`: vertically by whole rows, then horizontally."""
    height, width = source.shape[0], source.shape[1]
    top, rows, row_weights = _taps(box[0], box[2], False, height, size)
    left, columns, column_weights = _taps(box[1], box[3], mirrored, width, size)
    flat = source.reshape(height, width * 3)
    # One extra pixel: where only the last pixel counts, its neighbour is read with weight 0.
    line = np.zeros(width * 3 + 3, np.float32)
    first, last = 3 * int(np.floor(box[1])), 3 * min(width, int(np.ceil(box[1] + box[3])))
    for y in range(size):
        for k in range(rows[y]):
            weight, row = row_weights[y, k] * unit, flat[top[y] + k]
            if k == 0:
                for j in range(first, last):
                    line[j] = weight * np.float32(row[j])
            else:
                for j in range(first, last):
                    line[j] += weight * np.float32(row[j])
        row = slice(y * size, (y + 1) * size)
        _across(line, left, columns, column_weights, planes[0, row], planes[1, row], planes[2, row])


@_jit
def _across(line, left, counts, weights, red, green, blue):
    """Resample one row; the first two taps, which are all unless the crop is shrunk, have a fast loop of their own."""
    for x in range(len(red)):
        taps = line[3 * left[x] : 3 * left[x] + 6]
        first, second = weights[x, 0], weights[x, 1]
        red[x] = first * taps[0] + second * taps[3]
        green[x] = first * taps[1] + second * taps[4]
        blue[x] = first * taps[2] + second * taps[5]
    for x in range(len(red) if weights.shape[1] > 3 else 0):
        for k in range(2, counts[x]):
            taps = line[3 * (left[x] + k) : 3 * (left[x] + k) + 3]
            red[x] += weights[x, k] * taps[0]
            green[x] += weights[x, k] * taps[1]
            blue[x] += weights[x, k] * taps[2]


@_jit
def _taps(start, length, mirrored, source, size):
    """Return first source pixel [size], number of them [size] and weights [size, most] of every output pixel."""
    scale = length / size
    reach = max(scale, 1.0)
    most = int(np.ceil(2 * reach)) + 1
    firsts, counts = np.empty(size, np.int64), np.zeros(size, np.int64)
    weights = np.zeros((size, most), np.float32)
    for o in range(size):
        centre = start + (size - o - 0.5 if mirrored else o + 0.5) * scale
        total = 0.0
        for i in range(max(0, int(np.floor(centre - reach - 0.5))), min(source, int(np.ceil(centre + reach + 0.5)))):
            weight = 1 - abs(i + 0.5 - centre) / reach
            if weight > 0 and start < i + 0.5 < start + length:
                if counts[o] == 0:
                    firsts[o] = i
                weights[o, counts[o]] = weight
                counts[o] += 1
                total += weight
        for k in range(counts[o]):
            weights[o, k] /= total
    return firsts, counts, weights


@_jit
def _jitter(planes, factors, order):
    red, green, blue = planes[0], planes[1], planes[2]
    for transform in order:
        factor = factors[transform]
        if transform == HUE:
            if factor != 0:
                _turn_hue(red, green, blue, factor)
        elif factor != 1:
            _blend(red, green, blue, factor, transform)


@_jit
def _blend(red, green, blue, keep, transform):
    """Blend with black for brightness, with the mean luma for contrast, with each pixel's luma for saturation."""
    constant = (_ONE - keep) * _mean_luma(red, green, blue) if transform == CONTRAST else _ZERO
    to_gray = _ONE - keep if transform == SATURATION else _ZERO
    for i in range(len(red)):
        r, g, b = red[i], green[i], blue[i]
        mix = constant + to_gray * (r * _RED + g * _GREEN + b * _BLUE)
        red[i] = min(max(mix + keep * r, _ZERO), _ONE)
        green[i] = min(max(mix + keep * g, _ZERO), _ONE)
        blue[i] = min(max(mix + keep * b, _ZERO), _ONE)


@_jit
def _mean_luma(red, green, blue):
    """Mean luma, accumulated in sixteen partial sums for SIMD."""
    sums = np.zeros(16, np.float32)
    whole = len(red) - len(red) % 16
    for start in range(0, whole, 16):
        for k in range(16):
            i = start + k
            sums[k] += red[i] * _RED + green[i] * _GREEN + blue[i] * _BLUE
    total = _ZERO
    for i in range(whole, len(red)):
        total += red[i] * _RED + green[i] * _GREEN + blue[i] * _BLUE
    for k in range(16):
        total += sums[k]
    return total / np.float32(len(red))


@_jit
def _turn_hue(red, green, blue, turn):
    """Shift the hue as `ops.turn_hue` does, without branches, for SIMD."""
    for i in range(len(red)):
        r, g, b = red[i], green[i], blue[i]
        high = max(max(r, g), b)
        chroma = high - min(min(r, g), b)
        angle = b - r + _TWO * chroma if high == g else r - g + (_TWO + _TWO) * chroma
        angle = g - b if high == r else angle
        angle = angle / (max(chroma, _TINY) * _SIX) + turn
        red[i] = _at_hue(high, chroma, angle + _THIRD_TURNS[0])
        green[i] = _at_hue(high, chroma, angle + _THIRD_TURNS[1])
        blue[i] = _at_hue(high, chroma, angle + _THIRD_TURNS[2])


@_jit
def _at_hue(high, chroma, distance):
    # SIMD can truncate a positive number, but has no floor.
    distance = abs(distance + _TWO - np.float32(np.int32(distance + _TWO + _HALF)))
    return high - chroma * min(max(_TWO - _SIX * distance, _ZERO), _ONE)


@_jit
def _grayscale(planes):
    red, green, blue = planes[0], planes[1], planes[2]
    for i in range(len(red)):
        red[i] = green[i] = blue[i] = red[i] * _RED + green[i] * _GREEN + blue[i] * _BLUE


@_jit
def _blur(planes, sigma, weights, size, spare):
    """Blur vertically, then horizontally, with reflected borders; `weights` is a buffer, one entry per distance."""
    total, reach = _gaussian(sigma, weights)
    if reach == 0:
        return
    for d in range(reach + 1):
        weights[d] /= total
    for c in range(3):
        _blur_plane(planes[c], weights, reach, size, spare)


@_jit
def _blur_plane(plane, weights, reach, size, spare):
    line = np.empty(size + 2 * reach, np.float32)
    for y in range(size):
        _blur_down(plane, weights, reach, size, y, spare[y * size : (y + 1) * size])
    for y in range(size):
        _pad(spare[y * size : (y + 1) * size], reach, line)
        _blur_across(line, weights, reach, plane[y * size : (y + 1) * size])


@_jit
def _gaussian(sigma, weights):
    """Fill in the weights; return their sum over both sides and the largest distance that counts."""
    total, reach = _ONE, 0
    weights[0] = _ONE
    for d in range(1, len(weights)):
        weights[d] = np.exp(-_HALF * (d / sigma) ** 2)
        if weights[d] > _NEGLIGIBLE:
            total += _TWO * weights[d]
            reach = d
    return total, reach


@_jit
def _blur_down(plane, weights, reach, size, y, out):
    _weigh(out, weights[0], plane[y * size : (y + 1) * size])
    for d in range(1, reach + 1):
        above, below = abs(y - d), y + d
        if below >= size:
            below = 2 * (size - 1) - below
        pair = plane[above * size : (above + 1) * size], plane[below * size : (below + 1) * size]
        _add_pair(out, weights[d], pair[0], pair[1])


@_jit
def _blur_across(line, weights, reach, out):
    size = len(out)
    _weigh(out, weights[0], line[reach : reach + size])
    for d in range(1, reach + 1):
        _add_pair(out, weights[d], line[reach - d : reach - d + size], line[reach + d : reach + d + size])


@_jit
def _weigh(out, weight, row):
    for x in range(len(out)):
        out[x] = weight * row[x]


@_jit
def _add_pair(out, weight, one, other):
    for x in range(len(out)):
        out[x] += weight * (one[x] + other[x])


@_jit
def _pad(row, reach, line):
    """Copy the row into `line`, padded at both ends by reflection without repeating the end pixels."""
    size = len(row)
    for x in range(size):
        line[reach + x] = row[x]
    for d in range(1, reach + 1):
        line[reach - d] = row[d]
        line[reach + size - 1 + d] = row[size - 1 - d]


@_jit
def _finish(planes, solarized, threshold, mean, inverse_std, out):
    """Solarize, normalise, and write with channels last."""
    if solarized:
        for c in range(3):
            for i in range(planes.shape[1]):
                planes[c, i] = _ONE - planes[c, i] if planes[c, i] >= threshold else planes[c, i]
    pixels = out.reshape(planes.shape[1], 3)
    for c in range(3):
        plane, scale, shift = planes[c], inverse_std[c], -mean[c] * inverse_std[c]
        for i in range(len(plane)):
            pixels[i, c] = plane[i] * scale + shift
