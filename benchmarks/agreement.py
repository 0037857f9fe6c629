"""Compare fast executions with the plain one: losses of the first steps, and kNN accuracy over several seeds.

    python benchmarks/agreement.py FOLDER [--seeds 3] [--epochs 12] [--out FILE]

FOLDER contains images in train/ and test/. Every execution trains SimCLR on the same network, images and seeds: plain
torch operations in fp32; compiled kernels of the augmentation; these and a compiled backbone; compiled kernels and bf16
with depthwise convolutions in fp32. Accuracies of single seeds differ by chance; an execution agrees if its mean lies
within the spread of the plain one's.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import sslkit
from sslkit.machine import atomic
from sslkit.machine.environment import environment

EXECUTIONS: dict[str, dict[str, Any]] = {
    "plain": {"kernels": "plain", "precision": "fp32", "compile": False},
    "kernels": {"kernels": "auto", "precision": "fp32", "compile": False},
    "kernels, compiled": {"kernels": "auto", "precision": "fp32", "compile": True},
    "kernels, bf16": {"kernels": "auto", "precision": "bf16", "depthwise_fp32": True, "compile": False},
}
BATCH = 128
STEPS = 10
"""Steps whose losses are compared."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/agreement-cpu.json"))
    args = parser.parse_args()
    runs = {name: [train(args, settings, seed) for seed in range(args.seeds)] for name, settings in EXECUTIONS.items()}
    report = {"what": __doc__, "epochs": args.epochs, "environment": environment(), "executions": summary(runs)}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_json(args.out, report)
    print(json.dumps(report["executions"], indent=2))


def train(args: argparse.Namespace, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train one execution; return the losses of the first steps, and kNN accuracy before and after training."""
    with tempfile.TemporaryDirectory() as folder:
        run = sslkit.run(
            method="simclr",
            backbone={"name": "shufflenetv2", "stem": "imagenet"},
            data=args.folder,
            augment="small",
            optimizer={"name": "adamw", "lr": 1e-3, "lr_scaling": "none", "weight_decay": 1e-4, "warmup_epochs": 1},
            evaluators={"knn": {"k": 20}},
            epochs=args.epochs,
            batch_size=BATCH,
            device="cpu",
            seed=seed,
            tune=False,
            log_every=1,
            eval_every=0,
            checkpoint_every=0,
            report=False,
            out=f"{folder}/run",
            quiet=True,
            **settings,
        )
        losses = [record["loss"] for record in run.metrics]
        accuracy = [record["top1"] for record in run.evaluations]
    print(settings, seed, losses[0], losses[-1], accuracy, flush=True)
    return {"losses": losses[:STEPS], "last_loss": losses[-1], "knn_before": accuracy[0], "knn_after": accuracy[-1]}


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return each execution's accuracies, and the relative differences of its losses from the plain one's."""
    plain = runs["plain"]
    return {
        name: {
            "knn_after": [run["knn_after"] for run in own],
            "knn_mean": statistics.mean(run["knn_after"] for run in own),
            "knn_deviation": statistics.stdev(run["knn_after"] for run in own) if len(own) > 1 else None,
            "knn_before": [run["knn_before"] for run in own],
            "first_loss_differs_by": max(_difference(run, other, slice(1)) for run, other in zip(own, plain)),
            f"losses_of_{STEPS}_steps_differ_by": max(
                _difference(run, other, slice(STEPS)) for run, other in zip(own, plain)
            ),
        }
        for name, own in runs.items()
    }


def _difference(run: dict[str, Any], other: dict[str, Any], steps: slice) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(run["losses"][steps], other["losses"][steps]))


if __name__ == "__main__":
    main()
