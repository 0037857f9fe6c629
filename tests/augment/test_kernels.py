"""The fast candidates to make views against the plain one, which the other tests hold against torchvision."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from sslkit import plugins
from sslkit.augment import MultiViewAugmentation, cpu_kernels, multi_view
from sslkit.training.tune import compiled_views

MEAN, STD = (0.48, 0.45, 0.41), (0.23, 0.22, 0.21)
AUGMENTATIONS = ["simclr", "byol", "mocov2", "small", "beasse", "weak", "digits", "none"]
STEPS = {
    "flip": {"flip": {"p": 0.5}},
    "crop": {"crop": {"scale": (0.08, 1.0), "ratio": (0.5, 2.0)}},
    "a crop that the views share": {"shared": {"p": 0.7, "scale": (0.2, 1.0)}, "crop": {"scale": (0.3, 1.0)}},
    "rotation into black": {"rotate": {"p": 0.8, "degrees": 90, "shear": 20, "padding": "zeros"}},
    "rotation into the border": {"rotate": {"p": 0.8, "degrees": 90, "shear": 20, "padding": "border"}},
    "rotation into the mirror": {"rotate": {"p": 0.8, "degrees": 180, "shear": 20, "padding": "reflection"}},
    "strong jitter": {"jitter": {"p": 0.8, "brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.5}},
    "jitter without hue": {"jitter": {"p": 1.0, "hue": 0.0}},
    "hue alone": {"jitter": {"p": 1.0, "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0.5}},
    "grayscale": {"grayscale": {"p": 0.5}},
    "blur, wide": {"blur": {"p": (1.0, 0.5), "sigma": (0.1, 8.0), "kernel": 0.9}},
    "solarize": {"solarize": {"p": 0.5, "threshold": 0.451}},
    "either crop or colour": {"either": 0.5, "crop": {"scale": (0.2, 0.5)}, "jitter": {"p": 1.0}, "blur": {"p": 1.0}},
}


def photos(count: int, height: int, width: int) -> torch.Tensor:
    """uint8 [count, 3, height, width] with black, white, gray and colourless pixels among the others."""
    coarse = torch.rand(count, 3, 7, 7, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.3
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    images[: count // 4] = images[: count // 4].mean(1, keepdim=True)
    return images.mul(255).to(torch.uint8).contiguous(memory_format=torch.channels_last)


def make(augmentation: str | dict, size: int) -> MultiViewAugmentation:
    if isinstance(augmentation, str):
        cls = plugins.find("augmentations", augmentation)
        return cls(cls.Config(), size, MEAN, STD)
    return MultiViewAugmentation(MultiViewAugmentation.Config.model_validate(augmentation), size, MEAN, STD)


def both(augmentation: MultiViewAugmentation, images: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(fast, plain), in units where white is 1."""
    made = {}
    for kernels in ("auto", "plain"):
        augmentation.kernels = kernels
        (made[kernels],) = augmentation(images, torch.Generator().manual_seed(seed))
    deviation = torch.tensor(STD).view(3, 1, 1)
    return made["auto"] * deviation, made["plain"] * deviation


@pytest.mark.parametrize("augmentation", [*AUGMENTATIONS, *STEPS])
@pytest.mark.parametrize(
    ("height", "width", "size"), [(32, 32, 32), (50, 50, 32), (20, 20, 32), (40, 61, 48), (130, 90, 32), (96, 96, 96)]
)
def test_numba_makes_the_plain_views(augmentation, height, width, size):
    images = photos(24, height, width)
    before = images.clone()
    fast, plain = both(make(STEPS.get(augmentation, augmentation), size), images)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-4)
    assert fast.is_contiguous(memory_format=torch.channels_last)
    assert fast.shape == plain.shape
    assert torch.equal(images, before)


def test_numba_is_what_makes_them(monkeypatch):
    """Otherwise the comparisons here would compare the plain operations with themselves."""
    augmentation = make("simclr", 32)
    monkeypatch.setattr(multi_view, "render_plain", lambda *args: pytest.fail("made by plain operations"))
    augmentation(photos(4, 32, 32))
    augmentation.kernels = "plain"
    with pytest.raises(pytest.fail.Exception):
        augmentation(photos(4, 32, 32))


def test_where_compiled_code_cannot_be_kept_each_process_compiles(monkeypatch):
    njit = cpu_kernels.numba.njit

    def refusing(function):
        raise RuntimeError(f"cannot cache function {function.__name__!r}: no locator available")

    monkeypatch.setattr(cpu_kernels.numba, "njit", lambda cache=False, **how: refusing if cache else njit(**how))
    double = cpu_kernels._kernel(False)(lambda number: 2 * number)
    assert double(3) == 6
    assert double.signatures, "compiled, too"


def test_without_numba_views_are_made_by_plain_operations(monkeypatch):
    monkeypatch.setattr(multi_view, "numba_missing", lambda: True)
    fast, plain = both(make("simclr", 32), photos(8, 32, 32))
    assert torch.equal(fast, plain)


def test_the_number_of_threads_changes_nothing(monkeypatch):
    augmentation, images = make("simclr", 32), photos(13, 32, 32)
    made = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        made.append(augmentation(images, torch.Generator().manual_seed(3))[0])
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


def test_views_of_one_image_and_of_memory_in_another_order_are_the_same():
    augmentation, images = make("byol", 32), photos(5, 32, 32)
    (several,) = augmentation(images, torch.Generator().manual_seed(1))
    (strided,) = augmentation(images.contiguous(), torch.Generator().manual_seed(1))
    assert torch.equal(several, strided)
    assert augmentation(images[:1])[0].shape == (2, 3, 32, 32)


def test_kornias_steps_come_before_normalising_by_both_kernels():
    settings = {"jitter": {"p": 1.0}, "extra": [{"RandomErasing": {"p": 1.0, "value": 1.0}}]}
    fast, plain = both(make(settings, 32), photos(8, 32, 32))
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-4)
    white = (1 - torch.tensor(MEAN)).view(3, 1, 1)
    assert ((fast - white).abs() < 1e-5).all(1).any((1, 2)).all()


@pytest.mark.parametrize("augmentation", ["simclr", "byol"])
@pytest.mark.parametrize("size", [96, 224])
def test_numba_is_at_least_twice_as_fast(augmentation, size):
    """Six to ten times on a quiet machine, `benchmarks/results/`; half of that cannot be noise."""
    augmentation, images = make(augmentation, size), photos(16, size, size)
    both(augmentation, images)
    times = {"auto": [], "plain": []}
    for _ in range(5):
        for kernels, took in times.items():
            augmentation.kernels = kernels
            began = time.perf_counter()
            augmentation(images)
            took.append(time.perf_counter() - began)
    assert np.median(times["plain"]) > 2 * np.median(times["auto"])


@pytest.mark.slow
@pytest.mark.parametrize("augmentation", ["byol", "digits"])
def test_compiled_views_are_the_plain_ones(augmentation):
    """What a GPU runs, compiled for the CPU: the same graph, another code generator's output."""
    augmentation, images = make(augmentation, 32), photos(16, 32, 32)
    augmentation.compile()
    assert augmentation._compiled is not None
    for seed in (0, 1):
        fast, plain = both(augmentation, images, seed)
        torch.testing.assert_close(fast, plain, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_compiled_views_are_kept_if_they_are_equal_and_faster(monkeypatch):
    augmentation, images = make("small", 32), photos(64, 32, 32)
    augmentation.kernels = "plain"
    monkeypatch.setattr(compiled_views, "MARGIN", 1e9)
    monkeypatch.setattr(augmentation, "_renderer", lambda device: augmentation._compiled or augmentation._plain)
    pays, found = compiled_views.try_compiled(augmentation, images)
    assert pays
    assert found.endswith(": compiled")
    assert augmentation._compiled is None, "it is for the run to compile it"


@pytest.mark.parametrize(("factor", "margin"), [(1.0, 0.0), (1.01, 1e9)])
def test_compiled_views_that_are_slower_or_others_are_dropped(monkeypatch, factor, margin):
    augmentation, images = make("small", 32), photos(8, 32, 32)
    monkeypatch.setattr(compiled_views, "MARGIN", margin)
    monkeypatch.setattr(torch, "compile", lambda made, **options: lambda *given: made(*given) * factor + (factor - 1))
    pays, found = compiled_views.try_compiled(augmentation, images)
    assert not pays
    assert found.endswith(": plain")
    assert ("pixels differ" in found) == (factor != 1)
    assert augmentation._compiled is None


def test_views_that_run_out_of_memory_may_be_compiled_another_day(monkeypatch):
    def full(*given, **options):
        raise torch.OutOfMemoryError("another program has the memory")

    monkeypatch.setattr(torch, "compile", lambda made, **options: full)
    assert compiled_views.try_compiled(make("small", 32), photos(8, 32, 32))[0] is None


@pytest.mark.parametrize(
    ("answers", "together"),
    [([True, True], True), ([True, False], False), ([None, False], False), ([True, None], None), ([], None)],
)
def test_all_augmentations_and_processes_must_gain(answers, together):
    assert compiled_views.in_all(answers) is together


def test_a_few_pixels_at_the_threshold_may_differ():
    augmentation = make("none", 32)
    one = torch.zeros(1, 3, 100, 100)
    other = one.clone()
    other[0, 0, 0, :2] = 1.0
    assert compiled_views._share_different(one, one + 0.9 / 255 / max(STD), augmentation) == 0
    assert compiled_views._share_different(one, other, augmentation) == pytest.approx(2 / 30_000)


def test_views_that_cannot_be_compiled_are_made_as_before(monkeypatch):
    def broken(*given, **options):
        raise RuntimeError("no compiler here")

    augmentation, images = make("small", 32), photos(8, 32, 32)
    (before,) = augmentation(images, torch.Generator().manual_seed(0))
    monkeypatch.setattr(torch, "compile", lambda made, **options: broken)
    assert compiled_views.try_compiled(augmentation, images) == (False, "cannot be compiled here: no compiler here")
    assert torch.equal(augmentation(images, torch.Generator().manual_seed(0))[0], before)


@pytest.mark.parametrize("augmentation", ["simclr", "digits", "beasse", STEPS["a crop that the views share"]])
def test_a_compiled_augmentation_is_one_graph(augmentation):
    """A break in the graph would be a wait or a launch that the compiler cannot remove."""
    augmentation = make(augmentation, 32)
    images = photos(4, 32, 32)
    numbers = torch.rand(8, augmentation._columns)
    explained = torch._dynamo.explain(augmentation._plain)(images, numbers)
    assert explained.graph_break_count == 0, explained.break_reasons


def test_kernels_are_kept_for_the_next_process_and_make_the_same_views_there(tmp_path):
    """Compiling takes seconds, so a second process loads what the first has left; a run is to be the same in both."""
    code = """
import hashlib, torch
from sslkit import plugins
from sslkit.augment import cpu_kernels
images = torch.rand(16, 3, 40, 40, generator=torch.Generator().manual_seed(0)).mul(255).to(torch.uint8)
made = hashlib.sha256()
for name in ("digits", "simclr", "byol", "beasse"):
    augmentation = plugins.find("augmentations", name)
    for size in (24, 40, 48):
        views = augmentation(augmentation.Config(), size, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
        made.update(views(images, torch.Generator().manual_seed(1))[0].contiguous().numpy().tobytes())
stats = cpu_kernels._render.stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()), made.hexdigest())
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    runs = [
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    (*first, compiled), (*second, loaded) = (run.stdout.split() for run in runs)
    assert (first, second) == (["0", "1"], ["1", "0"])
    assert compiled == loaded
