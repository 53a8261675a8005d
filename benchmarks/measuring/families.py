"""All families of models, by name; see ``models``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from measuring.library_families import libraries
from measuring.models import (
    CLASSES,
    DEEP,
    END,
    IMAGES,
    LAYERS,
    VISION,
    WORDS,
    Family,
    WaveNet,
    hugging,
    named,
    numbers,
    pictures,
    pixels,
    segmenting,
    sentences,
    timm,
    torchvision,
)
from measuring.text_families import texts

TOWERS = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": LAYERS}
PAIR = {"text_config": {**TOWERS, "vocab_size": WORDS, "max_position_embeddings": 16, "eos_token_id": END}}
PAIR["vision_config"] = {**TOWERS, "image_size": 32, "patch_size": 8}
SPEECH = {**DEEP, "conv_dim": (16, 16), "conv_stride": (4, 2), "conv_kernel": (8, 4), "num_feat_extract_layers": 2}
SPEECH |= {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16}
SERIES = {"num_input_channels": 2, "context_length": 64, "patch_length": 8, "num_targets": CLASSES}


def _first_class(outputs: Any) -> torch.Tensor:
    return outputs.logits[:, 0].flatten(1).mean(1)


def _mean_of_first(outputs: Any) -> torch.Tensor:
    found = outputs["out"] if isinstance(outputs, dict) else outputs
    return found[:, 0].flatten(1).mean(1)


def _queries(outputs: Any) -> torch.Tensor:
    return outputs.logits[..., 0].amax(1)


def _boxes(outputs: Any) -> torch.Tensor:
    return torch.stack([each["scores"].sum() for each in outputs])


def _pair(samples: int) -> dict[str, torch.Tensor]:
    return {**pixels(32)(samples), **sentences(samples)}


def _hugging_rest() -> dict[str, Family]:
    vit = 4 * LAYERS + 2
    levels = {"num_labels": CLASSES, "image_size": 32}
    swin = {**levels, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
    residual = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": CLASSES}
    pyramid = {"hidden_sizes": [16, 16], "depths": [1, 1], "num_labels": CLASSES}
    segformer = {
        "num_encoder_blocks": 2,
        "hidden_sizes": [16, 16],
        "depths": [1, 1],
        "sr_ratios": [2, 1],
        "num_attention_heads": [2, 2],
    }
    segformer |= {
        "patch_sizes": [3, 3],
        "strides": [4, 2],
        "mlp_ratios": [2, 2],
        "decoder_hidden_size": 16,
        "num_labels": CLASSES,
    }
    detr = {
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    }
    detr |= {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_queries": 4, "num_labels": CLASSES}
    small = {"image_size": 32, "num_labels": CLASSES}

    def by_image(build: Callable[[], nn.Module], steps: int | None, side: int = 32, target: Any = "classes") -> Family:
        return Family("transformers", build, pixels(side), steps, target)

    def backbone() -> Any:
        return importlib.import_module("transformers").ResNetConfig(**residual, out_features=["stage2"])

    def detecting() -> nn.Module:
        transformers = importlib.import_module("transformers")
        config = transformers.DetrConfig(
            **detr, use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone()
        )
        return transformers.DetrForObjectDetection(config)

    made = {
        "ViT": by_image(hugging("ViTConfig", IMAGES, **VISION), vit),
        "DeiT": by_image(hugging("DeiTConfig", "DeiTForImageClassification", **VISION), vit),
        "BEiT": by_image(hugging("BeitConfig", IMAGES, **VISION), vit),
        "DINOv2": by_image(hugging("Dinov2Config", IMAGES, **VISION), vit),
        "Swin": by_image(hugging("SwinConfig", IMAGES, **swin), 4 * 2 + 3),
        "ConvNeXt": by_image(hugging("ConvNextConfig", IMAGES, **pyramid, num_stages=2), 2 * 3 + 3),
        "ResNet": by_image(hugging("ResNetConfig", IMAGES, **residual), None),
        "MobileViT": by_image(
            hugging(
                "MobileViTConfig",
                IMAGES,
                initializer_range=0.2,
                **small,
                hidden_sizes=[16, 16, 16],
                neck_hidden_sizes=[8, 8, 16, 16, 16, 16, 32],
                num_attention_heads=2,
            ),
            None,
        ),
        "LeViT": by_image(
            hugging(
                "LevitConfig",
                "LevitForImageClassification",
                image_size=64,
                num_labels=CLASSES,
                hidden_sizes=[16, 24, 32],
                num_attention_heads=[2, 2, 2],
                depths=[1, 1, 1],
                key_dim=[8, 8, 8],
                drop_path_rate=0,
            ),
            None,
            64,
        ),
        "PVT": by_image(
            hugging(
                "PvtConfig",
                IMAGES,
                **small,
                num_encoder_blocks=2,
                hidden_sizes=[16, 16],
                depths=[1, 1],
                sequence_reduction_ratios=[2, 1],
                num_attention_heads=[2, 2],
                patch_sizes=[4, 2],
                strides=[4, 2],
                mlp_ratios=[2, 2],
            ),
            None,
        ),
        "PoolFormer": by_image(
            hugging(
                "PoolFormerConfig",
                IMAGES,
                num_labels=CLASSES,
                hidden_sizes=[16, 16, 16, 16],
                depths=[1, 1, 1, 1],
                mlp_ratio=2.0,
            ),
            4 * 3 + 1,
            64,
        ),
        "RegNet": by_image(hugging("RegNetConfig", IMAGES, **residual, groups_width=4), None),
        "SegFormer": by_image(hugging("SegformerConfig", IMAGES, **segformer), None, 64),
        "SegFormer, pixels": by_image(
            hugging("SegformerConfig", "AutoModelForSemanticSegmentation", **segformer), None, 64, _first_class
        ),
        "DETR": by_image(detecting, None, 64, _queries),
        "Wav2Vec2": Family(
            "transformers",
            hugging("Wav2Vec2Config", "AutoModelForAudioClassification", **SPEECH),
            named("input_values", 400),
            None,
        ),
        "HuBERT": Family(
            "transformers",
            hugging("HubertConfig", "AutoModelForAudioClassification", **SPEECH),
            named("input_values", 400),
            None,
        ),
        "AST": Family(
            "transformers",
            hugging(
                "ASTConfig",
                "AutoModelForAudioClassification",
                **DEEP,
                patch_size=8,
                frequency_stride=8,
                time_stride=8,
                max_length=32,
                num_mel_bins=16,
            ),
            named("input_values", 32, 16),
            vit,
        ),
        "Whisper encoder": Family(
            "transformers",
            hugging(
                "WhisperConfig",
                "AutoModelForAudioClassification",
                num_labels=CLASSES,
                num_mel_bins=8,
                max_source_positions=16,
                d_model=32,
                encoder_layers=1,
                encoder_attention_heads=2,
                encoder_ffn_dim=48,
                classifier_proj_size=16,
                vocab_size=WORDS,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=END,
                decoder_start_token_id=1,
            ),
            named("input_features", 8, 32),
            2 + 4 + 2,
        ),
        "CLIP": Family(
            "transformers",
            hugging("CLIPConfig", "AutoModel", **PAIR, projection_dim=16),
            _pair,
            None,
            lambda found: found.logits_per_image.diagonal(),
        ),
        "SigLIP": Family(
            "transformers",
            hugging("SiglipConfig", "AutoModel", **PAIR),
            _pair,
            None,
            lambda found: found.logits_per_image.diagonal(),
        ),
        "ViLT": Family("transformers", hugging("ViltConfig", "ViltForQuestionAnswering", **VISION), _pair, None),
        "PatchTST": Family(
            "transformers",
            hugging(
                "PatchTSTConfig",
                "PatchTSTForClassification",
                **SERIES,
                patch_stride=8,
                d_model=16,
                num_hidden_layers=LAYERS,
                num_attention_heads=2,
                ffn_dim=32,
            ),
            named("past_values", 64, 2),
            None,
        ),
        "PatchTSMixer": Family(
            "transformers",
            hugging(
                "PatchTSMixerConfig",
                "PatchTSMixerForTimeSeriesClassification",
                **SERIES,
                patch_stride=8,
                d_model=16,
                num_layers=LAYERS,
            ),
            named("past_values", 64, 2),
            None,
        ),
        "M5": Family("torch", WaveNet, numbers(800), 4),
    }
    return made


def _images() -> dict[str, Family]:
    def family(
        library: str, build: Callable[[], nn.Module], steps: int | None, side: int = 32, target: Any = "classes"
    ) -> Family:
        return Family(library, build, pictures(side), steps, target)

    vit = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": LAYERS, "num_heads": 2}
    made = {
        "timm ResNet-10": family("timm", timm("resnet10t"), None),
        "timm EfficientNet": family("timm", timm("efficientnet_lite0"), None, 64),
        "timm MobileNetV3": family("timm", timm("mobilenetv3_small_050"), None, 64),
        "timm ConvNeXt": family(
            "timm", timm("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)), 4 * 3 + 3 + 2, 64
        ),
        "timm ViT": family("timm", timm("vit_tiny_patch16_224", **vit), 4 * LAYERS + 2),
        "timm DeiT III": family("timm", timm("deit3_small_patch16_224", **vit), 4 * LAYERS + 2),
        "timm Swin": family(
            "timm",
            timm(
                "swin_tiny_patch4_window7_224",
                img_size=32,
                patch_size=2,
                window_size=4,
                embed_dim=16,
                depths=(1, 1),
                num_heads=(2, 2),
            ),
            4 * 2 + 3,
        ),
        "timm Mixer": family("timm", timm("mixer_s32_224", img_size=64), 4 * 8 + 2, 64),
        "timm ResMLP": family("timm", timm("resmlp_12_224", img_size=64), 3 * 12 + 2, 64),
        "timm CaiT": family("timm", timm("cait_xxs24_224", **vit), None),
        "timm XCiT": family("timm", timm("xcit_nano_12_p8_224", **vit), None),
        "timm LeViT": family(
            "timm",
            timm("levit_128s", img_size=64, embed_dim=(16, 16, 16), key_dim=8, num_heads=(2, 2, 2), depth=(1, 1, 1)),
            None,
            64,
        ),
        "timm MobileViT": family("timm", timm("mobilevit_xxs"), None, 64),
        "timm EdgeNeXt": family("timm", timm("edgenext_xx_small"), None, 64),
        "timm GhostNet": family("timm", timm("ghostnet_050"), None, 64),
        "timm RegNet": family("timm", timm("regnetx_002"), 1 + 13 * 3 + 1, 64),
        "timm PoolFormer": family("timm", timm("poolformer_s12"), 12 * 2 + 4 + 1, 64),
        "timm CoAtNet": family(
            "timm",
            timm("coatnet_nano_rw_224", img_size=64, embed_dim=(32, 32, 32, 64), depths=(1, 1, 1, 1), stem_width=8),
            None,
            64,
        ),
        "ResNet-18": family("torchvision", torchvision("resnet18"), 18),
        "DenseNet-121": family("torchvision", torchvision("densenet121"), 121),
        "MobileNetV2": family("torchvision", torchvision("mobilenet_v2"), 53),
        "SqueezeNet": family("torchvision", torchvision("squeezenet1_1"), 1 + 8 * 2 + 1, 64),
        "ViT-B/32, 12 layers": family(
            "torchvision",
            lambda: importlib.import_module("torchvision.models").VisionTransformer(
                32, 8, 12, 2, 32, 48, num_classes=CLASSES
            ),
            4 * 12 + 2,
        ),
        "FCN": family("torchvision", torchvision("fcn_resnet50", weights_backbone=None), None, 32, _mean_of_first),
        "DeepLabV3": family(
            "torchvision", torchvision("deeplabv3_mobilenet_v3_large", weights_backbone=None), None, 64, _mean_of_first
        ),
        "LR-ASPP": family(
            "torchvision", torchvision("lraspp_mobilenet_v3_large", weights_backbone=None), None, 64, _mean_of_first
        ),
        "R3D-18": Family("torchvision", torchvision("r3d_18"), numbers(3, 4, 16, 16), 18),
        "RetinaNet": family(
            "torchvision",
            torchvision("retinanet_resnet50_fpn", weights_backbone=None, min_size=64, max_size=64, score_thresh=0.0),
            None,
            64,
            _boxes,
        ),
        "smp U-Net": family("smp", segmenting("Unet"), None, 32, _mean_of_first),
        "smp FPN": family("smp", segmenting("FPN"), None, 64, _mean_of_first),
        "smp DeepLabV3+": family("smp", segmenting("DeepLabV3Plus"), None, 64, _mean_of_first),
    }
    return made


def families() -> dict[str, Family]:
    """All of them, by name."""
    return {**texts(), **_hugging_rest(), **_images(), **libraries()}
