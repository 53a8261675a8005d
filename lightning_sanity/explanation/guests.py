"""Methods that are not ours are guests: nothing they do to the model, to torch or to their inputs outlives a call.

What a guest gets is fresh: copies of inputs and target, and the model on copies of its weights, whose parameters
require a gradient where the user's do. What it leaves is put back, also after an error, and said. Weights need not be
compared for that, because it never held the originals. The library's own methods are called directly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_sanity.attribution.derived import Derived
from lightning_sanity.attribution.method import AttributionFn, Method, first
from lightning_sanity.explanation.lent_model import modules_kept, tensors_lent
from lightning_sanity.explanation.lent_settings import settings_kept, streams_kept
from lightning_sanity.explanation.returned import NoAttribution, attribution_of
from lightning_sanity.model.weights import is_sharded
from lightning_sanity.resources.budget import Interrupted, alarm

_visiting: ContextVar[bool] = ContextVar("visiting", default=False)


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
        modules = list(model.named_modules())
        seconds, rule = self._patience(limit)
        hangs = f"did not return within {seconds:.3g} s, {rule}"
        token = _visiting.set(True)
        try:
            with (
                streams_kept(first(inputs).device),
                settings_kept(left),
                self._as_the_users(),
                # FSDP resizes the memory of shards while it gathers them: they are measured in place.
                nullcontext() if self._sharded else tensors_lent(modules, left, thorough=name not in self._known),
                modules_kept(modules, left),
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


def _is_guest(method: Method) -> bool:
    return (method.foreign or method.guarded) and not isinstance(method.attribute, Derived)


def _fresh(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
