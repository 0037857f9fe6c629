"""Figures of features without labels, against slow references and closed forms."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sslkit.nn import geometry


def random_features(n=60, d=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) * torch.linspace(3, 0.1, d) + 0.5


@pytest.mark.parametrize("shape", [(60, 12), (10, 40)])
def test_rankme_is_the_exponential_entropy_of_the_singular_values(shape):
    features = random_features(*shape)
    singular = np.linalg.svd(features.double().numpy(), compute_uv=False)
    p = singular / singular.sum() + 1e-7
    assert geometry.rankme(features) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-4)


def test_rankme_counts_directions():
    assert geometry.rankme(torch.eye(7)) == pytest.approx(7, rel=1e-3)
    assert geometry.rankme(torch.ones(20, 5)) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_alpha_req_finds_the_exponent_of_a_power_law(alpha):
    n, d = 400, 16
    orthonormal = torch.linalg.qr(torch.randn(n, d, dtype=torch.float64) - 0.0)[0]
    orthonormal = torch.linalg.qr(orthonormal - orthonormal.mean(0))[0]
    eigenvalues = torch.arange(1, d + 1, dtype=torch.float64) ** -alpha
    assert geometry.alpha_req(orthonormal * eigenvalues.sqrt()) == pytest.approx(alpha, abs=1e-6)


def test_alpha_req_of_features_that_do_not_vary_is_zero():
    assert geometry.alpha_req(torch.ones(10, 4)) == 0


def test_alignment_and_uniformity_are_the_means_over_pairs():
    first, second = random_features(seed=1).double(), random_features(seed=2).double()
    a, b = (F.normalize(x, dim=1) for x in (first, second))
    assert geometry.alignment(first, second) == pytest.approx(
        np.mean([((a[i] - b[i]) ** 2).sum().item() for i in range(len(a))])
    )
    potentials = [math.exp(-2 * ((a[i] - a[j]) ** 2).sum().item()) for i in range(len(a)) for j in range(i + 1, len(a))]
    assert geometry.uniformity(first) == pytest.approx(math.log(np.mean(potentials)))


def test_uniformity_is_that_of_all_pairs_in_blocks_too(monkeypatch):
    features = random_features(n=61)
    squared = torch.pdist(F.normalize(features.double(), dim=1)).square()
    monkeypatch.setattr(geometry, "PAIRS", 61 * 7)
    assert geometry.uniformity(features) == pytest.approx(squared.mul(-2).exp().mean().log().item(), rel=1e-9)


def test_the_number_of_threads_is_as_before():
    torch.set_num_threads(2)
    geometry.rankme(random_features())
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


def test_closed_forms_of_alignment_and_uniformity():
    features = random_features()
    assert geometry.alignment(features, 3 * features) == pytest.approx(0, abs=1e-12)
    assert geometry.uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-12)
    # Two opposite points: the squared distance is 4.
    assert geometry.uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-8)


def test_view_retrieval_counts_images_whose_other_view_is_nearest():
    first = torch.eye(4)
    second = torch.eye(4)[[0, 2, 1, 3]]
    assert geometry.view_retrieval(first, 5 * first) == 1
    assert geometry.view_retrieval(first, second) == 0.5
