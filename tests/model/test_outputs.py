"""Which of a model's outputs are its scores: by name, by fit, by being asked for; never by being the first."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_sanity import parameter_randomization_test
from lightning_sanity.explanation import targets
from lightning_sanity.model.outputs import classes_of, features_by, logits, scores_among

N = 5
FEATURES, SCORES, LOSS = torch.randn(N, 32), torch.randn(N, 4), torch.tensor(0.7)
HIDDEN, ATTENTION, CONFIDENCE = torch.randn(N, 9, 16), torch.rand(N, 2, 9, 9), torch.rand(N)
IDS = torch.randint(9, (N, 7))


@dataclass
class Named:
    loss: torch.Tensor
    logits: torch.Tensor
    hidden: tuple


@dataclass
class Unnamed:
    features: torch.Tensor
    classes: torch.Tensor


Pair = namedtuple("Pair", ["embedding", "scores"])

FOUND = {
    "a tensor": (SCORES, ""),
    "one tensor in a tuple": ((SCORES,), "0"),
    "one tensor in a list": ([SCORES], "0"),
    "loss first, as return_dict=False has it": ((LOSS, SCORES), "1"),
    "loss last": ((SCORES, LOSS), "0"),
    "scores and a hidden state": ((HIDDEN, SCORES), "1"),
    "scores and states of all layers": ((SCORES, (HIDDEN, HIDDEN), (ATTENTION,)), "0"),
    "loss, scores, states": ((LOSS, SCORES, (HIDDEN, HIDDEN)), "1"),
    "ids and scores": ((IDS, SCORES), "1"),
    "a dictionary with logits": ({"features": FEATURES, "logits": SCORES}, "logits"),
    "an ordered dictionary": (OrderedDict(loss=LOSS, logits=SCORES, embedding=FEATURES), "logits"),
    "scores by their name": ({"embedding": FEATURES, "scores": SCORES}, "scores"),
    "y_hat by its name": ({"y_hat": SCORES, "z": FEATURES}, "y_hat"),
    "a segmenter's out": ({"out": HIDDEN, "aux": HIDDEN}, "out"),
    "a dataclass": (Named(LOSS, SCORES, (HIDDEN,)), "logits"),
    "a named tuple": (Pair(FEATURES, SCORES), "scores"),
    "an object with attributes": (SimpleNamespace(z=FEATURES, logits=SCORES), "logits"),
    "a nested dictionary": ({"head": {"logits": SCORES}, "body": {"features": FEATURES}}, "head.logits"),
    "nothing and scores": ((None, SCORES), "1"),
    "text and scores": (("label", SCORES), "1"),
    "another number of rows": ((torch.randn(3, 4), SCORES), "1"),
    "scores and probabilities": ((SCORES, SCORES.softmax(1)), "0"),
    "probabilities and scores": ((SCORES.softmax(1), SCORES), "1"),
    "scores and log probabilities": ((SCORES.log_softmax(1), SCORES), "1"),
    "scores and independent probabilities": ((SCORES, SCORES.sigmoid()), "0"),
}
FOUND_BY_CLASSES = {
    "features first": ((FEATURES, SCORES), "1"),
    "features last": ((SCORES, FEATURES), "0"),
    "an unnamed dataclass": (Unnamed(FEATURES, SCORES), "classes"),
    "another head": ({"site": torch.randn(N, 3), "disease": SCORES}, "disease"),
    "scores, probabilities, features": ((FEATURES, SCORES, SCORES.softmax(1)), "1"),
    "a confidence": ((CONFIDENCE, SCORES), "1"),
}
LABELS = torch.arange(N * 4) % 4
PREDICTING = 3.0 * torch.eye(4)[LABELS] + torch.randn(N * 4, 4, generator=torch.Generator().manual_seed(1))
WIDE, AS_WIDE = torch.randn(N * 4, 32), torch.randn(N * 4, 4)
FOUND_BY_LABELS = {
    "features first, no number of classes": ((WIDE, PREDICTING), "1"),
    "scores first, no number of classes": ((PREDICTING, WIDE), "0"),
    "features as wide as there are classes": ((AS_WIDE, PREDICTING), "1"),
    "more scores than classes that occur": ((WIDE, torch.cat([PREDICTING, AS_WIDE - 9], 1)), "1"),
    "probabilities beside features": ({"f": WIDE, "p": PREDICTING.softmax(1), "s": PREDICTING}, "s"),
    "what does not predict yet": ((WIDE, AS_WIDE), "1"),
}
ASKED_DESPITE_LABELS = {
    "two heads that predict": (PREDICTING, PREDICTING.flip(0).flip(0) * 2 + 0.1 * AS_WIDE),
    "two that do not predict yet": (AS_WIDE, AS_WIDE.flip(0)),
    "none as wide, none that predicts": (WIDE, AS_WIDE[:, :3]),
}
ASKED = {
    "features and scores": ((FEATURES, SCORES), r"'0' \(N, 32\), '1' \(N, 4\)"),
    "scores and features": ((SCORES, FEATURES), r"'0' \(N, 4\), '1' \(N, 32\)"),
    "two heads": ({"disease": SCORES, "site": torch.randn(N, 4)}, r"'disease' \(N, 4\), 'site' \(N, 4\)"),
    "deep supervision": ([SCORES, SCORES + 1, SCORES - 1], "'0'"),
    "a confidence and scores": ((CONFIDENCE, SCORES), r"'0' \(N,\)"),
    "two logits": ({"a": {"logits": SCORES}, "b": {"logits": SCORES + 1}}, "'a.logits'"),
    "an unnamed dataclass": (Unnamed(FEATURES, SCORES), "'features'"),
    "two dense maps": ((HIDDEN, HIDDEN + 1), "'0'"),
}


@pytest.mark.parametrize("name", FOUND)
def test_scores_are_found_by_name_or_fit(name):
    outputs, path = FOUND[name]
    found = scores_among(outputs, N)
    assert found.name == path
    assert bool(found.known) == bool(path)


@pytest.mark.parametrize("name", FOUND_BY_CLASSES)
def test_scores_are_as_wide_as_there_are_classes(name):
    outputs, path = FOUND_BY_CLASSES[name]
    found = scores_among(outputs, N, classes=4)
    assert found.name == path
    assert "classes, 4" in found.known or "probabilities" in found.known
    assert torch.equal(found.of(outputs), SCORES)


@pytest.mark.parametrize("name", FOUND_BY_LABELS)
def test_scores_are_what_predicts_the_labels(name):
    outputs, path = FOUND_BY_LABELS[name]
    found = scores_among(outputs, N * 4, labels=LABELS)
    assert found.name == path
    assert "labels" in found.known


@pytest.mark.parametrize("name", ASKED_DESPITE_LABELS)
def test_labels_that_several_outputs_fit_decide_nothing(name):
    with pytest.raises(ValueError, match="several of the model's outputs"):
        scores_among(ASKED_DESPITE_LABELS[name], N * 4, labels=LABELS)


def test_labels_of_some_classes_do_not_say_how_many_there_are():
    with pytest.raises(ValueError, match="several"):
        scores_among((torch.randn(N * 4, 6), torch.randn(N * 4, 9)), N * 4, labels=torch.arange(N * 4) % 2 * 5)


@pytest.mark.parametrize("name", ASKED)
def test_where_several_could_be_meant_it_is_asked(name):
    outputs, listed = ASKED[name]
    with pytest.raises(ValueError, match=rf"several of the model's outputs could be its scores: .*{listed}.*output="):
        scores_among(outputs, N)


def test_two_outputs_as_wide_as_the_classes_are_asked_for():
    with pytest.raises(ValueError, match="several"):
        scores_among((SCORES, SCORES + 1), N, classes=4)


@pytest.mark.parametrize(
    ("outputs", "wanted", "name"),
    [
        ((FEATURES, SCORES), 1, "1"),
        ((FEATURES, SCORES), -1, "1"),
        ({"a": FEATURES, "b": SCORES}, "b", "b"),
        ({"heads": {"a": FEATURES, "b": SCORES}}, "b", "heads.b"),
        ({"heads": {"a": SCORES}, "a2": FEATURES}, "heads.a", "heads.a"),
        (Unnamed(FEATURES, SCORES), "classes", "classes"),
        ({3: FEATURES, 4: SCORES}, 4, "4"),
    ],
)
def test_the_output_that_is_asked_for_is_taken(outputs, wanted, name):
    found = scores_among(outputs, N, wanted)
    assert found.name == name
    assert torch.equal(found.of(outputs), SCORES)


@pytest.mark.parametrize("wanted", [2, "scores"])
def test_an_output_that_is_not_there_is_an_error(wanted):
    with pytest.raises(ValueError, match=r"names none of the model's outputs; there are '0' \(5, 32\), '1' \(5, 4\)"):
        scores_among((FEATURES, SCORES), N, wanted)


def test_a_single_tensor_has_no_second_output():
    with pytest.raises(ValueError, match="the model returns one tensor"):
        scores_among(SCORES, N, 1)


def test_no_tensor_at_all_is_an_error():
    with pytest.raises(TypeError, match="returned dict without a tensor"):
        logits({"a": 1})


# ------------------------------------------------------------------------------------------------------- in a test


class Two(nn.Module):
    def __init__(self, arrange, **known):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(6, 16), nn.Tanh()), nn.Linear(16, 3)
        self.arrange = arrange
        for name, value in known.items():
            setattr(self, name, value)

    def forward(self, x):
        hidden = self.body(x)
        return self.arrange(hidden, self.head(hidden))


FEW = {"methods": "gradient", "trials": 1, "controls": False, "progress": False}


@pytest.mark.parametrize(
    ("arrange", "options", "known"),
    [
        (lambda h, s: {"z": h, "logits": s}, {}, {}),
        (lambda h, s: (s.square().mean(), s), {}, {}),
        (lambda h, s: (h, s), {"output": 1}, {}),
        (lambda h, s: (h, s), {}, {"num_classes": 3}),
        (lambda h, s: (h, s), {"target": torch.tensor([0, 1, 2, 0, 1, 2])}, {}),
        (lambda h, s: (h, s), {"labels": torch.tensor([0, 1, 2, 0, 1, 2])}, {}),
        (lambda h, s: (h, s), {"forward": lambda model, x: model(x)[1]}, {}),
        (lambda h, s: (h, s), {"target": lambda found: found[1][:, 0]}, {}),
    ],
    ids=["named", "loss first", "output=", "num_classes", "labels as target", "labels", "forward=", "target="],
)
def test_the_scores_that_were_found_are_explained(arrange, options, known):
    model, inputs = Two(arrange, **known).eval(), torch.randn(6, 6)
    alone = Two(lambda h, s: s).eval()
    alone.load_state_dict(model.state_dict())
    options = {"target": 0, **options}
    target = 0 if callable(options["target"]) else options["target"]
    values = [
        parameter_randomization_test(tested, inputs, **asked, **FEW).curves["gradient", "spearman"].values
        for tested, asked in ((model, options), (alone, {"target": target}))
    ]
    torch.testing.assert_close(*values, rtol=0, atol=1e-6)


@pytest.mark.parametrize("wrong", [[0, 1, 2], torch.zeros(6, 2)])
def test_labels_are_one_class_index_per_sample(wrong):
    with pytest.raises(ValueError, match="labels must be a tensor of one class index per sample"):
        parameter_randomization_test(Two(lambda h, s: (h, s)), torch.randn(6, 6), labels=wrong, **FEW)


def test_which_output_was_taken_is_said():
    model = Two(lambda h, s: {"z": h, "logits": s}).eval()
    result = parameter_randomization_test(model, torch.randn(6, 6), 1, **FEW)
    assert result.settings["explained_output"] == {"name": "logits", "known": "it is called 'logits'"}
    assert "explained is the model's output 'logits': it is called 'logits'" in result.coverage.notes


def test_features_before_scores_are_never_taken_in_silence():
    with pytest.raises(ValueError, match=r"could be its scores: '0' \(N, 16\), '1' \(N, 3\); pass output="):
        parameter_randomization_test(Two(lambda h, s: (h, s)), torch.randn(6, 6), **FEW)


def test_an_output_that_is_not_there_ends_the_test_by_its_name():
    with pytest.raises(ValueError, match=r"^output='nope' names none of the model's outputs; there are 'z'"):
        parameter_randomization_test(Two(lambda h, s: {"z": h, "s": s}), torch.randn(6, 6), output="nope", **FEW)


def test_an_output_goes_into_a_function_that_is_a_target():
    model, inputs = Two(lambda h, s: {"a": h, "b": s}).eval(), torch.randn(6, 6)
    seen = []
    target = lambda found: (seen.append(tuple(found.shape)), found[:, 0])[1]  # noqa: E731
    parameter_randomization_test(model, inputs, target, output="b", **FEW)
    assert {shape[1] for shape in seen} == {3}


def test_the_number_of_classes_is_where_models_say_it():
    model = nn.Linear(2, 2)
    assert classes_of(model) is None
    model.hparams = {"n_classes": 7}
    assert classes_of(model) == 7
    model.config = SimpleNamespace(num_labels=5)
    model.hparams = {}
    assert classes_of(model) == 5
    model.num_classes = 3
    assert classes_of(model) == 3


OF_SAMPLES = {
    "rectified and pooled": lambda z: z.relu(),
    "of length 1": functional.normalize,
    "standardised": lambda z: functional.layer_norm(z, z.shape[1:]),
}
OF_CLASSES = {
    "logits": lambda z: z,
    "logits of high confidence": lambda z: 30 * z,
    "probabilities": lambda z: z.softmax(1),
    "logarithms of probabilities": lambda z: z.log_softmax(1),
    "probabilities of each class": lambda z: z.sigmoid(),
    "certain predictions": lambda z: functional.one_hot(z.argmax(1), z.shape[1]).float(),
    "cosines times a temperature": lambda z: 16 * functional.normalize(z),
}


@pytest.fixture
def numbers():
    return torch.randn(3, 512, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", OF_SAMPLES)
def test_features_show_by_what_they_went_through_last(kind, numbers):
    assert features_by(OF_SAMPLES[kind](numbers)) is not None
    assert features_by(OF_SAMPLES[kind](numbers), classes=512) is None  # the model says that it has so many classes


@pytest.mark.parametrize("kind", OF_CLASSES)
def test_scores_of_many_classes_are_not_taken_for_features(kind, numbers):
    assert features_by(OF_CLASSES[kind](numbers)) is None


def test_features_show_by_the_name_of_the_output(numbers):
    assert features_by(numbers, "image_embeds") == "the output is called 'image_embeds'"
    assert features_by(numbers, "logits_per_image") is None


def test_a_model_that_ends_in_features_is_told_so_and_how_to_ask():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 64), nn.LayerNorm(64)).eval()
    inputs, few = torch.randn(N, 20), {"methods": "gradient", "trials": 1, "repeats": 1, "controls": False}
    told = parameter_randomization_test(encoder, inputs, **few)
    assert "64 outputs look like features, not like scores of classes" in " ".join(told.coverage.notes)
    reference = encoder(torch.randn(20)).detach()
    asked = parameter_randomization_test(encoder, inputs, targets.cosine_to(reference), **few)
    assert "look like features" not in " ".join(asked.coverage.notes)
    chosen = parameter_randomization_test(encoder, inputs, 3, **few)  # who names a number has said what is meant
    assert "look like features" not in " ".join(chosen.coverage.notes)
