"""Run directories as the engine leaves them, without training: what tests of the report read."""

import json

import numpy as np
import yaml
from PIL import Image

from sslkit.runs.report import write

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=http://evil.example/x.png onerror=alert(2)>',
    "'; </style><b>bold</b> {{ 7*7 }} {% raw %}",
    "</script><script>alert(3)</script>",
    "🐈‍⬛ кошка 猫",
    "x" * 300,
    "$\\frac{1}{$",
]


def png(path, size=(40, 30), colour=(200, 30, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def record(epoch, value, evaluator="linear", **more):
    return {
        "epoch": epoch, "step": 10 * epoch, "during_run": True, "evaluator": evaluator, "protocol": "how",
        "data": "photos: train 80 -> test 20", "n_train": 80, "n_test": 20, "seed": 0, "seconds": 1.0, "top1": value,
        "top1_low": value - 0.1, "top1_high": value + 0.1, "top5": 1.0,
    } | more  # fmt: skip


def make_run(path, accuracies=(0.2, 0.9, 0.8), method="simclr", backbone="resnet18", seconds=60.0, evaluations=()):
    """A run directory as the engine leaves it, without training."""
    path.mkdir(parents=True)
    epochs = len(accuracies) - 1
    config = {
        "method": {"name": method, "temperature": 0.5},
        "backbone": {"name": backbone},
        "data": {"name": "folder", "root": "photos/"},
        "augment": {"name": "simclr"},
        "evaluators": [{"name": "linear"}],
        "epochs": epochs,
        "seed": 3,
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
    environment = {
        "command": "__main__.py run method=simclr",
        "python": "3.11",
        "versions": {"torch": "2.11"},
        "origins": {"epochs": "command line"},
        "derived": {"parameters": 1234567, "skipped": 1, "kwh": 0.25, "skipped_images": [["a.jpg", "truncated"]]},
    }
    (path / "environment.json").write_text(json.dumps(environment))
    metrics = [
        {"step": 10 * e, "epoch": e, "seconds": seconds * e / epochs, "loss": 5.0 / e, "lr": 0.1, "temperature": 1.0}
        for e in range(1, epochs + 1)
    ]
    lines(path / "metrics.jsonl", metrics)
    lines(path / "evaluations.jsonl", [*(record(e, a) for e, a in enumerate(accuracies)), *evaluations])
    return path


def lines(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))


def embedding(folder, classes, n=12):
    """An embedding.json with a sprite whose thumbnails have a colour each."""
    folder.mkdir(parents=True)
    angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
    points = np.stack([np.cos(angle), np.sin(angle)], 1).tolist()
    sprite = Image.new("RGB", (4 * 32, 3 * 32))
    for i in range(n):
        sprite.paste((20 * i, 255 - 20 * i, 128), (i % 4 * 32, i // 4 * 32, i % 4 * 32 + 32, i // 4 * 32 + 32))
    sprite.save(folder / "embedding-sprite.jpg")
    data = {
        "tsne": points, "pca": points[::-1], "labels": [i % len(classes) for i in range(n)], "classes": classes,
        "sprite": {"file": "embedding-sprite.jpg", "size": 32, "columns": 4},
    }  # fmt: skip
    (folder / "embedding.json").write_text(json.dumps(data))


def rich_run(folder):
    """A run with everything in it, whose every name is hostile."""
    path = folder / '<b>run</b> & "1"'
    files = [
        {"path": "figures/embedding/embedding.json", "alt": HOSTILE[1]},
        {"path": "figures/embedding/embedding-sprite.jpg", "alt": "thumbnails"},
        {"path": f"figures/{HOSTILE[4]}.png", "alt": HOSTILE[0]},
        {"path": "figures/table.csv", "alt": HOSTILE[3]},
    ]
    extra = record(2, 0.7, evaluator=HOSTILE[0], protocol=HOSTILE[2], files=files, notes=HOSTILE)
    make_run(path, method=HOSTILE[1], backbone=HOSTILE[5], evaluations=[extra])
    embedding(path / "figures/embedding", HOSTILE)
    png(path / f"figures/{HOSTILE[4]}.png")
    png(path / "figures/views.png")
    (path / "figures/table.csv").write_text(f'{HOSTILE[0]},b\n2,"{HOSTILE[3]}"\n10,z\n')
    environment = json.loads((path / "environment.json").read_text())
    environment["derived"]["skipped_images"] = [[name, name] for name in HOSTILE]
    environment["command"] = f"sslkit run data='{HOSTILE[3]}'"
    (path / "environment.json").write_text(json.dumps(environment))
    write([path])
    return path


def three_runs(folder):
    return [
        make_run(folder / "a", (0.2, 0.6), method="byol", seconds=50),
        make_run(folder / "b", (0.2, 0.7), method="simclr", seconds=80),
        make_run(folder / "c", (0.2, 0.5), method="simclr", backbone="squeezenet", seconds=100),
    ]
