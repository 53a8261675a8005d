"""Question: do trained text classifiers and vision transformers give valid runs, and verdicts that a training repeats?

Five text classifiers, trained on real sentences of three sources (see ``examples/sentences.py``), two vision
transformers and two hybrids of convolutions and attention, trained on real digits of three classes; three trainings of
each. Of each training: accuracy on held-out samples, whether the run was valid, and the verdict, PSI and interval of
each method. ``--draws 2`` repeats the test with other random twins on other held-out samples: what then differs is the
test's, what stays and differs between trainings is the models'.

    python benchmarks/trained_models.py [--models BERT "timm ViT"] [--seeds 0 1 2] [--trials 20] [--draws 2] [--json]
"""

from __future__ import annotations

import sys
import time
from itertools import product
from pathlib import Path

import torch
from measuring import parser, publish
from measuring.models import CLASSES, DECODER, DEEP, END, LAYERS, hugging, timm
from torch import nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from lightning_sanity import parameter_randomization_test

sys.path.append(str(Path(__file__).parent.parent / "examples"))
METHODS = ("gradient", "input_x_gradient")
WORDS = 1000
SPECIAL = 3
"""Ids from which on words stand: below are padding, beginning and end."""
_TEXT = {**DEEP, "vocab_size": WORDS + SPECIAL}
_GPT2 = {"n_embd": 32, "n_layer": LAYERS, "n_head": 2, "n_positions": 24, "pad_token_id": 0, "num_labels": CLASSES}
_DISTILLED = {"dim": 32, "n_layers": LAYERS, "n_heads": 2, "hidden_dim": 48, "num_labels": CLASSES}
TEXT = {
    "BERT": hugging("BertConfig", **_TEXT),
    "DistilBERT": hugging("DistilBertConfig", vocab_size=WORDS + SPECIAL, **_DISTILLED),
    "RoBERTa": hugging("RobertaConfig", **_TEXT, pad_token_id=0, max_position_embeddings=32),
    "GPT-2": hugging("GPT2Config", vocab_size=WORDS + SPECIAL, bos_token_id=1, eos_token_id=END, **_GPT2),
    "Llama": hugging("LlamaConfig", **{**DECODER, "vocab_size": WORDS + SPECIAL}),
}
_PATCHES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": LAYERS, "num_heads": 2}
_VIT = {**DEEP, "image_size": 32, "patch_size": 8, "num_channels": 1}
_LEVIT = {"img_size": 64, "embed_dim": (16, 16, 16), "key_dim": 8, "num_heads": (2, 2, 2), "depth": (1, 1, 1)}
_COAT = {"img_size": 32, "embed_dim": (32, 32, 32, 64), "depths": (1, 1, 1, 1), "stem_width": 8}


def torchvision_vit():
    """Torchvision's vision transformer, with a drawn head."""
    model = VisionTransformer(32, 8, LAYERS, 2, 32, 48, num_classes=CLASSES)
    nn.init.normal_(model.heads.head.weight, std=0.1)
    return model


IMAGES = {
    "torchvision ViT": (torchvision_vit, 32, 3),
    "ViT": (hugging("ViTConfig", "AutoModelForImageClassification", **_VIT), 32, 1),
    "timm ViT": (timm("vit_tiny_patch16_224", in_chans=1, **_PATCHES), 32, 1),
    "timm LeViT": (timm("levit_128s", **_LEVIT), 64, 3),
    "timm CoAtNet": (timm("coatnet_nano_rw_224", in_chans=1, **_COAT), 32, 1),
}


def sentences():
    """Ids with beginning and end, their mask, and the source of each."""
    import sentences as real

    data = real.sentences(per_source=400, length=16, vocabulary=WORDS)
    words = torch.where(data.ids == real.PAD, 0, data.ids + SPECIAL - 1)
    ids = F.pad(words, (1, 1))
    ids[:, 0] = 1
    ids[torch.arange(len(ids)), (words > 0).sum(1) + 1] = 2
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}, data.labels


def digits(side, channels):
    """Images of three digits and what they show."""
    from sklearn.datasets import load_digits

    loaded = load_digits(n_class=CLASSES)
    images = torch.tensor(loaded.images, dtype=torch.float32)[:, None] / 8 - 1
    images = F.interpolate(images, size=(side, side), mode="bilinear").expand(-1, channels, -1, -1)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return {"images": images[order].contiguous()}, torch.tensor(loaded.target)[order]


def scores(model, inputs):
    """What the model answers to a batch given by name."""
    outputs = model(inputs["images"]) if "images" in inputs else model(**inputs)
    return outputs if isinstance(outputs, torch.Tensor) else outputs.logits


def trained(build, inputs, labels, seed, steps, rate):
    """A model of this training."""
    torch.manual_seed(seed)
    model = build().train()
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    for _ in range(steps):
        rows = torch.randint(len(labels), (48,))
        loss = F.cross_entropy(scores(model, {name: value[rows] for name, value in inputs.items()}), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def measured(name, seed, steps=150, trials=5, samples=24, draw=0):
    """A row of the table; another ``draw`` has other twins and other samples."""
    started = time.perf_counter()
    build, *form = IMAGES[name] if name in IMAGES else (TEXT[name],)
    inputs, labels = digits(*form) if form else sentences()
    kept = len(labels) * 3 // 4
    model = trained(build, {n: v[:kept] for n, v in inputs.items()}, labels[:kept], seed, steps, 2e-3)
    held = {n: v[kept:] for n, v in inputs.items()}
    with torch.no_grad():
        accuracy = float((scores(model, held).argmax(1) == labels[kept:]).float().mean())
    probe = {n: v[draw * samples : (draw + 1) * samples] for n, v in held.items()}
    asked = probe["images"] if form else probe
    options = {"trials": trials, "repeats": 2, "pictures": False, "progress": False, "seed": draw}
    found = parameter_randomization_test(model, asked, methods=METHODS, **options)
    row = {
        "model": name,
        "seed": seed,
        "draw": draw,
        "accuracy": accuracy,
        "valid": found.valid,
        "validity": found.validity,
    }
    for method in METHODS:
        verdict = found.verdicts[method]
        row |= {f"{method} verdict": verdict.outcome.value, f"{method} psi": verdict.psi}
        row |= {f"{method} low": verdict.psi_low, f"{method} high": verdict.psi_high}
    return row | {"seconds": time.perf_counter() - started}


def line(row):
    of = {name: [row[f"{name} {part}"] for part in ("verdict", "psi", "low", "high")] for name in METHODS}
    methods = ", ".join(f"{name} {v} {psi:.2f} [{low:.2f}, {high:.2f}]" for name, (v, psi, low, high) in of.items())
    said = "valid" if row["valid"] else row["validity"]
    head = f"{row['model']:12s} training {row['seed']} draw {row['draw']} accuracy {row['accuracy']:.2f} {said}"
    return f"{head}: {methods} ({row['seconds']:.0f} s)"


def main():
    flags = parser(__doc__, repeats=1)
    flags.add_argument("--models", nargs="+", choices=[*TEXT, *IMAGES], default=[*TEXT, *IMAGES])
    flags.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    flags.add_argument("--trials", type=int, default=5)
    flags.add_argument("--samples", type=int, default=24)
    flags.add_argument("--draws", type=int, default=1)
    given = flags.parse_args()
    if given.equality_only:
        first, second = (measured("torchvision ViT", 0, steps=2, trials=2, samples=6) for _ in range(2))
        assert {**first, "seconds": 0} == {**second, "seconds": 0}, (first, second)
        publish(given, [first], line)
        return
    rows = []
    asked = {"trials": given.trials, "samples": given.samples}
    for seed, name, draw in product(given.seeds, given.models, range(given.draws)):
        rows.append(measured(name, seed, **asked, draw=draw))
        print(line(rows[-1]), flush=True)
    publish(given, rows if given.json else [], line)


if __name__ == "__main__":
    main()
