"""What no step re-initialises though a pass computes with it: found before the walk, and watched at its depths.

Three kinds, each with its own remedy. Trained tensors that are no parameters cannot be re-initialised; they are named,
count against coverage, and nothing passes. Caches that the model fills by itself are emptied whenever its weights
change. Parameters that the first pass does not read, an expert of a mixture for example, may be read once the router is
random: they become random with the first step, whether anybody has seen them read or not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from lightning_sanity.explanation.preparation import recorded
from lightning_sanity.model.caches import Caches, caches_of
from lightning_sanity.model.graph import Graph
from lightning_sanity.model.hidden import Hidden, Reads, reads_of
from lightning_sanity.model.weights import is_sharded
from lightning_sanity.resources.processes import Share
from lightning_sanity.resources.quoting import listed

_UNSAID = ("one number", "statistics")  # kinds that nobody needs to be told of


@dataclass
class Leftovers:
    """What passes were seen to read beside the parameters of the steps.

    Attributes:
        trained: Tensors that count as trained, by name.
        constants: Tensors that are constant by nature or declared, by name.
        late: Parameters that only a pass with random weights read.
        caches: What the model keeps of its weights, emptied as they change; empty if there is none.
    """

    _look: Callable[[], Reads]
    _known: frozenset[str]
    caches: Caches
    trained: dict[str, Hidden] = field(default_factory=dict)
    constants: dict[str, Hidden] = field(default_factory=dict)
    late: dict[str, None] = field(default_factory=dict)

    def look(self) -> None:
        """Watch one pass with the weights as they are now."""
        self._note(self._look())

    def _note(self, reads: Reads) -> None:
        for each in reads.hidden:
            if each.name not in self.caches.names:
                (self.trained if each.kind is None else self.constants).setdefault(each.name, _without_value(each))
        self.late.update(dict.fromkeys(sorted(reads.parameters - self._known)))

    def unite(self, share: Share) -> None:
        """Every process learns what the others saw."""
        if share.world == 1:
            return
        for trained, constants, late in share.exchange((self.trained, self.constants, self.late)):
            self.trained, self.constants, self.late = (
                trained | self.trained,
                constants | self.constants,
                late | self.late,
            )

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know."""
        notes = []
        kinds: dict[str, list[str]] = {}
        for each in self.constants.values():
            if each.kind is not None and each.kind not in _UNSAID:
                kinds.setdefault(each.kind, []).append(each.name)
        if kinds:
            parts = [f"{kind}: {listed(names)}" for kind, names in kinds.items()]
            notes.append(f"read beside the parameters and taken for constants: {'; '.join(parts)}")
        if self.caches:
            notes.append(f"caches that are emptied whenever weights change: {listed(self.caches.names)}")
        if self.late:
            notes.append(f"read only with random weights, and random from the first step on: {listed(self.late)}")
        if self.trained:
            notes.append(f"stayed trained: {listed([each.described for each in self.trained.values()])}")
        return tuple(notes)

    @property
    def problem(self) -> str | None:
        """Why no verdict stands, or None."""
        if not self.trained:
            return None
        quantised = any(each.whole for each in self.trained.values())
        advice = (
            "test the float model that was quantised"
            if quantised
            else "register it as nn.Parameter, its layers in an nn.ModuleList; empty it first if it is a cache; or "
            f"declare it with constants=[{next(iter(self.trained))!r}] if nobody trained it"
        )
        values = "quantised weights" if quantised else "values that are no registered parameters"
        return (
            f"the model computes with {values}, so that they stayed trained: "
            f"{listed([each.described for each in self.trained.values()])}; {advice}"
        )


def leftovers_of(
    copied: nn.Module,
    explained: nn.Module,
    values: tuple[Any, ...],
    graph: Graph,
    given: nn.Module,
    constants: Sequence[str] = (),
    forward: Callable[..., Any] | None = None,
) -> tuple[Leftovers, Graph]:
    """Watch a second pass of the trained copy, and have its caches emptied from now on.

    Args:
        copied: The copy whose weights become random.
        explained: Its face that is called.
        values: Positional arguments of a pass.
        graph: The recording of its first pass.
        given: The module that it was copied from.
        constants: Names or regular expressions of tensors that were never trained.
        forward: What the user calls the model by.

    Returns:
        What was found, and the recording again, where a cache hid some of the parameters from the first.
    """
    further = () if forward is None else (forward,)

    def look() -> Reads:
        return reads_of(copied, values, lambda: explained(*values), constants, further)

    first = look()
    caches = Caches(copied)
    if any(each.kind is None for each in first.hidden) and not is_sharded(copied):
        caches = caches_of(
            copied,
            lambda: [each for each in look().hidden if each.kind is None],
            getattr(given, "_orig_mod", given),
            lambda: explained(*values),
        )
    if caches:
        explained.register_forward_pre_hook(caches)
        caches.forget()
        graph = recorded(copied, explained, values, graph)
        caches.forget()  # so that the next recording sees what fills them, too
    found = Leftovers(look, first.parameters | frozenset(graph.uses), caches)
    found._note(first)
    return found, graph


def _without_value(each: Hidden) -> Hidden:
    return replace(each, value=None, place=None)
