"""What the axes of an input are: told by what the network does with it, or not at all."""

import pytest
import torch
from made_layouts import (
    CASES,
    Attending,
    Called,
    Last,
    Turned,
    convolved,
    flattened,
    graph,
    patched,
    pooled,
    unsqueezed,
)
from torch import nn

from lightning_sanity import Outcome, data_randomization_test, parameter_randomization_test
from lightning_sanity.explanation.request import ask, understood

FEW = {"trials": 1, "controls": False, "progress": False, "repeats": 1}


def layout_of(model, inputs, **options):
    return understood(model.eval(), ask(model, inputs), **options).layout


@pytest.mark.parametrize("name", CASES)
def test_axes_are_what_the_network_makes_of_them(name):
    case = CASES[name]
    found = layout_of(case.build(), torch.randn(4, *case.shape))
    assert (found.channel, found.kind.name) == (case.summed, case.kind), found.known
    assert case.told in found.known


@pytest.mark.parametrize("name", CASES)
def test_what_was_turned_can_be_turned_back(name):
    case = CASES[name]
    inputs = torch.arange(float(4 * torch.Size(case.shape).numel())).reshape(4, *case.shape)
    found = layout_of(case.build(), inputs)
    turned = found.turned(inputs)
    assert torch.equal(found.back(turned), inputs)
    summed = 1 if case.summed is None else case.shape[case.summed - 1]
    if found.kind.name != "table":
        assert turned.shape[:2] == (4, summed)
        assert turned.ndim <= 5


LAYOUTS = {
    "image": (lambda: convolved(3, 2), (3, 9, 8), [(0, 1, 2, 3), (0, 2, 3, 1), (0, 2, 1, 3)]),
    "patches": (lambda: patched(3, 4), (3, 8, 12), [(0, 1, 2, 3), (0, 2, 3, 1)]),
    "image without channels": (lambda: unsqueezed(convolved(1, 2)), (9, 8), [(0, 1, 2)]),
    "signal": (lambda: convolved(4, 1), (4, 20), [(0, 1, 2), (0, 2, 1)]),
    "steps": (lambda: Last(4), (20, 4), [(0, 1, 2), (0, 2, 1)]),
    "attended steps": (lambda: Attending(8), (12, 8), [(0, 1, 2), (0, 2, 1)]),
    "graph": (lambda: graph(5), (7, 5), [(0, 1, 2), (0, 2, 1)]),
    "points": (lambda: pooled(3), (12, 3), [(0, 1, 2), (0, 2, 1)]),
    "volume": (lambda: convolved(2, 3), (2, 5, 6, 7), [(0, 1, 2, 3, 4), (0, 2, 3, 4, 1)]),
    "spectrogram by its bands": (lambda: convolved(20, 1), (20, 15), [(0, 1, 2), (0, 2, 1)]),
    "spectrogram as an image": (lambda: Turned(convolved(1, 2)), (1, 20, 15), [(0, 1, 2, 3), (0, 2, 3, 1)]),
    "nodes by einsum": (lambda: graph(5, product="einsum"), (7, 5), [(0, 1, 2), (0, 2, 1)]),
    "joints over time": (lambda: convolved(3, 2), (3, 9, 8), [(0, 1, 2, 3), (0, 2, 3, 1)]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_verdict_does_not_depend_on_the_layout(name):
    build, shape, orders = LAYOUTS[name]
    model, inputs = build(), torch.randn(6, *shape)
    methods = ["gradient", "input_x_gradient", "occlusion"]
    cam = len(shape) == 3 and name != "patches"
    found = []
    for order in orders:
        inverse = [order.index(axis) for axis in range(len(order))]
        given = inputs.permute(order).contiguous()
        result = parameter_randomization_test(
            Turned(model, *inverse).eval(), given, torch.arange(6) % 3, methods=methods + ["gradcam"] * cam, **FEW
        )
        found.append(result)
    for other in found[1:]:
        assert other.curves.keys() == found[0].curves.keys()
        for method, verdict in found[0].verdicts.items():
            assert other.verdicts[method].psi == pytest.approx(verdict.psi, abs=1e-6, nan_ok=True)
        for key, curve in found[0].curves.items():
            torch.testing.assert_close(other.curves[key].values, curve.values, rtol=0, atol=1e-6, equal_nan=True)
            torch.testing.assert_close(other.curves[key].floor, curve.floor, rtol=0, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("build", [lambda: flattened(64), lambda: unsqueezed(convolved(1, 2))])
def test_an_image_without_its_channel_axis_is_judged_as_with_it(build):
    model, images = build(), torch.rand(6, 8, 8)
    squeezing = Called(lambda x, inner: inner(x.flatten(1).unflatten(1, (8, 8))), model).eval()
    methods = ["occlusion", "input_x_gradient"]
    target = torch.arange(6) % 3
    with_axis, without = (
        parameter_randomization_test(squeezing, given, target, methods=methods, **FEW)
        for given in (images[:, None], images)
    )
    assert {measure for _, measure in without.curves} == {measure for _, measure in with_axis.curves}
    for method, verdict in with_axis.verdicts.items():
        assert without.verdicts[method].psi == pytest.approx(verdict.psi, abs=1e-6, nan_ok=True)
    for key, curve in with_axis.curves.items():
        torch.testing.assert_close(without.curves[key].values, curve.values, rtol=0, atol=1e-6, equal_nan=True)


def test_what_is_not_known_is_not_summed_and_said():
    model, inputs = flattened(80).eval(), torch.randn(6, 20, 4)
    result = parameter_randomization_test(model, inputs, torch.arange(6) % 3, methods="gradient", **FEW)
    flat = parameter_randomization_test(
        model, inputs.flatten(1), torch.arange(6) % 3, methods="gradient", similarities="pearson", **FEW
    )
    torch.testing.assert_close(
        result.curves["gradient", "spearman"].values, flat.curves["gradient", "spearman"].values, rtol=0, atol=1e-6
    )
    assert result.settings["axes"] == {
        "kind": "array",
        "summed": None,
        "known": "nothing shows which axis holds channels or features; channel_axis= says it",
    }
    assert result.settings["input_shape"] == [6, 20, 4]
    assert any("inputs (6, 20, 4): nothing is summed" in note for note in result.coverage.notes)


def test_what_lies_as_usual_needs_no_note():
    result = parameter_randomization_test(convolved(3, 2), torch.randn(4, 3, 9, 8), [0] * 4, methods="gradient", **FEW)
    assert result.settings["axes"]["summed"] == 1
    assert not any("inputs (" in note for note in result.coverage.notes)


@pytest.mark.parametrize(
    ("options", "summed", "kind"),
    [
        ({"channel_axis": 2}, 2, "signal"),
        ({"channel_axis": -1}, 2, "signal"),
        ({"feature_axis": 1}, 1, "signal"),
        ({"channel_axis": None}, None, "array"),
    ],
)
def test_an_axis_that_is_given_is_taken(options, summed, kind):
    found = layout_of(flattened(80), torch.randn(4, 20, 4), **options)
    assert (found.channel, found.kind.name) == (summed, kind)
    assert next(iter(options)) in found.known


def test_features_of_a_grid_make_no_picture():
    model, inputs = flattened(10 * 9 * 5), torch.randn(4, 10, 9, 5)
    assert layout_of(model, inputs, channel_axis=3).kind.picture
    assert not layout_of(model, inputs, feature_axis=3).kind.picture


@pytest.mark.parametrize("axis", [0, 3, -3])
def test_an_axis_that_is_not_there_is_an_error(axis):
    with pytest.raises(ValueError, match=rf"channel_axis={axis} is no axis of an input \(4, 20, 4\)"):
        layout_of(flattened(80), torch.randn(4, 20, 4), channel_axis=axis)


def test_one_axis_is_named_once():
    with pytest.raises(ValueError, match="not both"):
        layout_of(flattened(80), torch.randn(4, 20, 4), channel_axis=1, feature_axis=2)
    with pytest.raises(ValueError, match="channel_axis must be an integer, not 'last'"):
        parameter_randomization_test(flattened(80), torch.randn(4, 20, 4), channel_axis="last")


def test_windows_and_pictures_follow_the_channels():
    model, images = Turned(convolved(3, 2), 0, 3, 1, 2).eval(), torch.rand(6, 12, 10, 3)
    result = parameter_randomization_test(
        model, images, torch.arange(6) % 3, methods=["occlusion", "gradcam"], similarities="ms_ssim", **FEW
    )
    assert ("occlusion", "ssim") in result.curves
    assert ("gradcam", "ssim") in result.curves
    assert result.pictures.inputs.shape == (3, 12, 10, 3)
    assert result.pictures.maps["occlusion"].shape[2:] == (12, 10)


def test_images_of_whole_numbers_have_axes_too():
    class Bytes(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = convolved(3, 2)

        def forward(self, x):
            return self.inner(x.permute(0, 3, 1, 2).float() / 255)

    images = torch.randint(0, 255, (6, 12, 10, 3), dtype=torch.uint8)
    options = FEW | {"controls": True}
    result = parameter_randomization_test(Bytes().eval(), images, torch.arange(6) % 3, methods="rise", **options)
    assert (result.settings["axes"]["kind"], result.settings["axes"]["summed"]) == ("image", 3)
    assert result.curves["input_copy", "spearman"].values.isfinite().all()


# --------------------------------------------------------------------------------------------------------------- guests


def test_a_users_function_meets_the_model_and_the_input_as_they_are():
    model, images = Turned(convolved(3, 2), 0, 3, 1, 2).eval(), torch.rand(6, 12, 10, 3)
    seen = []

    def own(explained, inputs, target):
        seen.append((type(explained), tuple(inputs.shape)))
        value = inputs.clone().requires_grad_()
        (slope,) = torch.autograd.grad(explained(value).gather(1, target[:, None]).sum(), value)
        return slope

    result = parameter_randomization_test(
        model, images, torch.arange(6) % 3, methods={"own": own, "gradient": "gradient"}, **FEW
    )
    assert set(seen) <= {(Turned, (n, 12, 10, 3)) for n in range(1, 13)}
    for measure in ("spearman", "ssim"):
        values = [result.curves[name, measure].values for name in ("own", "gradient")]
        torch.testing.assert_close(*values, rtol=0, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize(
    ("reduce", "shape"),
    [
        (lambda slope: slope.sum(3), "(N, H, W)"),
        (lambda slope: slope.sum(3, keepdim=True), "(N, H, W, 1)"),
        (lambda slope: slope.sum(3)[:, None], "(N, 1, H, W)"),
        (lambda slope: (slope,), "a tuple of one"),
    ],
)
def test_a_users_map_may_have_lost_its_channels(reduce, shape):
    model, images = Turned(convolved(3, 2), 0, 3, 1, 2).eval(), torch.rand(6, 12, 10, 3)

    def own(explained, inputs, target):
        value = inputs.clone().requires_grad_()
        (slope,) = torch.autograd.grad(explained(value).gather(1, target[:, None]).sum(), value)
        return reduce(slope)

    result = parameter_randomization_test(model, images, torch.arange(6) % 3, methods={"own": own}, **FEW)
    assert result.curves["own", "spearman_signed"].values.isfinite().all(), shape


def test_a_named_layer_is_found_whatever_the_axes():
    model, images = Turned(convolved(3, 2), 0, 3, 1, 2).eval(), torch.rand(6, 12, 10, 3)
    result = parameter_randomization_test(
        model, images, torch.arange(6) % 3, methods="gradcam", layer="model.held.0", **FEW
    )
    assert result.curves["gradcam", "spearman"].values.isfinite().any()
    assert result.verdicts["gradcam"].outcome is not Outcome.FAIL or result.verdicts["gradcam"].psi < 0.65


# ------------------------------------------------------------------------------------------------------ undisturbed


def test_watching_a_pass_leaves_the_model_as_it_was():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.calls, self.last = convolved(3, 2), 0, None

        def forward(self, x):
            self.calls += 1
            self.last = x
            return self.inner(x)

    model, images = Counting().train(), torch.randn(4, 3, 9, 8)
    state = torch.random.get_rng_state()
    understood(model, ask(model, images))
    assert (model.calls, model.last, model.training) == (0, None, True)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_model_for_one_batch_size_is_watched_with_that():
    def run(x, inner):
        if len(x) != 6:
            raise ValueError("six samples")
        return inner(x)

    model = Called(run, Turned(convolved(3, 2), 0, 3, 1, 2))
    assert layout_of(model, torch.randn(6, 12, 10, 3)).channel == 3


def test_a_page_says_of_what_shape_the_maps_are(tmp_path):
    model, images = Turned(convolved(3, 2), 0, 3, 1, 2).eval(), torch.rand(6, 12, 10, 3)
    result = parameter_randomization_test(model, images, torch.arange(6) % 3, methods="gradient", **FEW)
    page = result.to_html(tmp_path / "report.html").read_text()
    assert "6 samples, maps of 12 x 10 (inputs summed over axis 3)" in page
    assert "channel_axis=&#39;auto&#39;" in page


def test_the_test_of_labels_takes_axes_and_outputs_alike():
    def model():
        torch.manual_seed(len(models))
        models.append(Turned(Called(lambda x, a, b: {"z": a(x), "logits": b(a(x))}, Last(4), nn.Linear(3, 3)), 0, 1, 2))
        return models[-1].eval()

    models = []
    steps = torch.randn(6, 20, 4)
    result = data_randomization_test(model(), model(), steps, 1, methods="gradient", controls=False, progress=False)
    assert result.settings["axes"]["summed"] == 2
    assert result.settings["explained_output"]["name"] == "logits"
    assert any("summed over axis 2" in note for note in result.coverage.notes)
