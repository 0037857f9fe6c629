"""Evaluators on features: kNN, linear probe, MLP against scikit-learn and lightly, and the features they share."""

import warnings

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from helpers.labelled_images import subject_of
from lightly.utils.benchmarking.knn import knn_predict
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from sslkit.backbones import create_backbone
from sslkit.config.base import Choice
from sslkit.data import ArrayImages, Digits, open_stores, pack
from sslkit.errors import UserError
from sslkit.evaluation import KNN, MLP, Features, Linear, accuracy
from sslkit.evaluation.evaluators import neighbours
from sslkit.evaluation.evaluators.retrieval import Retrieval

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def clusters(n, classes=7, width=24, spread=2.0, seed=0):
    """Overlapping clusters with features of very different scales and offsets."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    y = rng.integers(0, classes, n)
    x = centres[y] + spread * rng.normal(size=(n, width))
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


@pytest.fixture(scope="module")
def features():
    train_x, train_y = clusters(600)
    test_x, test_y = clusters(300, seed=1)
    return Features(train_x, train_y, test_x, test_y, 7)


class Given:
    """A subject whose features are at hand."""

    seed = 0
    labelled = True

    def __init__(self, features):
        self.features = features


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (5, 0.07), (200, 0.1), (600, 1.0)])
def test_knn_is_that_of_scikit_learn(features, k, temperature):
    reference = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    ).fit(features.train_x.double(), features.train_y)
    ranking = KNN(KNN.Config(k=k, temperature=temperature)).predict(
        features.train_x, features.train_y, features.test_x, 7
    )
    assert ranking.shape == (300, 5)
    assert (ranking[:, 0].numpy() == reference.predict(features.test_x.double())).all()
    votes = reference.predict_proba(features.test_x.double())
    best = -np.sort(-votes)[:, :5]
    ours = np.where(ranking < 0, 0, np.take_along_axis(votes, ranking.clamp_min(0).numpy(), 1))
    np.testing.assert_allclose(ours, best, atol=1e-5)


def test_knn_is_that_of_lightly(features):
    ranking = KNN(KNN.Config(k=200)).predict(features.train_x, features.train_y, features.test_x, 7)
    bank = F.normalize(features.train_x).T.contiguous()
    expected = knn_predict(F.normalize(features.test_x), bank, features.train_y, 7, 200, 0.1)
    assert torch.equal(ranking, expected[:, :5])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("held", [1, 40, 600 * 11])
def test_knn_in_blocks_is_the_same(features, metric, held, monkeypatch):
    vote = KNN(KNN.Config(metric=metric)).predict
    whole = vote(features.train_x, features.train_y, features.test_x[:50], 7)
    monkeypatch.setattr(neighbours, "SIMILARITIES", held)
    assert torch.equal(whole, vote(features.train_x, features.train_y, features.test_x[:50], 7))


@pytest.mark.parametrize("held", [7, 60, 2**25])
def test_knn_in_blocks_is_that_of_a_sorted_list_where_many_are_equally_near(held, monkeypatch):
    """Whole numbers, so that equal distances are equal to the bit; of equals, all have one class."""
    monkeypatch.setattr(neighbours, "SIMILARITIES", held)
    rng = np.random.default_rng(0)
    places = rng.permutation(200)[:40].astype(np.float64)
    bank, labels = np.repeat(places, 6), np.repeat(rng.integers(0, 8, 40), 6)
    mixed = rng.permutation(len(bank))
    bank, labels = bank[mixed], labels[mixed]
    queries = rng.integers(0, 200, 30) + 0.25
    k = 15
    nearest = np.argsort(np.abs(queries[:, None] - bank), axis=1, kind="stable")[:, :k]
    votes = np.stack([np.bincount(labels[row], minlength=8) for row in nearest])
    x, y = torch.tensor(bank)[:, None], torch.tensor(labels)
    ranking = KNN(KNN.Config(k=k, metric="euclidean")).predict(x, y, torch.tensor(queries)[:, None], 8).numpy()
    ours = np.where(ranking < 0, 0, np.take_along_axis(votes, ranking.clip(0), 1))
    np.testing.assert_array_equal(ours, -np.sort(-votes)[:, :5])


@pytest.mark.parametrize("kind", [KNN, Retrieval])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbours_hold_no_more_than_a_block(kind, metric, monkeypatch):
    """The largest tensor that is made to find them, however many images there are."""
    monkeypatch.setattr(neighbours, "SIMILARITIES", 5000)
    largest = 0

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **kwargs or {})
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor) and not tensor._is_view():
                    largest = max(largest, tensor.numel())
            return out

    x, y = torch.randn(20_000, 4), torch.arange(20_000) % 3
    given = Given(Features(x, y, torch.randn(300, 4), torch.arange(300) % 3, 3))
    with Watched():
        kind(kind.Config(metric=metric, k=10 if kind is KNN else (10,)))(given)
    # What is found is ten numbers a query.
    assert 3000 <= largest <= 5000


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("away", [0, 100, 1000])
def test_neighbours_far_from_the_origin_are_those_of_scikit_learn(metric, away, monkeypatch):
    """There float32 loses the digits that tell neighbours apart, unless differences are taken first."""
    monkeypatch.setattr(neighbours, "SIMILARITIES", 2**15)
    (train, _), (test, _) = clusters(2000, width=64), clusters(100, width=64, seed=1)
    train, test = train + away, test + away
    search = NearestNeighbors(n_neighbors=10, metric=metric, algorithm="brute").fit(train.double())
    distances, expected = search.kneighbors(test.double())
    nearness, found = (torch.cat(parts) for parts in zip(*neighbours.nearest(train, test, 10, metric)))
    assert (found.numpy() == expected).mean() > 0.99
    closeness = -distances if metric == "cosine" else -(distances**2) / 2
    closer = np.diff(closeness)
    assert np.abs(nearness.diff().numpy() - closer).max() < 0.01 * np.abs(closer).max()


def test_to_what_has_no_direction_the_similarity_is_0():
    train, test = torch.tensor([[0.0, 0.0], [3.0, 4.0], [-2.0, 0.0], [1.0, 1.0]]), torch.tensor([[5.0, 0.0]])
    ((nearness, rows),) = neighbours.nearest(train, test, 4, "cosine")
    assert rows.tolist() == [[3, 1, 0, 2]]
    torch.testing.assert_close(nearness.diff(), torch.tensor([[0.6 - 0.5**0.5, -0.6, -1.0]]))


def test_knn_at_a_low_temperature_is_the_nearest_neighbour(features):
    cold = KNN(KNN.Config(k=50, temperature=1e-4)).predict(features.train_x, features.train_y, features.test_x, 7)
    one = KNN(KNN.Config(k=1)).predict(features.train_x, features.train_y, features.test_x, 7)
    assert torch.equal(cold[:, 0], one[:, 0])
    assert (one[:, 1:] == -1).all(), "a class without a vote is not among the best five"


@pytest.mark.parametrize("k", [1, 2, 7, 60, 600])
def test_knn_by_euclidean_distance_is_that_of_scikit_learn(features, k):
    reference = KNeighborsClassifier(k, algorithm="brute").fit(features.train_x.double(), features.train_y)
    config = KNN.Config(k=k, metric="euclidean")
    ranking = KNN(config).predict(features.train_x, features.train_y, features.test_x, 7).numpy()
    votes = np.rint(k * reference.predict_proba(features.test_x.double()))
    ours = np.where(ranking < 0, 0, np.take_along_axis(votes, ranking.clip(0), 1))
    np.testing.assert_array_equal(ours, -np.sort(-votes)[:, :5])
    decided = np.sort(votes)[:, -1] > np.sort(votes)[:, -2]
    assert decided.any()
    assert (ranking[:, 0] == reference.predict(features.test_x.double()))[decided].all()


def test_by_euclidean_distance_the_nearer_of_equal_classes_wins():
    train = torch.tensor([[0.0], [1.0], [2.0], [3.0], [10.0], [11.0]])
    labels = torch.tensor([3, 2, 3, 2, 1, 1])
    vote = KNN(KNN.Config(k=4, metric="euclidean")).predict
    assert vote(train, labels, torch.tensor([[0.1], [2.9]]), 4)[:, :2].tolist() == [[3, 2], [2, 3]]


def test_the_two_metrics_differ_by_length(features):
    longer = features.train_x * torch.linspace(0.1, 10, 600)[:, None]
    by = {m: KNN(KNN.Config(k=5, metric=m)) for m in ("cosine", "euclidean")}
    plain, scaled = (
        {m: e.predict(x, features.train_y, features.test_x, 7)[:, 0] for m, e in by.items()}
        for x in (features.train_x, longer)
    )
    assert (plain["cosine"] == scaled["cosine"]).float().mean() > 0.99
    assert (plain["euclidean"] == scaled["euclidean"]).float().mean() < 0.9
    assert by["euclidean"].protocol == "k=5, Euclidean, majority vote"


def test_k_is_capped_by_the_data_and_the_protocol_says_so(features):
    evaluator = KNN(KNN.Config(k=5000))
    evaluator(Given(features))
    assert evaluator.protocol == "k=600 (all training images), T=0.1, cosine, weighted vote"
    assert KNN(KNN.Config()).protocol == "k=200, T=0.1, cosine, weighted vote"


def test_accuracy():
    ranking = torch.tensor([[3, 1, 2, 0, 5], [1, 3, 2, 0, 5], [1, 2, 3, -1, -1], [0, 1, 2, 4, 5]])
    assert accuracy(ranking, torch.tensor([3, 3, 3, 3]), 6) == {"top1": 0.25, "top5": 0.75}
    assert accuracy(torch.tensor([[1, -1], [0, -1]]), torch.tensor([1, 1]), 2) == {"top1": 0.5, "top5": 1.0}


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("l2", [1.0, 30.0])
def test_lbfgs_is_the_logistic_regression_of_scikit_learn(features, standardize, l2):
    train, test = features.train_x.numpy(), features.test_x.numpy()
    if standardize:
        scaler = StandardScaler().fit(train)
        train, test = scaler.transform(train), scaler.transform(test)
    reference = LogisticRegression(C=1 / l2, max_iter=2000, tol=1e-6).fit(train, features.train_y)
    config = Linear.Config(solver="lbfgs", l2=l2, standardize=standardize)
    ranking = Linear(config).predict(features.train_x, features.train_y, features.test_x, 7)
    expected = np.argsort(-reference.decision_function(test))[:, :5]
    assert (ranking.numpy() == expected).mean() > 0.998
    top1 = Linear(config)(Given(features))["top1"]
    assert top1 == pytest.approx(reference.score(test, features.test_y), abs=0.004)
    assert top1 > 0.6


def test_sgd_comes_to_the_accuracy_of_scikit_learn(features):
    scaler = StandardScaler().fit(features.train_x)
    reference = LogisticRegression(max_iter=2000).fit(scaler.transform(features.train_x), features.train_y)
    expected = reference.score(scaler.transform(features.test_x), features.test_y)
    assert Linear(Linear.Config())(Given(features))["top1"] == pytest.approx(expected, abs=0.02)


def test_sgd_follows_the_papers_update():
    """Two epochs of full batches, by hand: Nesterov momentum, decay, the cosine."""
    x, y = clusters(40, classes=3, width=4)
    config = Linear.Config(epochs=2, batch_size=40, lr=0.5, momentum=0.9, weight_decay=0.1, standardize=False)
    weight, bias = torch.zeros(3, 4), torch.zeros(3)
    velocity = [torch.zeros(3, 4), torch.zeros(3)]
    for lr in (0.5, 0.25):
        slope = (x @ weight.T + bias).softmax(1) - F.one_hot(y, 3)
        gradients = [slope.T @ x / 40 + 0.1 * weight, slope.mean(0) + 0.1 * bias]
        velocity = [0.9 * v + g for v, g in zip(velocity, gradients)]
        weight, bias = (p - lr * (g + 0.9 * v) for p, g, v in zip((weight, bias), gradients, velocity))
    probe = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    expected = (probe @ weight.T + bias).topk(3).indices
    assert torch.equal(Linear(config).predict(x, y, probe, 3), expected)


def test_standardized_probe_is_blind_to_the_features_scale(features):
    scale = torch.logspace(-6, 3, 24)
    train, test = features.train_x * scale + 5 * scale, features.test_x * scale + 5 * scale
    constant = torch.full((600, 1), 0.3), torch.full((300, 1), 0.3)
    probe = Linear(Linear.Config())
    plain = probe.predict(features.train_x, features.train_y, features.test_x, 7)
    scaled = probe.predict(torch.cat([train, constant[0]], 1), features.train_y, torch.cat([test, constant[1]], 1), 7)
    assert (plain[:, 0] == scaled[:, 0]).float().mean() > 0.99


def test_linear_depends_on_the_seed_alone_and_draws_from_its_own_generator(features):
    state = torch.get_rng_state()
    with torch.no_grad():
        first, again, other = (
            Linear(Linear.Config(epochs=3, lr=3.0, batch_size=32)).predict(
                features.train_x, features.train_y, features.test_x, 7, seed
            )
            for seed in (1, 1, 2)
        )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "evaluator",
    [
        KNN(KNN.Config()),
        KNN(KNN.Config(metric="euclidean")),
        Linear(Linear.Config(epochs=5)),
        MLP(MLP.Config(epochs=2)),
        MLP(MLP.Config(epochs=2, input="pca", components=5)),
    ],
    ids=lambda e: e.protocol,
)
def test_test_labels_choose_nothing(features, evaluator):
    """With every test image called c, top1 is the share predicted as c: shares of one prediction add up to 1."""
    shares = []
    for c in range(7):
        called = torch.full_like(features.test_y, c)
        given = Features(features.train_x, features.train_y, features.test_x, called, 7)
        shares.append(evaluator(Given(given))["top1"])
    assert sum(shares) == pytest.approx(1)
    assert len(set(shares)) > 1
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    shuffled = Features(features.train_x, features.train_y, features.test_x[order], features.test_y[order], 7)
    assert evaluator(Given(shuffled)) == evaluator(Given(features))


def test_the_mlp_comes_to_the_accuracy_of_scikit_learn(features):
    scaler = StandardScaler().fit(features.train_x)
    reference = MLPClassifier((512,), alpha=0, batch_size=256, max_iter=30, random_state=0, n_iter_no_change=99)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference.fit(scaler.transform(features.train_x), features.train_y)
    expected = reference.score(scaler.transform(features.test_x), features.test_y)
    assert MLP(MLP.Config())(Given(features))["top1"] == pytest.approx(expected, abs=0.03)
    assert expected > 0.6


def test_the_mlp_bends_where_a_line_cannot():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(400, 2, generator=rng)
    y = (x[:, 0] * x[:, 1] > 0).long()
    given = Given(Features(x[:300], y[:300], x[300:], y[300:], 2))
    assert Linear(Linear.Config())(given)["top1"] < 0.7
    assert MLP(MLP.Config(epochs=60, batch_size=32))(given)["top1"] > 0.93


def test_the_mlp_on_principal_components_sees_those_of_train(features):
    seen = MLP(MLP.Config(input="pca", components=3))._inputs(Given(features))
    pca = PCA(3, svd_solver="full").fit(features.train_x.numpy())
    for ours, x in ((seen[0], features.train_x), (seen[2], features.test_x)):
        np.testing.assert_allclose(ours.abs(), np.abs(pca.transform(x.numpy())), atol=2e-3)
    few = MLP(MLP.Config(input="pca", components=99))._inputs(Given(features))
    assert few[0].shape == (600, 24)


def test_the_mlp_on_tsne_sees_two_dimensions_and_no_label(features):
    config = MLP.Config(input="tsne", tsne_train=80, epochs=2)
    few = Features(features.train_x, features.train_y, features.test_x[:40], features.test_y[:40], 7)
    evaluator = MLP(config)
    train_x, train_y, test_x, test_y, _ = evaluator._inputs(Given(few))
    assert (train_x.shape, test_x.shape) == ((80, 2), (40, 2))
    assert torch.equal(test_y, few.test_y), "every test image is measured"
    assert "(80 training images)" in evaluator.protocol
    assert "train and test together, without labels" in evaluator.protocol
    whole = torch.bincount(few.train_y, minlength=7) * 80 / 600
    assert (torch.bincount(train_y, minlength=7) - whole).abs().max() <= 1, "stratified"
    blind = Features(few.train_x, few.train_y, few.test_x, torch.zeros_like(few.test_y), 7)
    assert torch.equal(MLP(config)._inputs(Given(blind))[0], train_x)
    shuffled = Features(features.train_x[:80], (few.train_y[:80] + 1) % 7, few.test_x, few.test_y, 7)
    plain = Features(features.train_x[:80], few.train_y[:80], few.test_x, few.test_y, 7)
    assert torch.equal(MLP(config)._inputs(Given(shuffled))[0], MLP(config)._inputs(Given(plain))[0])


def test_the_mlp_on_pixels_sees_the_images(tmp_path):
    train, pixels, labels = store(tmp_path / "train.beton", 30, size=32)
    judged = subject(Pixels(), (train, train), mean=(0, 0, 0), std=(1, 1, 1))
    seen = MLP(MLP.Config(input="pixels", pixel_size=8))._inputs(judged)
    means = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255).unflatten(3, (8, 4)).unflatten(2, (8, 4))
    torch.testing.assert_close(seen[0], means.mean((3, 5)).flatten(1))
    assert seen[1].tolist() == labels.tolist()
    assert judged.backbone.calls == 0
    assert MLP(MLP.Config(input="pixels"))(judged)["top1"] > 0.9


def test_the_mlp_depends_on_the_seed_alone(features):
    state = torch.get_rng_state()
    evaluator = MLP(MLP.Config(epochs=2, hidden=8, lr=0.05))
    with torch.no_grad():
        first, again, other = (
            evaluator.predict(features.train_x, features.train_y, features.test_x, 7, seed) for seed in (1, 1, 2)
        )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_protocols_are_in_words():
    assert MLP(MLP.Config(input="pixels")).protocol == (
        "MLP on pixels, at most 32×32, standardized on train; 512 hidden units, ReLU; "
        "Adam 30 epochs, batch 256, lr 0.001"
    )
    assert Linear(Linear.Config()).protocol == (
        "frozen features, standardized on train; SGD 100 epochs, batch 512, lr 0.1 cosine, "
        "Nesterov momentum 0.9, weight decay 0"
    )
    assert Linear(Linear.Config(solver="lbfgs", standardize=False)).protocol == (
        "frozen features; logistic regression, L-BFGS, l2=1"
    )


def store(path, n, size=32, seed=0, labels=None):
    """Noise whose brightness tells the class, packed for real."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n) if labels is None else labels
    pixels = (rng.integers(0, 120, (n, size, size, 3)) + 60 * np.maximum(labels, 0)[:, None, None, None]).astype(
        np.uint8
    )
    images = ArrayImages(lambda: (pixels, labels), f"{n} {size} {seed}", ("dark", "medium", "bright"))
    return pack(images, path, size=size, mode="raw"), pixels, labels


@pytest.fixture
def stores(tmp_path):
    return store(tmp_path / "train.beton", 50)[0], store(tmp_path / "test.beton", 23, seed=1)[0]


def subject(net, stores, **options):
    settings = {"image_size": 32, "mean": MEAN, "std": STD, "batch_size": 16} | options
    return subject_of(net, *stores, **settings)


class Pixels(nn.Module):
    """Features that are the image itself."""

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images):
        self.calls += 1
        assert not self.training
        return images.flatten(1)


def test_features_are_the_normalised_images_in_order_and_extracted_once(tmp_path):
    train, pixels, labels = store(tmp_path / "train.beton", 50)
    net = Pixels()
    judged = subject(net, (train, train))
    assert net.calls == 0
    views = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(
        STD
    ).view(3, 1, 1)
    torch.testing.assert_close(judged.features.train_x, views.flatten(1))
    assert torch.equal(judged.features.train_y, torch.from_numpy(labels))
    assert judged.features.classes == 3
    assert judged.features is judged.features
    assert net.calls == 8


def test_larger_images_are_resized_as_torchvision_does(tmp_path):
    train, pixels, _ = store(tmp_path / "train.beton", 3, size=48)
    got = subject(Pixels(), (train, train), mean=(0, 0, 0), std=(1, 1, 1)).features.train_x
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close(got.view(3, 3, 32, 32), TF.resize(images, [32, 32], antialias=True))


def test_images_without_a_label_are_left_out(tmp_path):
    labels = np.array([0, -1, 2, 1, -1, 0])
    mixed, pixels, _ = store(tmp_path / "mixed.beton", 6, labels=labels)
    features = subject(Pixels(), (mixed, mixed), mean=(0, 0, 0), std=(1, 1, 1)).features
    assert features.train_y.tolist() == [0, 2, 1, 0]
    expected = torch.from_numpy(pixels[labels >= 0]).permute(0, 3, 1, 2).flatten(1) / 255
    torch.testing.assert_close(features.test_x, expected)


def test_training_goes_on_as_if_nothing_had_been(stores):
    net = create_backbone("shufflenetv2", 32)
    net.conv1.eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    features = subject(net, stores).features
    for evaluator in (KNN(KNN.Config()), Linear(Linear.Config(epochs=2))):
        evaluator(Given(features))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert (net.training, net.conv1.training, net.stage2.training) == (True, False, True)
    assert torch.equal(state, torch.get_rng_state())
    assert not features.train_x.requires_grad
    assert features.train_x.shape == (50, net.width)


def test_bf16_features_are_near_and_kept_in_float32(stores):
    torch.manual_seed(0)
    net = create_backbone("resnet18", 32)
    exact, rough = (subject(net, stores, precision=p).features.train_x for p in ("fp32", "bf16"))
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    assert F.cosine_similarity(exact, rough).min() > 0.99


def test_features_that_are_not_finite_are_refused(stores):
    net = create_backbone("shufflenetv2", 32)
    nn.init.constant_(net.conv1[0].weight, float("nan"))
    with pytest.raises(UserError, match="not finite"):
        _ = subject(net, stores).features


def test_no_labels_are_a_mistake(stores, tmp_path):
    bare = store(tmp_path / "bare.beton", 4, labels=np.full(4, -1))[0]
    with pytest.raises(UserError, match="eval_data="):
        _ = subject(Pixels(), (stores[0], bare)).features


def test_digits_end_to_end():
    """A random network is far from useless on digits, and far from good."""
    torch.manual_seed(0)
    digits = open_stores(Choice(name="digits", options=Digits.Config()), None, 0, log=lambda line: None)
    net = create_backbone("shufflenetv2", digits.image_size, stem="imagenet")
    judged = subject(net, (digits.train, digits.test), image_size=digits.image_size)
    nearest, probe = KNN(KNN.Config())(judged), Linear(Linear.Config(epochs=20))(judged)
    assert judged.features.classes == 10
    assert 0.15 < nearest["top1"] < 0.7
    assert 0.4 < probe["top1"] < 0.9
    assert nearest["top5"] > nearest["top1"]
    assert probe["top5"] > probe["top1"]


@pytest.mark.parametrize(("layer", "channels", "side"), [("conv1", 64, 12), ("layer1", 64, 12), ("layer3", 256, 6)])
def test_an_earlier_layer_is_averaged_to_about_9000_numbers(stores, layer, channels, side):
    """Goyal et al. 2019: 12×12 of 64 channels, 6×6 of 256, and no finer than the map is."""
    net = create_backbone("resnet18", 96, stem="imagenet")
    judged = subject(net, stores, image_size=96, mean=(0, 0, 0), std=(1, 1, 1))
    kept = {}
    net.get_submodule(layer).register_forward_hook(lambda module, inputs, output: kept.update(map=output.clone()))
    features = judged.features_of(layer)
    assert judged.features_of(layer) is features
    height = {"conv1": 48, "layer1": 24, "layer3": 6}[layer]
    assert kept["map"].shape[1:] == (channels, height, height)
    assert features.test_x.shape == (23, channels * side**2)
    step = height // side
    last = kept["map"].unflatten(3, (side, step)).unflatten(2, (side, step)).mean((3, 5)).flatten(1)
    torch.testing.assert_close(features.test_x[-len(last) :], last.detach())
    assert torch.equal(features.train_y, judged.features.train_y)
    assert judged.features.train_x.shape[1] == 512
    assert not net.get_submodule(layer)._forward_pre_hooks


def test_a_map_coarser_than_the_grid_and_tokens_and_vectors_are_layers_too(stores):
    cnn = subject(create_backbone("resnet18", 32, stem="imagenet"), stores)
    assert cnn.features_of("layer3").train_x.shape[1] == 256 * 2**2
    vit = subject(create_backbone("vit_tiny", 32), stores)
    assert vit.features_of("blocks.3").train_x.shape[1] == 192 * 7**2
    assert torch.equal(vit.features_of("fc_norm").train_x, vit.features.train_x)


def test_linear_and_knn_judge_the_layer_that_they_name(stores):
    judged = subject(create_backbone("resnet18", 32), stores)
    given = Given(judged.features_of("layer2"))
    assert KNN(KNN.Config(k=5, layer="layer2"))(judged) == KNN(KNN.Config(k=5))(given)
    probe = Linear(Linear.Config(epochs=3, layer="layer2"))
    assert probe(judged) == Linear(Linear.Config(epochs=3))(given)
    assert probe.protocol.startswith("frozen features of layer2,")
    assert "of layer2" in KNN(KNN.Config(layer="layer2")).protocol


def test_a_layer_that_is_not_there_is_a_users_mistake(stores):
    judged = subject(create_backbone("resnet18", 32), stores)
    with pytest.raises(UserError, match=r"no layer called 'layr2'.*layer2"):
        Linear(Linear.Config(layer="layr2"))(judged)
    net = nn.Sequential(nn.ModuleList([nn.Identity()]), nn.Flatten())
    net.forward = net[1].forward
    with pytest.raises(UserError, match="'0' is never called"):
        subject(net, stores).features_of("0")
