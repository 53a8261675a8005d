"""Attribution methods by name: the table of all, and what a user's name, class or function stands for."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_sanity.attribution.attention import attention_rollout, gradient_attention, last_attention
from lightning_sanity.attribution.class_activation import cam
from lightning_sanity.attribution.composites import composite_method, is_composite, require
from lightning_sanity.attribution.controls import (
    constant,
    edge_detector,
    input_copy,
    input_plus_gradient,
    output_pattern,
    random,
)
from lightning_sanity.attribution.derived import Derived
from lightning_sanity.attribution.differences import deeplift, deeplift_local, deepshap, deepshap_local
from lightning_sanity.attribution.gradient_cam import (
    gradcam,
    gradcam_plus_plus,
    guided_gradcam,
    internal_influence,
    layercam,
    scorecam,
)
from lightning_sanity.attribution.gradients import (
    competition_input_x_gradient,
    gradient,
    input_x_gradient,
    smoothgrad,
    smoothgrad_squared,
    vargrad,
)
from lightning_sanity.attribution.guided import deconvnet, guided_backprop
from lightning_sanity.attribution.method import AttributionFn, Method, factory
from lightning_sanity.attribution.optimized import extremal_perturbation, meaningful_perturbation
from lightning_sanity.attribution.path import (
    expected_gradients,
    integrated_gradients,
    integrated_gradients_local,
    smooth_integrated_gradients,
)
from lightning_sanity.attribution.perturbation import occlusion, rise
from lightning_sanity.attribution.prediction_difference import prediction_difference_analysis
from lightning_sanity.attribution.providers import captum_method, is_captum
from lightning_sanity.attribution.regions import xrai
from lightning_sanity.attribution.relevance import (
    excitation_backprop,
    lrp_alpha_beta,
    lrp_epsilon,
    lrp_z_plus,
)
from lightning_sanity.attribution.superpixels import feature_ablation, kernel_shap, lime
from lightning_sanity.resources.suggestions import unknown

_METHODS: dict[str, Callable[..., Method]] = {
    factory.__name__: factory
    for factory in (
        gradient,
        input_x_gradient,
        competition_input_x_gradient,
        integrated_gradients,
        integrated_gradients_local,
        smoothgrad,
        smoothgrad_squared,
        vargrad,
        smooth_integrated_gradients,
        expected_gradients,
        deeplift,
        deeplift_local,
        deepshap,
        deepshap_local,
        guided_backprop,
        deconvnet,
        cam,
        gradcam,
        gradcam_plus_plus,
        layercam,
        scorecam,
        guided_gradcam,
        internal_influence,
        last_attention,
        attention_rollout,
        gradient_attention,
        lrp_epsilon,
        lrp_z_plus,
        lrp_alpha_beta,
        excitation_backprop,
        occlusion,
        feature_ablation,
        lime,
        kernel_shap,
        rise,
        prediction_difference_analysis,
        meaningful_perturbation,
        extremal_perturbation,
        xrai,
        output_pattern,
        edge_detector,
        input_copy,
        input_plus_gradient,
        random,
        constant,
    )
}

_ALSO = {
    "saliency": "gradient",
    "vanilla": "gradient",
    "vanillagradient": "gradient",
    "gradients": "gradient",
    "ig": "integrated_gradients",
    "gradxinput": "input_x_gradient",
    "gradientxinput": "input_x_gradient",
    "inputxgradients": "input_x_gradient",
    "cams": "cam",
    "gradcampp": "gradcam_plus_plus",
    "gbp": "guided_backprop",
    "guidedbackpropagation": "guided_backprop",
    "deconvolution": "deconvnet",
    "shap": "kernel_shap",
    "gradientshap": "expected_gradients",
    "lrp": "lrp_epsilon",
    "ablation": "feature_ablation",
    "rollout": "attention_rollout",
}
"""What others call a method."""


def available() -> tuple[str, ...]:
    """Names of all methods, controls included."""
    return tuple(_METHODS)


def factory_named(name: str) -> Callable[..., Method]:
    """What makes the method of that name; its signature lists the method's parameters."""
    return _METHODS[name]


def table() -> list[dict[str, Any]]:
    """What is known of every method of ``available()``: one row each, for people and for the command line.

    Returns:
        Rows of name, kind (the module here that holds it), signed, stochastic, passes, needs, control and summary.
    """
    rows = []
    for name, make in _METHODS.items():
        method = make()
        summary = (inspect.getdoc(make) or "").split("\n\n")[0].replace("\n", " ").replace("`", "")
        rows.append(
            {
                "name": name,
                "kind": make.__module__.rpartition(".")[2],
                "signed": method.signed,
                "stochastic": method.stochastic,
                "passes": method.passes,
                "needs": method.needs,
                "control": method.control,
                "summary": summary,
            }
        )
    return rows


def resolve(method: Any, layer: str | None = None) -> Method:
    """The method of that name, or the given object as one.

    Args:
        method: A name of ``available()``, alone or as a call with plain values for its parameters, such as
            ``"smoothgrad(n_samples=100)"``, a ``Method``, a captum attribution class or object, a zennit composite, or
            any function ``(model, inputs, target) -> attribution``.
        layer: For methods that explain by a module's feature map: the module to use.

    Raises:
        ValueError: If the name is unknown, or a captum object cannot be rebuilt on another model.
        ImportError: If the method needs a package that is not installed; says how to install it.
        TypeError: If it is none of these.
    """
    resolved = _resolved(method, layer)
    if resolved.needs is not None:
        require(resolved.needs, resolved.name)
    return resolved


def _resolved(method: Any, layer: str | None) -> Method:
    if isinstance(method, Method):
        return method
    if isinstance(method, str):
        if _CALL.fullmatch(method):
            return called(method)
        if method not in _METHODS:
            raise ValueError(f"{unknown('attribution method', method, available(), _ALSO)} (or pass a function)")
        make = _METHODS[method]
        return make(layer=layer) if "layer" in inspect.signature(make).parameters else make()
    if is_captum(method):
        return captum_method(method, layer)
    if is_composite(method):
        return composite_method(method)
    if isinstance(method, type):
        raise TypeError(f"an attribution method is a name or a function, not the class {method.__name__}")
    if method in _METHODS.values():
        raise TypeError(f"pass '{method.__name__}' or {method.__name__}(...), not the function that makes the method")
    if callable(method):
        # Nothing is known about a user's function, so its repeatability is measured.
        known = isinstance(method, Derived)  # which is walked with others, and leaves its inputs alone
        attribute = method if known else _with_own_inputs(method)
        name = getattr(method, "__name__", type(method).__name__)
        return Method(name, attribute, stochastic=True, foreign=True)
    raise TypeError(f"an attribution method is a name or a function, not {type(method).__name__}: {method!r}")


_CALL = re.compile(r"\w+\(.*\)", re.DOTALL)


@factory
def called(text: str) -> Method:
    """The method that a call such as ``smoothgrad(n_samples=100)`` makes, named by the whole call.

    Args:
        text: A name of ``available()`` with keyword arguments, plain values all. Nothing is evaluated.

    Raises:
        ValueError: If it is no such call, or the method has no such parameter.
    """
    example = "a method with its parameters is written as in smoothgrad(n_samples=100)"
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if (
            not isinstance(call, ast.Call)
            or not isinstance(call.func, ast.Name)
            or call.args
            or not all(k.arg for k in call.keywords)
        ):
            raise ValueError("it is no call with keyword arguments")
        values = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{example}, and '{text}' cannot be read: {error}") from error
    name = call.func.id
    if name not in _METHODS:
        raise ValueError(unknown("attribution method", name, available(), _ALSO))
    parameters = inspect.signature(_METHODS[name]).parameters
    for given in values:
        if given not in parameters:
            raise ValueError(f"method '{text}': {unknown('parameter', given, parameters)}")
    return replace(_METHODS[name](**values), name=text, control=False)


def _with_own_inputs(function: AttributionFn) -> AttributionFn:
    """The function on copies of its inputs: as in every tutorial it may ask them for gradients, or write into them."""

    def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        own = tree_map(lambda value: value.detach().clone() if isinstance(value, Tensor) else value, inputs)
        return function(model, own, target)

    return attribute


def _counted(name: str, method: Method) -> Method:
    """The method; a control under another name than its own is one like any other, for nobody could tell."""
    known = _METHODS.get(name)
    return method if not method.control or (known is not None and known().control) else replace(method, control=False)


def resolve_all(methods: Any, layer: str | None = None) -> dict[str, Method]:
    """``name -> method``; what ``resolve`` takes, a sequence of that, or a mapping that gives the names itself.

    Raises:
        ValueError: If a name is unknown or stands for two methods, or there is no method.
    """
    if isinstance(methods, Mapping):
        wrong = next((name for name in methods if not (isinstance(name, str) and name.strip())), None)
        if wrong is not None or not methods:
            problem = "it is empty" if not methods else f"one name is {wrong!r}"
            raise ValueError(f"methods as a dictionary must give every method a name, a string: {problem}")
        return {name: _counted(name, resolve(method, layer)) for name, method in methods.items()}
    if methods is None or not (isinstance(methods, (str, Iterable)) or callable(methods)):
        raise TypeError(
            f"methods must be a name, a function, or several of them as a list or as {{name: method}}, not {methods!r}"
        )
    single = isinstance(methods, str) or callable(methods) or is_captum(methods) or is_composite(methods)
    given = [methods] if single else list(methods)
    found: dict[str, Method] = {}
    for method in given:
        resolved = resolve(method, layer)
        if resolved.name in found:
            raise ValueError(f"two methods are called '{resolved.name}': pass a dictionary that names them apart")
        found[resolved.name] = _counted(resolved.name, resolved)
    if not found:
        raise ValueError(f"no attribution method given; choose from: {', '.join(available())}")
    return found
