"""Methods that are not ours are guests: nothing they do to the model, to torch or to their inputs outlives a call.

What a guest gets is fresh: copies of inputs and target, and the model on copies of its weights, whose parameters
require a gradient where the user's do. What it leaves is put back, also after an error, and said. Weights need not be
compared for that, because it never held the originals. The library's own methods are called directly.
"""

from __future__ import annotations

import math
import os
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules
from torch.utils._pytree import tree_leaves, tree_map

from lightning_sanity.attribution.derived import Derived
from lightning_sanity.attribution.method import AttributionFn, Method, first
from lightning_sanity.explanation.returned import NoAttribution, attribution_of
from lightning_sanity.model.weights import is_sharded
from lightning_sanity.resources.budget import Interrupted, alarm

_visiting: ContextVar[bool] = ContextVar("visiting", default=False)
_PARTS = {"_parameters": "parameters", "_buffers": "buffers", "_modules": "submodules", "training": "the mode"}
_REGISTERED = {"_parameters", "_buffers", "_modules"}
_CONTAINERS = (dict, list, set)


def visiting() -> bool:
    """Whether a guest is being called: what the model returns then is the guest's, not the test's."""
    return _visiting.get()


class Guests:
    """The methods of one test that are not ours.

    Args:
        models: The user's models, each with the copy that is explained.
        deadline: Value of ``time.perf_counter()`` by which the test is to be done, if any: a call that takes half of
            what is left until then is said to hang, so that its neighbours have the other half.
    """

    def __init__(self, models: Iterable[tuple[nn.Module, nn.Module]], deadline: float | None = None) -> None:
        self._trainable: list[Tensor] = []
        self._sharded = False
        for theirs, copied in models:
            own = getattr(theirs, "_orig_mod", theirs).named_parameters(remove_duplicate=False)
            asked = {name for name, p in own if p.requires_grad}
            self._sharded |= is_sharded(copied)
            self._trainable += [p for name, p in copied.named_parameters() if name in asked and p.is_floating_point()]
        self._said: dict[str, dict[str, None]] = {}
        self._known: set[str] = set()
        self._deadline = deadline
        self._least = 0.0 if deadline is None else (deadline - time.perf_counter()) / 4

    def invite(self, methods: Mapping[str, Method]) -> dict[str, Method]:
        """The same methods, the foreign ones and those through other libraries' hooks guarded."""
        return {name: self._guarded(name, each) if _is_guest(each) else each for name, each in methods.items()}

    @property
    def notes(self) -> tuple[str, ...]:
        """What the guests left behind and what was made of their attributions, a sentence per method."""
        return tuple(f"method '{name}' {'; it '.join(said)}" for name, said in self._said.items())

    def _guarded(self, name: str, method: Method) -> Method:
        over, prepare, settle, limit = method.over, method.prepare, method.settle, method.max_seconds

        def attribution(function: AttributionFn) -> AttributionFn:
            return lambda model, inputs, target: self._attribution(name, function, model, inputs, target, limit)

        def prepared(model: nn.Module, inputs: Any) -> AttributionFn:
            assert prepare is not None
            made = self._call(name, lambda model, inputs, target: prepare(model, inputs), model, inputs, limit=limit)
            return attribution(made)

        def refuses(model: nn.Module, inputs: Any, target: Tensor | None) -> str | None:
            assert method.refuses is not None
            try:
                reason: str | None = self._call(name, method.refuses, model, inputs, target, limit)
            except Exception as error:
                return f"asking whether it applies raised {type(error).__name__}: {error}"
            return reason

        def once(model: nn.Module, inputs: Any) -> AttributionFn:
            """Prepared when it is first called, so that an error there is the method's own."""
            made: list[AttributionFn] = []

            def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
                if not made:
                    made.append(prepared(model, inputs))
                return made[0](model, inputs, target)

            return attribute

        complete = method.completeness
        return replace(
            method,
            attribute=attribution(method.attribute),
            refuses=method.refuses and refuses,
            prepare=method.prepare and once,
            completeness=complete and (lambda m, x, t: self._call(name, complete, m, x, t, limit)),
            settle=settle and (lambda m, x, t: self._guarded(name, self._call(name, settle, m, x, t, limit))),
            over=over and (lambda parts: self._guarded(name, over(parts))),
        )

    def _attribution(
        self, name: str, function: AttributionFn, model: nn.Module, inputs: Any, target: Tensor | None, limit: float
    ) -> Tensor:
        found, remark = attribution_of(self._call(name, function, model, inputs, target, limit), first(inputs))
        if remark is not None:
            self._say(name, remark)
        return found

    def _call(
        self,
        name: str,
        function: Callable[..., Any],
        model: nn.Module,
        inputs: Any,
        target: Tensor | None = None,
        limit: float = math.inf,
    ) -> Any:
        left: list[str] = []
        seconds, rule = self._patience(limit)
        hangs = f"did not return within {seconds:.3g} s, {rule}"
        token = _visiting.set(True)
        try:
            with (
                _streams_kept(first(inputs).device),
                _settings_kept(left),
                self._as_the_users(),
                self._on_copies(model, left, thorough=name not in self._known),
                _modules_kept(model, left),
            ):
                values, asked = tree_map(_fresh, inputs), _fresh(target)
                with alarm(seconds, hangs):
                    return function(model, values, asked)
        except Interrupted as error:
            if str(error) != hangs:
                raise
            raise NoAttribution(hangs) from None
        finally:
            _visiting.reset(token)
            self._known.add(name)
            for what in left:
                self._say(name, f"changed {what}, which was put back after the call")

    def _patience(self, limit: float) -> tuple[float, str]:
        """Seconds that a call may take, and what says so; any, where other processes wait for the model's passes."""
        if self._sharded:
            return math.inf, ""
        if self._deadline is not None:
            short = max((self._deadline - time.perf_counter()) / 2, self._least)
            if short < limit:
                return short, "half of the time that was left of the test's limit"
        return limit, "the max_seconds of its Method"

    def _say(self, name: str, remark: str) -> None:
        self._said.setdefault(name, {})[remark] = None

    @contextmanager
    def _as_the_users(self) -> Iterator[None]:
        """Parameters require a gradient where the user's do, and have none yet."""
        before = [(parameter, parameter.requires_grad) for parameter in self._trainable]
        for parameter in self._trainable:
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter, flag in before:
                parameter.requires_grad_(flag)

    @contextmanager
    def _on_copies(self, model: nn.Module, left: list[str], *, thorough: bool) -> Iterator[None]:
        """The model's tensors are copies inside the block, which share memory among themselves as the originals do.

        A write to ``.data`` shows in no version counter: ``thorough`` compares the values as well, to be able to say
        what was changed. It is always undone. Shards are the model's own, measured in place: FSDP resizes their
        memory while it gathers them, so they are not copied, and what is written to them stays.
        """
        if self._sharded:
            yield
            return
        originals = [(where, tensor, tensor.data, tensor.grad, tensor.requires_grad) for where, tensor in _held(model)]
        copies: dict[int, torch.UntypedStorage] = {}
        for _, tensor, data, *_ in originals:
            storage = data.untyped_storage()
            key = storage._cdata  # not its address, which torch tells no one without making a due copy
            if key not in copies:
                copies[key] = _copy_of(storage)
            view = torch.empty(0, dtype=data.dtype, device=data.device)
            tensor.data = view.set_(copies[key], data.storage_offset(), data.shape, data.stride())
        versions = [tensor._version for _, tensor, *_ in originals]
        try:
            yield
        finally:
            changed: dict[str, str] = {}
            for (where, tensor, data, grad, flag), version in zip(originals, versions, strict=True):
                if tensor._version != version or (thorough and not _same(tensor.data, data)):
                    changed.setdefault("values", where)
                if tensor.grad is not grad:
                    changed.setdefault("the gradient", where)
                    tensor.grad = None  # the old one fits the old data only
                if tensor._backward_hooks:
                    changed.setdefault("tensor hooks", where)
                    tensor._backward_hooks = None
                tensor.data = data
                tensor.grad = grad
                if tensor.requires_grad != flag and tensor.is_leaf:
                    changed.setdefault("requires_grad", where)
                    tensor.requires_grad_(flag)
            left += [f"{what} of '{where}'" for what, where in changed.items()]


def _is_guest(method: Method) -> bool:
    return (method.foreign or method.guarded) and not isinstance(method.attribute, Derived)


def _fresh(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _copy_of(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    """A copy that is made when one of the two is first written to, where torch can do that, and now elsewhere."""
    whole = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
    try:
        copied: Tensor = torch._lazy_clone(whole)
    except (AttributeError, RuntimeError):
        return storage.clone()
    return copied.untyped_storage()


def _held(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters, buffers and bare tensors of a model, each once, with a name."""
    found: dict[int, tuple[str, Tensor]] = {}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for key, value in vars(module).items():
            if key not in _REGISTERED and (isinstance(value, Tensor) or _filled(value)):
                for leaf in tree_leaves(value):
                    if isinstance(leaf, Tensor):
                        found.setdefault(id(leaf), (prefix + key, leaf))
        for key, leaf in (*module._parameters.items(), *module._buffers.items()):
            if leaf is not None:
                found[id(leaf)] = prefix + key, leaf
    return [(name, tensor) for name, tensor in found.values() if _plain(tensor)]


def _filled(value: Any) -> bool:
    """Whether it may hold tensors, unlike the sizes and strides that most modules keep."""
    if not isinstance(value, (dict, list, tuple)):
        return False
    return any(type(each) not in _NUMBERS for each in (value.values() if isinstance(value, dict) else value))


_NUMBERS = {int, float, bool, str, type(None)}


def _plain(tensor: Tensor) -> bool:
    """Whether its values lie in a memory of its own: no shard, no result, no placeholder."""
    return (
        tensor.grad_fn is None
        and not tensor.is_inference()
        and tensor.layout is torch.strided
        and tensor.device.type != "meta"
        and not tensor.is_quantized
        and not hasattr(tensor, "to_local")
    )


def _same(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    same = torch.equal(one, other)
    return same or bool(((one == other) | ((one != one) & (other != other))).all())  # NaN is as it was


# --------------------------------------------------------------------------------------------------------- the modules


@contextmanager
def _modules_kept(model: nn.Module, left: list[str]) -> Iterator[None]:
    """Attributes, hooks, modes and classes of all modules, and torch's hooks on every module, as they were before."""
    state = [(f"'{path or type(m).__name__}'", m, type(m), _attributes(vars(m))) for path, m in model.named_modules()]
    everywhere = _attributes({key: value for key, value in vars(torch_modules).items() if key.startswith("_global")})
    code = _code_of(model)
    try:
        yield
    finally:
        changed: dict[str, str] = {}
        for where, module, kind, before in state:
            if type(module) is not kind:
                changed.setdefault("the class", where)
                module.__class__ = kind
            for key in _put_back(vars(module), before):
                changed.setdefault(_PARTS.get(key) or ("hooks" if "hooks" in key else f"attribute {key}"), where)
        if _put_back(vars(torch_modules), everywhere, whole=False):
            left.append("torch's hooks on all modules")
        left += [f"{key} of {where.__name__}" for where, before in code for key in _rewritten(where, before)]
        left += [f"{what} of {where}" for what, where in changed.items()]


def _code_of(model: nn.Module) -> list[tuple[Any, dict[str, Any]]]:
    """The classes of all modules, the files that they come from and torch's functions, with what stands in them.

    Some libraries explain by replacing methods of classes, or functions of a file, for the rest of the process.
    """
    classes = dict.fromkeys(base for kind in dict.fromkeys(map(type, model.modules())) for base in kind.__mro__[:-1])
    files = dict.fromkeys(sys.modules.get(kind.__module__) for kind in classes)
    return [(where, dict(vars(where))) for where in (*classes, *files, nn.functional) if where is not None]


def _rewritten(where: Any, before: Mapping[str, Any]) -> list[str]:
    """Functions and classes that were replaced, put back; what is merely new, as a late import is, stays."""
    now = vars(where)
    changed = [key for key, value in before.items() if now.get(key) is not value and _is_code(value)]
    for key in changed:
        setattr(where, key, before[key])
    return changed


def _is_code(value: Any) -> bool:
    return callable(value) or isinstance(value, (staticmethod, classmethod, property))


_Attributes = dict[str, tuple[Any, Any]]


def _attributes(values: Mapping[str, Any]) -> _Attributes:
    """Every value, and what it holds if that can be changed."""
    return {key: (value, value.copy() if isinstance(value, _CONTAINERS) else None) for key, value in values.items()}


def _put_back(now: dict[str, Any], before: _Attributes, *, whole: bool = True) -> list[str]:
    """Make attributes what they were, one by one; returns the names of those that were not."""
    changed = [key for key in now if key not in before] if whole else []
    for key in changed:
        del now[key]
    for key, (value, held) in before.items():
        same = now.get(key, now) is value and (held is None or _holds(value, held))
        if same:
            continue
        changed.append(key)
        now[key] = value
        if isinstance(value, list):
            value[:] = held
        elif held is not None:
            value.clear()
            value.update(held)
    return changed


def _holds(value: Any, held: Any) -> bool:
    if not held:
        return not value
    if isinstance(value, dict):
        pairs = zip(value.items(), held.items(), strict=False)
        return len(value) == len(held) and all(a is b and x is y for (a, x), (b, y) in pairs)
    if isinstance(value, list):
        return len(value) == len(held) and all(x is y for x, y in zip(value, held, strict=True))
    return bool(value == held)


# ------------------------------------------------------------------------------------------------------------ settings


def _set_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)


def _set_cudnn(flags: list[bool]) -> None:
    for name, flag in zip(_CUDNN, flags, strict=True):
        setattr(torch.backends.cudnn, name, flag)


def _set_filters(kept: list[Any]) -> None:
    warnings.filters[:] = kept  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _folder() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was removed meanwhile
        return None


def _enter(folder: str | None) -> None:
    if folder is not None:
        os.chdir(folder)


_CUDNN = ("enabled", "benchmark", "deterministic", "allow_tf32")
_SETTINGS: tuple[tuple[str, Callable[[], Any], Callable[[Any], Any]], ...] = (
    ("the grad mode", torch.is_grad_enabled, torch.set_grad_enabled),
    ("the default dtype", torch.get_default_dtype, torch.set_default_dtype),
    ("the default device", torch.get_default_device, _set_device),
    ("the number of threads", torch.get_num_threads, torch.set_num_threads),
    (
        "the demand for deterministic algorithms",
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda kept: torch.use_deterministic_algorithms(kept[0], warn_only=kept[1]),
    ),
    (
        "cuDNN's flags",
        lambda: [getattr(torch.backends.cudnn, name) for name in _CUDNN],
        _set_cudnn,
    ),
    ("the precision of matmul", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    ("anomaly detection", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    ("NumPy's error handling", np.geterr, lambda kept: np.seterr(**kept)),
    ("the warning filters", lambda: list(warnings.filters), _set_filters),
    ("the working directory", _folder, _enter),
)


@contextmanager
def _settings_kept(left: list[str]) -> Iterator[None]:
    before = [(name, read(), read, write) for name, read, write in _SETTINGS]
    try:
        yield
    finally:
        for name, value, read, write in before:
            if read() != value:
                left.append(name)
                write(value)


@contextmanager
def _streams_kept(device: torch.device) -> Iterator[None]:
    """Random streams go on after the block where they were before it: a guest may draw as much as it likes."""
    accelerator = torch.get_device_module(device) if device.type not in ("cpu", "meta") else None
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    of_device = accelerator.get_rng_state(device) if accelerator is not None else None
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if accelerator is not None:
            accelerator.set_rng_state(of_device, device)
