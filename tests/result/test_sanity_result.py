import base64
import copy
import json
import math
import pickle
import sys
import zlib
from dataclasses import replace

import pytest
import torch
from made_results import FAILING, PASSING, made

from lightning_sanity import Outcome, SanityResult, parameter_randomization_test


@pytest.fixture(scope="module")
def result(digits_network):
    model, images, _ = digits_network
    return parameter_randomization_test(
        model, images[:8], methods=["gradient", "guided_backprop", "random"], trials=2, repeats=1
    )


def test_json_round_trip_keeps_everything(result, tmp_path):
    read = SanityResult.from_json(result.to_json(tmp_path / "deep" / "result.json"))
    assert json.dumps(read.to_dict()) == json.dumps(result.to_dict())
    assert torch.equal(read.curves["gradient", "ssim"].values, result.curves["gradient", "ssim"].values)
    assert read.verdicts["guided_backprop"] == result.verdicts["guided_backprop"]
    assert math.isnan(read.verdicts["random"].psi)


def test_a_verdict_equals_one_that_is_undefined_where_it_is(result, tmp_path):
    read = SanityResult.from_json(result.to_json(tmp_path / "result.json"))
    undefined = replace(result.verdicts["gradient"], psi=float("nan"), psi_of={"ssim": (float("nan"), 0.0, 1.0)})
    assert read.verdicts == result.verdicts
    assert undefined == replace(undefined, psi=-float("nan"), psi_of={"ssim": (float("nan"), 0.0, 1.0)})
    assert undefined != replace(undefined, psi=0.5)
    assert undefined != replace(undefined, psi_of={"ssim": (float("nan"), 0.0, 0.9)})
    assert undefined != "gradient"


def test_json_holds_no_nan_and_no_partial_file_remains(result, tmp_path):
    path = result.to_json(tmp_path / "result.json")
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_controls_are_judged_but_never_gate(result):
    assert not result.verdicts["random"].gated
    assert result.verdicts["random"].outcome is Outcome.INCONCLUSIVE
    assert "edge_detector" in result.verdicts


def test_records_have_a_row_per_method_similarity_and_depth(result):
    records = result.to_records()
    assert len(records) == len(result.curves) * len(result.units)
    assert {"method", "similarity", "depth", "unit", "mean", "floor", "ceiling", "outcome"} <= set(records[0])


def test_a_result_cannot_be_changed(result):
    with pytest.raises(TypeError):
        result.verdicts["gradient"] = None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "not a lightning_sanity result"),
        ('{"schema": "lightning_sanity.result", "version": 99}', "reads up to 3: upgrade it"),
        (
            '{"schema": "lightning_sanity.result", "version": 1}',
            "damaged lightning_sanity result: 'curves' must be a list, not null",
        ),
    ],
)
def test_a_foreign_newer_or_damaged_file_is_refused(tmp_path, text, message):
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        SanityResult.from_json(path)


def test_a_tensor_that_claims_another_size_is_refused(result, tmp_path):
    data = result.to_dict()
    data["curves"][0]["values"]["shape"] = [9, 9, 9]
    with pytest.raises(ValueError, match="bytes instead of"):
        SanityResult.from_dict(data)


@pytest.mark.parametrize("shape", [[], [1], [0, 8, 8, 3]])
def test_pictures_of_another_shape_are_refused(result, shape):
    data = result.to_dict()
    count = math.prod(shape)
    data["pictures"]["inputs"] |= {"shape": shape, "zlib": base64.b64encode(zlib.compress(bytes(count))).decode()}
    with pytest.raises(ValueError, match="does not hold one map per input and depth"):
        SanityResult.from_dict(data)


@pytest.mark.parametrize("remade", [lambda r: pickle.loads(pickle.dumps(r)), copy.deepcopy, copy.copy, replace])
def test_a_copy_says_the_same_and_cannot_be_changed_either(remade):
    original = made()
    copied = remade(original)
    assert json.dumps(copied.to_dict()) == json.dumps(original.to_dict())
    with pytest.raises(TypeError):
        copied.verdicts["gradcam"] = None


def test_a_deep_copy_shares_no_tensor():
    original = made()
    copied = copy.deepcopy(original)
    copied.curves["gradcam", "spearman"].values.zero_()
    assert bool((original.curves["gradcam", "spearman"].values != 0).any())


def test_printing_shows_the_table_and_no_tensor():
    said = str(made({"gradcam": PASSING, "guided_backprop": FAILING}))
    assert said == made({"gradcam": PASSING, "guided_backprop": FAILING}).summary()
    assert "guided_backprop" in said
    assert "tensor(" not in said
    assert len(said.splitlines()) < 30


def test_the_short_form_counts_outcomes_in_one_line():
    shown = repr(made({"gradcam": PASSING, "guided_backprop": FAILING}))
    assert shown == "<SanityResult: 1 PASS, 1 FAIL, 0 INCONCLUSIVE, step 7, weights ffffffffffff>"
    assert "not valid" in repr(replace(made(), valid=False))


def test_notes_are_those_of_what_was_re_initialised():
    result = made()
    noted = replace(result, coverage=replace(result.coverage, notes=("a twin was used",)))
    assert noted.notes == ("a twin was used",)
    assert "note: a twin was used" in noted.summary()


def test_maps_begin_with_the_trained_models_and_are_scaled_each(result):
    maps = result.maps("gradient")
    assert maps.shape[:2] == (len(result.pictures.inputs), 1 + len(result.pictures.depths))
    assert torch.equal(maps.abs().amax((2, 3)), torch.ones(maps.shape[:2]))
    assert float(maps.min()) < 0  # signed


def test_maps_that_were_not_kept_are_told_from_those_that_were(result):
    with pytest.raises(ValueError, match="no maps of 'gradcam': there are maps of gradient, guided_backprop"):
        result.maps("gradcam")
    with pytest.raises(ValueError, match="ran without pictures"):
        made().maps("gradcam")


def test_a_frame_has_the_records(result):
    pandas = pytest.importorskip("pandas")
    assert isinstance(result.to_frame(), pandas.DataFrame)
    assert result.to_frame().to_dict("records") == result.to_records()


def test_a_frame_without_pandas_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install pandas, or use to_records\(\)"):
        made().to_frame()
