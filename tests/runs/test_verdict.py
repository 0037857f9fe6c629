"""The verdict on a run: it speaks where features lose to a floor, where a loss stands still, and offers one mend."""

import pytest

from sslkit.runs.verdict import FEWEST_STEPS, verdict


def measured(top1, epoch=10, **floors):
    return {"evaluator": "knn", "epoch": epoch, "during_run": True, "top1": top1, "floors": floors}


def trained(steps=4000, first=5.0, last=4.0, std=0.8, rank=60.0):
    lines = [{"step": 50, "epoch": 0.1, "loss": first}, {"step": steps, "epoch": 10, "loss": last}]
    return [line | {"feature_std": std, "effective_rank": rank} for line in lines]


def test_a_run_that_beats_its_floors_needs_no_word():
    assert verdict(trained(), [measured(0.5, random_init=0.2, raw_pixels=0.4, chance=0.1)], 512) == []


def test_each_floor_that_is_not_beaten_is_named_and_the_last_sentence_is_a_mend():
    first, mend = verdict(trained(), [measured(0.3, random_init=0.2, raw_pixels=0.4, chance=0.3)], 512)
    assert first == "knn: 30.0 % is no better than chance (30.0 %) and raw pixels (40.0 %)"
    assert mend.startswith("most likely to help: ")


def test_the_last_evaluation_counts_and_that_of_random_weights_never():
    records = [measured(0.1, epoch=0, raw_pixels=0.4), measured(0.2, raw_pixels=0.4), measured(0.5, raw_pixels=0.4)]
    assert verdict(trained(), records, 512) == []
    assert verdict(trained(), records[:1], 512) == []


@pytest.mark.parametrize(
    ("metrics", "sign", "mend"),
    [
        (trained(steps=FEWEST_STEPS - 1), "499 optimizer steps are too few", "epochs="),
        (trained(first=5.0, last=4.99), "the loss has not moved: 5 at the beginning, 4.99 at the end", "optimizer.lr"),
        (trained(std=0.001), "collapsed to one point", "optimizer.lr"),
        (trained(rank=1.2), "collapsed to a line", "optimizer.lr"),
    ],
)
def test_signs_in_the_metrics(metrics, sign, mend):
    sentence, last = verdict(metrics, [], 512)
    assert sign in sentence
    assert mend in last


def test_too_few_steps_are_mended_by_as_many_epochs_as_give_enough():
    assert "epochs=2000," in verdict(trained(steps=10), [], 512)[-1]


def test_losses_that_are_missing_or_alone_give_no_verdict():
    assert verdict([{"step": 900, "epoch": 1, "loss": None}], [], None) == []


def unlabelled(retrieval, epoch=10, **floors):
    floors = {name: {"view_retrieval": value} for name, value in floors.items()}
    figures = {"rankme": 5.0, "view_retrieval": retrieval}
    return {"evaluator": "geometry", "epoch": epoch, "during_run": True, "floors": floors, **figures}


def test_without_labels_view_retrieval_is_judged():
    first, mend = verdict(trained(), [unlabelled(0.02, random_init=0.03, chance=0.001)], 512)
    assert first == "view retrieval: 2.0 % is no better than random init (3.0 %)"
    assert mend.startswith("most likely to help: ")
    assert verdict(trained(), [unlabelled(0.2, random_init=0.03, chance=0.001)], 512) == []


def test_with_labels_accuracies_alone_are_judged():
    records = [measured(0.5, random_init=0.2), unlabelled(0.02, random_init=0.03)]
    assert verdict(trained(), records, 512) == []
