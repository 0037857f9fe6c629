"""Logistic regression against scikit-learn, and the choice of l2."""

import numpy as np
import pytest
import torch
from helpers.labelled_images import clusters, given_features
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler

from sslkit.errors import UserError
from sslkit.evaluation.evaluators import logistic


@pytest.fixture(scope="module")
def features():
    return given_features()


@pytest.mark.parametrize("l2", [0.3, 30.0])
@pytest.mark.parametrize("standardize", [True, False])
def test_logistic_regression_is_that_of_scikit_learn(features, l2, standardize):
    x, y = features.train_x.double(), features.train_y
    scaler = StandardScaler(with_mean=standardize, with_std=standardize).fit(x)
    theirs = LogisticRegression(C=1 / l2, tol=1e-8, max_iter=5000).fit(scaler.transform(x), y)
    ours = logistic.fit(x, y, 8, l2=l2, standardize=standardize)
    # Only differences between classes are decided where the bias is exempt.
    bias = ours.bias - ours.bias.mean()
    np.testing.assert_allclose(ours.weight, theirs.coef_, atol=1e-3)
    np.testing.assert_allclose(bias, theirs.intercept_ - theirs.intercept_.mean(), atol=3e-3)


def test_a_start_changes_the_steps_and_not_the_optimum(features):
    x, y = features.train_x.double(), features.train_y
    strong = logistic.fit(x, y, 8, l2=100)
    warm, cold = (logistic.fit(x, y, 8, l2=1, start=start) for start in (strong, None))
    torch.testing.assert_close(warm.weight, cold.weight, atol=2e-4, rtol=0)
    assert not strong.weight.requires_grad


def test_l2_is_the_best_on_the_held_out_fifth():
    """Few images of many features: the weakest penalties overfit, the strongest learn nothing."""
    x, y = clusters(120, classes=4, width=60, spread=3)
    values = np.geomspace(1e-4, 1e6, 6).tolist()
    tried = {}

    def score(predicted, labels):
        tried[len(tried)] = (predicted == labels).double().mean().item()
        return tried[len(tried) - 1]

    chosen = logistic.choose_l2(x, y, 4, values, score=score, seed=0)
    by_value = dict(zip(sorted(values, reverse=True), tried.values()))
    assert len(set(by_value.values())) > 1
    assert by_value[chosen] == max(by_value.values())
    assert chosen == max(v for v in values if by_value[v] == by_value[chosen])


def test_l2_needs_two_images_of_a_class():
    with pytest.raises(UserError, match="too few images"):
        logistic.choose_l2(torch.eye(3), torch.arange(3), 3, [1.0], score=logistic.share_right, seed=0)


def test_mean_per_class_is_scikit_learns_balanced_accuracy():
    rng = np.random.default_rng(0)
    y, guess = rng.choice(5, 200, p=[0.6, 0.2, 0.1, 0.05, 0.05]), rng.integers(0, 5, 200)
    ours = logistic.mean_per_class(torch.tensor(guess), torch.tensor(y))
    assert ours == pytest.approx(balanced_accuracy_score(y, guess))
    assert ours != pytest.approx(logistic.share_right(torch.tensor(guess), torch.tensor(y)))
