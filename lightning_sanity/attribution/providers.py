"""Captum's attribution classes and objects as methods: built anew on whatever model is being explained."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from captum import attr
from torch import Tensor, nn

from lightning_sanity.attribution.guided import rectifiers_in
from lightning_sanity.attribution.layers import last_map, layout_of, no_positions, resized, sides_of, submodule
from lightning_sanity.attribution.method import Method, Refusal, first, leaf, outputs_of, rest

_HOOKS_MODULES = (attr.GuidedBackprop, attr.Deconvolution, attr.GuidedGradCam, attr.DeepLift, attr.DeepLiftShap)
_OURS = {
    "DeepLift": "deeplift",
    "DeepLiftShap": "deepshap",
    "GuidedBackprop": "guided_backprop",
    "GuidedGradCam": "guided_gradcam",
    "Deconvolution": "deconvnet",
    "GradientShap": "expected_gradients",
    "Occlusion": "occlusion",
    "NoiseTunnel": "smoothgrad",
}
_MODEL = ("forward_func", "model")
# Called in the constructor by one name, kept by the object under another.
_KEPT_AS = {"multiply_by_inputs": ("_multiply_by_inputs", "multiplies_by_inputs")}


def is_captum(method: Any) -> bool:
    """Whether this is one of captum's attribution classes or objects."""
    return isinstance(method, attr.Attribution) or (isinstance(method, type) and issubclass(method, attr.Attribution))


def captum_method(method: Any, layer: str | None = None) -> Method:
    """A captum class or object as a method.

    A class is built on the model that is explained. An object is bound to the user's model, so one of the same class
    and settings is built on the clone; its layer is found there by name.

    Args:
        method: A class such as ``captum.attr.Saliency`` or an object of one.
        layer: For classes that need one: the name of the module; the last feature map if None.

    Raises:
        ValueError: If it cannot be rebuilt, or needs arguments that only the user knows; says which.
    """
    cls: Any = method if isinstance(method, type) else type(method)
    build = _builder(cls, None if isinstance(method, type) else method, layer)
    _check_call(cls)
    stochastic = issubclass(cls, (attr.NoiseTunnel, attr.Lime, attr.KernelShap, attr.ShapleyValueSampling))

    def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        value = first(inputs)
        built = build(model, inputs)
        arguments: dict[str, Any] = {"target": target, "additional_forward_args": rest(inputs)}
        known = inspect.signature(cls.attribute).parameters
        arguments = {name: value for name, value in arguments.items() if name in known}
        if cls is attr.Saliency:
            arguments["abs"] = False
        if cls is attr.LayerGradCam:
            arguments["relu_attributions"] = True
        found = built.attribute(leaf(value) if value.is_floating_point() else value, **arguments)
        found = found[0] if isinstance(found, tuple) else found
        found = found.detach()
        if found.shape == value.shape or no_positions(value) is not None:
            return found.to(value.dtype) if value.is_floating_point() else found
        layout = layout_of(tuple(found.shape), sides_of(value))
        if layout is None:
            raise ValueError(f"captum's {cls.__name__} returned shape {tuple(found.shape)}, no map of the input")
        return resized(layout.grid(found).sum(1, keepdim=True), value)

    return Method(cls.__name__, attribute, stochastic=stochastic, refuses=_refuses(cls, build), guarded=True)


def _builder(cls: type, given: Any, layer: str | None) -> Callable[[nn.Module, Any], Any]:
    """``(model, inputs) -> object`` of the class on that model."""
    if issubclass(cls, attr.NeuronAttribution):
        raise ValueError(f"captum's {cls.__name__} explains a neuron, not the output: pass a function instead")
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    if "attribution_method" in parameters:
        if given is None:
            raise ValueError(f"captum's {cls.__name__} wraps another method: pass an object of it, not the class")
        inner = given.attribution_method
        build = _builder(type(inner), inner, layer)
        return lambda model, inputs: cls(build(model, inputs))
    model_name = next((name for name in _MODEL if name in parameters), None)
    if model_name is None:
        raise ValueError(f"captum's {cls.__name__} takes no model: pass a function (model, inputs, target) instead")
    kept: dict[str, Any] = {}
    bound: nn.Module | None = None
    if given is not None:
        held = getattr(given, "forward_func", None)
        held = held if isinstance(held, nn.Module) else getattr(given, "model", held)
        if not isinstance(held, nn.Module):
            raise ValueError(
                f"this captum {cls.__name__} is bound to a function, so it cannot be rebuilt on the clone that is "
                f"explained: pass the class captum.attr.{cls.__name__}, or a function (model, inputs, target)"
            )
        bound = held
        kept = _kept(cls, given, [name for name in parameters if name not in (model_name, "layer", "device_ids")])
    name = layer
    if bound is not None and "layer" in parameters:
        name = next((full for full, module in bound.named_modules() if module is given.layer), None)
        if name is None:
            raise ValueError(f"the layer of this captum {cls.__name__} is not a module of the model it is bound to")

    def build_on(model: nn.Module, inputs: Any) -> Any:
        arguments: dict[str, Any] = {model_name: model, **kept}
        if "layer" in parameters:
            at = name
            if at is None:
                found = last_map(model, inputs)
                if found is None or found.call is not None:
                    raise ValueError("the network has no spatial feature map of a module that runs once: name a layer")
                at = found.name
            arguments["layer"] = submodule(model, at)
        return cls(**arguments)

    return build_on


def _kept(cls: type, given: Any, names: list[str]) -> dict[str, Any]:
    """The constructor's arguments as the object keeps them."""
    found: dict[str, Any] = {}
    for name in names:
        for attribute in (*_KEPT_AS.get(name, ()), name, f"_{name}"):
            if hasattr(given, attribute):
                found[name] = getattr(given, attribute)
                break
        else:
            raise ValueError(
                f"cannot tell with which '{name}' this captum {cls.__name__} was built, so it cannot be rebuilt on the "
                "clone: pass the class, or a function (model, inputs, target)"
            )
    return found


def _check_call(cls: Any) -> None:
    missing = [
        name
        for name, parameter in inspect.signature(cls.attribute).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and name not in ("self", "inputs")
    ]
    if missing:
        ours = f", or '{_OURS[cls.__name__]}' of this library" if cls.__name__ in _OURS else ""
        raise ValueError(
            f"captum's {cls.__name__} needs {', '.join(missing)}: pass a function that gives it, for example "
            f"lambda model, x, target: {cls.__name__}(model).attribute(x, target=target, {missing[0]}=...){ours}"
        )


def _refuses(cls: type, build: Callable[[nn.Module, Any], Any]) -> Refusal:
    """Refuses what captum's hooks on modules would turn into the plain gradient without a word."""

    def reason(model: nn.Module, inputs: Any, target: Tensor | None) -> str | None:
        if issubclass(cls, _HOOKS_MODULES):
            present, reached = rectifiers_in(model, inputs), _module_rectifiers(model, inputs)
            if present == 0 and not issubclass(cls, (attr.DeepLift, attr.DeepLiftShap)):
                return "the network has no rectifier (ReLU, ...): captum would return the plain gradient"
            if reached < present:
                ours = _OURS[cls.__name__]
                return (
                    f"captum's {cls.__name__} reaches {reached} of the network's {present} rectifiers and is the plain "
                    f"gradient elsewhere; use '{ours}'"
                )
        try:
            build(model, inputs)
        except ValueError as error:
            return str(error)
        return None

    return reason


def _module_rectifiers(model: nn.Module, inputs: Any) -> int:
    calls: list[None] = []
    modules = [module for module in model.modules() if isinstance(module, nn.ReLU)]
    handles = [module.register_forward_hook(lambda *_: calls.append(None)) for module in modules]
    try:
        with torch.no_grad():
            outputs_of(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return len(calls)
