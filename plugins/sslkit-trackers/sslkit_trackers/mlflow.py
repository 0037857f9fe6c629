"""MLflow: a local database beside the runs, or the server that MLFLOW_TRACKING_URI names."""

import os
import time
from typing import TYPE_CHECKING, Any

from sslkit.runs.trackers import Metrics, Tracker

if TYPE_CHECKING:
    from sslkit import Run

LONGEST = 500
"""Characters of a parameter's value that every store of MLflow takes."""
MOST = 100
"""Parameters that it takes at once."""


class MLflow(Tracker):
    """Curves in MLflow: mlflow.db beside the run's folder, or where MLFLOW_TRACKING_URI says."""

    package = "mlflow"
    install = 'pip install "sslkit-trackers[mlflow]"'

    def __init__(self, run: "Run") -> None:
        super().__init__(run)
        from mlflow import MlflowClient

        beside = f"sqlite:///{run.path.resolve().parent / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", beside))
        self._id = run.derived.get("mlflow_id") or self._begin()
        self._client.update_run(self._id, status="RUNNING")
        run.note(mlflow_id=self._id)

    def _begin(self) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "sslkit")
        known = self._client.get_experiment_by_name(name)
        # By default files would go to where the command was given.
        pictures = (self.run.path.resolve().parent / "mlartifacts").as_uri()
        experiment = known.experiment_id if known else self._client.create_experiment(name, artifact_location=pictures)
        begun = self._client.create_run(experiment, run_name=self.run.path.name).info.run_id
        settings = _leaves("", self.run.config.model_dump(mode="json"))
        for start in range(0, len(settings), MOST):
            part = settings[start : start + MOST]
            self._client.log_batch(begun, params=[Param(_plain(key), str(value)[:LONGEST]) for key, value in part])
        text: str = begun
        return text

    def log(self, step: int, metrics: Metrics) -> None:
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        self._client.log_batch(self._id, [Metric(_plain(k), v, now, step) for k, v in metrics.items()])

    def finish(self, error: BaseException | None) -> None:
        stopped = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        self._client.set_terminated(self._id, "FINISHED" if error is None else stopped)


def _leaves(prefix: str, tree: dict[str, Any]) -> list[tuple[str, Any]]:
    """Dotted keys, as on sslkit's command line."""
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        found += _leaves(f"{prefix}{key}.", value) if isinstance(value, dict) else [(prefix + key, value)]
    return found


def _plain(name: str) -> str:
    """MLflow takes letters, digits and these signs in names."""
    return "".join(sign if sign.isalnum() or sign in "_-. /:" else "_" for sign in name)
