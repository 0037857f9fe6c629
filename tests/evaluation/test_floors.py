"""Floors: chance, raw pixels and random initialisation by the same evaluator."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from sslkit.config.base import Choice
from sslkit.evaluation.evaluators.knn import KNN
from sslkit.evaluation.floors import RawPixels, measure_floors
from sslkit.runs.records import floors_of, known_floors
from sslkit.testing.examples import TinyBackbone, example_subject

EUCLIDEAN = Choice(name="knn", options=KNN.Config(metric="euclidean", k=3))


@pytest.fixture
def subject(tmp_path):
    return example_subject(tmp_path)


def test_raw_pixels_are_those_of_the_views_at_32_px_at_most():
    small, large = torch.randn(2, 3, 8, 8), torch.full((2, 3, 64, 64), 0.5)
    assert torch.equal(RawPixels()(small), small.flatten(1))
    torch.testing.assert_close(RawPixels()(large), torch.full((2, 3 * 32 * 32), 0.5))


def test_raw_pixels_and_chance_are_those_of_scikit_learn(subject):
    def pixels(store):
        images = torch.from_numpy(store.read(np.arange(len(store)))).permute(0, 3, 1, 2)
        return subject.views(images).flatten(1).numpy(), store.labels

    (train_x, train_y), (test_x, test_y) = pixels(subject.train), pixels(subject.test)
    neighbours = KNeighborsClassifier(3).fit(train_x, train_y)
    floors = measure_floors(subject, EUCLIDEAN, {}, ("raw_pixels", "chance"))
    assert floors == {
        "raw_pixels": pytest.approx(neighbours.score(test_x, test_y)),
        "chance": pytest.approx(np.bincount(test_y).max() / len(test_y)),
    }


def test_random_initialisation_is_the_network_made_anew_by_the_seed(subject):
    first = measure_floors(subject, EUCLIDEAN, {}, ("random_init",))
    assert first == measure_floors(subject, EUCLIDEAN, {}, ("random_init",))
    untrained = subject.fresh(initial=True).eval()
    features = subject.features_by(untrained)
    expected = KNN(EUCLIDEAN.options)
    ranking = expected.predict(features.train_x, features.train_y, features.test_x, features.classes)
    assert first["random_init"] == (ranking[:, 0] == features.test_y).double().mean().item()


def test_known_floors_are_taken_as_they_are_and_an_unknown_beginning_is_left_out(subject):
    subject._initial = None
    known = {"raw_pixels": 0.25, "chance": 0.5}
    assert measure_floors(subject, EUCLIDEAN, known) == known


def test_the_random_numbers_of_the_caller_go_on(subject):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    measure_floors(subject, EUCLIDEAN, {})
    assert torch.equal(torch.rand(3), expected)


def test_a_run_knows_its_floors_from_before_its_first_epoch():
    settings = EUCLIDEAN.options.model_dump(mode="json")
    first = {"evaluator": "knn", "epoch": 0, "during_run": True, "data": "a", "settings": settings, "top1": 0.2}
    records = [first | {"floors": {"raw_pixels": 0.4, "chance": 0.1}}, first | {"epoch": 5, "top1": 0.5}]
    known = {"knn": {"raw_pixels": 0.4, "chance": 0.1, "random_init": 0.2}}
    assert known_floors(records, "a", [EUCLIDEAN]) == known
    assert known_floors(records, "b", [EUCLIDEAN]) == {}
    assert known_floors(records, "a", [Choice(name="knn", options=KNN.Config(k=4))]) == {}, "another measurement"
    assert floors_of(first) == {}


def test_the_backbone_is_judged_in_the_mode_it_has(subject):
    subject.backbone.train()
    measure_floors(subject, EUCLIDEAN, {})
    assert subject.backbone.training
    assert isinstance(subject.backbone, TinyBackbone)
