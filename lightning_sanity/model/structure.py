"""What is known of a module's structure, for as long as nothing but its weights changes.

A callback tests the same module on the same samples after every epoch. What follows from the operations that a pass
makes need not be found again: that a copy computes with weights of its own, how the network comes apart. It is kept
beside the module, and holds only if a new copy has the same modules with the same plain attributes, and a recorded pass
on the same inputs the same operations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from lightning_sanity.model.digest import UnhashableError, update_digest
from lightning_sanity.model.graph import Graph

Known = dict[Any, Any]
"""Findings by what they are about: ``"alive"`` (a copy computes with its own weights), ``"apart"`` (no way leads from
one sample to another), ``("reach", ...)`` (the explained score sees the whole input), and how ``engine`` walks it."""

_kept: Any = WeakIdKeyDictionary()
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_HELD_APART = ("_parameters", "_modules")
_COUNTING = "torchmetrics"
"""Modules of this package count what they have seen, and take no part in a pass."""
_DEEPEST = 3


def known_of(model: nn.Module, copied: nn.Module, inputs: Any, graph: Graph) -> Known:
    """What was found of a module before and still holds, to be added to; nothing where anything but weights changed.

    Args:
        model: The user's module, beside which it is kept.
        copied: The copy that is looked at.
        inputs: Those of the recorded pass.
        graph: That pass.
    """
    seen = _digest(inputs), *_made(graph), _modules(copied)
    before, known = _kept.get(model, (None, {}))
    if before is None or None in seen or before != seen:
        known = {}
        _kept[model] = seen, known
    found: Known = known
    return found


def _digest(inputs: Any) -> str | None:
    sha = hashlib.sha256()
    for leaf in tree_leaves(inputs):
        try:
            if isinstance(leaf, Tensor):
                update_digest(sha, leaf)
            elif isinstance(leaf, _PLAIN):
                sha.update(repr(leaf).encode())
            else:
                return None
        except UnhashableError:
            return None
    return sha.hexdigest()


def _made(graph: Graph) -> tuple[Any, ...]:
    return graph.uses, graph.mixing, graph.reads, graph.explained, graph.spatial, graph.rectifiers


def _modules(module: nn.Module) -> list[Any]:
    """Every part with its type, its plain attributes, and the kinds of tensors it holds."""
    found: list[Any] = []
    for path, child in module.named_modules():
        if type(child).__module__.split(".")[0] == _COUNTING:
            continue
        held = {key: _shown(value, 0) for key, value in vars(child).items() if key not in _HELD_APART}
        found.append((path, type(child), {key: _shown(each, 0) for key, each in child._parameters.items()}, held))
    return found


def _shown(value: Any, depth: int) -> Any:
    """What tells whether a value is another than before, weights apart."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device, value.requires_grad
    if depth < _DEEPEST and isinstance(value, Mapping):
        return [(_shown(key, depth + 1), _shown(each, depth + 1)) for key, each in value.items()]
    if depth < _DEEPEST and isinstance(value, (list, tuple, set, frozenset)):
        return type(value), [_shown(each, depth + 1) for each in value]
    if depth < _DEEPEST and not isinstance(value, nn.Module) and isinstance(getattr(value, "__dict__", None), dict):
        return type(value), _shown(vars(value), depth + 1)
    return type(value)
