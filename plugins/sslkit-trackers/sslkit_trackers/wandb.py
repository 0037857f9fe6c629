"""Weights & Biases: into the run's own folder, and to their server only where WANDB_MODE=online says so."""

import os
import secrets
from typing import TYPE_CHECKING

from sslkit.runs.trackers import Metrics, Tracker

if TYPE_CHECKING:
    from sslkit import Run


class WandB(Tracker):
    """Curves for Weights & Biases in RUN/wandb, offline; WANDB_MODE=online sends them."""

    package = "wandb"
    install = 'pip install "sslkit-trackers[wandb]"'

    def __init__(self, run: "Run") -> None:
        super().__init__(run)
        import wandb

        known = run.derived.get("wandb_id")
        identity = known or secrets.token_hex(4)
        online = os.environ.get("WANDB_MODE", "offline") == "online"
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "sslkit"),
            name=run.path.name,
            id=identity,
            # Offline files of one identity are put together when they are sent.
            resume="must" if known and online else None,
            config=run.config.model_dump(mode="json"),
            dir=str(run.path),
            mode=os.environ.get("WANDB_MODE", "offline"),
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )
        run.note(wandb_id=identity)

    def log(self, step: int, metrics: Metrics) -> None:
        self._run.log(metrics, step=step)

    def finish(self, error: BaseException | None) -> None:
        self._run.finish(exit_code=0 if error is None else 1)
