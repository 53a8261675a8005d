"""Methods of other libraries in the test, a function each, written as their own pages write them.

A function is called with the model, the inputs and the explained classes, and returns maps in any of the usual forms.
What it leaves behind on the model (hooks, modes, gradients) is put back after every call.

python examples/other_libraries.py
pip install grad-cam monai torchcam shap zennit transformers   # what of these you use
"""

import argparse
import importlib.util

import torch
from torch import nn
from torch.nn import functional as F

from lightning_sanity import parameter_randomization_test
from lightning_sanity.cli import demo

LAYER = "5"
"""The last feature map of ``network``, by its name as a module."""


def network():
    """A small convolutional network for digits, whose rectifiers are modules that do not overwrite their input."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


# ----------------------------------------------------------------------------------------------------- class activation


def pytorch_grad_cam(kind="GradCAM", layer=LAYER):
    """GradCAM, GradCAMPlusPlus, LayerCAM, HiResCAM, XGradCAM, EigenCAM, ScoreCAM, AblationCAM or FullGrad."""

    def explain(model, x, target):
        import pytorch_grad_cam as library
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        with getattr(library, kind)(model=model, target_layers=[model.get_submodule(layer)]) as cam:
            return cam(input_tensor=x, targets=[ClassifierOutputTarget(int(one)) for one in target])

    return explain


def monai_grad_cam(layer=LAYER):
    def explain(model, x, target):
        from monai.visualize import GradCAM

        # Its own postprocessing turns maps round: 1 where the evidence is least.
        cam = GradCAM(nn_module=model, target_layers=layer, postprocessing=lambda maps: maps)
        return torch.cat([cam(x[i : i + 1], class_idx=int(target[i])) for i in range(len(x))])

    return explain


def monai_occlusion(side=4, overlap=0.5):
    """How far the explained score falls where a square is hidden; MONAI takes one sample at a time."""

    def explain(model, x, target):
        from monai.visualize import OcclusionSensitivity

        hidden = {"mask_size": side, "overlap": overlap, "mode": 0.0}  # by zeros, where the default blurs
        occlude = OcclusionSensitivity(nn_module=model, **hidden, activate=False, verbose=False)
        maps = []
        for one, label in zip(x.split(1), target.tolist(), strict=True):
            scores, _ = occlude(one)  # (1, classes, H, W): the score with the square around each pixel hidden
            maps.append(model(one)[0, label].detach() - scores[:, label])
        return torch.cat(maps)

    return explain


def torchcam(kind="GradCAM", layer=LAYER):
    """GradCAM, GradCAMpp, SmoothGradCAMpp, XGradCAM, LayerCAM, CAM, ScoreCAM, SSCAM or ISCAM."""

    def explain(model, x, target):
        from torchcam import methods

        with getattr(methods, kind)(model, target_layer=layer) as extractor:
            scores = model(x)
            (maps,) = extractor(target.tolist(), scores)
        return maps.nan_to_num(0)  # (N, h, w); a map that is 0 everywhere comes back as 0 / 0

    return explain


# --------------------------------------------------------------------------------------------------------------- captum


def captum_layer_grad_cam(layer=LAYER):
    def explain(model, x, target):
        from captum.attr import LayerAttribution, LayerGradCam

        maps = LayerGradCam(model, model.get_submodule(layer)).attribute(x, target, relu_attributions=True)
        return LayerAttribution.interpolate(maps, x.shape[2:], "bilinear")

    return explain


def captum_layer(kind="LayerActivation", layer=LAYER, **options):
    """LayerActivation, LayerGradientXActivation, LayerIntegratedGradients, LayerConductance or LayerDeepLift."""

    def explain(model, x, target):
        import captum.attr as library

        asked = {} if kind == "LayerActivation" else {"target": target}
        found = getattr(library, kind)(model, model.get_submodule(layer)).attribute(x, **asked, **options)
        return found[0] if isinstance(found, tuple) else found

    return explain


def captum_noise_tunnel(kind="Saliency", samples=8, noise=0.1):
    def explain(model, x, target):
        import captum.attr as library

        tunnel = library.NoiseTunnel(getattr(library, kind)(model))
        return tunnel.attribute(x, nt_type="smoothgrad", nt_samples=samples, stdevs=noise, target=target)

    return explain


# ----------------------------------------------------------------------------------------------------------------- SHAP


def shap_gradient(background, samples=32):
    """Expected gradients over images of the training set."""

    def explain(model, x, target):
        import shap

        values = shap.GradientExplainer(model, background).shap_values(x, nsamples=samples, rseed=0)
        return torch.as_tensor(values)[torch.arange(len(x)), ..., target]  # from (N, C, H, W, classes)

    return explain


def shap_deep(background):
    """DeepLIFT against images of the training set; it knows activation modules, not function calls."""

    def explain(model, x, target):
        import shap

        values = shap.DeepExplainer(model, background).shap_values(x, check_additivity=False)
        return torch.as_tensor(values)[torch.arange(len(x)), ..., target]

    return explain


# ------------------------------------------------------------------------------------------------ zennit, transformers


def zennit(composite="EpsilonPlusFlat", attributor="Gradient", **options):
    """Relevance of a composite; attributors are Gradient, SmoothGrad, IntegratedGradients and others."""

    def explain(model, x, target):
        from zennit import attribution, composites

        rules = getattr(composites, composite)()
        with getattr(attribution, attributor)(model=model, composite=rules, **options) as attribute:
            _, relevance = attribute(x, F.one_hot(target, model(x).shape[1]).to(x.dtype))
        return relevance

    return explain


def zennit_box(low=0.0, high=1.0):
    """A composite that has to be told the range of the inputs."""

    def explain(model, x, target):
        from zennit.attribution import Gradient
        from zennit.composites import EpsilonGammaBox

        with Gradient(model=model, composite=EpsilonGammaBox(low=low, high=high)) as attribute:
            return attribute(x, F.one_hot(target, model(x).shape[1]).to(x.dtype))[1]

    return explain


def transformers_attention(prefix=1):
    """What the class token attends to in the last layer of one of Hugging Face's vision transformers, over heads."""

    def explain(model, x, target):
        model.set_attn_implementation("eager")  # the fused kernels keep no weights
        last = model(x, output_attentions=True).attentions[-1]  # (N, heads, tokens, tokens)
        drawn = last.mean(1)[:, 0, prefix:]
        return drawn.unflatten(1, (round(drawn.shape[1] ** 0.5), -1))

    return explain


# ---------------------------------------------------------------------------------------------------------- all at once


def recipes(background):
    """``library -> name -> function``, for ``network``."""
    cams = ("GradCAM", "GradCAMPlusPlus", "LayerCAM", "HiResCAM", "XGradCAM", "EigenCAM", "ScoreCAM", "AblationCAM")
    return {
        "pytorch_grad_cam": {f"grad-cam {kind}": pytorch_grad_cam(kind) for kind in (*cams, "FullGrad")},
        "monai": {"monai GradCAM": monai_grad_cam(), "monai OcclusionSensitivity": monai_occlusion()},
        "torchcam": {f"torchcam {kind}": torchcam(kind) for kind in ("GradCAM", "GradCAMpp", "LayerCAM")},
        "captum": {
            "captum LayerGradCam": captum_layer_grad_cam(),
            "captum LayerGradientXActivation": captum_layer("LayerGradientXActivation"),
            "captum LayerIntegratedGradients": captum_layer("LayerIntegratedGradients", n_steps=8),
            "captum NoiseTunnel": captum_noise_tunnel(),
        },
        "shap": {"shap GradientExplainer": shap_gradient(background), "shap DeepExplainer": shap_deep(background)},
        "zennit": {
            "zennit EpsilonPlusFlat": zennit(),
            "zennit EpsilonGammaBox": zennit_box(),
            "zennit SmoothGrad": zennit("EpsilonPlus", "SmoothGrad", n_iter=4),
        },
    }


def trained(steps=200):
    torch.manual_seed(0)
    images, digits = demo.digits()[0].tensors
    model = network().train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        rows = torch.randint(len(images), (128,))
        optimizer.zero_grad()
        F.cross_entropy(model(images[rows]), digits[rows]).backward()
        optimizer.step()
    return model.eval(), images


def main(libraries=None, steps=200, trials=5, samples=32):
    model, images = trained(steps)
    every = recipes(images[-8:])
    installed = [name for name in every if importlib.util.find_spec(name) is not None]
    methods = {name: one for library in libraries or installed for name, one in every[library].items()}
    result = parameter_randomization_test(model, images[:samples], methods=methods, trials=trials)
    for name, verdict in result.verdicts.items():
        print(f"{name:32s} {verdict.outcome.value:13s} {verdict.reason}")
    for note in result.coverage.notes:
        print("note:", note)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("libraries", nargs="*", help="which libraries; all that are installed if none is named")
    main(parser.parse_args().libraries)
