"""What to do about a method that failed, told by its error: said first, the error after it."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_sanity.explanation.gradient_path import lost_gradient

_LOST = ("does not require grad", "not have been used in the graph")
_OVERWRITTEN = (
    "A module overwrites what the method still needs: give rectifiers inplace=False, or have the method clone what it "
    "keeps"
)
_BY_WORDS = {
    "modified by an inplace operation": _OVERWRITTEN,
    "modified inplace": _OVERWRITTEN,
    "backward through the graph a second time": "Run the model anew for each gradient, or keep its graph: "
    "backward(retain_graph=True)",
    "a leaf Variable that requires grad is being used in an in-place": "A module overwrites its input, which the "
    "method explains: give the first one inplace=False",
    "t call numpy() on Tensor that requires grad": "Detach what goes to NumPy: tensor.detach().numpy()",
    "only Tensors of floating point": "The explained input holds whole numbers: pass it as numbers with a gradient, or "
    "token ids at their embeddings with tokens=",
}
_OF_MODEL = (
    "Take layers from the model that it is given, which is another one each time, by the names that it has there: "
    "model.get_submodule('layer4')"
)
_ANY = "Call it on a few samples, method(model, inputs, target), to see where it fails, or leave it out of methods="


def remedy_for(error: BaseException, model: nn.Module, inputs: Any) -> str:
    """What the usual errors of methods mean, and what to do; without a stop at its end."""
    text = str(error)
    if any(words in text for words in _LOST):
        return _about_the_gradient(model, inputs, unused=_LOST[1] in text)
    if isinstance(error, (AttributeError, TypeError)) and "NoneType" in text:
        return (
            "If it reads x.grad, None unless x is a leaf: call x = x.detach().clone().requires_grad_() before "
            "the model. If it watches a layer: take the layer from the model that it is given, another one each time"
        )
    names = {type(module).__name__ for module in model.modules()}
    if any(text.startswith((f"'{name}' object has no attribute", f"{name} has no attribute")) for name in names):
        return _OF_MODEL
    return next((remedy for words, remedy in _BY_WORDS.items() if words in text), _ANY)


def _about_the_gradient(model: nn.Module, inputs: Any, *, unused: bool) -> str:
    lost = lost_gradient(model, inputs)
    if lost is not None:
        advice = "use a method that needs no gradient, such as occlusion, or let the gradient through"
        return f"{lost[0].upper()}{lost[1:]}; {advice}"
    if unused:
        return "The explained score does not depend on the explained input by differentiable operations"
    return "The gradient is lost inside the method: under torch.no_grad, by detach, or at a hard step"
