"""Small models of the families that people really use, built from configurations: nothing is downloaded.

Each entry says how the model is called, what is asked of it and how many steps an engineer would list: the layers from
the explained output to the input, those side by side counted once.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from lightning_sanity.explanation import targets

WORDS, LENGTH, CLASSES, LAYERS, END = 64, 12, 3, 2, 3
TEXT = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "num_labels": CLASSES,
}
DEEP = {**TEXT, "num_hidden_layers": LAYERS}
DECODER = {**DEEP, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": END}
VISION = {**DEEP, "image_size": 32, "patch_size": 8}
CLASSIFIER = "AutoModelForSequenceClassification"
IMAGES = "AutoModelForImageClassification"


@dataclass(frozen=True)
class Family:
    """How a family is built and called.

    Attributes:
        library: Where it is from.
        build: Makes a model.
        inputs: Makes its inputs for so many samples.
        steps: An engineer's count of the steps; None where nobody would count.
        target: What is explained: a class per sample by default.
        options: Further arguments of the test.
    """

    library: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    steps: int | None
    target: Any = "classes"
    options: dict[str, Any] = field(default_factory=dict)


def sentences(samples: int, length: int = LENGTH) -> dict[str, torch.Tensor]:
    """Ids that end with one of their own, padded on the right but for the first sentence, and their mask."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(5, WORDS, (samples, length), generator=draw)
    real = torch.arange(length) < torch.arange(length, length - samples, -1).clamp_min(5)[:, None]
    ids[torch.arange(samples), real.sum(1) - 1] = END
    return {"input_ids": ids.where(real, torch.zeros_like(ids)), "attention_mask": real.long()}


def pictures(side: int, channels: int = 3) -> Callable[[int], torch.Tensor]:
    """Smooth random images."""

    def made(samples: int) -> torch.Tensor:
        coarse = torch.rand(samples, channels, 8, 8, generator=torch.Generator().manual_seed(2))
        return nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")

    return made


def pixels(side: int) -> Callable[[int], dict[str, torch.Tensor]]:
    """Images by the name that Hugging Face gives them."""
    return lambda samples: {"pixel_values": pictures(side)(samples)}


def numbers(*shape: int) -> Callable[[int], torch.Tensor]:
    """Standard normal numbers."""
    return lambda samples: torch.randn(samples, *shape, generator=torch.Generator().manual_seed(3))


def named(name: str, *shape: int) -> Callable[[int], dict[str, torch.Tensor]]:
    """Standard normal numbers by a name."""
    return lambda samples: {name: numbers(*shape)(samples)}


def hugging(config: str, auto: str = CLASSIFIER, **given: Any) -> Callable[[], nn.Module]:
    """A Hugging Face model of this configuration."""

    def build() -> nn.Module:
        transformers = importlib.import_module("transformers")
        made = getattr(transformers, config)(**given)
        kind = getattr(transformers, auto)
        return kind.from_config(made) if auto.startswith("Auto") else kind(made)

    return build


def timm(name: str, **given: Any) -> Callable[[], nn.Module]:
    """A timm model."""
    return lambda: importlib.import_module("timm").create_model(name, num_classes=CLASSES, **given)


def torchvision(name: str, **given: Any) -> Callable[[], nn.Module]:
    """A torchvision model."""
    return lambda: importlib.import_module("torchvision.models").get_model(name, **{"num_classes": CLASSES, **given})


def segmenting(name: str, **given: Any) -> Callable[[], nn.Module]:
    """A model of segmentation-models-pytorch."""

    def build() -> nn.Module:
        package = importlib.import_module("segmentation_models_pytorch")
        return getattr(package, name)("resnet18", encoder_weights=None, classes=CLASSES, **given)

    return build


def adapted(build: Callable[[], nn.Module], modules: list[str]) -> Callable[[], nn.Module]:
    """The model with low-rank adapters, whose second factors are no longer zero."""

    def made() -> nn.Module:
        peft = importlib.import_module("peft")
        model = peft.get_peft_model(build(), peft.LoraConfig(r=2, target_modules=modules))
        return model

    return made


class WaveNet(nn.Module):
    """Convolutions over raw audio, after M5 (Dai et al., 2017)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 8, 16, 16)
        self.layers = nn.Sequential(
            *(
                layer
                for below, above in pairwise(widths)
                for layer in (nn.Conv1d(below, above, 9, stride=2), nn.BatchNorm1d(above), nn.ReLU(), nn.MaxPool1d(2))
            )
        )
        self.head = nn.Linear(16, CLASSES)

    def forward(self, waves: torch.Tensor) -> torch.Tensor:
        """Scores of waves ``(N, L)``."""
        return self.head(self.layers(waves[:, None]).mean(2))


class Recurrent(nn.Module):
    """Two layers of LSTM over words."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 16, padding_idx=0)
        self.recurrent = nn.LSTM(16, 16, 2, batch_first=True)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Scores of ids ``(N, T)``."""
        return self.head(self.recurrent(self.embedding(input_ids))[0].mean(1))


def _first_class(outputs: Any) -> torch.Tensor:
    return outputs.logits[:, 0].flatten(1).mean(1)


def _mean_of_first(outputs: Any) -> torch.Tensor:
    found = outputs["out"] if isinstance(outputs, dict) else outputs
    return found[:, 0].flatten(1).mean(1)


def _queries(outputs: Any) -> torch.Tensor:
    return outputs.logits[..., 0].amax(1)


def _boxes(outputs: Any) -> torch.Tensor:
    return torch.stack([each["scores"].sum() for each in outputs])


TOWERS = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": LAYERS}
PAIR = {"text_config": {**TOWERS, "vocab_size": WORDS, "max_position_embeddings": 16, "eos_token_id": END}}
PAIR["vision_config"] = {**TOWERS, "image_size": 32, "patch_size": 8}
SPEECH = {**DEEP, "conv_dim": (16, 16), "conv_stride": (4, 2), "conv_kernel": (8, 4), "num_feat_extract_layers": 2}
SPEECH |= {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16}
SERIES = {"num_input_channels": 2, "context_length": 64, "patch_length": 8, "num_targets": CLASSES}


def _pair(samples: int) -> dict[str, torch.Tensor]:
    return {**pixels(32)(samples), **sentences(samples)}


def _hugging_text() -> dict[str, Family]:
    encoder, decoder = 4 * LAYERS + 3, 4 * LAYERS + 2
    narrow = {"vocab_size": WORDS, "num_labels": CLASSES, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": END}
    gpt2 = {**narrow, "n_embd": 32, "n_layer": LAYERS, "n_head": 2, "n_positions": 16}
    bart = {**narrow, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "decoder_start_token_id": 2}
    bart |= {
        f"{side}_{what}": size
        for side in ("encoder", "decoder")
        for what, size in (("attention_heads", 2), ("ffn_dim", 48))
    }
    families: dict[str, tuple[Callable[[], nn.Module], int | None]] = {
        "BERT": (hugging("BertConfig", **DEEP), encoder),
        "RoBERTa": (hugging("RobertaConfig", **DEEP, pad_token_id=0), encoder),
        "DistilBERT": (
            hugging(
                "DistilBertConfig",
                vocab_size=WORDS,
                dim=32,
                n_layers=LAYERS,
                n_heads=2,
                hidden_dim=48,
                num_labels=CLASSES,
            ),
            encoder,
        ),
        "ALBERT": (hugging("AlbertConfig", **DEEP, embedding_size=16), 8),
        "ELECTRA": (hugging("ElectraConfig", **DEEP, embedding_size=16), encoder + 1),
        "DeBERTa v2": (
            hugging(
                "DebertaV2Config", **DEEP, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8
            ),
            None,
        ),
        "MPNet": (hugging("MPNetConfig", **DEEP), encoder),
        "ModernBERT": (
            hugging("ModernBertConfig", **DEEP, pad_token_id=0, cls_token_id=1, sep_token_id=2),
            4 * LAYERS + 3,
        ),
        "XLNet": (
            hugging(
                "XLNetConfig", vocab_size=WORDS, d_model=32, n_layer=LAYERS, n_head=2, d_inner=48, num_labels=CLASSES
            ),
            None,
        ),
        "Funnel": (
            hugging(
                "FunnelConfig",
                vocab_size=WORDS,
                block_sizes=[1, 1],
                num_decoder_layers=1,
                d_model=32,
                n_head=2,
                d_head=16,
                d_inner=48,
                num_labels=CLASSES,
            ),
            None,
        ),
        "GPT-2": (hugging("GPT2Config", **gpt2), decoder),
        "GPT-Neo": (
            hugging(
                "GPTNeoConfig",
                **narrow,
                hidden_size=32,
                num_layers=2,
                num_heads=2,
                attention_types=[[["global"], 2]],
                max_position_embeddings=16,
            ),
            decoder,
        ),
        "GPT-NeoX": (hugging("GPTNeoXConfig", **{**DEEP, "pad_token_id": 0}), None),
        "OPT": (
            hugging(
                "OPTConfig",
                **narrow,
                hidden_size=32,
                num_hidden_layers=LAYERS,
                num_attention_heads=2,
                ffn_dim=48,
                word_embed_proj_dim=32,
            ),
            decoder,
        ),
        "BLOOM": (hugging("BloomConfig", **narrow, hidden_size=32, n_layer=LAYERS, n_head=2), decoder),
        "Llama": (hugging("LlamaConfig", **DECODER), decoder),
        "Mistral": (hugging("MistralConfig", **DECODER), decoder),
        "Qwen2": (hugging("Qwen2Config", **DECODER), decoder),
        "Qwen3": (hugging("Qwen3Config", **DECODER, head_dim=16), decoder),
        "Gemma": (hugging("GemmaConfig", **DECODER, head_dim=16), decoder),
        "Phi": (hugging("PhiConfig", **DECODER), None),
        "Mixtral": (hugging("MixtralConfig", **DECODER, num_local_experts=3, num_experts_per_tok=2), decoder + LAYERS),
        "T5": (
            hugging(
                "T5Config", **narrow, d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2, decoder_start_token_id=0
            ),
            None,
        ),
        "BART": (hugging("BartConfig", **bart), None),
    }
    made = {name: Family("transformers", build, sentences, steps) for name, (build, steps) in families.items()}
    language = {**gpt2, "num_labels": 2}
    made["GPT-2, next word"] = Family(
        "transformers",
        hugging("GPT2Config", "AutoModelForCausalLM", **language),
        sentences,
        decoder,
        targets.position(-1),
    )
    made["BERT, masked word"] = Family(
        "transformers", hugging("BertConfig", "AutoModelForMaskedLM", **DEEP), sentences, encoder, targets.position(2)
    )
    made["Llama, next word"] = Family(
        "transformers",
        hugging("LlamaConfig", "AutoModelForCausalLM", **DECODER, tie_word_embeddings=True),
        sentences,
        decoder,
        targets.position(-1),
    )
    made["Mamba, next word"] = Family(
        "transformers",
        hugging(
            "MambaConfig",
            "AutoModelForCausalLM",
            vocab_size=WORDS,
            hidden_size=32,
            state_size=4,
            num_hidden_layers=LAYERS,
        ),
        lambda n: {"input_ids": sentences(n)["input_ids"]},
        None,
        targets.position(-1),
    )
    made["BERT, tokens"] = Family(
        "transformers",
        hugging("BertConfig", "AutoModelForTokenClassification", **DEEP),
        sentences,
        4 * LAYERS + 2,
        targets.position(1),
    )
    made["BERT, question"] = Family(
        "transformers",
        hugging("BertConfig", "AutoModelForQuestionAnswering", **{**DEEP, "num_labels": 2}),
        sentences,
        4 * LAYERS + 2,
        lambda found: found.start_logits[:, 2],
    )
    made["BERT with a loss"] = Family(
        "transformers",
        hugging("BertConfig", **DEEP),
        lambda n: {**sentences(n), "labels": torch.arange(n) % CLASSES, "return_dict": False},
        encoder,
    )
    made["BERT, LoRA"] = Family("peft", adapted(hugging("BertConfig", **DEEP), ["query", "value"]), sentences, None)
    made["LSTM"] = Family("torch", Recurrent, lambda n: sentences(n)["input_ids"], 4)
    return made


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
    return {**_hugging_text(), **_hugging_rest(), **_images()}


def built(family: Family, seed: int = 0) -> nn.Module:
    """A model with drawn weights, none of them one constant that multiplies, in eval mode."""
    torch.manual_seed(seed)
    model = family.build().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if (
                parameter.is_floating_point()
                and "bias" not in name
                and not bool((parameter != parameter.flatten()[0]).any())
            ):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model
