"""Who acts on what the callback logs: callbacks and schedulers that monitor its keys; and who else would log them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any


def monitors(trainer: Any, keys: Collection[str]) -> list[tuple[str, str, Any]]:
    """The names of callbacks and of learning rate schedulers that monitor one of the keys, the keys, and themselves.

    Args:
        trainer: Of either Lightning package; schedulers are known once the optimizers are set up.
        keys: What the callback logs, exactly: another instance's keys may begin alike.
    """
    watching = [(type(each).__name__, getattr(each, "monitor", None), each) for each in trainer.callbacks]
    for config in trainer.lr_scheduler_configs:
        watching.append((type(config.scheduler).__name__, config.monitor if _reads(config) else None, config))
    return [(name, key, each) for name, key, each in watching if isinstance(key, str) and key in keys]


def _reads(config: Any) -> bool:
    """Whether a scheduler's step is given what its configuration monitors."""
    return bool(getattr(config, "reduce_on_plateau", True))


def stale_monitor(trainer: Any, keys: Collection[str], every_n_validations: int) -> str | None:
    """Why something would act on an old value, if it would.

    Args:
        trainer: Of either Lightning package.
        keys: What the callback logs.
        every_n_validations: How often it measures.
    """
    for name, key, watching in monitors(trainer, keys):
        if every_n_validations > 1:
            return (
                f"{name} monitors '{key}', which is measured only at every {every_n_validations}-th validation: it "
                "would act on the value of other weights. Use every_n_validations=1."
            )
        if getattr(watching, "interval", "epoch") == "step":
            return (
                f"{name} monitors '{key}' and acts after training steps, between validations: it would act on the "
                'value of other weights. Configure it with "interval": "epoch".'
            )
        if getattr(watching, "_every_n_train_steps", 0) or getattr(watching, "_train_time_interval", None) is not None:
            return (
                f"{name} monitors '{key}' and acts between validations: it would save other weights than were "
                "measured. Let it save after validation: leave out every_n_train_steps and train_time_interval."
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
