"""MLflow: a local database beside the runs, or the server named by MLFLOW_TRACKING_URI."""

import os
import time
from typing import TYPE_CHECKING, Any

from sslkit.runs.trackers import Metrics, Tracker

if TYPE_CHECKING:
    from sslkit import Run

LONGEST = 500
"""Longest parameter value, in characters, that every MLflow store accepts."""
MOST = 100
"""Most parameters that MLflow accepts in one request."""


class MLflow(Tracker):
    """Curves in MLflow: mlflow.db beside the run's folder, or the server of MLFLOW_TRACKING_URI."""

    package = "mlflow"
    install = 'pip install "sslkit-trackers[mlflow]"'

    def __init__(self, run: "Run") -> None:
        super().__init__(run)
        from mlflow import MlflowClient

        beside = f"sqlite:///{run.path.resolve().parent / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", beside))
        self._id = run.derived.get("mlflow_id") or self._create_run()
        self._client.update_run(self._id, status="RUNNING")
        run.note(mlflow_id=self._id)

    def _create_run(self) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "sslkit")
        existing = self._client.get_experiment_by_name(name)
        # MLflow's default location is the current folder.
        artifacts = (self.run.path.resolve().parent / "mlartifacts").as_uri()
        experiment = (
            existing.experiment_id if existing else self._client.create_experiment(name, artifact_location=artifacts)
        )
        run_id: str = self._client.create_run(experiment, run_name=self.run.path.name).info.run_id
        settings = _leaves("", self.run.config.model_dump(mode="json"))
        for start in range(0, len(settings), MOST):
            part = settings[start : start + MOST]
            self._client.log_batch(run_id, params=[Param(_plain(key), str(value)[:LONGEST]) for key, value in part])
        return run_id

    def log(self, step: int, metrics: Metrics) -> None:
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        self._client.log_batch(self._id, [Metric(_plain(k), v, now, step) for k, v in metrics.items()])

    def finish(self, error: BaseException | None) -> None:
        stopped = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        self._client.set_terminated(self._id, "FINISHED" if error is None else stopped)


def _leaves(prefix: str, tree: dict[str, Any]) -> list[tuple[str, Any]]:
    """Flatten nested settings into (dotted key, value), as on sslkit's command line."""
    leaves: list[tuple[str, Any]] = []
    for key, value in tree.items():
        leaves += _leaves(f"{prefix}{key}.", value) if isinstance(value, dict) else [(prefix + key, value)]
    return leaves


def _plain(name: str) -> str:
    """Replace the characters that MLflow does not accept in names by underscores."""
    return "".join(c if c.isalnum() or c in "_-. /:" else "_" for c in name)
