"""Question: what does the test of a text model cost, beside one captum call per depth at its embeddings?

Encoders of token ids with padding masks: six layers of BERT by transformers (keyword inputs, named outputs),
``nn.TransformerEncoder``, a bidirectional LSTM. "Bare" is the loop a user would write: re-initialise a unit, embed the
ids, call captum on a module that lets these embeddings stand in for its own, next; nothing is compared. "One" is the
whole test of one trial as it comes, with all it adds, "five" of five trials beside five bare loops; "all" of these
with all steps, "plain" without the engine. All take turns in one process; median and range of the ratios to the bare
loop of the same round, and the way that each network took. Before any timing the maps of all depths are asserted equal.

    python benchmarks/texts.py [--networks bert encoder lstm] [--tokens 32] [--batch 16] [--width 128] [--suite]
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from captum.attr import InputXGradient, IntegratedGradients, Saliency
from measuring import interleaved, parser, publish, ratio, shown, spread
from torch import Tensor, nn

from lightning_sanity import parameter_randomization_test
from lightning_sanity.attribution import integrated_gradients
from lightning_sanity.explanation import Tokens
from lightning_sanity.model.graph import trace
from lightning_sanity.model.outputs import logits
from lightning_sanity.randomization.twins import Reinitializer
from lightning_sanity.randomization.unit import plan

TRIALS, STEPS, WORDS, CLASSES = 5, 10, 200, 4
GOALS = {("bert", 1): 0.75, ("bert", 3): 0.40}
"""Share of the bare loop that five trials should take."""
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Text:
    """A model in eval mode, ids and mask ``(N, T)`` by name, classes ``(N,)``, and the module that embeds."""

    name: str
    model: nn.Module
    inputs: dict[str, Tensor]
    target: Tensor
    embedding: str


class Behind(nn.Module):
    """The model as one of embeddings ``(N, T, E)``; the ids are stacked as often as there are copies of them."""

    def __init__(self, text):
        super().__init__()
        self.text = text

    def forward(self, embeddings):
        """Scores."""
        copies = len(embeddings) // len(self.text.target)
        inputs = {key: value.repeat(copies, 1) for key, value in self.text.inputs.items()}
        module = self.text.model.get_submodule(self.text.embedding)
        handle = module.register_forward_hook(lambda module, given, output: embeddings)
        try:
            found = self.text.model(**inputs)
        finally:
            handle.remove()
        return found if isinstance(found, Tensor) else found.logits


class Encoder(nn.Module):
    """Four layers of torch's own encoder, averaged over tokens."""

    def __init__(self, width):
        super().__init__()
        self.embed = nn.Embedding(WORDS, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True)
        self.layers, self.head = nn.TransformerEncoder(layer, 4), nn.Linear(width, CLASSES)

    def forward(self, input_ids, attention_mask):
        """Scores."""
        x = self.layers(self.embed(input_ids), src_key_padding_mask=attention_mask == 0)
        real = attention_mask[:, : x.shape[1], None]
        return self.head((x * real).sum(1) / real.sum(1))


class Recurrent(nn.Module):
    """Two bidirectional layers, averaged over tokens."""

    def __init__(self, width):
        super().__init__()
        self.embed = nn.Embedding(WORDS, width)
        self.layers = nn.LSTM(width, width, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, input_ids, attention_mask):
        """Scores."""
        x, _ = self.layers(self.embed(input_ids))
        return self.head((x * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True))


def bert(width):
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 6, "num_attention_heads": 4}
    return BertForSequenceClassification(BertConfig(vocab_size=WORDS, num_labels=CLASSES, **sizes))


NETWORKS = {
    "bert": (bert, "bert.embeddings.word_embeddings"),
    "encoder": (Encoder, "embed"),
    "lstm": (Recurrent, "embed"),
}


def made(name, tokens, batch, width):
    """Sentences of several lengths; wide weights, so that an untrained network tells them apart."""
    torch.manual_seed(0)
    make, embedding = NETWORKS[name]
    model = make(width).eval()
    for key, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=1.0 if "embed" in key else 1.5 * parameter.shape[-1] ** -0.5)
        parameter.requires_grad_(False)
    ids = torch.randint(1, WORDS, (batch, tokens))
    mask = (torch.arange(tokens) < torch.randint(tokens // 2, tokens + 1, (batch, 1))).long()
    inputs = {"input_ids": ids * mask, "attention_mask": mask}
    return Text(name, model, inputs, torch.arange(batch) % CLASSES, embedding)


def depths(text):
    """The test's own steps of this model."""
    return plan(text.model, trace(text.model, tuple(text.inputs.values()), None, logits)).depths("cascading")


def calls(text, names):
    """What a user would call: ``embeddings -> attribution`` per method."""
    behind, target = Behind(text), text.target
    known = {
        "gradient": lambda x: Saliency(behind).attribute(x, target=target, abs=False),
        "input_x_gradient": lambda x: InputXGradient(behind).attribute(x, target=target),
        "integrated_gradients": lambda x: IntegratedGradients(behind).attribute(x, target=target, n_steps=STEPS),
    }
    return [known[name] for name in names]


def bare(text, names, steps):
    """One reference call and one per depth, for every method; the scores of the gradient's tokens."""
    saved = {name: tensor.clone() for name, tensor in text.model.state_dict().items()}
    redraw, found = Reinitializer("normal", "normal", 0, "auto").start_trial(0), []
    explaining, embed = calls(text, names), text.model.get_submodule(text.embedding)
    random = set()
    for step in ((), *steps):
        for unit in step:
            if unit not in random:
                redraw(text.model, unit)
        random.update(step)
        embeddings = embed(text.inputs["input_ids"]).detach()
        maps = [call(embeddings.clone().requires_grad_()).detach() for call in explaining]
        found.append(maps[0].norm(dim=2) * text.inputs["attention_mask"])
    text.model.load_state_dict(saved)
    return found[1:]


def whole(text, names, trials=1, **options):
    """The whole test."""
    methods = {name: integrated_gradients(STEPS) if name.startswith("integrated") else name for name in names}
    given = {"trials": trials, "methods": methods, "tokens": Tokens(reduce="norm"), "progress": False, **options}
    return parameter_randomization_test(text.model, text.inputs, text.target, **given)


def difference(text, steps):
    """Largest difference of a curve of the gradient from the plain loop's, and the ways taken."""
    given = {"similarities": ("cosine", "pearson"), "max_steps": None, "pictures": False}
    shared, plain = (whole(text, ("gradient",), engine=engine, **given) for engine in ("auto", "plain"))
    worst = max(
        float((curve.values - plain.curves[key].values).abs().nan_to_num().max())
        for key, curve in shared.curves.items()
    )
    assert worst <= TOLERANCE, f"{text.name}: a similarity differs from the plain loop's by {worst:.1e}"
    assert len(shared.units) == len(steps)
    return worst, shared.engine["gradient"]


def compared(name, given, names):
    """One row."""
    text = made(name, given.tokens, given.batch, given.width)
    steps = depths(text)
    off, way = difference(text, steps)
    sides = {
        "bare": lambda: bare(text, names, steps),
        "one": lambda: whole(text, names),
        "five": lambda: whole(text, names, TRIALS),
        "one, all": lambda: whole(text, names, max_steps=None),
        "five, all": lambda: whole(text, names, TRIALS, max_steps=None),
        "one, plain": lambda: whole(text, names, max_steps=None, engine="plain"),
    }
    times = interleaved(sides, given.repeats)
    for side in ("five", "five, all"):
        times[side] = [seconds / TRIALS for seconds in times[side]]
    row = {"network": name, "methods": len(names), "steps": len(steps), "way": way, "difference": off}
    row |= {"goal": GOALS.get((name, len(names))), "bare_seconds": spread(times["bare"])}
    return row | {side: ratio(times, side, "bare") for side in sides if side != "bare"}


def described(row):
    """The row in words."""
    goal = "" if row["goal"] is None else f"  (goal {row['goal']:.2f})"
    what = f"{row['network']}, {row['steps']} steps, {row['methods']} method(s), {row['way']}"
    parts = [f"{side} {shown(row[side])}" for side in ("one", "five", "one, all", "five, all", "one, plain")]
    off = f"bare {shown(row['bare_seconds'])} s; similarities differ by at most {row['difference']:.0e}"
    return f"{what}: {off}\n    {'   '.join(parts)}{goal}"


def main():
    flags = parser(__doc__)
    flags.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    flags.add_argument("--tokens", type=int, default=32)
    flags.add_argument("--batch", type=int, default=16)
    flags.add_argument("--width", type=int, default=128)
    flags.add_argument("--suite", action="store_true", help="three methods instead of the gradient alone")
    given = flags.parse_args()
    logging.getLogger("lightning").setLevel(logging.ERROR)
    if given.equality_only:
        for name in given.networks:
            text = made(name, 8, 3, 32)
            off, way = difference(text, depths(text))
            print(f"{name}: {way}, similarities differ by at most {off:.0e}")
        return
    names = ("gradient", "input_x_gradient", "integrated_gradients") if given.suite else ("gradient",)
    publish(given, (compared(name, given, names) for name in given.networks), described)


if __name__ == "__main__":
    main()
