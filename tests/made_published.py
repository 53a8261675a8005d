"""Small configurations of published architectures that keep what they computed of weights, or choose their way."""

import copy

import torch

from lightning_sanity import parameter_randomization_test

SMALL = {"img_size": 64, "num_heads": (2, 2, 2), "embed_dim": (16, 24, 32), "depth": (1, 1, 1)}
PATCHED = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2}
WINDOWED = {"img_size": 32, "embed_dim": 8, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4}
ARCHITECTURES = {
    "levit_128s": SMALL | {"key_dim": 8},
    "levit_conv_128s": SMALL | {"key_dim": 8},
    "efficientvit_m0": SMALL | {"window_size": (2, 2, 2)},
    "efficientformer_l1": {"depths": (1, 1, 1, 2), "embed_dims": (4, 8, 8, 16), "num_vit": 1},
    "efficientformerv2_s0": {"depths": (1, 1, 1, 1), "embed_dims": (8, 8, 16, 16), "num_vit": 1, "img_size": 64},
    "tiny_vit_5m_224": {
        "embed_dims": (8, 16, 16, 32),
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 2, 2, 2),
        "window_sizes": (4, 4, 4, 2),
    },
    "convit_tiny": PATCHED | {"local_up_to_layer": 1},
    "deit_tiny_distilled_patch16_224": PATCHED,
    "beit_base_patch16_224": PATCHED,
    "naflexvit_base_patch16_gap": {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8},
    "swin_tiny_patch4_window7_224": WINDOWED,
    "swinv2_tiny_window8_256": WINDOWED,
}
CACHED = 6  # of these, in this order, keep a dictionary of biases


class Forgetful(dict):
    """Never has what is looked for."""

    def __contains__(self, key):
        return False


def architecture(name):
    """A filled model and images."""
    import timm

    options = ARCHITECTURES[name]
    torch.manual_seed(1)
    model = timm.create_model(name, pretrained=False, num_classes=4, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases start at zero, where they change nothing
            parameter.add_(0.2 * torch.randn_like(parameter))
    side = 224 if name == "efficientformer_l1" else options.get("img_size", 64)
    images = torch.randn(3, 3, side, side)
    with torch.no_grad():
        model(images)
    return model, images


def caches(model):
    """Modules and the attributes of theirs that are caches."""
    return [
        (module, key)
        for module in model.modules()
        for key, value in vars(module).items()
        if key.endswith("_cache") and isinstance(value, dict)
    ]


def filled(model):
    """The sizes of its caches."""
    return [len(vars(module)[key]) for module, key in caches(model)]


def without_caches(model):
    """The same weights, computed with anew in every pass."""
    plain = copy.deepcopy(model)
    for module, key in caches(plain):
        setattr(module, key, Forgetful())
    return plain


def compared(name, max_steps=None):
    """The test of an architecture whose caches are filled, and of the same without any."""
    model, images = architecture(name)
    plain, before = without_caches(model), filled(model)
    options = {"methods": "gradient", "trials": 1, "repeats": 1, "controls": False, "pictures": False}
    options |= {"progress": False, "diagnostics": (), "max_steps": max_steps}
    found, expected = (
        parameter_randomization_test(network, images, [0, 1, 2], engine=engine, **options)
        for network, engine in ((model, "auto"), (plain, "plain"))
    )
    assert found.units == expected.units
    assert filled(model) == before, "the model lost what it kept"
    return found, expected, sum(before)
