"""What callbacks do by themselves: no trainer has to be installed."""

from __future__ import annotations

from types import SimpleNamespace

from hwprune.integrations.ultralytics import YoloPruner


def test_progress_never_falls_where_an_epoch_is_gone_through_once_more() -> None:
    callbacks = YoloPruner({})
    trainer = SimpleNamespace(epoch=1, epochs=4, train_loader=range(10))
    callbacks._trainer = trainer
    for _ in range(5):
        callbacks.on_train_batch_end(trainer)
    assert callbacks._progress() == 1.5 / 4
    callbacks.on_train_epoch_start(trainer)  # the same epoch anew
    assert callbacks._progress() == 1.5 / 4
    trainer.epochs = 5  # and more of them
    assert callbacks._progress() == 1.5 / 4
    trainer.epoch = 6
    assert callbacks._progress() == 1.0
