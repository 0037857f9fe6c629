"""Transfer to other images: against scikit-learn, and what it refuses."""

import numpy as np
import pytest
from helpers.labelled_images import coloured_subject
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sslkit.evaluation.evaluators.finetune import Finetune
from sslkit.evaluation.evaluators.transfer import Transfer


@pytest.fixture
def subject(tmp_path):
    return coloured_subject(tmp_path)


def test_transfer_is_scikit_learns_regression_of_the_chosen_l2(subject):
    subject.begin("transfer")
    figures = Transfer(Transfer.Config(l2_values=3, l2_from=1, l2_to=100, metric="mean_per_class"))(subject)
    message = subject.notes[0]
    assert "1437 training and 360 test images" in message
    l2 = float(message.split("l2=")[1].split(",")[0])
    from sklearn.datasets import load_digits

    from sslkit.data.split import stratified_split

    digits = load_digits()
    train, test = stratified_split(digits.target.astype(np.int64), seed=0)
    x, y = digits.data, digits.target
    scaler = StandardScaler().fit(x[train])
    reference = LogisticRegression(C=1 / l2, max_iter=5000).fit(scaler.transform(x[train]), y[train])
    # The same digits, 8×8 there and resampled to 16×16 here.
    assert figures["digits_top1"] == pytest.approx(reference.score(scaler.transform(x[test]), y[test]), abs=0.03)
    assert figures["average"] == figures["digits_mean_per_class"]
    assert figures["digits_top1_low"] < figures["digits_top1"] < figures["digits_top1_high"]
    assert figures["digits_top1_high"] - figures["digits_top1_low"] < 0.08, "the interval is of 360 images, not of 48"


def test_transfer_to_a_folder_and_to_several(subject, tmp_path):
    for c, colour in (("red", 0), ("blue", 2)):
        (tmp_path / "photos" / c).mkdir(parents=True)
        for k in range(10):
            pixels = np.random.default_rng(k).integers(0, 80, (20, 20, 3)).astype(np.uint8)
            pixels[..., colour] += 150
            Image.fromarray(pixels).save(tmp_path / "photos" / c / f"{k}.png")
    config = Transfer.Config(data=(str(tmp_path / "photos"), "digits"), l2_values=2)
    figures = Transfer(config)(subject)
    assert figures["photos_top1"] == 1
    assert figures["average"] == pytest.approx((1 + figures["digits_top1"]) / 2)
    assert not list(config.check())


def test_transfer_fine_tunes_on_the_other_images(subject, monkeypatch):
    seen = []
    monkeypatch.setattr(Finetune, "__call__", lambda self, other: seen.append(other) or {"top1": 0.25})
    config = Transfer.Config(l2_values=1, finetune=True)
    figures = Transfer(config)(subject)
    assert figures["digits_finetuned_top1"] == 0.25
    assert figures["digits_finetuned_top1_low"] == pytest.approx(0.2081, abs=1e-3)
    assert (len(seen[0].train), seen[0].image_size, seen[0].backbone) == (1437, 16, subject.backbone)
    assert "fine-tuned" in Transfer(config).protocol


def test_transfer_tells_of_data_that_are_not_there():
    assert "nowhere" in next(iter(Transfer.Config(data=("nowhere",)).check()))
    with pytest.raises(ValueError, match="each once"):
        Transfer.Config(data=("digits", "digits"))
