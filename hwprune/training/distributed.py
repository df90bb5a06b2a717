"""Several processes that train one network: each takes its share of every batch.

Gradients are summed over the processes by hand, in flat buckets, right after each backward pass,
rather than by wrapping the module in ``DistributedDataParallel``: the module stays what it is (its
names, its hooks, exported programs), and everything that reads or changes gradients (masks, scores
of dead connections, a second pass for sharpness) sees those of the whole batch, in every
process the same to the bit. The wrapper would overlap sending with the backward pass; for networks
that are pruned for small devices there is little to send.

All processes draw the same random order and the same augmentation, and use their own rows of it. BN
normalises by its process's share, as with the wrapper; its running statistics are averaged over the
processes wherever the network is measured or saved.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore, Store

from hwprune import errors
from hwprune.errors import HwpruneError, UsageError

T = TypeVar("T")

# Numbers that are summed at once: bounds what training needs beside the gradients (64 MiB).
_BUCKET = 1 << 24
# The first process measures and verifies while the others wait for its verdict. One that dies
# closes its connections, which is noticed at once.
_PATIENCE = timedelta(days=1)
_FAILURE = "failure"


class World:
    """The processes of one run. ``World()`` is a process on its own, for which all of this is free.

    Attributes:
        rank: the number of this process; 0 leads: it alone writes, prints and verifies.
        size: how many processes there are.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Store | None = None) -> None:
        """Know one's place; ``joined`` makes worlds of several processes."""
        self.rank, self.size, self._store = rank, size, store

    @property
    def leads(self) -> bool:
        """Return whether this process writes, prints and verifies."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """Return this process's part of ``count`` samples.

        Raises:
            UsageError: some process would get less than two, which BN cannot normalise.
        """
        if self.size == 1:
            return slice(None)
        if count < 2 * self.size:
            raise UsageError(
                f"a batch of {count} samples cannot be shared by {self.size} processes",
                hint="start fewer processes, or raise batch_size: each needs two samples a batch",
            )
        return self.share(count)

    def share(self, count: int) -> slice:
        """Return this process's part of ``count`` samples that BN does not normalise by."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def mean_gradients(
        self, module: nn.Module, loss: torch.Tensor, samples: int, of: int
    ) -> torch.Tensor:
        """Replace the gradients by those of the whole batch and return its mean loss.

        Args:
            module: whose parameters hold the gradients of the mean loss over this share.
            loss: that mean, a scalar.
            samples: how many samples this share has.
            of: how many the whole batch has.
        """
        if self.size == 1:
            return loss
        mean = loss.detach().float().clone()
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        with self._together():
            for bucket in _buckets([mean, *gradients]):
                flat = torch.cat([part.reshape(-1) for part in bucket]).mul_(samples / of)
                dist.all_reduce(flat)
                _scatter(flat, bucket)
        return mean

    def mean(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace tensors by their means over the processes."""
        if self.size == 1:
            return
        with self._together():
            for bucket in _buckets(tensors):
                flat = torch.cat([buffer.reshape(-1) for buffer in bucket]).div_(self.size)
                dist.all_reduce(flat)
                _scatter(flat, bucket)

    def total(self, count: int) -> int:
        """Return the sum of a whole number over the processes."""
        return sum(self.gather(count))

    def gather(self, value: T) -> list[T]:
        """Return every process's value, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self._together():
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """Return the leader's value in every process; the others' own is ignored."""
        if self.size == 1:
            return value
        box = [value]
        with self._together():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def receive(self, kind: type[T]) -> T:
        """Wait for the value that the leader hands to ``broadcast``, and return it."""
        value = self.broadcast(None)
        assert isinstance(value, kind)
        return value

    def report(self, error: BaseException) -> None:
        """Leave the first failure of any process where the others find it."""
        if self._store is None:
            return
        kind, message, hint = type(error).__name__, str(error), getattr(error, "hint", None)
        told = json.dumps({"rank": self.rank, "kind": kind, "message": message, "hint": hint})
        try:
            self._store.compare_set(_FAILURE, "", told)
        except RuntimeError:  # the process that kept the store is gone
            pass

    def wait_for_peers(self) -> None:
        """Wait a little until all have noticed a failure, so that each leaves by its own code.

        Else ``torchrun`` would end the others as soon as the first is gone.
        """
        if self._store is None:
            return
        others = [f"parting {rank}" for rank in range(self.size) if rank != self.rank]
        try:
            self._store.set(f"parting {self.rank}", "")
            self._store.wait(others, timedelta(seconds=5))
        except RuntimeError:  # one was killed, or kept the store and is gone
            pass

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Turn a connection that broke into the error of the process that broke it."""
        try:
            yield
        except RuntimeError as error:
            self._raise_failure(error)

    def _raise_failure(self, error: RuntimeError) -> NoReturn:
        told = None
        try:
            if self._store is not None:
                self._store.wait([_FAILURE], timedelta(seconds=3))
                told = json.loads(self._store.get(_FAILURE))
        except RuntimeError:  # nothing was left: it was killed
            pass
        if told is None:
            raise HwpruneError(
                f"another of the {self.size} processes ended, and this one cannot go on alone:"
                f" {str(error).splitlines()[0]}",
                hint="look at what it printed; --resume continues from the last checkpoint",
            ) from None
        kind = getattr(errors, told["kind"], None)
        text = f"{told['kind']}: {told['message']}"
        if isinstance(kind, type) and issubclass(kind, HwpruneError):
            text = told["message"]
        else:
            kind = HwpruneError
        raise kind(f"process {told['rank']} of {self.size}: {text}", hint=told["hint"]) from None


SINGLE_PROCESS = World()


def launched() -> bool:
    """Return whether ``torchrun`` (or the like) started this process as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Meet the processes that ``torchrun`` started, for the length of a run.

    An error that leaves this block is told to the others, so that none waits for ever.

    Args:
        device: where this process trains: CUDA tensors travel by NCCL, all others by gloo.

    Yields:
        the world; ``SINGLE_PROCESS`` where nothing was launched.
    """
    if not launched():
        yield SINGLE_PROCESS
        return
    from torch.distributed.rendezvous import rendezvous

    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.set_device(torch.device(device))
    store, rank, size = next(rendezvous("env://", timeout=timedelta(minutes=5)))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=PrefixStore("hwprune", store), rank=rank, world_size=size, timeout=_PATIENCE,
    )  # fmt: skip
    world = World(rank, size, PrefixStore("hwprune-failure", store))
    try:
        yield world
    except BaseException as error:
        world.report(error)
        dist.destroy_process_group()
        if isinstance(error, Exception):
            world.wait_for_peers()
        raise
    dist.destroy_process_group()


def _buckets(tensors: Iterable[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Yield tensors in groups of one type and of a bounded number of elements."""
    bucket: list[torch.Tensor] = []
    count = 0
    for tensor in tensors:
        full = count + tensor.numel() > _BUCKET
        if bucket and (full or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, count = [], 0
        bucket.append(tensor)
        count += tensor.numel()
    if bucket:
        yield bucket


def _scatter(flat: torch.Tensor, bucket: Iterable[torch.Tensor]) -> None:
    start = 0
    for tensor in bucket:
        tensor.copy_(flat[start : start + tensor.numel()].view(tensor.shape))
        start += tensor.numel()
