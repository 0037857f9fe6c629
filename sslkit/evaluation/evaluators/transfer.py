"""Transfer of the frozen backbone to other data sets."""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from sslkit.errors import UserError
from sslkit.evaluation.evaluator import Evaluator
from sslkit.evaluation.evaluators import logistic
from sslkit.evaluation.subject import Subject

METRICS = {"top1": logistic.share_right, "mean_per_class": logistic.mean_per_class}


class Transfer(Evaluator):
    """Linear classifiers on other data sets, l2 chosen on held-out training images (SimCLR, Table 8 and B.8).

    Multinomial logistic regression by L-BFGS without augmentation. Its l2 is chosen, separately for every data set, on
    a stratified fifth of the training images; then it is trained again on all of them. Results are named after the data
    set: `digits_top1`; `average` is the mean of the chosen metric over the data sets. With `finetune` the whole network
    is trained too, as by the evaluator `finetune`.
    """

    class Config(Evaluator.Config):
        data: tuple[str, ...] = ("digits",)
        """Data sets, by name or by path, in the forms that `data=` accepts."""
        metric: Literal["top1", "mean_per_class"] = "top1"
        """Metric that selects l2 and is averaged; mean_per_class, beside top1, suits unequal classes (Table 8)."""
        l2_from: float = Field(1e-6, gt=0)
        """Smallest l2 to try: l2/2 · ‖W‖² is added to the summed loss (scikit-learn's 1/C)."""
        l2_to: float = Field(1e5, gt=0)
        """Largest l2 to try."""
        l2_values: int = Field(12, ge=1)
        """Number of values to try, evenly spaced in the logarithm; the paper's 45 take four times as long."""
        finetune: bool = False
        """Also train the whole network on each data set."""

        @field_validator("data")
        @classmethod
        def _some(cls, data: tuple[str, ...]) -> tuple[str, ...]:
            if not data or len(set(data)) < len(data):
                raise ValueError("must name one or more data sets, each once")
            return data

        def check(self) -> Iterable[str]:
            from sslkit.config.resolve import resolve_data

            for name in self.data:
                try:
                    resolve_data(name, ())
                except UserError as error:
                    yield str(error)

    config: Config
    needs_labels: ClassVar[bool] = False

    @property
    def protocol(self) -> str:
        c = self.config
        tuned = "; and the whole network fine-tuned" if c.finetune else ""
        return (
            f"on {', '.join(c.data)}: frozen features, standardized on train; logistic regression, L-BFGS, l2 of "
            f"{c.l2_values} values from {c.l2_from:g} to {c.l2_to:g} chosen by {c.metric} on a stratified fifth of "
            f"train, then trained on all of train{tuned}"
        )

    def __call__(self, subject: Subject) -> dict[str, float]:
        figures: dict[str, float] = {}
        chosen = []
        for name, data in zip(_short(self.config.data), self.config.data):
            other = _on(subject, data)
            results = self._linear(subject, other, data)
            chosen.append(results[self.config.metric])
            if self.config.finetune:
                results |= _finetuned(other)
            figures |= {f"{name}_{figure}": value for figure, value in results.items()}
        return figures | {"average": float(np.mean(chosen))}

    def _linear(self, subject: Subject, other: Subject, data: str) -> dict[str, float]:
        c, f = self.config, other.features
        values = np.geomspace(c.l2_from, c.l2_to, c.l2_values).tolist()
        l2 = logistic.choose_l2(f.train_x, f.train_y, f.classes, values, score=METRICS[c.metric], seed=subject.seed)
        subject.note(f"{data}: l2={l2:g}, {len(f.train_y)} training and {len(f.test_y)} test images")
        predicted = logistic.fit(f.train_x, f.train_y, f.classes, l2=l2).ranking(f.test_x)[:, 0]
        results = {name: METRICS[name](predicted, f.test_y) for name in dict.fromkeys(("top1", c.metric))}
        return results | _interval("top1", results["top1"], other)


def _finetuned(other: Subject) -> dict[str, float]:
    from sslkit.evaluation.evaluators.finetune import Finetune

    top1 = Finetune(Finetune.Config())(other)["top1"]
    return {"finetuned_top1": top1} | _interval("finetuned_top1", top1, other)


def _interval(name: str, value: float, other: Subject) -> dict[str, float]:
    """Confidence interval for the number of the other data's test images, which differs from the subject's own."""
    from sslkit.runs.records import wilson

    low, high = wilson(value, len(other.features.test_y))
    return {f"{name}_low": low, f"{name}_high": high}


def _short(data: Iterable[str]) -> list[str]:
    """Short name of each data set: its name, or the last part of its path, numbered if that is taken."""
    names: list[str] = []
    for text in data:
        stem = Path(text).stem or "data"
        names.append(stem if stem not in names else f"{stem}_{len(names) + 1}")
    return names


def _on(subject: Subject, data: str) -> Subject:
    """Return a subject of the same backbone on other images, packed at the backbone's image size."""
    from sslkit.config.resolve import resolve_data
    from sslkit.data import open_stores

    stores = open_stores(resolve_data(data, [f"image_size={subject.image_size}"]), None, subject.seed, seen=False)
    if stores.train is None or stores.test is None:
        raise UserError(f"evaluators.transfer.data: {data} has no labels to evaluate with; name labelled images")
    return Subject(subject.backbone, stores.train, stores.test, subject.preprocessing, seed=subject.seed)
