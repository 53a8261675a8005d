"""What a model computes from its weights once and keeps: found, and emptied whenever the weights are others.

Attention biases gathered in eval mode, text features of a zero-shot classifier, merged weights: such a cache goes on
serving values of the trained weights when the weights have long been random. How a model's own code would empty one
cannot be known, so some ways are tried on the copy, and one is believed that proves itself: the trained model's output
stays as it was, and with other weights the cache holds other values.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_sanity.model.hidden import Hidden
from lightning_sanity.model.tensor_paths import Place
from lightning_sanity.model.weights import zeroed

_HOPELESS = 8  # trained tensors in a row that are no caches, after which none of a hundred more will be
_OF_EVERY_MODULE = vars(nn.Module()).keys()


class _Way(Protocol):
    """Empties a cache, or has it filled anew."""

    def __call__(self) -> None: ...


@dataclass
class Caches:
    """A forward pre-hook that empties a model's caches when its weights have changed since it last ran.

    Attributes:
        model: The model that holds them.
        names: Where they hang.
    """

    model: nn.Module
    names: tuple[str, ...] = ()
    _ways: list[_Way] = field(default_factory=list)
    _filled_for: tuple[Any, ...] = ()

    def __bool__(self) -> bool:
        return bool(self._ways)

    def __call__(self, module: nn.Module, arguments: Any) -> None:
        """Before a pass of ``module``, the model itself or what wraps it."""
        if self._filled_for != _state(self.model):
            self.empty()

    def forget(self) -> None:
        """Have them emptied at the next pass, whatever the weights are then."""
        self._filled_for = ()

    @torch.no_grad()
    def empty(self) -> None:
        """Empty them now."""
        for way in self._ways:
            way()
        self._filled_for = _state(self.model)


def caches_of(
    model: nn.Module, look: Callable[[], Sequence[Hidden]], given: nn.Module, run: Callable[[], Any]
) -> Caches:
    """The caches among what a pass reads beside its parameters.

    Args:
        model: A copy, on its trained weights and in eval mode; its caches may be filled already.
        look: What counts as trained of what another pass reads.
        given: The module that it was copied from, which has not run since.
        run: Runs the copy on the probe; returns its outputs.
    """
    found = Caches(model)
    names: list[str] = []
    failures = 0
    with torch.no_grad():
        before = _tensors(run())
    waiting, tried = list(look()), set[str]()
    while waiting and failures < _HOPELESS:
        each = waiting.pop(0)
        tried.add(each.name)
        if each.place is None or each.place.shared:  # the original would lose it, too
            continue
        place = _outside_of_tuples(each.place)
        ways = (*found._ways, *_ways(model, given, place))
        way = next((way for way in ways if _proven(model, place, way, run, before)), None)
        failures = failures + 1 if way is None else 0
        if way is not None:
            names.append(each.name)
            found._ways += [] if way in found._ways else [way]
            with torch.no_grad():
                run()
            waiting = [other for other in look() if other.name not in tried]  # in other containers now, perhaps
    found.names = tuple(names)
    if found:
        found.empty()
    return found


def _state(model: nn.Module) -> tuple[Any, ...]:
    return tuple((tensor._version, tensor.data_ptr()) for tensor in [*model.parameters(), *model.buffers()])


_MISSING = object()


def _value(place: Place) -> Any:
    """What hangs at a place now; ``_MISSING`` where nothing does."""
    try:
        return place.holder[place.key] if place.item else getattr(place.holder, place.key, _MISSING)
    except (KeyError, IndexError, TypeError):
        return _MISSING


# ------------------------------------------------------------------------------------------------- ways to empty one


@dataclass(frozen=True)
class _AsGiven:
    """Set what a pass wrote beside the cache, flags for example, back to what it was before."""

    module: nn.Module
    given: nn.Module

    def __call__(self) -> None:
        now, before = vars(self.module), vars(self.given)
        for key in [key for key in now if key not in before]:
            del now[key]
        for key, value in before.items():
            if key not in _OF_EVERY_MODULE and _simple(value):
                now[key] = type(value)() if isinstance(value, (list, dict, set)) else value
        for key, buffer in self.given._buffers.items():
            if buffer is None:
                self.module._buffers[key] = None


@dataclass(frozen=True)
class _Toggled:
    """What a module gathers in eval mode it gathers again on its way through training mode."""

    module: nn.Module

    def __call__(self) -> None:
        self.module.train()
        self.module.eval()


@dataclass(frozen=True, eq=False)
class _Cleared:
    """Nothing in the whole collection: it may hold an entry per device, or per size of a batch."""

    held: Any

    def __call__(self) -> None:
        self.held.clear()


@dataclass(frozen=True)
class _Emptied:
    """None in its place."""

    place: Place

    def __call__(self) -> None:
        if self.place.item:
            self.place.holder[self.place.key] = None
        else:
            setattr(self.place.holder, self.place.key, None)


@dataclass(frozen=True)
class _Removed:
    """Nothing in its place."""

    place: Place

    def __call__(self) -> None:
        if _value(self.place) is _MISSING:
            return
        if self.place.item:
            del self.place.holder[self.place.key]
        else:
            delattr(self.place.holder, self.place.key)


def _ways(model: nn.Module, given: nn.Module, place: Place) -> Iterator[_Way]:
    owner = place.owner
    path = next((path for path, module in model.named_modules() if module is owner), None)
    original = None if path is None else dict(given.named_modules()).get(path)
    if original is not None and type(original) is type(owner) and _written(owner, original):
        yield _AsGiven(owner, original)
    if type(owner).train is not nn.Module.train:
        yield _Toggled(owner)
    if place.item and isinstance(place.holder, (dict, list)):
        yield _Cleared(place.holder)
    yield _Removed(place)
    yield _Emptied(place)


def _written(module: nn.Module, given: nn.Module) -> bool:
    """Whether a pass wrote anything to a module that is not what it was copied from."""
    now, before = vars(module), vars(given)
    written = now.keys() != before.keys() or any(
        value is None and module._buffers.get(key) is not None for key, value in given._buffers.items()
    )
    flags = (key for key in before.keys() - _OF_EVERY_MODULE if _simple(before[key]))
    return module is not given and (written or any(not _equal(now[key], before[key]) for key in flags))


def _equal(one: Any, two: Any) -> bool:
    return type(one) is type(two) and (bool(one) == bool(two) if isinstance(one, (list, dict, set)) else one == two)


def _simple(value: Any) -> bool:
    empty = isinstance(value, (list, dict, set)) and not value
    return value is None or empty or isinstance(value, (bool, int, float, str))


def _outside_of_tuples(place: Place) -> Place:
    """Of a tensor in a tuple, which nobody can empty, the place of the tuple."""
    if not isinstance(place.holder, tuple):
        return place
    key = next((key for key, value in vars(place.owner).items() if value is place.holder), None)
    return place if key is None else place.below(str(key), place.owner, key)


def _proven(model: nn.Module, place: Place, way: _Way, run: Callable[[], Any], before: Sequence[Tensor]) -> bool:
    """Whether the trained output stays, and other weights give other values; if not, all is put back."""
    module, trained = place.owner, _value(place)
    kept = dict(vars(module)), dict(module._buffers)
    contents = copy.copy(place.holder) if place.item and isinstance(place.holder, (dict, list)) else None
    if not isinstance(trained, (Tensor, tuple)):
        return False
    with torch.no_grad():
        try:
            way()
            if _alike(before, _tensors(run())) and _renewed(model, place, way, run, trained):
                way()
                return True
        except Exception:  # a model that cannot do without what was taken for a cache
            pass
    vars(module).update(kept[0])
    module._buffers.update(kept[1])
    if isinstance(contents, dict):
        place.holder.update(contents)
    elif contents is not None:
        place.holder[:] = contents
    elif _value(place) is not trained:
        if place.item:
            place.holder[place.key] = trained
        else:
            setattr(place.holder, place.key, trained)
    return False


def _renewed(model: nn.Module, place: Place, way: _Way, run: Callable[[], Any], trained: Any) -> bool:
    with zeroed(model):
        way()
        run()
        now, then = _tensors(_value(place)), _tensors(trained)
    way()
    return len(now) != len(then) or not all(map(torch.equal, now, then))


def _tensors(outputs: Any) -> list[Tensor]:
    return [leaf.detach().clone() for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _alike(one: Sequence[Tensor], two: Sequence[Tensor]) -> bool:
    return len(one) == len(two) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True)
        for a, b in zip(one, two, strict=True)
    )
