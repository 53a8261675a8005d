"""What is explained where a class index does not say it: fixed through the cascade unless it is to be chosen anew."""

import pytest
import torch
import torchvision
from torch import nn

from lightning_sanity import attribution, parameter_randomization_test, similarity, targets
from lightning_sanity.explanation import suitable_measures as measures
from lightning_sanity.explanation.kinds import IMAGE
from lightning_sanity.explanation.maps import Explanation
from lightning_sanity.explanation.request import ask
from lightning_sanity.model.clone import Adapted


def gradient_of(model, inputs, target, **arguments):
    asked = ask(model, inputs, target, **arguments)
    return attribution.resolve("gradient")(Adapted(model, asked.forward), asked.inputs, None)


def expected(score, inputs):
    value = inputs.clone().requires_grad_()
    (slope,) = torch.autograd.grad(score(value).sum(), value)
    return slope


@pytest.fixture
def dense():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 3, padding=1)).eval()


IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_class_is_summed_over_the_pixels_predicted_as_it(dense):
    with torch.no_grad():
        own = dense(IMAGES).argmax(1) == 1
    found = gradient_of(dense, IMAGES, targets.class_mask(1))
    assert torch.allclose(found, expected(lambda x: (dense(x)[:, 1] * own).flatten(1).sum(1), IMAGES), atol=1e-6)


def test_a_class_is_summed_over_a_given_mask(dense):
    mask = torch.zeros(4, 8, 8)
    mask[:, 2:4, 5:7] = 1
    found = gradient_of(dense, IMAGES, targets.class_mask(2, mask))
    assert torch.allclose(found, expected(lambda x: dense(x)[:, 2, 2:4, 5:7].flatten(1).sum(1), IMAGES), atol=1e-6)


def test_a_class_that_is_predicted_nowhere_is_named(dense):
    with torch.no_grad():
        dense[2].bias[2] = -100
    with pytest.raises(ValueError, match="class 2 is predicted nowhere on the probe"):
        ask(dense, IMAGES, targets.class_mask(2))


def test_a_position_keeps_its_predicted_class():
    model, sequence = nn.Linear(5, 7), torch.randn(3, 6, 5)
    own = model(sequence)[:, -1].argmax(1)
    found = gradient_of(model, sequence, targets.position(-1))
    assert torch.allclose(found[:, -1], model.weight[own].detach())
    assert found[:, :-1].eq(0).all()


def test_the_class_at_a_position_may_be_given_per_sample():
    model, sequence = nn.Linear(5, 7), torch.randn(3, 6, 5)
    found = gradient_of(model, sequence, targets.position(torch.tensor([0, 1, 2]), torch.tensor([6, 5, 4])))
    assert torch.allclose(found[torch.arange(3), torch.arange(3)], model.weight[[6, 5, 4]].detach())


def test_an_embedding_is_explained_by_its_cosine_to_a_reference():
    model, inputs, reference = nn.Linear(5, 4), torch.randn(3, 5), torch.randn(4)
    found = gradient_of(model, inputs, targets.cosine_to(reference))
    cosine = expected(lambda x: nn.functional.cosine_similarity(model(x), reference[None]), inputs)
    assert torch.allclose(found, cosine, atol=1e-6)


def test_predicted_labels_are_summed():
    model, inputs = nn.Linear(5, 4), torch.randn(3, 5)
    chosen = (model(inputs) > 0).float()
    assert torch.allclose(gradient_of(model, inputs, targets.labels()), (chosen @ model.weight).detach(), atol=1e-6)
    some = gradient_of(model, inputs, targets.labels([1, 3]))
    assert torch.allclose(some, (model.weight[1] + model.weight[3]).detach().expand(3, 5), atol=1e-6)


class Detector(nn.Module):
    """Two boxes per image, each scored by the mean inside it."""

    def forward(self, images):
        boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [4.0, 4.0, 8.0, 8.0]])
        scores = [torch.stack([image[:, :4, :4].mean(), image[:, 4:, 4:].mean()]).sigmoid() for image in images]
        return [{"boxes": boxes, "scores": score, "labels": torch.tensor([1, 2])} for score in scores]


def test_the_score_of_a_box_is_that_of_the_detection_over_it():
    box = torch.tensor([[4.0, 4.0, 8.0, 8.0]]).expand(4, 4)
    found = gradient_of(Detector(), IMAGES, targets.box(box))
    assert found[:, :, 4:, 4:].ne(0).all()
    assert found[:, :, :4].eq(0).all()
    assert gradient_of(Detector(), IMAGES, targets.box(box, index=1)).eq(0).all()


def test_a_function_of_the_outputs_is_a_target():
    model, inputs = nn.Linear(5, 2), torch.randn(6, 5)
    ratio = lambda outputs: outputs[:, 0] - 2 * outputs[:, 1]  # noqa: E731
    found = gradient_of(model, inputs, ratio)
    assert torch.allclose(found, (model.weight[0] - 2 * model.weight[1]).detach().expand(6, 5), atol=1e-6)


def mlp():
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4))


@pytest.mark.parametrize("retarget", [False, True])
@pytest.mark.parametrize(
    ("name", "target", "shape"),
    [
        ("the predicted labels", targets.labels(), (6, 5)),
        ("cosine to a reference", targets.cosine_to(torch.ones(4)), (6, 5)),
        ("a class at a position", targets.position(-1), (6, 8, 5)),
        ("score", lambda outputs: outputs[:, 1] - outputs[:, 0].exp(), (6, 5)),
    ],
)
def test_targets_run_through_a_cascade(name, target, shape, retarget):
    torch.manual_seed(0)
    settings = {"methods": "gradient", "trials": 1, "controls": False, "retarget": retarget}
    settings |= {"channel_axis": None}  # of a network without a word between positions, one position's map is a number
    result = parameter_randomization_test(mlp(), torch.randn(shape), target, **settings)
    assert result.settings["target"] == (name if isinstance(target, targets.Target) else "<lambda>")
    assert result.coverage.share == 1.0
    assert result.curves["gradient", "spearman"].values.isfinite().all()


def test_a_target_that_gives_no_number_per_sample_is_an_error():
    with pytest.raises(ValueError, match="must return one floating-point number per sample"):
        parameter_randomization_test(nn.Linear(5, 2), torch.randn(6, 5), lambda outputs: outputs, methods="gradient")


def test_outputs_without_a_number_per_sample_ask_for_a_target(dense):
    with pytest.raises(
        ValueError, match=r"pass target=, a function outputs -> \(N,\) or one of lightning_sanity\.targets"
    ):
        parameter_randomization_test(dense, IMAGES, methods="gradient")


def test_what_is_asked_stays_fixed_unless_it_is_to_be_asked_anew(dense):
    asked = ask(dense, IMAGES, targets.class_mask(1))
    what = Explanation(Adapted(dense, asked.forward), asked.inputs, None, chosen=asked.chosen, question=asked.place)
    before = asked.inputs[-1].clone()
    with torch.no_grad():
        dense[2].bias[1] += 100
    assert torch.equal(what.inputs[-1], before)
    assert what.retargeted().inputs[-1].eq(1).all()


def test_maps_of_unrelated_samples_are_asked_the_same_question(dense):
    asked = ask(dense, IMAGES, targets.class_mask(1))
    what = Explanation(Adapted(dense, asked.forward), asked.inputs, None, chosen=asked.chosen, question=asked.place)
    crossed = what.crossed(1)
    assert torch.equal(crossed.inputs[0], IMAGES.roll(1, 0))
    assert torch.equal(crossed.inputs[-1], asked.inputs[-1])


@pytest.mark.parametrize("retarget", [False, True])
def test_a_segmentation_is_tested_within_its_reach(dense, retarget):
    mask = torch.zeros(4, 8, 8)
    mask[:, :2, :2] = 1
    result = parameter_randomization_test(
        dense, IMAGES, targets.class_mask(1, mask), methods="gradient", trials=1, retarget=retarget, controls=False
    )
    assert ("gradient", "ssim") not in result.curves
    assert result.settings["target"] == "class 1 over its mask"
    values = result.curves["gradient", "spearman"].values
    assert values.isfinite().all()
    assert values.mean() < 0.9  # over the whole image, most of which is 0 for every model, it would be near 1


def test_a_support_is_looked_at_within_the_reach(dense):
    images = torch.zeros(4, 1, 8, 8)
    images[:, :, 1:7, 1:7] = IMAGES[:, :, 1:7, 1:7]
    reach = torch.zeros(4, 8, 8, dtype=torch.bool)
    reach[:, :4] = True
    support = measures.support_in(images)
    used = {measure.name: measure for measure in measures.suited(None, images, support, reach, kind=IMAGE)}
    maps, others = torch.randn(2, 4, 8, 8)
    inside = similarity.resolve("spearman")(maps[:, 1:4, 1:7], others[:, 1:4, 1:7])
    assert torch.allclose(used["spearman_support"](maps, others), inside)
    assert "ssim" not in used


@pytest.mark.slow
def test_a_box_of_a_torchvision_detector_is_tested_end_to_end():
    model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3, box_score_thresh=0.0, rpn_post_nms_top_n_test=20
    )
    box = torch.tensor([[10.0, 10.0, 50.0, 50.0]]).expand(2, 4)
    result = parameter_randomization_test(
        model, torch.rand(2, 3, 64, 64), targets.box(box), methods="gradient", controls=False, trials=1, max_steps=2
    )
    assert result.settings["target"] == "the score of a box"
    assert result.coverage.share == 1.0
    assert result.curves["gradient", "spearman"].values.isfinite().all()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("place", [-1, 0, torch.tensor([1, -2, 0])])
def test_of_a_padded_batch_only_real_tokens_have_positions(side, place):
    model, sequence, length = nn.Linear(5, 7), torch.randn(3, 6, 5), torch.tensor([6, 4, 2])
    steps = torch.arange(6).expand(3, 6)
    mask = steps < length[:, None] if side == "right" else steps >= 6 - length[:, None]
    found = gradient_of(
        model, {"x": sequence, "mask": mask.long()}, targets.position(place), forward=lambda m, x, mask: m(x)
    )
    counted = [row.nonzero().flatten()[at] for row, at in zip(mask, torch.as_tensor(place).expand(3), strict=True)]
    assert [row.abs().sum(1).nonzero().flatten().tolist() for row in found] == [[int(at)] for at in counted]


def test_a_position_that_a_sentence_is_too_short_for_names_the_sentence():
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    with pytest.raises(ValueError, match="sample 1 has 1 tokens that count, so there is no position -2"):
        ask(nn.Linear(5, 7), torch.randn(2, 3, 5), targets.position(-2), real=mask)
