"""A study that passes as it should, and what must not pass: each situation changes one thing of it."""

import copy
import dataclasses
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_sanity import Criterion, Outcome, RandomLabelDataModule, data_randomization_test
from lightning_sanity.cli import demo
from lightning_sanity.data_randomization import Memorization, memorization

COUNT = 80


def network(classes=10, act=nn.ReLU):
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        act(),
        nn.Conv2d(12, 16, 3, stride=2, padding=1),
        act(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, classes),
    )


def learned(images, labels, seed=0, model=None, epochs=120):
    """A network that knows the labels by heart."""
    torch.manual_seed(seed)
    model = network() if model is None else model
    optimizer = torch.optim.Adam(model.parameters(), 4e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(20):
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
        if bool((model(images).argmax(1) == labels).all()):
            break
    return model.eval()


@dataclasses.dataclass(frozen=True)
class Study:
    """What the test is given."""

    true: list
    permuted: list
    probe: torch.Tensor
    data: list
    images: torch.Tensor
    labels: torch.Tensor
    given: list  # random labels of each random-label model
    known: object = None
    methods: object = "gradient"

    def but(self, **changes):
        return dataclasses.replace(self, **changes)

    def measured(self, given=None):
        """Evidence from tensors, with other labels said to be those of the random-label models."""
        return memorization(
            self.true, self.permuted, (self.images, self.labels), given or self.given, demo.digits()[1].tensors
        )

    def run(self):
        # An easy threshold, which three models of each kind can pass, makes it hard not to pass what must not.
        options = {"repeats": 1, "controls": False, "pictures": False, "criterion": Criterion(min_psi=0.4)}
        return data_randomization_test(
            self.true, self.permuted, self.probe, methods=self.methods, memorization=self.known, **options
        )


def randomised(images, labels, seed, **changes):
    unseen = DataLoader(demo.digits()[1], 400)
    return RandomLabelDataModule(
        DataLoader(TensorDataset(images, labels), 40), seed=seed, val_dataloaders=unseen, **changes
    )


@pytest.fixture(scope="module")
def study():
    images, labels = (tensor[:COUNT] for tensor in demo.digits()[0].tensors)
    data = [randomised(images, labels, seed) for seed in range(3)]
    given = []
    for each in data:
        each.train_dataloader()
        given.append(each.random_labels["train"][0].assigned)
    true = [learned(images, labels, seed) for seed in range(3)]
    permuted = [learned(images, each, 10 + seed) for seed, each in enumerate(given)]
    return Study(true, permuted, demo.digits()[1].tensors[0][:32], data, images, labels, given, known=data)


def test_the_study_passes(study):
    result = study.run()
    assert result.valid, result.validity
    assert result.verdicts["gradient"].outcome is Outcome.PASS, result.verdicts["gradient"].reason


# ------------------------------------------------------------------------------------------------- models that are one


def rounded(model):
    made = copy.deepcopy(model)
    for parameter in made.parameters():
        parameter.data = parameter.data.bfloat16().float()
    return made


def turned(model):
    """The same function with its hidden channels in another order."""
    made = copy.deepcopy(model)
    order = torch.randperm(12)
    made[0].weight.data, made[0].bias.data = made[0].weight.data[order], made[0].bias.data[order]
    made[2].weight.data = made[2].weight.data[:, order]
    return made


def rescaled(model):
    """The same function: a rectifier lets a factor through."""
    made = copy.deepcopy(model)
    made[0].weight.data, made[0].bias.data = 3 * made[0].weight.data, 3 * made[0].bias.data
    made[2].weight.data = made[2].weight.data / 3
    return made


def one_run(model, images, labels):
    """Three checkpoints of one training."""
    made = [model]
    for _ in range(2):
        going_on = copy.deepcopy(made[-1]).train()
        optimizer = torch.optim.Adam(going_on.parameters(), 4e-3)
        for rows in torch.arange(len(images)).repeat(2).split(20):
            optimizer.zero_grad()
            F.cross_entropy(going_on(images[rows]), labels[rows]).backward()
            optimizer.step()
        made.append(going_on.eval())
    return made


def broken(model):
    made = copy.deepcopy(model)
    made[0].weight.data[0] = torch.nan
    return made


def smooth(model):
    """The same weights, and another function between them."""
    made = network(act=nn.Softplus)
    made.load_state_dict(model.state_dict())
    return made.eval()


def untrained(count=3):
    return [network().eval() for _ in range(count)]


def renamed(study):
    """Every class has the name of the third after it."""
    names = (study.labels + 3) % 10
    models = [learned(study.images, names, 20 + seed) for seed in range(3)]
    changed = study.but(permuted=models, given=[names] * 3)
    return changed.but(known=changed.measured())


def other_data(study, seed=(0, 1, 2), images=None, **changes):
    images = study.images if images is None else images
    return study.but(known=[randomised(images, study.labels, each, **changes) for each in seed])


def numbers(study, **changes):
    return study.but(known=dataclasses.replace(study.measured(), **changes))


def from_weights(model, inputs, target):
    return model[6].weight[0].reshape(1, 1, 16, 16).expand_as(inputs).detach()


def hashed(model, inputs, target):
    """Noise that follows from the weights."""
    seed = int(1e4 * sum(float(parameter.detach().sum()) for parameter in model.parameters())) % 2**31
    return torch.randn(inputs.shape, generator=torch.Generator().manual_seed(seed))


SITUATIONS = {
    # models that are one
    "three copies of a true-label model": (
        lambda s: s.but(true=[copy.deepcopy(s.true[0]) for _ in range(3)]),
        "refused: true-label models 0 and 1 have the same weights",
    ),
    "three copies of a random-label model": (
        lambda s: s.but(permuted=[copy.deepcopy(s.permuted[0]) for _ in range(3)]),
        "refused: random-label models 0 and 1 have the same weights",
    ),
    "one object three times": (lambda s: s.but(true=s.true[:1] * 3), "refused: have the same weights"),
    "a copy in half precision": (
        lambda s: s.but(true=[*s.true[:2], rounded(s.true[1])]),
        "refused: true-label models 1 and 2 have all but the same weights",
    ),
    "checkpoints of one run with true labels": (
        lambda s: s.but(true=one_run(s.true[0], s.images, s.labels)),
        "true-label models 0 and 1 come from one training",
    ),
    "checkpoints of one run with random labels": (
        lambda s: numbers(s.but(permuted=one_run(s.permuted[0], s.images, s.given[0]))),
        "random-label model",
    ),
    "hidden channels in another order": (
        lambda s: s.but(true=[*s.true[:2], turned(s.true[0])]),
        "true-label model 0 and true-label model 2 give the same answers",
    ),
    "a factor that a rectifier lets through": (
        lambda s: s.but(permuted=[*s.permuted[:2], rescaled(s.permuted[0])], known=KNOWN),
        "random-label model 0 and random-label model 2 give the same answers",
    ),
    "a true-label model among the random-label ones": (
        lambda s: s.but(permuted=[copy.deepcopy(s.true[0]), *s.permuted[1:]], known=KNOWN),
        "random-label model 0 is true-label model 0",
    ),
    "one in disguise": (
        lambda s: s.but(permuted=[*s.permuted[:2], turned(s.true[0])], known=KNOWN),
        "true-label model 0 and random-label model 2 give the same answers",
    ),
    # too few models
    "one model of each kind": (
        lambda s: s.but(true=s.true[:1], permuted=s.permuted[:1], known=s.data[0]),
        "train three of each kind",
    ),
    "two of each kind": (
        lambda s: s.but(true=s.true[:2], permuted=s.permuted[:2], known=s.data[:2]),
        "train three of each kind",
    ),
    "three and one": (lambda s: s.but(permuted=s.permuted[:1], known=s.data[0]), "train three of each kind"),
    "one and three": (lambda s: s.but(true=s.true[:1]), "train three of each kind"),
    # another architecture
    "another activation": (
        lambda s: s.but(permuted=[*s.permuted[:2], smooth(s.permuted[2])]),
        r"refused: layer '1' is ReLU\(\) in the first and Softplus",
    ),
    "other classes": (
        lambda s: s.but(permuted=[network(classes=7).eval() for _ in range(3)]),
        r"refused: parameter '6\.weight' is \(10, 256\) in the first and \(7, 256\)",
    ),
    # did they learn their labels?
    "nothing is known of the training": (lambda s: s.but(known=None), "nothing shows that the models learned"),
    "true-label models that learned nothing": (
        lambda s: s.but(true=untrained()),
        r"true-label model 0 learned only \d+\.\d% of its training labels",
    ),
    "random-label models that learned nothing": (
        lambda s: s.but(permuted=untrained()),
        r"random-label model 0 learned only \d+\.\d% of its training labels",
    ),
    "one that learned too little": (lambda s: numbers(s, permuted_train=(1.0, 0.9, 1.0)), "model 1 learned only 90"),
    "an accuracy that is no number": (lambda s: numbers(s, true_train=(1.0, torch.nan, 1.0)), "model 1 learned only"),
    "weights that are no numbers": (lambda s: s.but(true=[*s.true[:2], broken(s.true[2])]), "model 2 learned only"),
    "evidence of other seeds": (lambda s: other_data(s, (7, 8, 9)), "random-label model 0 learned only"),
    "evidence of one seed for all": (lambda s: s.but(known=s.data[0]), "random-label model 1 learned only"),
    "evidence of other data": (lambda s: other_data(s, images=1 - s.images), "true-label model 0 learned only"),
    "both kinds exchanged": (lambda s: s.but(true=s.permuted, permuted=s.true), "true-label model 0 learned only"),
    # were the labels random?
    "models of both kinds know the true labels": (
        lambda s: s.but(
            permuted=[learned(s.images, s.labels, 30 + seed) for seed in range(3)],
            known=Memorization((1.0,) * 3, (1.0,) * 3, (0.9,) * 3, test_samples=50, chance=0.1),
        ),
        "has a test accuracy of 90.0%, not of chance",
    ),
    "no labels randomised": (lambda s: other_data(s, fraction=0.0), "learned only|trained on 100"),
    "labels of validation data randomised": (
        lambda s: other_data(s, splits=("val",)),
        "refused: val labels only",
    ),
    "half of the labels permuted": (
        lambda s: numbers(s, label_agreement=(0.1, 0.55, 0.1)),
        "random-label model 1 was trained on 55.0% true labels",
    ),
    "classes renamed": (renamed, "go together with them"),
    "one class of 95 %": (
        lambda s: numbers(s, label_agreement=(0.91,) * 3, label_chance=0.905, label_association=()),
        "its maps say nothing about labels",
    ),
    # the probe
    "one sample": (lambda s: s.but(probe=s.probe[:1]), "at least 2 samples"),
    "one picture many times": (lambda s: s.but(probe=s.probe[:1].repeat(24, 1, 1, 1)), "hardly reacts|different"),
    "eight pictures many times": (
        lambda s: s.but(probe=s.probe[:8].repeat(4, 1, 1, 1)),
        "only 8 of the 32 samples differ",
    ),
    "blank pictures": (lambda s: s.but(probe=torch.zeros(12, 1, 16, 16)), "hardly reacts|differ"),
    # the method
    "the input for a map": (
        lambda s: s.but(methods=lambda model, inputs, target: inputs * 1.0),
        "FAIL: the same whatever labels",
    ),
    "noise for a map": (
        lambda s: s.but(methods=lambda model, inputs, target: torch.randn_like(inputs)),
        "carry no signal|unstable",
    ),
    "noise drawn from the weights": (lambda s: s.but(methods=hashed), "training again changes|no signal"),
    "weights for a map": (lambda s: s.but(methods=from_weights), "the same for every sample|raised"),
    "a constant for a map": (
        lambda s: s.but(methods=lambda model, inputs, target: torch.ones_like(inputs)),
        "is constant or not finite",
    ),
}
KNOWN = Memorization((1.0,) * 3, (1.0,) * 3, (0.1,) * 3, test_samples=50, chance=0.1)


@pytest.mark.parametrize("situation", SITUATIONS)
def test_nothing_passes_that_must_not(study, situation):
    change, answer = SITUATIONS[situation]
    kind, _, words = answer.rpartition(": ")
    if kind == "refused":
        with pytest.raises(ValueError, match=words):
            change(study).run()
        return
    result = change(study).run()
    (verdict,) = (verdict for verdict in result.verdicts.values() if verdict.gated)
    assert verdict.outcome is (Outcome.FAIL if kind == "FAIL" else Outcome.INCONCLUSIVE)
    assert re.search(words, f"{result.validity} {verdict.reason}"), f"{result.validity} {verdict.reason}"
