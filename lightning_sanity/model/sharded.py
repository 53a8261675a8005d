"""Measuring a module in place: what a test needs where the weights are shards, of which no copy can be made.

Its forward and backward passes are collective: every process must run every one of them, with the same probe, and none
may leave before the others. Whatever ends a test on one process therefore ends it on all, at the next forward pass.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sanity.model.clone import CloneError, clone, evaluating, preserved
from lightning_sanity.model.weights import (
    drop_gathered,
    gathering_modules,
    is_shard,
    is_sharded,
    restore,
    snapshot,
    values,
)
from lightning_sanity.resources.processes import Share, Together, everyone

_ARRIVAL = 5.0  # seconds that a signal may take from one process to the next
_NOT_HELD = ("SIGCHLD", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGWINCH", "SIGURG")  # of children, timers and windows


def measured_in_place(model: nn.Module, clone_fn: Callable[..., Any] | None) -> bool:
    """Whether the module itself must be measured."""
    return clone_fn is None and is_sharded(model)


def share_of(model: nn.Module, clone_fn: Callable[..., Any] | None) -> Share:
    """The part of a process that was given none: all of the work, in step with the others where they hold shards."""
    if not measured_in_place(model, clone_fn):
        return Share()
    return Together(torch.distributed.get_rank(), torch.distributed.get_world_size(), everyone)


@contextmanager
def stand_in(
    model: nn.Module, clone_fn: Callable[[nn.Module], nn.Module] | None, share: Share | None
) -> Iterator[tuple[nn.Module, Mapping[str, Tensor]]]:
    """What may be re-initialised, and the trained weights: a copy, or the module itself, restored afterwards.

    Raises:
        CloneError: If it cannot be copied.
    """
    original = getattr(model, "_orig_mod", model)
    if not measured_in_place(original, clone_fn):
        copied = clone(model, clone_fn)
        if is_sharded(copied):
            raise CloneError("clone_fn returned a sharded model: return a whole one, or leave clone_fn out")
        yield copied, values(original)
        return
    together = share if isinstance(share, Together) else share_of(original, None)
    assert isinstance(together, Together)
    with in_place(original, together) as kept:
        yield original, kept


class _Stopped(BaseException):
    """Ends a test from within a forward pass; no ``except Exception`` of a method stops it."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


@contextmanager
def in_place(model: nn.Module, share: Together) -> Iterator[dict[str, Tensor]]:
    """Inside the block the module stands for its own detached copy; afterwards it is what it was, to the last bit.

    It is in eval mode, asks for no gradients, has no Trainer and the buffers of the first process, whose are saved.
    Signals are held back until it is restored, because their handlers may write a checkpoint.

    Args:
        model: The module whose weights are shards.
        share: Of this process.

    Yields:
        The trained weights, as this process holds them.

    Raises:
        Interrupted: If a signal came on any process.
        PeerFailed: If another process failed, or gave up a method alone.
    """

    def meet(module: nn.Module, arguments: Any) -> None:
        try:
            share.meet(came)
        except Exception as error:
            raise _Stopped(error) from None
        drop_gathered(model)

    with _held_signals(share) as came:
        try:
            with evaluating(model), preserved(model), _detached(model):
                _take_buffers(model, share)
                kept = snapshot(model)
                registered = [(module._parameters, dict(module._parameters)) for module in model.modules()]
                # Ahead of the hooks that gather, so that no pass is left halfway.
                handles = [
                    module.register_forward_pre_hook(meet, prepend=True)
                    for module in gathering_modules(model) or [model]
                ]
                try:
                    yield kept
                finally:
                    for handle in handles:
                        handle.remove()
                    drop_gathered(model)
                    for now, before in registered:
                        now.update(before)
                    restore(model, kept)
            share.finish(came)
        except _Stopped as stopped:
            share.fail(stopped.reason)
            raise stopped.reason from None
        except BaseException as error:
            share.fail(error)
            raise


@contextmanager
def _detached(model: nn.Module) -> Iterator[None]:
    """As a copy is: its parameters ask for no gradient and have none, and it knows no Trainer."""
    drop_gathered(model)
    held = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    for parameter, _, _ in held:
        parameter.requires_grad_(False)
        parameter.grad = None
    for module in model.modules():
        if "_trainer" in vars(module):
            vars(module)["_trainer"] = None  # put back by ``preserved``
    try:
        yield
    finally:
        for parameter, wanted, gradient in held:
            parameter.requires_grad_(wanted)
            parameter.grad = gradient


@torch.no_grad()
def _take_buffers(model: nn.Module, share: Share) -> None:
    """Every process has its own running statistics; those of the first are measured."""
    buffers = {name: buffer for name, buffer in model.named_buffers() if not is_shard(buffer)}
    sent = share.exchange({name: b.cpu() for name, b in buffers.items()} if share.rank == 0 else None)[0]
    if share.rank > 0:
        for name, buffer in buffers.items():
            buffer.copy_(sent[name])


@contextmanager
def _held_signals(share: Together) -> Iterator[list[int]]:
    """Signals that have a handler in Python are noted, and handled when the block is left.

    A signal that came on another process is awaited first: handlers may do collective work, as Lightning's do.
    """
    came: list[int] = []
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        numbers = {n for n in signal.valid_signals() if n not in [getattr(signal, name, None) for name in _NOT_HELD]}
        handlers = {number: signal.getsignal(number) for number in numbers if callable(signal.getsignal(number))}
    try:
        for number in handlers:
            signal.signal(number, lambda number, frame: came.append(number))
        yield came
    finally:
        awaited, until = share.signals & handlers.keys(), time.monotonic() + _ARRIVAL
        while not awaited <= set(came) and time.monotonic() < until:
            time.sleep(0.01)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(came):
            signal.raise_signal(number)
