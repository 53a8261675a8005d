"""How long work shows itself: a caller's function, or a bar on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int, str], None]


@contextmanager
def progress_bar(progress: Progress | bool | None) -> Iterator[Progress | None]:
    """The caller's own callback, or a bar on a terminal."""
    if callable(progress):
        yield progress
    elif progress is False or (progress is None and not sys.stderr.isatty()):
        yield None
    else:
        from tqdm import tqdm

        with tqdm(desc="randomization test", leave=False) as bar:

            def tick(done: int, total: int, label: str) -> None:
                bar.total = total  # more trials may raise it, a limit on time may lower it
                bar.set_postfix_str(label, refresh=False)
                bar.update(done - bar.n)

            yield tick
