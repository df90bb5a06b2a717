"""How to train: every knob of fine-tuning in one frozen value, with its default and the reason."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hwprune.errors import UsageError

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """The optimiser, its schedule and the loss; docs/recipes.md says the same to users.

    Attributes:
        epochs: passes over the training data; 0 applies the masks and recalibrates BN only.
        per_round: ``epochs`` is the length of each of the strategy's learning-rate schedules, as in
            arXiv 2003.02389, not of all together: it costs (restarts + 1) times ``epochs``.
        batch_size: samples a step; a last incomplete batch is left out (another sample each epoch).
        learning_rate: the peak of the schedule. Retraining from near the original peak beats
            fine-tuning at a small rate (LR rewinding, arXiv 2003.02389).
        momentum, nesterov: of SGD.
        weight_decay: on tensors of two or more dimensions; biases and BN have none.
        schedule: ``cosine`` from the peak to ``final_fraction`` of it, or ``step``: a tenth of the
            peak from half of the schedule on, a hundredth from three quarters on.
        warmup_fraction: the part of the schedule over which the rate rises linearly from zero.
        final_fraction: the rate at the very end, as a fraction of the peak (``cosine``).
        distillation_weight: the teacher's share in the loss; 1 without labels, 0 without a teacher.
        temperature: softens both distributions (arXiv 1503.02531); the term is scaled by its
            square.
        label_smoothing: on the labels' part of the loss.
        cutout: the side, in pixels, of a square that is set to zero (the mean of normalised data)
            at a random place of every image (arXiv 1708.04552); 0 for none.
        views: the augmented views of each sample, in turn, one an epoch, that a teacher is asked
            about once and for all, if the answers take no more than ``resident_bytes`` as fp16;
            otherwise, or with 0, each step draws its own views and asks anew.
        sharpness: the radius of sharpness-aware steps (arXiv 2010.01412), each of two passes; 0 for
            ordinary ones.
        ema_decay: what a step leaves of the moving average that is kept and measured; 0 for none.
        interpolate: how many successive solutions (the ends of rounds and, after the last change
            of the masks, of epochs; the latest count) may be averaged into the last one while
            validation does not fall (Lottery Pools, arXiv 2208.10842); 0 for none. Each costs one
            look at the validation split and ``calibration_samples`` forward passes.
        quantise_from: the progress from which the forward pass sees weights as they will be stored
            (straight through, arXiv 1308.3432), though not before the last change of the masks; 1
            never. A codebook, for which BN is held still, is in force for half of that time.
        race: the part of the epochs that ``--values auto`` may spend, beside them, on short
            trainings that decide between value types; 0 decides before training.
        precision: of the forward pass; ``auto`` takes bf16 where the device multiplies it. A run
            that is continued elsewhere keeps what it began in.
        compiled: run forward and backward through ``torch.compile``: minutes at the start.
        channels_last: keep 4-D tensors in NHWC order, which CPU and GPU convolutions prefer.
        grad_clip: the largest global gradient norm, None for no limit.
        gradient_batches: how many batches a score that needs gradients is averaged over.
        checkpoint: ``final`` keeps the last weights; ``best`` those of the epoch with the best
            validation accuracy among the epochs that began after the last change of the masks.
        resident_bytes: a split up to this size is converted once and held in memory (or on the
            device); a larger one is read batch by batch.
        calibration_samples: how many training samples recalibrate BN where nothing is trained.
    """

    epochs: int = 12
    per_round: bool = False
    batch_size: int = 128
    learning_rate: float = 0.05
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    schedule: Literal["cosine", "step"] = "cosine"
    warmup_fraction: float = 0.05
    final_fraction: float = 0.0
    distillation_weight: float = 0.5
    temperature: float = 3.0
    label_smoothing: float = 0.0
    cutout: int = 0
    views: int = 4
    sharpness: float = 0.0
    ema_decay: float = 0.0
    interpolate: int = 0
    quantise_from: float = 0.75
    race: float = 0.15
    precision: Precision = "auto"
    compiled: bool = False
    channels_last: bool = True
    grad_clip: float | None = None
    gradient_batches: int = 1
    checkpoint: Literal["final", "best"] = "final"
    resident_bytes: int = 2 * 1024**3
    calibration_samples: int = 2000

    def __post_init__(self) -> None:
        wrong = [
            f"{name} is {getattr(self, name)!r}, expected {expected}"
            for name, met, expected in (
                ("epochs", self.epochs >= 0, "0 or more"),
                ("batch_size", self.batch_size >= 1, "1 or more"),
                ("learning_rate", 0 < self.learning_rate < math.inf, "above 0"),
                ("momentum", 0 <= self.momentum < 1, "[0, 1)"),
                ("weight_decay", self.weight_decay >= 0, "0 or more"),
                ("schedule", self.schedule in ("cosine", "step"), "cosine or step"),
                ("warmup_fraction", 0 <= self.warmup_fraction < 1, "[0, 1)"),
                ("final_fraction", 0 <= self.final_fraction <= 1, "[0, 1]"),
                ("distillation_weight", 0 <= self.distillation_weight <= 1, "[0, 1]"),
                ("temperature", self.temperature > 0, "above 0"),
                ("label_smoothing", 0 <= self.label_smoothing < 1, "[0, 1)"),
                ("cutout", self.cutout >= 0, "0 or more"),
                ("views", self.views >= 0, "0 or more"),
                ("sharpness", 0 <= self.sharpness < math.inf, "0 or more"),
                ("ema_decay", 0 <= self.ema_decay < 1, "[0, 1)"),
                ("interpolate", self.interpolate >= 0, "0 or more"),
                ("quantise_from", 0 <= self.quantise_from <= 1, "[0, 1]"),
                ("race", 0 <= self.race <= 1, "[0, 1]"),
                ("calibration_samples", self.calibration_samples >= 1, "1 or more"),
                ("resident_bytes", self.resident_bytes >= 0, "0 or more"),
                ("grad_clip", self.grad_clip is None or self.grad_clip > 0, "above 0 or None"),
                ("gradient_batches", self.gradient_batches >= 1, "1 or more"),
                ("precision", self.precision in ("auto", "fp32", "bf16"), "auto, fp32 or bf16"),
                ("checkpoint", self.checkpoint in ("final", "best"), "final or best"),
            )
            if not met
        ]
        if wrong:
            raise UsageError("; ".join(wrong), hint="see hwprune.training.Recipe")

    def rate(self, progress: float, restarts: tuple[float, ...] = ()) -> float:
        """Return the learning rate: linear warm-up, then what ``schedule`` says.

        Args:
            progress: the fraction of all steps that lies behind, in [0, 1].
            restarts: progress values at which the whole schedule begins anew, warm-up and peak
                included (LR rewinding); momentum is kept.
        """
        edges = [0.0, *(edge for edge in restarts if 0 < edge < 1), 1.0]
        at = max(number for number, edge in enumerate(edges[:-1]) if edge <= max(progress, 0.0))
        inside = (progress - edges[at]) / (edges[at + 1] - edges[at])
        if inside < self.warmup_fraction:
            return self.learning_rate * inside / self.warmup_fraction
        inside = min(1.0, (inside - self.warmup_fraction) / (1.0 - self.warmup_fraction))
        if self.schedule == "step":
            return self.learning_rate * 0.1 ** ((inside >= 0.5) + (inside >= 0.75))
        falling = 0.5 * (1.0 + math.cos(math.pi * inside))
        return self.learning_rate * (self.final_fraction + (1 - self.final_fraction) * falling)
