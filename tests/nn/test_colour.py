"""Lab against kornia and scikit-image, and the bins of ab against the list that the paper's authors publish."""

import kornia.color
import pytest
import torch

from sslkit.nn.colour import ab_bin, ab_bins, ab_table, lightness_bin, rgb_to_lab

PTS_IN_HULL = {
    -90: (50, 90), -80: (20, 90), -70: (0, 90), -60: (-20, 90), -50: (-30, 100), -40: (-40, 100), -30: (-50, 100),
    -20: (-50, 100), -10: (-60, 100), 0: (-70, 100), 10: (-80, 90), 20: (-80, 90), 30: (-90, 90), 40: (-100, 90),
    50: (-100, 80), 60: (-110, 80), 70: (-110, 80), 80: (-110, 70), 90: (-110, 70), 100: (-90, 0),
}  # fmt: skip
"""a -> smallest and largest b of the 313 bins of Zhang et al. 2016; each row is without gaps."""


def colours(count: int = 5000, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Random sRGB colours, the eight corners among them, as one image [3, 1, count]."""
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=dtype)] * 3)
    some = torch.rand(count - 8, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return torch.cat([corners, some]).T[:, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lab_is_scikit_images(dtype):
    color = pytest.importorskip("skimage.color", reason="scikit-image is not installed")
    theirs = torch.from_numpy(color.rgb2lab(colours(dtype=dtype).movedim(0, -1).double().numpy())).movedim(-1, 0)
    torch.testing.assert_close(rgb_to_lab(colours(dtype=dtype)).double(), theirs, rtol=0, atol=1e-3)


def test_lab_is_kornias():
    rgb = colours()
    torch.testing.assert_close(rgb_to_lab(rgb), kornia.color.rgb_to_lab(rgb), rtol=0, atol=1e-3)


def test_known_colours():
    rgb = torch.tensor([[0.0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [1, 0, 0], [0, 0, 1]])
    lab = torch.tensor([[0, 0, 0], [100, 0, 0], [53.39, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]])
    torch.testing.assert_close(rgb_to_lab(rgb.T[:, None])[:, 0].T, lab, rtol=0, atol=2e-2)


def test_lab_has_finite_gradients_at_black_and_clips_what_is_no_colour():
    rgb = torch.tensor([0.0, 1e-6, 0.5]).expand(3, 1, 3).clone().requires_grad_()
    rgb_to_lab(rgb).sum().backward()
    assert rgb.grad.isfinite().all()
    outside = torch.tensor([-0.3, 1.7, 0.5]).view(3, 1, 1)
    assert torch.equal(rgb_to_lab(outside), rgb_to_lab(outside.clamp(0, 1)))


def test_lab_stays_float32_under_autocast():
    rgb = colours(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = rgb_to_lab(rgb)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, rgb_to_lab(rgb))


def test_the_bins_of_ab_are_the_313_of_the_paper():
    published = [(a, b) for a, (low, high) in PTS_IN_HULL.items() for b in range(low, high + 10, 10)]
    assert len(published) == 313
    assert [tuple(map(int, centre)) for centre in ab_bins()] == published


def test_every_mixture_of_colours_is_in_its_nearest_bin():
    bins = ab_bins()
    ab = rgb_to_lab(colours())[1:, 0].T
    generator = torch.Generator().manual_seed(1)
    shares = torch.rand(20000, 3, generator=generator, dtype=torch.float64) ** 3
    mixed = (ab[torch.randint(len(ab), shares.shape, generator=generator)] * shares[..., None]).sum(1)
    mixed = torch.cat([ab, mixed / shares.sum(1, keepdim=True)])
    numbers = ab_bin(mixed.T[:, None], ab_table(bins))[0]
    distances = torch.cdist(mixed, bins.double())
    torch.testing.assert_close(distances.gather(1, numbers[:, None])[:, 0], distances.amin(1))


def test_colours_beyond_all_others_have_a_bin_too():
    far = torch.tensor([[-300.0, 300.0], [-300.0, 300.0]]).view(2, 1, 2)
    assert ab_bins()[ab_bin(far, ab_table(ab_bins()))].tolist() == [[[-40, -40], [90, 70]]]


def test_bins_of_lightness():
    lightness = torch.tensor([0, 1.99, 2, 51, 99.9, 100, 100.001, -0.001])
    assert lightness_bin(lightness).tolist() == [0, 0, 1, 25, 49, 49, 49, 0]
