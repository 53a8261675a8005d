"""Families of language models, by name; see ``models``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from lightning_sanity.explanation import targets
from measuring.models import (
    CLASSES,
    DECODER,
    DEEP,
    END,
    LAYERS,
    WORDS,
    Family,
    Recurrent,
    adapted,
    hugging,
    sentences,
)


def texts() -> dict[str, Family]:
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
