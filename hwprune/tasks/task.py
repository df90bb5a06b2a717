"""Tasks: what a network is for. One value goes from the door to the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hwprune.errors import ModelError
from hwprune.ir import Split
from hwprune.tasks.metrics import METRICS, Metric, rows_kept, share_kept
from hwprune.trees import leaves, outputs_of

Imitation = Literal["classes", "yes-or-no", "values"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a network is for.

    Attributes:
        name: a key of ``TASKS``, or a user's file.
        metric: how good outputs are.
        imitation: how those of the dense network are imitated: as classes, one of which is right;
            as so many answers of yes or no; or as values.
        class_axis: where the output that counts has its classes.
        takes_inputs: ``always`` where the first input is what outputs are compared with, ``else``
            where it is without labels.
        output: the name of the output that counts; without, the first, or all where ``whole``.
        outputs: what the user's own function makes of the outputs, for loss and metric.
        loss: the user's own: (outputs, batch) -> a scalar tensor.
        whole: loss and metric take all outputs.
        source: what tells two tasks of one name apart.
    """

    name: str
    metric: Metric
    imitation: Imitation = "values"
    class_axis: int = 1
    takes_inputs: Literal["", "else", "always"] = ""
    output: str | None = None
    outputs: Callable[[Any], Any] | None = None
    loss: Callable[[Any, Any], Any] | None = None
    whole: bool = False
    source: str = ""

    @property
    def takes_classes(self) -> bool:
        """Return whether labels are one class index per sample."""
        return self.name == "classification"

    def counted(self, found: Any) -> Any:
        """Return what loss and metric take of what a network, or a file, gave.

        Raises:
            ModelError: there is no output of that name.
        """
        outputs = outputs_of(found)
        if self.outputs is not None:
            outputs = self.outputs(outputs)
        if self.output is not None:
            named = {path or "0": value for path, value in leaves(outputs)}
            if self.output not in named:
                raise ModelError(
                    f"the network has no output {self.output!r}; it has {', '.join(named)}",
                    hint="name one of these, or leave ?output= out",
                )
            return named[self.output]
        return outputs if self.whole else next(leaves(outputs))[1]

    def measurable(self, split: Split) -> bool:
        """Return whether there is something to compare outputs with."""
        return split.labels is not None or bool(self.takes_inputs)

    def targets(self, inputs: Sequence[Any], labels: Any) -> Any:
        """Return what outputs are compared with; None where there is nothing."""
        wanted = self.takes_inputs == "always" or (self.takes_inputs and labels is None)
        return inputs[0] if wanted else labels


TASKS = {
    task.name: task
    for task in (
        Task(name="classification", metric=METRICS["accuracy"], imitation="classes"),
        Task(name="multilabel", metric=METRICS["auroc"], imitation="yes-or-no"),
        Task(name="regression", metric=METRICS["rmse"]),
        Task(name="segmentation", metric=METRICS["miou"], imitation="classes"),
        Task(name="reconstruction", metric=METRICS["rmse"], takes_inputs="always"),
        Task(name="ctc", metric=METRICS["cer"], imitation="classes", class_axis=2),
        Task(
            name="causal-lm", metric=METRICS["perplexity"], imitation="classes", class_axis=2,
            takes_inputs="else",
        ),
    )
}  # fmt: skip
CLASSIFICATION = TASKS["classification"]
_FIDELITY = Metric("fidelity", True, rows_kept, share_kept, percent=True)
# Without a task and labels: the dense network's outputs are the only aim, whatever they mean.
IMITATION = Task(name="imitation", metric=_FIDELITY, whole=True)
