"""Weights & Biases: files in the run's own folder, uploaded only if WANDB_MODE=online."""

import os
import secrets
from typing import TYPE_CHECKING

from sslkit.runs.trackers import Metrics, Tracker

if TYPE_CHECKING:
    from sslkit import Run


class WandB(Tracker):
    """Curves for Weights & Biases in RUN/wandb, offline; WANDB_MODE=online uploads them."""

    package = "wandb"
    install = 'pip install "sslkit-trackers[wandb]"'

    def __init__(self, run: "Run") -> None:
        super().__init__(run)
        import wandb

        existing_id = run.derived.get("wandb_id")
        run_id = existing_id or secrets.token_hex(4)
        online = os.environ.get("WANDB_MODE", "offline") == "online"
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "sslkit"),
            name=run.path.name,
            id=run_id,
            # Offline files of one id are merged when they are uploaded.
            resume="must" if existing_id and online else None,
            config=run.config.model_dump(mode="json"),
            dir=str(run.path),
            mode=os.environ.get("WANDB_MODE", "offline"),
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )
        run.note(wandb_id=run_id)

    def log(self, step: int, metrics: Metrics) -> None:
        self._run.log(metrics, step=step)

    def finish(self, error: BaseException | None) -> None:
        self._run.finish(exit_code=0 if error is None else 1)
