"""The weights that are measured must be the weights that are released: what can come between the two."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lightning_sanity.model.clone import clone, weights_digest
from lightning_sanity.model.digest import state_digest
from lightning_sanity.model.sharded import measured_in_place
from lightning_sanity.model.weights import is_shard
from lightning_sanity.resources.processes import Share, everyone

_UNREACHABLE = ("FSDPStrategy", "DeepSpeedStrategy", "XLAFSDPStrategy")
_OFFLINE = "save a consolidated checkpoint and measure it with `Trainer(devices=1).validate(model, ckpt_path=...)`"

_NO_COPY = "needs a copy of the model, and sharded weights have none"
_WITHOUT_A_COPY = {
    "precision": _NO_COPY,
    "reference_checkpoint": _NO_COPY,
    "max_memory": "cannot be kept where every process gathers what the others hold",
}


def obstacle(callbacks: Sequence[Any], strategy: Any, me: Any) -> str | None:
    """Why the measured weights would not be the released ones, or could not be measured, with the way out.

    Recognised by capability or name, so that the callbacks of both Lightning packages are.

    Args:
        callbacks: Of the trainer, in order.
        strategy: Of the trainer.
        me: The callback that measures; one of them.
    """
    kinds = _kinds(strategy)
    unreachable = next((name for name in _UNREACHABLE if name in kinds), None)
    if unreachable is not None:
        return (
            f"{unreachable} keeps the weights in parts of its own, which cannot be copied and re-initialised while "
            f"training; ModelParallelStrategy can. Otherwise {_OFFLINE}"
        )
    if "ModelParallelStrategy" in kinds:
        for option, why in _WITHOUT_A_COPY.items():
            if getattr(me, option) is not None:
                return f"`{option}` {why}: leave it out, or {_OFFLINE}"
    place = next(index for index, callback in enumerate(callbacks) if callback is me)
    for index, callback in enumerate(callbacks):
        kind = type(callback).__name__
        if _replaces_weights(callback) and index < place:
            return (
                f"{kind} stands before {type(me).__name__}, which would then measure other weights than the checkpoint "
                f"holds: list {type(me).__name__} first"
            )
        if "ModelPruning" in _kinds(callback) and (callback._prune_on_train_epoch_end or index > place):
            return (
                f"{kind} prunes after {type(me).__name__} has measured, so that the checkpoint would hold other "
                f"weights: pass it prune_on_train_epoch_end=False and list it before {type(me).__name__}"
            )
    return None


def _replaces_weights(callback: Any) -> bool:
    """Whether it puts an average in place of the weights that are validated and saved.

    Stochastic weight averaging does so at the end of training only, and neither validates nor saves it.
    """
    return hasattr(callback, "_average_model") and "StochasticWeightAveraging" not in _kinds(callback)


def unaveraged(callbacks: Sequence[Any]) -> str | None:
    """Why no verdict means anything yet, if so: weight averaging has not averaged once.

    Until then a checkpoint holds the copy that it took before training, and Lightning validates that copy too.
    """
    for callback in callbacks:
        updates = getattr(getattr(callback, "_average_model", None), "n_averaged", None)  # of torch's AveragedModel
        if isinstance(updates, torch.Tensor) and int(updates) == 0:
            return (
                f"{type(callback).__name__} has not updated its average yet, so that a checkpoint would hold the "
                "weights that training began with: let it start before the first validation "
                "(update_starting_at_step=, update_starting_at_epoch=), or measure later"
            )
    return None


def _kinds(thing: Any) -> set[str]:
    return {kind.__name__ for kind in type(thing).__mro__}


UNKNOWN = "unknown"
"""Whether a checkpoint holds the measured weights, where somebody may still change it before it is written."""


class Ledger:
    """Which weights were measured and which were saved in a run, and at which steps.

    Attributes:
        loaded: Step of the checkpoint that the weights were loaded from, if it said so.
    """

    def __init__(self) -> None:
        self.loaded: int | None = None
        self._measured: dict[str, int] = {}
        self._saved: dict[str, int] = {}

    def start(self) -> None:
        """Another entry into the Trainer; what was measured is remembered."""
        self.loaded, self._saved = None, {}

    def measure(self, trainer: Any, digest: str) -> int | None:
        """Note that weights are measured; at which step they were made, or None where nobody knows.

        Args:
            trainer: Of either Lightning package.
            digest: Of the weights.
        """
        if trainer.state.fn != "fit" and digest in self._measured:
            return self._measured[digest]
        given = trainer.state.fn == "fit" or trainer.ckpt_path is None
        step = int(trainer.global_step) if given else self.loaded
        if step is not None:
            self._measured[digest] = step
        return step

    def save(self, trainer: Any, checkpoint: Mapping[str, Any], me: Any, module: Any, digest: str) -> bool | str:
        """Note that a checkpoint is saved; whether it holds the weights of a digest, or ``UNKNOWN``.

        Of a checkpoint that is written in shards every process must ask: it holds the measured weights only if all
        processes do, because any of them may write what they all have, such as running statistics.

        Args:
            trainer: Of either Lightning package.
            checkpoint: What is going to be written.
            me: The callback that measures.
            module: The module in training.
            digest: Of the weights that were measured last; empty if none were.
        """
        if _changed_later(trainer.callbacks, me, module):
            return UNKNOWN
        held = _digest_in(checkpoint, trainer.callbacks)
        if any(is_shard(tensor) for tensor in (checkpoint.get("state_dict") or {}).values()):
            return all(everyone(held == digest))
        self._saved[held] = int(trainer.global_step)
        return held == digest

    def unseen(self) -> str | None:
        """Which checkpoints the gate will find no result about, if something was measured beside them."""
        steps = sorted(step for digest, step in self._saved.items() if digest not in self._measured)
        if not steps or not self._measured:
            return None
        named = ", ".join(map(str, steps[:10])) + (", ..." if len(steps) > 10 else "")
        return (
            f"checkpoints of step {named} hold weights that no measured validation saw, so that the gate will find no "
            "result about them: run lightning-sanity check on the one you release, or measure every validation by "
            "max_time=None"
        )


def _changed_later(callbacks: Sequence[Any], me: Any, module: Any) -> bool:
    """Whether a later callback or the module itself, which are asked later, may put other weights into a checkpoint."""
    place = next((index for index, callback in enumerate(callbacks) if callback is me), len(callbacks))
    return any(_saves_its_own_way(each) for each in (*callbacks[place + 1 :], module))


def _saves_its_own_way(thing: Any) -> bool:
    """Whether its hook on saving is the user's: Lightning's own touch no weights, but for averages, which are known."""
    hook = vars(thing).get("on_save_checkpoint", type(thing).on_save_checkpoint)
    known = ("lightning", "pytorch_lightning", "lightning_sanity")
    return str(getattr(hook, "__module__", "")).split(".")[0] not in known


def _digest_in(checkpoint: Mapping[str, Any], callbacks: Sequence[Any]) -> str:
    """Digest of the weights in a checkpoint that is about to be written.

    Weight averaging replaces the checkpoint's weights only after the callbacks before it have been asked, so its
    average is looked up.
    """
    for callback in callbacks:
        average = getattr(callback, "_average_model", None)
        if isinstance(average, nn.Module) and _replaces_weights(callback):
            return weights_digest(getattr(average, "module", average))
    return state_digest(checkpoint.get("state_dict") or {})


def subject(module: nn.Module, share: Share, clone_fn: Callable[..., Any] | None, single_precision: bool) -> nn.Module:
    """The module to measure: the one in training, or a copy that differs from it where it must.

    Processes that train together have the same parameters but each its own running statistics; those of rank 0 are
    saved, so those of rank 0 are measured. A sharded module is measured in place, which takes care of them.

    Args:
        module: The module in training.
        share: Makes two exchanges if there are several processes.
        clone_fn: See ``parameter_randomization_test``.
        single_precision: Measure in float32, whatever the module is in.
    """
    if measured_in_place(module, clone_fn):
        return module
    theirs: dict[str, torch.Tensor] | None = None
    if share.world > 1:
        mine = weights_digest(module)
        alike = len(set(share.exchange(mine))) == 1
        kept = {name: buffer.detach().cpu() for name, buffer in module.named_buffers()}
        sent = share.exchange(kept if share.rank == 0 and not alike else None)[0]
        theirs = sent if share.rank > 0 else None
    lower = any(p.is_floating_point() and p.dtype != torch.float32 for p in module.parameters())
    if theirs is None and not (single_precision and lower):
        return module
    copied = clone(module, clone_fn)
    with torch.inference_mode(False), torch.no_grad():
        for name, buffer in copied.named_buffers():
            if theirs is not None and name in theirs:
                buffer.copy_(theirs[name])
        return copied.float() if single_precision else copied
