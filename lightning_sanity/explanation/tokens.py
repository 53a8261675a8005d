"""Token ids, explained at their embeddings.

Ids have no gradient and no neighbours: what is explained is the embedded input ``(N, E, T)``, laid out like a signal
with a channel per dimension, and every method works on it as on any signal. The scores of a token's dimensions are
reduced to one number, padding and special tokens do not count.

The embedded input is that of the model at hand: once the embedding table itself has been re-initialised, it is embedded
anew. A test that kept the trained embeddings as inputs would leave the largest table of most language models trained,
and hand every method that multiplies by its input a trained factor for good. Controls that never look at the model see
the ids themselves.

Kokhlikyan et al., "Investigating sanity checks for saliency maps with image and text classification", 2021
(arXiv:2106.07475).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_sanity.attribution import resolve
from lightning_sanity.attribution.derived import Derived
from lightning_sanity.attribution.method import AttributionFn, Method, first, output_gradient
from lightning_sanity.explanation.calling import call
from lightning_sanity.explanation.kinds import are_ids
from lightning_sanity.explanation.maps import Explanation
from lightning_sanity.explanation.request import ask, mask_among
from lightning_sanity.model.clone import Adapted, clone, launder
from lightning_sanity.model.graph import first_tensor
from lightning_sanity.model.outputs import logits
from lightning_sanity.resources.random_streams import isolated_rng

_ENOUGH = 8
"""Sentences that show whether sums over dimensions cancel."""


@dataclass(frozen=True)
class Tokens:
    """Where token ids are embedded and how their attributions become one score per token.

    Attributes:
        embedding: Name of the module that embeds them, whose output is ``(N, T, E)``; the one ``nn.Embedding`` that is
            called with the ids if None.
        mask: Tokens that count ``(N, T)``; None = those that an input called "attention_mask" or "mask" marks, all if
            there is none.
        ignore: Ids that never count: special tokens. The embedding's own ``padding_idx`` is among them.
        reduce: "sum" over the embedding's dimensions, or their "norm". "auto" is the sum, but the norm where the model
            normalises what it embeds (BERT, GPT-2): adding the same number to all dimensions then changes nothing, and
            the sum of a gradient is 0 whatever the weights are. Signed scores of BERT are to be had behind that
            normalisation, with ``embedding="bert.embeddings"``.
        words: What an id stands for, for pictures: a vocabulary in the order of the ids, or a function such as
            ``tokenizer.convert_ids_to_tokens``; ids are shown as they are if None.
    """

    embedding: str | None = None
    mask: Tensor | None = None
    ignore: Collection[int] = ()
    reduce: Literal["auto", "sum", "norm"] = "auto"
    words: Sequence[str] | Callable[[int], str] | None = None

    def __post_init__(self) -> None:
        if self.reduce not in ("auto", "sum", "norm"):
            raise ValueError(f"Tokens: reduce must be 'auto', 'sum' or 'norm', not {self.reduce!r}")


def at_embeddings(values: Any, tokens: Tokens | None) -> bool:
    """Whether the explained input is token ids.

    Raises:
        ValueError: If ``tokens`` are asked for and it is not.
    """
    value = first(values)
    ids = are_ids(value)
    if tokens is not None and not ids:
        raise ValueError(
            f"tokens= needs ids (N, T) of an integer type, not {value.dtype} of shape {tuple(value.shape)}"
        )
    return ids


@dataclass(frozen=True)
class Embedding:
    """A place in a model where ids become vectors: the call number ``call`` of module ``module``.

    Attributes:
        module: Its name in the model of ``explanation``.
        call: Counted from 0 in every pass.
        reduce: "sum" or "norm".
        name: That of the module in the user's model.
        cancels: Whether the gradient's sum over dimensions is 0 there whatever the weights are.
        steps_first: Whether the model has turned its ids by then, so that what is embedded is ``(T, N, E)`` (XLNet).
    """

    module: str
    call: int
    reduce: str
    name: str
    cancels: bool = False
    steps_first: bool = False

    @property
    def settings(self) -> dict[str, str]:
        """What a result keeps of it."""
        return {"embedding": self.name, "reduce": self.reduce}

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the result must know."""
        if not self.cancels:
            return ()
        known = "the model normalises its embeddings, so that a gradient's sum over their dimensions is 0"
        if self.reduce == "norm":
            return (f"{known}: scores of tokens are norms",)
        return (
            f"{known}, and so are its scores: use Tokens(reduce='norm'), or an embedding= behind the normalisation",
        )

    def settled(self, what: Explanation, reduce: str) -> Embedding:
        """This place with its reduction found out; on what ``explanation`` returned."""
        part = next(what.chunks(_ENOUGH))
        try:
            slope = output_gradient(_Embedded(part.model, self), self.opened(part.model, part.inputs), part.target)
        except RuntimeError:  # nothing to differentiate, and so nothing that could cancel
            slope = torch.zeros(1, 1, 1)
        live = slope.flatten(1).any(1)
        cancels = bool(live.any()) and not bool(_sum(slope[live]).any())
        chosen = ("norm" if cancels else "sum") if reduce == "auto" else reduce
        return replace(self, reduce=chosen, cancels=cancels)

    def opened(self, model: nn.Module, inputs: Any) -> Any:
        """The inputs with their embeddings ``(N, E, T)`` by this model before them, unless they have them already."""
        if first(inputs).is_floating_point():
            return inputs
        reached: list[Tensor] = []

        def stop(output: Tensor) -> Tensor:
            reached.append(output)
            raise _Reached

        with torch.no_grad(), self._watched(model, stop), suppress(_Reached):
            model.forward(*inputs)
        made = reached[0].detach()
        return ((made.permute(1, 2, 0) if self.steps_first else made.transpose(1, 2)).contiguous(), *inputs)

    def behind(self, model: nn.Module) -> nn.Module:
        """The model as one of embeddings ``(N, E, T)``, to be called with what ``opened`` returns."""
        return _Embedded(model, self)

    def embedded(self, model: nn.Module, inputs: Any) -> tuple[nn.Module, Any]:
        """The model as one of embeddings, and its inputs with them: numbers ``(N, E, T)`` that can be replaced."""
        return self.behind(model), self.opened(model, inputs)

    def given_back(self, value: Tensor) -> Tensor:
        """Embeddings ``(N, E, T)`` as the module returns them; without gaps, for they may be viewed."""
        return (value.permute(2, 0, 1) if self.steps_first else value.transpose(1, 2)).contiguous()

    @contextmanager
    def _watched(self, model: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Let ``change`` have the embeddings, as the module returns them, whenever the model makes them."""
        calls = 0

        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
            nonlocal calls
            calls += 1
            return change(output) if calls - 1 == self.call else None

        handle = model.get_submodule(self.module).register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def explanation(self, what: Explanation, counted: Tensor) -> Explanation:
        """The same with the tokens that count, bool ``(N, T)``, as a last input, and noise in embedding space."""
        inputs = what.inputs if isinstance(what.inputs, tuple) else (what.inputs,)
        chosen = what.chosen

        def counting(model: nn.Module, given: Any) -> Any:
            assert chosen is not None
            return (*chosen(model.get_submodule("model"), given[:-1]), given[-1])

        return replace(
            what,
            model=_Counted(what.model).eval(),
            inputs=(*inputs, counted),
            opened=self.opened,
            embedded=self.behind,
            question=None if what.question is None else what.question - 1,
            chosen=None if chosen is None else counting,
        )

    def adapted(self, method: Method) -> Method:
        """A method of embeddings as one of ids: ``(N, T)`` scores, 0 for tokens that do not count.

        What hides parts of the input hides a token at a time, and never those that do not count.
        """
        method = method if method.over is None else method.over(_each_token)
        if method.passes == 0:  # what never looks at the model must not see its embeddings either
            return replace(method, attribute=self._of_ids(method.attribute))

        def around(function: AttributionFn, *, scored: bool = True) -> AttributionFn:
            if isinstance(function, Derived) and scored:
                return replace(function, plain=around(function.plain), reduced=lambda f, i: self._scores(f, i[-1]))

            def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
                opened = self.opened(model, inputs)
                own = None if opened is inputs else opened[0]  # noisy embeddings are not the model's
                found = function(_Embedded(model, self, own), opened, target)
                return self._scores(found, inputs[-1]) if scored else found

            return attribute

        refuses, prepare, completeness, settle = method.refuses, method.prepare, method.completeness, method.settle
        return replace(
            method,
            attribute=around(method.attribute),
            refuses=refuses and (lambda m, inputs, target: refuses(_Embedded(m, self), self.opened(m, inputs), target)),
            prepare=prepare and (lambda m, inputs: around(prepare(_Embedded(m, self), self.opened(m, inputs)))),
            completeness=completeness and around(completeness, scored=False),
            settle=settle
            and (lambda m, inputs, target: self.adapted(settle(_Embedded(m, self), self.opened(m, inputs), target))),
        )

    def _of_ids(self, function: AttributionFn) -> AttributionFn:
        def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
            ids = inputs[1] if first(inputs).is_floating_point() else inputs[0]
            return self._scores(function(model, ids.float()[:, None], target), inputs[-1])

        return attribute

    def _scores(self, attribution: Any, counted: Tensor) -> Tensor:
        found: Tensor = attribution[0] if isinstance(attribution, tuple) else attribution
        reduced = torch.linalg.vector_norm(_by_token(found), dim=-1) if self.reduce == "norm" else _sum(found)
        return torch.where(counted, reduced, torch.zeros_like(reduced))


def _sum(found: Tensor) -> Tensor:
    """Sums ``(N, T)`` over dimensions; 0 for samples in which they are what rounding has left of 0."""
    total = _by_token(found).sum(-1)
    rounding = max(torch.finfo(found.dtype).eps / 2, 1e-6) * found.abs().sum((1, 2))
    return total.masked_fill((total.abs().sum(1) <= rounding)[:, None], 0)


def _by_token(found: Tensor) -> Tensor:
    """``(N, E, T)`` as ``(N, T, E)`` in memory: all tokens are added up in one order, and equal ones stay tied."""
    return found.transpose(1, 2).contiguous()


def _each_token(inputs: Any) -> Tensor:
    """A part of its own for every token that counts; labels ``(N, 1, T)``."""
    counted: Tensor = inputs[-1]
    return (counted.cumsum(1) - 1).masked_fill(~counted, -1)[:, None]


class _Reached(Exception):
    """The pass has come as far as the embeddings."""


class _Counted(nn.Module):
    """A model that is also handed which tokens count, and has no use for it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any) -> Tensor:
        found: Tensor = self.model(*inputs[:-1])
        return found


class _Embedded(nn.Module):
    """A model of embeddings ``(N, E, T)``; the ids behind them say only where they stand in for.

    Args:
        model: A model of ids.
        place: Where it embeds them.
        own: What it makes of the ids by itself, where that is known.
    """

    def __init__(self, model: nn.Module, place: Embedding, own: Tensor | None = None) -> None:
        super().__init__()
        self.model, self._place, self._own = model, place, own
        self.training = False

    def forward(self, embeddings: Tensor, *inputs: Any) -> Tensor:
        value = self._place.given_back(embeddings)
        own = self._own is not None and torch.equal(embeddings, self._own)
        # Who listens for the model's outputs must not hear those of altered inputs: then its forward alone is called.
        with self._place._watched(self.model, lambda output: value.to(output.dtype)):
            found: Tensor = self.model(*inputs) if own else self.model.forward(*inputs)
        return found


def at_tokens(
    what: Explanation, names: Sequence[int | str], tokens: Tokens | None
) -> tuple[Explanation, Embedding | None, Tensor | None]:
    """An explanation of token ids at their embeddings, the embedding, and the mask ``(N, 1, T)`` of what counts.

    Args:
        what: The explanation of the ids.
        names: Of the inputs.
        tokens: See ``Tokens``.

    Returns:
        ``what`` as it is, None and None, where the model has no such embedding and none was asked for.

    Raises:
        ValueError: If ``tokens`` name an embedding that is not there, or a mask that does not fit.
    """
    given = tokens or Tokens()
    ids = first(what.inputs)
    found = _embeddings_of(what, ids, given.embedding)
    if len(found) != 1:
        if tokens is None:
            return what, None, None
        listed = ", ".join(f"'{name}'" for name, *_ in found) or "none"
        raise ValueError(
            f"one module must embed the ids once, and there is {listed}: pass tokens=Tokens(embedding=...), the name "
            "of a module that is called once and returns (N, T, E)"
        )
    module, call, steps_first = found[0]
    own = module.removeprefix("model.") if isinstance(what.model, Adapted) else module
    place = Embedding(f"model.{module}", call, given.reduce, own, steps_first=steps_first)
    counted = _counted(what, ids, names, given, what.model.get_submodule(module))
    opened = place.explanation(what, counted)
    return opened, place.settled(opened, given.reduce), counted[:, None]


def _embeddings_of(what: Explanation, ids: Tensor, named: str | None) -> list[tuple[str, int, bool]]:
    """Name and number of every call that embeds the ids, and whether it embeds them turned."""
    modules = {name: module for name, module in what.model.named_modules() if name}
    if named is not None:
        inner = [name for name in modules if name == named or name.endswith(f".{named}")]
        if not inner:
            embeddings = [name for name, module in modules.items() if isinstance(module, nn.Embedding)]
            raise ValueError(f"Tokens: there is no module '{named}'; embeddings are {embeddings or 'none'}")
        watched = {name: modules[name] for name in inner[:1]}
    else:
        watched = {name: module for name, module in modules.items() if isinstance(module, nn.Embedding)}
    calls = dict.fromkeys(watched, 0)
    found: list[tuple[str, int, bool]] = []

    def hook_for(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            seen = first_tensor((args, kwargs))
            turned = _turned(seen, output, ids, anyway=named is not None)
            if turned is not None:
                found.append((name, calls[name], turned))
            calls[name] += 1

        return hook

    handles = [module.register_forward_hook(hook_for(name), with_kwargs=True) for name, module in watched.items()]
    try:
        what.outputs()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _turned(seen: Tensor | None, output: Any, ids: Tensor, *, anyway: bool) -> bool | None:
    """Whether a call that was given ``seen`` embeds the ids with steps first; None if it does not embed them.

    Args:
        seen: The first tensor that it was given.
        output: What it returned.
        ids: The ids ``(N, T)``.
        anyway: Whether its output's shape is enough.
    """
    if not isinstance(output, Tensor) or output.ndim != 3:
        return None
    fitting = {turned: given for turned, given in ((False, ids), (True, ids.mT)) if output.shape[:2] == given.shape}
    same = [turned for turned, given in fitting.items() if seen is not None and torch.equal(seen, given)]
    return next(iter(same or (fitting if anyway else ())), None)


def _counted(what: Explanation, ids: Tensor, names: Sequence[int | str], tokens: Tokens, module: nn.Module) -> Tensor:
    values = what.inputs if isinstance(what.inputs, tuple) else (what.inputs,)
    mask = tokens.mask if tokens.mask is not None else mask_among(names, values)
    counted = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.to(ids.device) != 0
    if counted.shape != ids.shape:
        raise ValueError(f"Tokens: a mask of shape {tuple(counted.shape)} does not fit ids of shape {tuple(ids.shape)}")
    padding = getattr(module, "padding_idx", None)
    for special in {*tokens.ignore, *([] if padding is None else [padding])}:
        counted = counted & (ids != special)
    return counted


def token_scores(
    model: nn.Module,
    inputs: Any,
    target: Any = None,
    *,
    method: str | AttributionFn = "integrated_gradients",
    tokens: Tokens | None = None,
    forward: Callable[..., Any] | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """One score per token, as the randomization test compares them and ``report.tokens.draw`` colours them.

    Args:
        model: A module; left as it is.
        inputs: See ``parameter_randomization_test``.
        target: See there.
        method: A name of ``attribution.available()`` or a function.
        tokens: See ``Tokens``.
        forward: See ``parameter_randomization_test``.
        seed: Of the method's draws.

    Returns:
        Scores ``(N, T)``, each sample's divided by their Euclidean norm, and which tokens count, bool ``(N, T)``.
    """
    asked = ask(model, inputs, target, forward=forward, real=None if tokens is None else tokens.mask, seed=seed)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    at_embeddings(asked.inputs, tokens or Tokens())
    with isolated_rng(seed, device), torch.inference_mode(False), torch.enable_grad():
        copied, values = clone(model), launder(asked.inputs, device)
        with torch.no_grad():
            outputs = logits(call(copied, values, asked.forward))
        what = Explanation(Adapted(copied, asked.forward).eval(), values, None)
        if outputs.ndim == 2:
            chosen = outputs.argmax(1) if asked.target is None else torch.as_tensor(asked.target, device=device)
            what = replace(what, target=chosen.expand(len(outputs)))
        what, place, mask = at_tokens(what, asked.names, tokens or Tokens())
        assert place is not None
        assert mask is not None
        scores = place.adapted(resolve(method))(what.model, what.inputs, what.target).detach()
    return torch.nn.functional.normalize(scores, dim=1), mask[:, 0]
