"""``hwprune.Pruner`` in the Trainer of Hugging Face's transformers, as a callback."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hwprune.errors import UsageError
from hwprune.pruner import Pruner
from hwprune.training.statefile import read_state, write_state

# Beside each checkpoint's own files: what callbacks keep in trainer_state.json is JSON.
STATE_NAME = "hwprune.state"


class PrunerCallback(TrainerCallback):
    """Prunes the model while the Trainer trains it; its state lies in every checkpoint's folder.

    Args:
        wrap: returns what is to be shipped of the model, such as a module that returns its logits;
            the model itself without.
        resume: the folder of the checkpoint that is continued from, where that is neither the
            Trainer's argument nor in its output folder.
        options: of ``hwprune.Pruner``.

    Attributes:
        pruner: from the start of the training on; ``callback.pruner.export("out")`` at its end.
    """

    pruner: Pruner

    def __init__(
        self,
        *,
        wrap: Callable[[Any], nn.Module] = lambda model: model,
        resume: str | PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        self._wrap, self._resume, self._options = wrap, resume, options

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Make the Pruner: weights and optimiser are those of the checkpoint by now."""
        if hasattr(self, "pruner"):
            self.pruner.detach()
        self.pruner = Pruner(self._wrap(model), optimizer, steps=state.max_steps, **self._options)
        if state.global_step:
            own = Path(args.output_dir or ".", f"checkpoint-{state.global_step}")
            places = [p for p in (self._resume, args.resume_from_checkpoint, own) if p is not None]
            found = [path for place in places if (path := Path(place, STATE_NAME)).is_file()]
            if not found:
                raise UsageError(
                    f"training goes on at step {state.global_step}, and there is no {STATE_NAME} in"
                    f" {' or '.join(map(str, places))}",
                    hint="give PrunerCallback(resume=...) the folder of the checkpoint",
                )
            self.pruner.load_state_dict(read_state(found[0]))

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the Pruner's state into the checkpoint that was just saved."""
        folder = Path(args.output_dir or ".", f"checkpoint-{state.global_step}")
        if state.is_world_process_zero and folder.is_dir():
            write_state(folder / STATE_NAME, self.pruner.state_dict())
