"""Beyond images: signals, volumes, tables, segmentation, several inputs; controls come out right on each."""

import pytest
import torch
from made_examples import load
from torch import nn
from torch.nn import functional as F

from lightning_sanity import Outcome, attribution, parameter_randomization_test
from lightning_sanity.attribution import integrated_gradients
from lightning_sanity.attribution.layers import last_map
from lightning_sanity.cli import demo
from lightning_sanity.explanation import Tokens
from lightning_sanity.model.clone import Adapted
from lightning_sanity.parameter_randomization import multi_input_randomization_test

FAILING = ("edge_detector", "input_copy")


def assert_controls_came_out_right(result):
    assert result.valid, result.validity
    assert result.coverage.share == 1.0
    assert result.verdicts["gradient"].outcome is not Outcome.FAIL
    assert [result.verdicts[name].outcome for name in FAILING] == [Outcome.FAIL] * 2
    assert result.verdicts["random"].outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize(
    ("name", "cam", "settings"),
    [
        ("volume", "gradcam", {"steps": 60, "samples": 8}),
        ("time_series", "gradcam", {"steps": 60, "samples": 12}),
        ("tabular", None, {"steps": 60, "samples": 16}),
        ("segmentation", "gradcam", {"steps": 60, "samples": 6}),
    ],
)
def test_examples_of_other_inputs_have_valid_verdicts(name, cam, settings, tmp_path, capsys):
    methods = ["gradient", integrated_gradients(4, tolerance=1.0), *([cam] if cam else [])]
    result = load(name).main(tmp_path, trials=2, methods=methods, **settings)
    assert_controls_came_out_right(result)
    assert "integrated_gradients" in capsys.readouterr().out
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    assert all((method if isinstance(method, str) else method.name, "spearman") in result.curves for method in methods)


def test_the_example_of_two_inputs_has_a_verdict_for_each_and_for_both(tmp_path, capsys):
    methods = ["gradient", integrated_gradients(4, tolerance=1.0)]
    result = load("two_inputs").main(tmp_path, steps=60, trials=2, samples=12, methods=methods)
    assert result.valid, result.validity
    assert "integrated_gradients[table]" in capsys.readouterr().out
    assert (tmp_path / "two_inputs.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_example_of_a_detector_explains_the_boxes_that_it_finds(tmp_path, capsys):
    result = load("detection").main(tmp_path, steps=80, trials=2, samples=4, methods=["gradient"])
    assert "the disc in 4 of 4 images" in capsys.readouterr().out
    assert result.valid, result.validity
    assert result.coverage.share == 1.0
    assert result.settings["steps"] == 9  # the heads side by side, five layers deep, and four of the backbone
    assert [result.verdicts[name].outcome for name in FAILING] == [Outcome.FAIL] * 2
    assert bool(torch.isfinite(result.curves["gradient", "spearman"].values[:, -1]).any())
    assert (tmp_path / "detection.png").stat().st_size > 10_000


# ------------------------------------------------------------------------------------------------ shapes and methods

SHAPES = {
    "table": ((12,), lambda: nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))),
    "signal": ((2, 24), lambda: nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), *_head(nn.AdaptiveAvgPool1d))),
    "volume": ((1, 6, 8, 8), lambda: nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), *_head(nn.AdaptiveAvgPool3d))),
}
SLOW_METHODS = {"lime", "kernel_shap", "scorecam", "smooth_integrated_gradients"}


def _head(pool):
    return pool(1), nn.Flatten(), nn.Linear(4, 3)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_method_explains_or_refuses_every_shape(shape):
    size, build = SHAPES[shape]
    model, value = build().eval(), torch.randn(3, *size)
    target = model(value).argmax(1)
    for name in set(attribution.available()) - SLOW_METHODS:
        method = attribution.resolve(name)
        reason = method.refuses(model, value, target) if method.refuses is not None else None
        if reason is None:
            found = method(model, value, target)
            assert found.shape in (value.shape, (3, 1, *size[1:])), name
            assert found.isfinite().all(), name
        else:
            assert len(reason) > 20, name


@pytest.mark.parametrize("shape", ["signal", "volume"])
@pytest.mark.parametrize("name", ["gradcam", "gradcam_plus_plus", "layercam", "scorecam", "cam", "internal_influence"])
def test_class_activation_maps_exist_along_one_and_three_sides(shape, name):
    size, build = SHAPES[shape]
    model, value = build().eval(), torch.randn(2, *size)
    method = attribution.resolve(name)
    target = torch.tensor([0, 1])
    assert method.refuses is None or method.refuses(model, value, target) is None
    assert method(model, value, target).shape == (2, 1, *size[1:])


def test_cam_of_a_volume_is_the_weighted_sum_of_its_features():
    model, value = SHAPES["volume"][1]().eval(), torch.randn(2, 1, 6, 8, 8)
    features = model[1](model[0](value))
    target = torch.tensor([2, 0])
    weighted = (features * model[-1].weight[target][:, :, None, None, None]).sum(1, keepdim=True)
    expected = F.interpolate(weighted, size=(6, 8, 8), mode="trilinear", align_corners=False)
    assert torch.allclose(attribution.resolve("cam")(model, value, target), expected.detach(), atol=1e-6)


def test_the_edges_of_a_volume_are_its_steps_along_every_side():
    volume = torch.zeros(1, 1, 4, 4, 4)
    volume[0, 0, 2:] = 1
    edges = attribution.resolve("edge_detector")(nn.Identity(), volume)
    assert edges[0, 0, 2].eq(1).all()
    assert edges.sum() == 16


def test_the_map_of_a_segmenter_is_that_of_its_bottleneck():
    model, images = load("segmentation").UNet().eval(), torch.randn(2, 1, 24, 24)
    explained = Adapted(model, lambda model, value: model(value)[:, 1].flatten(1).sum(1))
    named = attribution.gradcam(layer="bottom")(explained, images, None)
    assert last_map(explained, images).name == "model.bottom"
    assert torch.equal(attribution.gradcam()(explained, images, None), named)


def test_the_scores_of_positions_are_no_feature_map():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 1))
    explained = Adapted(model, lambda model, value: model(value)[:, 1].flatten(1).sum(1))
    assert last_map(explained, torch.randn(2, 1, 8, 8)).name == "model.1"
    pooled = nn.Sequential(*model, nn.AdaptiveAvgPool2d(1), nn.Flatten())  # a classifier's maps of classes
    assert last_map(pooled, torch.randn(2, 1, 8, 8)).name == "2"


@pytest.mark.parametrize("similarity", ["ssim", "hog", "ms_ssim", "ssim.abs"])
@pytest.mark.parametrize("shape", SHAPES)
def test_asking_for_windows_where_there_is_no_image_is_an_error(shape, similarity):
    size, build = SHAPES[shape]
    with pytest.raises(
        ValueError, match=f"similarity '{similarity}' means nothing here: it looks at windows of images"
    ):
        parameter_randomization_test(build(), torch.randn(4, *size), methods="gradient", similarities=[similarity])


def test_asking_for_windows_of_a_tiny_image_is_an_error():
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 3))
    with pytest.raises(ValueError, match="needs images of at least 7 pixels a side"):
        parameter_randomization_test(model, torch.randn(4, 1, 5, 5), methods="gradient", similarities="ssim")


# ----------------------------------------------------------------------------------------------------- several inputs


class ImageAndTable(nn.Module):
    """Which digit, and whether the table's sum is positive: two facts in one of six classes."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU())
        self.image, self.table = nn.Linear(16 * 9, 16), nn.Linear(8, 16)
        self.head = nn.Linear(32, 6)

    def forward(self, table, image, scale=1.0, flag=None):
        if flag is not None:
            table = torch.where(flag[:, None], table, torch.zeros_like(table))
        joined = torch.cat([self.image(self.features(image).flatten(1)), F.relu(self.table(table))], 1)
        return scale * self.head(F.relu(joined))


@pytest.fixture(scope="module")
def two_inputs():
    torch.manual_seed(0)
    images, labels = demo.digits()[0].tensors
    images, labels = images[labels < 3], labels[labels < 3]
    table = torch.randn(len(images), 8)
    classes = labels + 3 * (table.sum(1) > 0)
    model = ImageAndTable()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(80):
        loss = F.cross_entropy(model(table, images), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), table[:12], images[:12]


def test_every_input_gets_its_verdict_and_all_together_one(two_inputs):
    model, table, images = two_inputs
    inputs = {"image": images, "table": table, "flag": torch.ones(12, dtype=torch.bool), "scale": 2.0}
    methods = ["gradient", "gradcam", integrated_gradients(4, tolerance=1.0)]
    result = multi_input_randomization_test(model, inputs, methods=methods, trials=2)
    assert result.valid, result.validity
    assert result.settings["explained"] == ["image", "table"]
    assert ("gradient[image]", "ssim") in result.curves
    assert ("gradient[table]", "ssim") not in result.curves
    assert "not (N, C, H, W)" in result.verdicts["gradcam[table]"].reason
    both = [result.verdicts[f"integrated_gradients[{name}]"] for name in ("image", "table")]
    worst = min(both, key=lambda verdict: ("FAIL", "INCONCLUSIVE", "PASS").index(verdict.outcome.value))
    assert result.verdicts["integrated_gradients"].outcome is worst.outcome
    assert "image" in result.verdicts["integrated_gradients"].reason
    assert result.verdicts["gradient[table]"].gated
    assert not result.verdicts["random[table]"].gated
    assert type(result).from_dict(result.to_dict()).verdicts.keys() == result.verdicts.keys()


def test_a_tuple_and_a_mapping_of_the_same_inputs_give_the_same_curves(two_inputs):
    model, table, images = two_inputs
    settings = {"methods": "gradient", "trials": 1, "controls": False, "max_steps": 2}
    by_place = parameter_randomization_test(model, (table, images), explain=1, **settings)
    by_key = parameter_randomization_test(model, {"table": table, "image": images}, **settings)
    assert (by_place.settings["explained"], by_key.settings["explained"]) == ("1", "image")
    values = [result.curves["gradient", "ssim"].values for result in (by_place, by_key)]
    assert torch.equal(*values)
    first = parameter_randomization_test(model, (table, images), **settings)
    assert first.settings["input_shape"] == [12, 8]


def test_the_rest_of_a_multiplied_batch_goes_with_its_samples(two_inputs):
    model, table, images = two_inputs
    whole = integrated_gradients(4)(_Swapped(model), (images, table), torch.zeros(12, dtype=torch.long))
    alone = [
        integrated_gradients(4)(_Swapped(model), (images[k : k + 1], table[k : k + 1]), torch.zeros(1).long())
        for k in range(3)
    ]
    assert torch.allclose(whole[:3], torch.cat(alone), atol=1e-6)


class _Swapped(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image, table):
        return self.model(table, image)


class WordsAndTable(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.table, self.head = nn.Embedding(20, 8), nn.Linear(6, 8), nn.Linear(16, 3)

    def forward(self, table, ids):
        return self.head(torch.cat([F.relu(self.table(table)), self.words(ids).tanh().mean(1)], 1))


def test_words_beside_a_table_are_explained_at_their_embedding():
    inputs = {"ids": torch.randint(20, (8, 7)), "table": torch.randn(8, 6)}
    result = multi_input_randomization_test(
        WordsAndTable(), inputs, 0, methods="gradient", trials=1, tokens={"ids": Tokens()}
    )
    assert set(result.settings["explained"]) == {"table", "ids"}
    assert ("gradient[ids]", "cosine_signed") in result.curves
    assert ("gradient[table]", "cosine_signed") not in result.curves
    assert (
        result.curves["gradient[table]", "spearman"].values.shape
        == result.curves["gradient[ids]", "spearman"].values.shape
    )


def test_inputs_without_a_number_say_how_tokens_are_explained():
    with pytest.raises(ValueError, match=r"pass tokens=\{key: Tokens\(\)\} to explain token ids"):
        multi_input_randomization_test(WordsAndTable(), {"ids": torch.randint(20, (8, 7))})


@pytest.mark.parametrize("shape", [(8,), (8, 1), (8, 2)])
def test_a_regression_is_explained_by_its_output_and_by_each_of_several(shape):
    model = nn.Sequential(
        nn.Linear(6, 16),
        nn.Tanh(),
        nn.Linear(16, max(shape[1:], default=1)),
        nn.Flatten(0) if len(shape) == 1 else nn.Identity(),
    )
    target = 1 if shape == (8, 2) else None
    result = parameter_randomization_test(model, torch.randn(8, 6), target, methods="gradient", trials=1)
    assert result.curves["gradient", "spearman"].values.isfinite().all()


def test_an_input_that_is_not_there_is_named(two_inputs):
    model, table, images = two_inputs
    with pytest.raises(ValueError, match="explain='sound' is no input tensor; there are 'table', 'image'"):
        parameter_randomization_test(model, {"table": table, "image": images}, explain="sound")
