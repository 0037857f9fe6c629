"""Feature spread and effective rank on features whose answer is known."""

import pytest
import torch

from sslkit.nn.collapse import collapse_warning
from sslkit.nn.health import effective_rank, feature_std


def gaussian(n: int, dim: int) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(0))


def test_std_is_one_on_the_whole_sphere():
    assert feature_std(gaussian(2000, 64)).item() == pytest.approx(1, abs=0.02)


def test_std_is_zero_at_one_point_and_ignores_length():
    point = gaussian(1, 64) * torch.rand(100, 1).add(0.5)
    assert feature_std(point).item() == pytest.approx(0, abs=1e-3)
    spread = gaussian(100, 64)
    assert feature_std(9 * spread).item() == pytest.approx(feature_std(spread).item(), rel=1e-5)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_rank_counts_directions_of_equal_strength(rank):
    signs = torch.tensor([[1.0 if (row >> bit) & 1 else -1.0 for bit in range(rank)] for row in range(64)])
    basis = torch.linalg.qr(gaussian(32, 32))[0][:rank]
    assert effective_rank(signs @ basis + 3).item() == pytest.approx(rank, rel=1e-3)


def test_rank_of_gaussian_features_is_near_their_width():
    assert 14.5 < effective_rank(gaussian(256, 16)).item() <= 16


def test_rank_is_bounded_by_the_rows():
    assert effective_rank(gaussian(10, 500)).item() <= 9 + 1e-6
    assert effective_rank(gaussian(1000, 500), rows=20).item() <= 19 + 1e-6


def test_rank_of_constant_features_is_zero():
    assert effective_rank(torch.zeros(8, 4)) == 0
    assert effective_rank(gaussian(1, 300).expand(100, -1).clone()) == 0


def test_rounding_is_no_variation():
    point = gaussian(1, 300)
    rounded = (point.double() * (1 + 1e-7 * gaussian(100, 300))).float()
    assert rounded.std(0).max() > 0
    assert effective_rank(rounded) == 0
    line = point + torch.linspace(-0.01, 0.01, 100)[:, None] * gaussian(1, 300).roll(1)
    assert effective_rank(line).item() == pytest.approx(1, abs=0.05)


def test_rank_agrees_with_singular_values():
    features = gaussian(50, 20) @ torch.diag(torch.logspace(0, -3, 20))
    singular = torch.linalg.svdvals((features - features.mean(0)).double())
    p = singular / singular.sum()
    assert effective_rank(features).item() == pytest.approx((-(p * p.log()).sum()).exp().item(), rel=1e-4)


def test_half_precision_features_are_welcome():
    features = gaussian(64, 16).bfloat16()
    assert 0.8 < feature_std(features) < 1.2
    assert effective_rank(features) > 10


def test_warning_says_what_collapsed_and_what_to_try():
    assert "one point" in collapse_warning(0.001, 30.0, 512)
    line = collapse_warning(0.5, 1.2, 512)
    assert "line" in line
    assert "optimizer.lr" in line
    assert collapse_warning(0.1, 5.0, 512) is None
    assert collapse_warning(0.9, 1.0, 1) is None
