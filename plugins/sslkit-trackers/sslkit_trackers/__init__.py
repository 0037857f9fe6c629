"""Trackers for a run's metrics: TensorBoard, Weights & Biases and MLflow."""

from typing import Any

from sslkit.hookspecs import hookimpl


@hookimpl
def register_trackers(register: Any) -> None:
    register("tensorboard", "sslkit_trackers.tensorboard:TensorBoard")
    register("wandb", "sslkit_trackers.wandb:WandB")
    register("mlflow", "sslkit_trackers.mlflow:MLflow")
