"""How methods that run many altered copies of their batch do so within a given memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_sanity.attribution.method import at_least, first

ROWS = 64
"""Most rows that a method which multiplies its batch sends through the model at once."""

_FEW = 3
"""Samples that say what a network is made of: a number that few sides of a tensor have."""

_most: ContextVar[int] = ContextVar("most", default=2**62)
_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


@contextmanager
def at_most(rows: int) -> Iterator[None]:
    """Let no ``Rows`` send more through the model at once than this, whatever they were made for."""
    before = _most.set(rows)
    try:
        yield
    finally:
        _most.reset(before)


def at_once(most: int, samples: int, copies: int) -> int:
    """How many rows ``Rows`` sends through the model at once, if it may send so many: whole batches where one fits.

    >>> at_once(20, samples=8, copies=50)
    16
    """
    return min(samples * copies, most - most % samples if most >= samples else most)


class Rows:
    """The rows that go through the model at once; halved whenever memory runs out, and it stays halved.

    Args:
        max_batch: Most rows per pass.
        name: The method, for messages.
        per_copy: Rows that one copy of one sample takes.

    >>> rows = Rows(4, "example")
    >>> [(samples, copies) for samples, copies, _ in rows.chunks(2, 3, lambda samples, copies: None)]
    [(slice(0, 2, None), range(0, 2)), (slice(0, 2, None), range(2, 3))]
    """

    def __init__(self, max_batch: int, name: str, per_copy: int = 1) -> None:
        at_least(1, name, max_batch=max_batch)
        self.limit, self.name, self.per_copy = max_batch, name, per_copy

    def chunks(
        self, samples: int, copies: int, run: Callable[[slice, range], _Result]
    ) -> Iterator[tuple[slice, range, _Result]]:
        """Call ``run(samples, copies)`` on blocks that together cover every copy of every sample once.

        Args:
            samples: Size of the batch.
            copies: Altered copies of each sample.
            run: Must depend on the samples and copies it is given alone: how they are cut must not show in the result.

        Yields:
            The block's samples and copies, and what ``run`` returned.
        """
        waiting = [(slice(0, samples), range(copies))] if samples and copies else []
        while waiting:
            block = waiting.pop()
            rest = self._cut(*block)
            if rest is not None:
                waiting.extend(rest)
                continue
            result, full = _try(run, *block)
            if full is None:
                yield (*block, result)  # type: ignore[misc]
            else:
                self._halve((block[0].stop - block[0].start) * len(block[1]) * self.per_copy, full)
                waiting.append(block)

    def _cut(self, samples: slice, copies: range) -> list[tuple[slice, range]] | None:
        """What is too large in two, the first part last; by samples only where one copy of them is too large."""
        count = samples.stop - samples.start
        limit = self.most
        fit = limit // (self.per_copy * count)
        if fit >= len(copies) or (count == 1 and len(copies) == 1):
            return None
        if fit >= 1 or count == 1:
            fit = max(fit, 1)
            return [(samples, copies[fit:]), (samples, copies[:fit])] if fit < len(copies) else None
        middle = samples.start + max(1, limit // self.per_copy)
        return [(slice(middle, samples.stop), copies), (slice(samples.start, middle), copies)]

    @property
    def most(self) -> int:
        """Most rows at once here and now; see ``at_most``."""
        return min(self.limit, _most.get())

    def _halve(self, rows: int, full: RuntimeError) -> None:
        if rows <= self.per_copy:
            raise full
        self.limit = max(self.per_copy, rows // 2)
        _log.warning("%s: out of memory with %d rows at once; going on with %d", self.name, rows, self.limit)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _try(
    run: Callable[[slice, range], _Result], samples: slice, copies: range
) -> tuple[_Result | None, RuntimeError | None]:
    try:
        return run(samples, copies), None
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return None, error.with_traceback(None)  # a traceback would keep the tensors alive that filled the memory


def out_of_memory(error: RuntimeError) -> bool:
    """Whether it says that an accelerator's or the machine's memory is full."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    return any(words in str(error) for words in ("not enough memory", "can't allocate memory"))


def of_few(find: Callable[[Any], _Result], inputs: Any) -> _Result:
    """What can be found out about a network with a few samples; with all where it takes no other number of them.

    Args:
        find: ``find(inputs)``.
        inputs: The whole batch.
    """
    if len(first(inputs)) > _FEW:
        with suppress(Exception):
            return find(rows_of(inputs, slice(0, _FEW)))
    return find(inputs)


def rows_of(inputs: Any, samples: slice | Tensor, copies: int = 1, explained: Tensor | None = None) -> Any:
    """These samples of all inputs, stacked ``copies`` times, sample after sample within each copy.

    Args:
        inputs: The whole batch; what is no tensor with a row per sample is passed on as it is.
        samples: Which rows; a tensor of their places may name one several times.
        copies: How often.
        explained: Takes the place of the explained input if given; already ``copies`` times as long.
    """
    total = len(first(inputs))

    def stacked(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim > 0 and len(value) == total:
            return repeated(value[samples], copies)
        return value

    if not isinstance(inputs, tuple):
        return stacked(inputs) if explained is None else explained
    return (stacked(inputs[0]) if explained is None else explained, *tree_map(stacked, inputs[1:]))


def repeated(value: Tensor, copies: int) -> Tensor:
    """The batch stacked ``copies`` times."""
    return value if copies == 1 else value.repeat(copies, *[1] * (value.ndim - 1))


def target_of(target: Tensor | None, samples: slice, copies: int = 1) -> Tensor | None:
    """The explained classes of these samples, stacked ``copies`` times."""
    return None if target is None else target[samples].repeat(copies)
