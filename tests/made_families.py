"""Architectures of torchvision at their full depth, those of many channels narrowed: tests are of their graph."""

from functools import partial
from itertools import pairwise

import torch
from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.resnet import Bottleneck
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2
from torchvision.models.vgg import make_layers

SWIN = {"patch_size": [4, 4], "embed_dim": 24, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]}
SWIN_V2 = {"window_size": [8, 8], "block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}


def _alexnet(num_classes=1000):
    model = models.AlexNet()
    model.classifier[1], model.classifier[4], model.classifier[6] = _linear(256 * 36, 64, 64, num_classes)
    return model


def _vgg11_bn(num_classes=1000):
    features = make_layers([8, "M", 16, "M", 32, 32, "M", 64, 64, "M", 64, 64, "M"], batch_norm=True)
    with torch.device("meta"):  # the head, of a hundred million weights, is replaced
        model = models.VGG(features, init_weights=False)
    model.classifier[0], model.classifier[3], model.classifier[6] = _linear(64 * 49, 64, 64, num_classes)
    return model


def _linear(*widths):
    return [nn.Linear(below, above) for below, above in pairwise(widths)]


def _convnext_tiny(num_classes=1000):
    widths = (24, 48, 96, 192, None)
    blocks = [CNBlockConfig(*widths[stage : stage + 2], depth) for stage, depth in enumerate((3, 3, 9, 3))]
    return models.ConvNeXt(blocks, num_classes=num_classes)


NARROW = {
    "alexnet": _alexnet,
    "convnext_tiny": _convnext_tiny,
    "densenet121": partial(models.DenseNet, 8, (6, 12, 24, 16), 16),
    "maxvit_t": partial(models.MaxVit, (64, 64), 16, 2, [16, 32, 64, 128], [2, 2, 5, 2], 8, 0.2),
    "resnext50_32x4d": partial(models.ResNet, Bottleneck, [3, 4, 6, 3], groups=32, width_per_group=1),
    "swin_t": partial(models.SwinTransformer, **SWIN, window_size=[7, 7]),
    "swin_v2_t": partial(models.SwinTransformer, **SWIN, **SWIN_V2),
    "vgg11_bn": _vgg11_bn,
    "vit_b_32": partial(models.VisionTransformer, 64, 32, 12, 12, 48, 96),
    "wide_resnet50_2": partial(models.ResNet, Bottleneck, [3, 4, 6, 3], width_per_group=16),
}
SIDES = {"alexnet": 96, "inception_v3": 80}  # of the smallest images that they take; 64 otherwise
UNDRAWN = {"googlenet", "inception_v3"}  # scipy would draw their weights, slowly


def build(name, num_classes=1000):
    """A network with drawn weights in eval mode, and the side of its images."""
    torch.manual_seed(0)
    if name in NARROW:
        model = NARROW[name](num_classes=num_classes)
    else:
        arguments = {"init_weights": False} if name in UNDRAWN else {}
        model = models.get_model(name, num_classes=num_classes, **arguments)
    return model.eval(), SIDES.get(name, 64)
