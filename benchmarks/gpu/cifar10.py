"""CIFAR-10 at full size: SimCLR for as many epochs as there is time, then kNN and linear probe beside their floors."""

import tempfile

from benchmarks.gpu.settings import Result, Settings, Skipped
from sslkit.config.resolve import resolve, resolve_data
from sslkit.errors import UserError
from sslkit.runs.display import Display
from sslkit.runs.run import Run
from sslkit.training.engine import run
from sslkit.training.plan import plan
from sslkit.training.preflight import resolve_new

NETWORKS = ("resnet18", "mobilenetv3_large")
IMAGES = 50_000
RECIPE = "lightly-cifar10-simclr-resnet18"
TRAINING = 0.6
"""Share of an item's time that is for training; the rest is for packing and for evaluating twice."""
FEWEST_SECONDS = 45.0


def items(settings: Settings) -> list[str]:
    return list(settings.sized(NETWORKS, NETWORKS[:1]))


def trained(network: str, settings: Settings) -> Result:
    """Train and evaluate one network, in its share of the time that is left for all that remain."""
    words = words_of(network, settings)
    images_per_second = plan(resolve([*words, "epochs=1"])).images_per_second
    share = settings.seconds_left / (len(NETWORKS) - NETWORKS.index(network))
    if share < settings.sized(FEWEST_SECONDS, 0):
        raise Skipped(f"{share:.0f} s are left for it, and it takes {FEWEST_SECONDS:.0f}")
    epochs = settings.sized(max(1, int(TRAINING * share * images_per_second / IMAGES)), 1)
    with tempfile.TemporaryDirectory() as folder:
        new = run(resolve_new([*words, f"epochs={epochs}", f"out={folder}/run"]), Display(quiet=True))
        return figures(new, settings) | {"epochs": epochs, "images_per_second": images_per_second}


def words_of(network: str, settings: Settings) -> list[str]:
    """Return the settings of the run. Raises Skipped without the data, or with a part of it only."""
    if settings.data is None:
        raise Skipped("needs --data FOLDER with CIFAR-10's binary files (.bin or .bin.xz)")
    try:
        resolve_data("cifar10", [f"root={settings.data}"])
    except UserError as error:
        raise Skipped(str(error)) from error
    words = [f"recipe={RECIPE}", f"backbone={network}", f"data.root={settings.data}", f"device={settings.device}"]
    words += ["evaluators=[knn, linear]", "eval_every=0", "checkpoint_every=0", "report=false"]
    # Compiling takes longer than it gains in a run of two minutes.
    return [*words, "compile=false", *settings.sized(["backbone.stem=small"], ["batch_size=8"])]


def figures(run: Run, settings: Settings) -> Result:
    """Return the accuracies before and after training, with the floors that they must exceed."""
    keys = ("evaluator", "epoch", "protocol", "top1", "top1_low", "top1_high", "floors", "n_train", "n_test")
    records = [{key: record[key] for key in keys if key in record} for record in run.evaluations]
    last = [record for record in records if record["epoch"]]
    learned = all(record["top1_low"] > max(record["floors"].values()) for record in last)
    return {
        "recipe": RECIPE,
        "evaluations": records,
        "losses": [record["loss"] for record in run.metrics if "loss" in record][-3:],
        "execution": run.derived["execution"],
        "seconds_of_training": run.metrics[-1]["seconds"],
        **settings.sized({"passed": bool(last) and learned}, {}),
    }
