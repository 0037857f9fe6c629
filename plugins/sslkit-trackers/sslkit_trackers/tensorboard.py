"""TensorBoard: event files in the run's own folder."""

from typing import TYPE_CHECKING

from sslkit.runs.trackers import Metrics, Tracker

if TYPE_CHECKING:
    from sslkit import Run


class TensorBoard(Tracker):
    """Curves in TensorBoard: event files in RUN/tensorboard, seen with `tensorboard --logdir runs`."""

    package = "tensorboard"
    install = 'pip install "sslkit-trackers[tensorboard]"'

    def __init__(self, run: "Run") -> None:
        super().__init__(run)
        from torch.utils.tensorboard import SummaryWriter

        metrics = run.metrics
        # A resumed run logs the steps after its checkpoint again, so what an earlier session logged of them is purged.
        trained = metrics[-1]["step"] if metrics else 0
        self._writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=trained + 1)
        self._writer.add_text("config", f"```yaml\n{run.config.to_yaml()}```", 0)

    def log(self, step: int, metrics: Metrics) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, error: BaseException | None) -> None:
        self._writer.close()
