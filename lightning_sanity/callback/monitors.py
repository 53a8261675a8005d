"""Who else acts on what the callback logs: other callbacks that monitor its keys, and other instances of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def monitors(callbacks: Iterable[Any], prefix: str) -> list[tuple[str, str]]:
    """The names of callbacks that monitor a key below ``prefix``, and the keys."""
    watching = [(type(callback).__name__, getattr(callback, "monitor", None)) for callback in callbacks]
    return [(name, key) for name, key in watching if isinstance(key, str) and key.startswith(f"{prefix}/")]


def stale_monitor(callbacks: Iterable[Any], prefix: str, every_n_validations: int) -> str | None:
    """Why another callback would act on an old value, if one would."""
    for name, key in monitors(callbacks, prefix) if every_n_validations > 1 else ():
        return (
            f"{name} monitors '{key}', which is measured only at every {every_n_validations}-th validation: it would "
            "act on the value of other weights. Use every_n_validations=1."
        )
    return None


def shared_key(me: Any, callbacks: Iterable[Any], trainer: Any) -> str | None:
    """Why another instance would log the same key, if one would.

    Args:
        me: The callback.
        callbacks: Of the trainer.
        trainer: Asked for the step.
    """
    for other in callbacks:
        if other is not me and hasattr(other, "scalars") and hasattr(other, "name"):
            shared = sorted(me.scalars(trainer).keys() & other.scalars(trainer).keys())
            if shared:
                return (
                    f"two instances of SaliencySanityCallback would log '{shared[0]}', and Lightning would log the "
                    f"mean of both: tell them apart by `name`, which is {me.name!r} and {other.name!r}"
                )
    return None
