"""The events of a run whose step has come: measure what they need, change the masks, say so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hwprune.extreme.reachability import Mended
from hwprune.ir import Masks
from hwprune.sparsity import Event
from hwprune.training import events
from hwprune.training.evidence import Seen
from hwprune.training.modes import set_mode

if TYPE_CHECKING:
    from hwprune.training.finetune import Run


def apply_due(run: Run, epoch: int, *, at_end: bool = False) -> None:
    """Apply the events whose step has come; all that are left, at the end."""
    stepper = run.stepper
    while run.pending and (at_end or run.pending[0][0] <= run.step):
        _, event = run.pending.pop(0)
        if event.action == "regrow":
            _look_at_extreme(run, epoch)
        with run.witness.seen(event, len(run.pending)) as seen:
            mended = agreed_masks(run, event, seen)
            masks = mended.masks
            run.sparse.set_masks(masks, stepper.optimizer, initial=event.initial)
            run.sparse.restart(mended.opened)
        run.paths.count(mended)
        _note_collapse(run, mended.untouched)
        run.changed_at = run.step
        run.record(epoch, event.action)
        density = masks.nonzeros / run.sparse.weights
        told = f"{event.action} to {masks.nonzeros:,} nonzeros ({100 * density:.2f} %)"
        run.journal.say(epoch, run.step, message=told)


def agreed_masks(run: Run, event: Event, seen: Seen) -> Mended:
    """Return the masks that an event leads to in this run, with a path to every output.

    The same in all processes: the leader's.
    """
    setting = run.setting
    masks = events.masks_after(
        event,
        run.sparse,
        seen,
        setting.fill,
        density=setting.strategy.density,
    )
    mended = Mended(masks)
    if setting.world.leads:
        with run.phased.plain(), torch.enable_grad():
            mended = _with_paths(run, masks, event.budget_fraction)
    return setting.world.lead(mended)


def _with_paths(run: Run, masks: Masks, fraction: float | None) -> Mended:
    mended = run.paths.mend(masks)
    if mended.opened is None or fraction is None:
        return mended
    return run.paths.filled(mended, lambda ranking: run.setting.fill(ranking, fraction))


def _look_at_extreme(run: Run, epoch: int) -> None:
    """Measure the state with the fewest connections, once it has been trained."""
    setting, living = run.setting, run.sparse.masks.nonzeros
    trained = run.changed_at < run.step or run.epochs == 0
    if not trained or living >= (run.extreme or (run.sparse.weights,))[0]:
        return
    if run.epochs == 0:
        run.recalibrate()
    run.extreme = (living, run.measure())
    run.record(epoch, "extreme", accuracy=run.extreme[1])
    set_mode(setting.module, training=run.epochs > 0, train_batchnorm=setting.train_batchnorm)


def _note_collapse(run: Run, masks: Masks) -> None:
    """Report once which tensors only the guard keeps alive: layer collapse."""
    for name in events.collapsed(masks):
        kept = "its best connection was kept" if masks[name].any() else "none of it fits"
        note = f"layer collapse in {name}: {kept}"
        if note not in run.journal.notes:
            run.journal.notes.append(note)
