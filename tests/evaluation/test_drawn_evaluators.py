"""Confusion, retrieval, embedding and transforms: against other libraries and slow references."""

import csv
import io
import json
import warnings
from dataclasses import replace
from threading import Event

import numpy as np
import pytest
import torch
from helpers.labelled_images import (
    HOSTILE,
    MEAN,
    STD,
    Flat,
    Given,
    clusters,
    coloured,
    coloured_subject,
    given_features,
    hwc,
    photo,
    subject_of,
    written,
)
from PIL import Image
from scipy.ndimage import sobel
from sklearn.decomposition import PCA
from sklearn.metrics import confusion_matrix
from sklearn.neighbors import NearestNeighbors
from torch import nn

from sslkit import testing
from sslkit.data import ArrayImages, pack
from sslkit.data.loaders import make as loaders
from sslkit.data.packing.beton import Beton
from sslkit.evaluation import KNN, Features, Linear
from sslkit.evaluation.drawing import pictures
from sslkit.evaluation.drawing.images import class_names, features_of_changed, labelled_rows
from sslkit.evaluation.evaluators import confusion as confusions
from sslkit.evaluation.evaluators import embedding, retrieval
from sslkit.evaluation.evaluators.confusion import Confusion
from sslkit.evaluation.evaluators.embedding import Embedding
from sslkit.evaluation.evaluators.retrieval import Retrieval
from sslkit.evaluation.evaluators.robustness import Robustness
from sslkit.evaluation.evaluators.transfer import Transfer
from sslkit.evaluation.evaluators.transforms import Transforms, add_noise, grey
from sslkit.evaluation.evaluators.transforms import sobel as sobel_filtered


@pytest.fixture(scope="module")
def features():
    return given_features()


@pytest.fixture
def subject(tmp_path):
    return coloured_subject(tmp_path)


LOOKING = [
    Confusion(Confusion.Config()),
    Confusion(Confusion.Config(classifier="knn")),
    Retrieval(Retrieval.Config()),
    Embedding(Embedding.Config(perplexity=5)),
]


@pytest.mark.parametrize(
    "evaluator", [Confusion, Retrieval, Embedding, Robustness, Transforms, Transfer], ids=lambda cls: cls.__name__
)
def test_contract(evaluator):
    testing.check_evaluator(evaluator)


@pytest.mark.parametrize("evaluator", LOOKING, ids=lambda e: type(e).__name__)
def test_hostile_names_draw_without_a_warning(subject, evaluator, tmp_path):
    subject.begin("x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluator(subject)
    files = written(subject, tmp_path)
    assert files
    for file in files.values():
        if file.suffix in (".png", ".jpg"):
            with Image.open(file) as picture:
                assert min(picture.size) >= 100
                assert np.asarray(picture.convert("L")).std() > 5
    assert all(file["alt"] for file in subject.files)


@pytest.mark.parametrize("evaluator", LOOKING, ids=lambda e: type(e).__name__)
def test_features_alone_are_enough_where_nobody_wants_files(features, evaluator):
    state = torch.get_rng_state()
    first = evaluator(Given(features))
    assert first == evaluator(Given(features))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("cat", "cat"),
        ("a\tb\nc", "a b c"),
        ("", "(nameless)"),
        ("🐈", "□"),
        ("x" * 30, "x" * 21 + "…"),
        ("$é$", "$é$"),
    ],
)
def test_labels_are_one_short_line_of_known_glyphs(name, drawn):
    assert pictures.label(name) == drawn


def test_class_names_are_numbers_where_the_images_do_not_tell(subject, features):
    assert class_names(Given(features), 3) == ["0", "1", "2"]
    assert class_names(subject, 10) == [*HOSTILE, "8", "9"]


# --- confusion ---


@pytest.mark.parametrize("classifier", ["linear", "knn"])
def test_confusion_is_that_of_scikit_learn(subject, classifier, tmp_path):
    subject.begin("confusion")
    figures = Confusion(Confusion.Config(classifier=classifier))(subject)
    f = subject.features
    by = Linear(Linear.Config()) if classifier == "linear" else KNN(KNN.Config())
    guess = by.predict(f.train_x, f.train_y, f.test_x, f.classes)[:, 0]
    expected = confusion_matrix(f.test_y, guess, labels=range(8))
    with written(subject, tmp_path)["confusion.csv"].open(encoding="utf-8", newline="") as file:
        head, *lines = list(csv.reader(file))
    assert head == ["true class", *HOSTILE]
    assert [line[0] for line in lines] == list(HOSTILE)
    assert (np.array([line[1:] for line in lines], int) == expected).all()
    assert figures["top1"] == pytest.approx(expected.trace() / 48)
    assert figures["worst_class"] == pytest.approx((expected.diagonal() / expected.sum(1)).min())


def test_the_worst_mistakes_are_described_in_words():
    matrix = torch.tensor([[5, 3, 0], [1, 7, 0], [4, 3, 0]])
    assert confusions.worst_pairs(matrix, 3) == [(2, 0, 4), (0, 1, 3), (2, 1, 3)]
    assert confusions.worst_pairs(torch.eye(3).long(), 3) == []
    assert list(csv.reader(io.StringIO(confusions.as_csv(matrix, ["a,b", '"', "c"]))))[2] == ['"', "1", "7", "0"]


def test_confusion_notes_name_class_guess_and_counts(features):
    notes = []
    given = Given(features)
    given.note = notes.append
    Confusion(Confusion.Config(pairs=2))(given)
    guess = Linear(Linear.Config()).predict(features.train_x, features.train_y, features.test_x, 8)[:, 0]
    wrong = confusion_matrix(features.test_y, guess)
    np.fill_diagonal(wrong, 0)
    a, b = np.unravel_index(wrong.argmax(), wrong.shape)
    assert notes[0] == f"{a} taken for {b}: {wrong.max()} of {(features.test_y == a).sum()}"
    assert len(notes) == 2


# --- retrieval ---


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_neighbours_and_precision_are_those_of_scikit_learn(features, metric):
    # Far from the origin, where differences of squares lose digits.
    far = 100 if metric == "euclidean" else 0
    train, test = features.train_x + far, features.test_x + far
    search = NearestNeighbors(n_neighbors=10, metric=metric, algorithm="brute").fit(train.double())
    expected = search.kneighbors(test.double(), return_distance=False)
    given = Features(train, features.train_y, test, features.test_y, 8)
    hits = features.train_y.numpy()[expected] == features.test_y.numpy()[:, None]
    figures = Retrieval(Retrieval.Config(metric=metric))(Given(given))
    assert figures == pytest.approx({f"precision_{k}": hits[:, :k].mean() for k in (1, 5, 10)}, abs=1e-3)


def test_neighbours_are_no_more_than_the_training_images(features):
    given = Features(features.train_x[:6], features.train_y[:6], features.test_x, features.test_y, 8)
    figures = Retrieval(Retrieval.Config(k=(6, 1000)))(Given(given))
    assert figures["precision_6"] == figures["precision_1000"] > 0


def test_queries_are_one_a_class_by_seed():
    labels = torch.tensor([2, 2, 0, 0, 0, 2, 7])
    first, again, other = (retrieval._one_a_class(labels, seed) for seed in (0, 0, 3))
    assert labels[first].tolist() == labels[other].tolist() == [0, 2, 7]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_retrieval_picture_shows_the_right_images(subject, monkeypatch):
    """Unlabelled rows shift the features against the store's rows; the pictures must not shift."""
    drawn = {}
    monkeypatch.setattr(pictures, "image_table", lambda path, *parts: drawn.update(parts=parts))
    labels = np.array([-1, 0, -1, 1, 0, 1, -1, 1])
    subject.train = subject.test = coloured(subject.train.path.with_name("m.beton"), 8, HOSTILE[:2], labels=labels)
    subject.begin("retrieval")
    Retrieval(Retrieval.Config(neighbours=2))(subject)
    cells, names, columns = drawn["parts"]
    assert (names, columns) == (list(HOSTILE[:2]), ["query", "1.", "2."])
    assert len(cells) == 2
    for c, (query, nearest, second) in enumerate(cells):
        # The nearest image to one that is in both splits is itself.
        assert np.array_equal(query.pixels, nearest.pixels)
        assert nearest.right
        assert second.right == (second.caption == HOSTILE[c])
    assert labelled_rows(subject.test).tolist() == [1, 3, 4, 5, 7]


# --- embedding ---


def test_pca_is_that_of_scikit_learn(features):
    x = features.test_x.double().numpy()
    reference = PCA(20).fit(x)
    ours, share = embedding.pca(x)
    np.testing.assert_allclose(np.abs(ours[:, :20]), np.abs(reference.transform(x)), atol=1e-8)
    assert share == pytest.approx(reference.explained_variance_ratio_[:2].sum())


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 12])
def test_few_images_are_embedded_too(n):
    x = np.random.default_rng(0).normal(size=(n, 1 if n < 3 else 6))
    points = embedding.tsne(embedding.pca(x)[0], 30, seed=0)
    assert points.shape == (n, 2)
    assert np.isfinite(points).all()


@pytest.mark.parametrize("installed", [True, False])
def test_tsne_keeps_clusters_apart(installed, monkeypatch):
    if installed:
        pytest.importorskip("openTSNE")
    else:
        monkeypatch.setattr(embedding, "find_spec", lambda name: None)
    x, y = clusters(90, classes=3, spread=0.05)
    points = embedding.tsne(x.double().numpy(), 20, seed=0)
    near = NearestNeighbors(n_neighbors=6).fit(points).kneighbors(return_distance=False)
    assert (y.numpy()[near] == y.numpy()[:, None]).all()
    assert np.array_equal(points, embedding.tsne(x.double().numpy(), 20, seed=0))


def test_the_explorers_data_are_points_labels_and_thumbnails(subject, tmp_path):
    subject.begin("embedding")
    Embedding(Embedding.Config(max_images=30))(subject)
    files = written(subject, tmp_path)
    data = json.loads(files["embedding.json"].read_text(encoding="utf-8"))
    rows = embedding.drawn(48, 30, 0)
    assert data["labels"] == subject.test.labels[rows].tolist()
    assert data["classes"] == list(HOSTILE)
    assert np.array(data["tsne"]).shape == np.array(data["pca"]).shape == (30, 2)
    sprite = data["sprite"]
    assert sprite == {"file": "embedding-sprite.jpg", "size": 32, "columns": 6}
    with Image.open(files[sprite["file"]]) as sheet:
        pixels = np.asarray(sheet).astype(float)
    assert pixels.shape == (5 * 32, 6 * 32, 3)
    for k in (0, 7, 29):
        top, left = (32 * v for v in divmod(k, 6))
        mean = pixels[top : top + 32, left : left + 32].mean((0, 1))
        np.testing.assert_allclose(mean, subject.test.read([rows[k]])[0].mean((0, 1)), atol=4)


def test_images_are_drawn_by_seed_whatever_their_classes():
    rows = embedding.drawn(100, 10, 3)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(rows) == 10
    assert not np.array_equal(rows, embedding.drawn(100, 10, 4))
    assert embedding.drawn(5, 10, 0).tolist() == [0, 1, 2, 3, 4]


# --- transforms ---


def test_grey_is_pillows_luma_and_sobel_is_scipys():
    pixels, images = photo(20)
    luma = np.stack([np.asarray(Image.fromarray(p).convert("L")) for p in pixels]).astype(float)
    assert np.abs(hwc(grey(images)) - luma[..., None]).max() <= 1
    ours = hwc(grey(images))[..., 0].astype(float)
    edges = np.stack([np.hypot(sobel(p, 0, mode="nearest"), sobel(p, 1, mode="nearest")) for p in ours])
    assert np.abs(hwc(sobel_filtered(images))[..., 1] - np.clip(edges, 0, 255)).max() <= 1


def test_added_noise_has_the_deviation():
    grey_image = torch.full((4, 3, 50, 50), 128, dtype=torch.uint8)
    noisy = add_noise(grey_image, 0.05, torch.Generator().manual_seed(0))
    assert noisy.float().std().item() == pytest.approx(12.75, rel=0.03)


class Mean(nn.Module):
    """Knows colour alone: the mean of each channel, and the share of each in their sum of squares."""

    width = 3

    def forward(self, views):
        return views.mean((2, 3))


def test_what_the_features_keep_can_be_predicted_and_what_they_lose_cannot(subject):
    """Means of channels keep colour and Sobel, but neither rotation; a head of zeros keeps nothing."""
    subject.backbone = Mean()
    subject.__dict__["head"] = nn.Linear(3, 2).requires_grad_(False)
    nn.init.zeros_(subject.head.weight)
    subject.begin("transforms")
    figures = Transforms(Transforms.Config())(subject)
    assert list(figures) == [f"{q}_{x}" for q in ("colour", "rotation", "noise", "sobel") for x in "hg"]
    assert figures["sobel_h"] > 0.8
    assert figures["colour_h"] > 0.6
    assert figures["rotation_h"] < 0.5
    assert figures["sobel_g"] == 0.5
    assert figures["rotation_g"] == 0.25


def test_rotation_is_predicted_from_pixels(tmp_path):
    """Images with a bright edge at the top: where the edge is tells the rotation."""
    pixels = np.random.default_rng(0).integers(0, 100, (100, 16, 16, 3)).astype(np.uint8)
    pixels[:, :3] += 150
    store = pack(ArrayImages(lambda: (pixels, np.arange(100) % 2), "top", ("a", "b")), tmp_path / "t.beton", size=16)
    judged = subject_of(Flat(), store, store, image_size=16, mean=MEAN, std=STD)
    figures = Transforms(Transforms.Config())(judged)
    assert figures["rotation_h"] > 0.95
    assert not any(name.endswith("_g") for name in figures)
    assert "no projection head" in judged.notes[0].lower()


def test_changed_features_are_in_order_and_of_changed_pixels(subject):
    rows = np.array([5, 3, 40, 11])
    places = []

    def inverted(images, where):
        places.extend(where.tolist())
        return 255 - images

    subject.batch_size = 3
    got = features_of_changed(subject, subject.test, rows, inverted)
    expected = subject.views(255 - torch.from_numpy(subject.test.read(rows)).permute(0, 3, 1, 2)).flatten(1)
    torch.testing.assert_close(got, expected)
    assert places == [0, 1, 2, 3]


def test_changed_images_are_read_ahead_a_few_batches_and_no_more(subject, monkeypatch):
    monkeypatch.setattr(loaders, "core_count", lambda: 2)
    begun, second, taken = [], Event(), []
    read = Beton.read

    def noted(beton, rows):
        begun.append(len(rows))
        if len(begun) == 2:
            second.set()
        return read(beton, rows)

    def unchanged(images, where):
        assert second.wait(10), "the next batch is read while this one is worked on"
        taken.append(len(where))
        assert len(begun) <= len(taken) + 2
        return images

    monkeypatch.setattr(Beton, "read", noted)
    subject.preprocessing = replace(subject.preprocessing, batch_size=4)
    features_of_changed(subject, subject.test, np.arange(48), unchanged)
    assert taken == 12 * [4]


# --- labels ---


@pytest.mark.parametrize("kind", [Confusion, Retrieval])
def test_test_labels_choose_nothing(features, kind):
    """With every test image called c, the first figure is the share of c: shares of one prediction add up to 1."""
    evaluator = kind(kind.Config())
    shares = []
    for c in range(8):
        called = torch.full_like(features.test_y, c)
        given = Features(features.train_x, features.train_y, features.test_x, called, 8)
        shares.append(next(iter(evaluator(Given(given)).values())))
    assert sum(shares) == pytest.approx(1)
    assert len(set(shares)) > 1


def test_the_embedding_knows_no_labels(features):
    shuffled = Features(features.train_x, features.train_y, features.test_x, features.test_y.flip(0), 8)
    evaluator = Embedding(Embedding.Config(max_images=50))
    assert evaluator(Given(features)) == evaluator(Given(shuffled))
