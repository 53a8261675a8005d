import copy
import json
import re
from importlib import resources

import jsonschema
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_results import made

from lightning_sanity import SanityResult, parameter_randomization_test
from lightning_sanity.result import file as result_file

SCHEMA = json.loads(
    resources.files("lightning_sanity").joinpath("result", "result.schema.json").read_text(encoding="utf-8")
)
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
QUICK = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("changes", [{}, {"order": "full"}, {"order": "independent", "max_steps": 2}], ids=str)
def test_a_real_result_fits_the_schema_and_the_reader(digits_network, changes):
    model, images, _ = digits_network
    result = parameter_randomization_test(model, images[:4], methods=["gradient"], trials=2, repeats=1, **changes)
    data = json.loads(json.dumps(result.to_dict()))
    VALIDATOR.validate(data)
    assert set(data) <= set(SCHEMA["properties"])
    assert json.dumps(SanityResult.from_dict(data).to_dict()) == json.dumps(result.to_dict())
    assert result.created.endswith("+00:00")


DATA = json.loads(json.dumps(made(trials=2, samples=3, probe_ids=(1, 2)).to_dict()))


def places(data, path=()):
    yield path
    children = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10**30),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
# Contents that only one side looks into: what a tensor holds, free-form settings, what no program reads.
OPAQUE = {"zlib", "shape", "settings", "passed", "dtype"}
PLACES = [path for path in places(DATA) if path]


def changed(path, value, *, remove=False):
    data = copy.deepcopy(DATA)
    holder = data
    for key in path[:-1]:
        holder = holder[key]
    if remove:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return data


def refused(data):
    """What the reader says against it, or None."""
    try:
        SanityResult.from_dict(data)
    except ValueError as error:
        return str(error)
    return None


@QUICK
@given(path=st.sampled_from([p for p in PLACES if not OPAQUE & set(p)]), value=JUNK, remove=st.booleans())
def test_reader_and_schema_agree_on_what_is_a_result(path, value, remove):
    data = changed(path, value, remove=remove and isinstance(path[-1], str))
    message = refused(data)
    if VALIDATOR.is_valid(data):  # a schema cannot say that tensors fit units, or that a curve has a verdict
        assert message is None or re.search(r"does not fit \d+ units|but no verdict|twice", message)
    else:
        assert message is not None


@QUICK
@given(path=st.sampled_from(PLACES), value=JUNK, remove=st.booleans())
def test_reader_refuses_damage_with_one_sentence(path, value, remove):
    message = refused(changed(path, value, remove=remove))
    assert message is None or "\n" not in message


@QUICK
@given(raw=st.one_of(st.binary(max_size=40), st.text(max_size=40).map(str.encode)), cut=st.integers(0, 4000))
def test_any_bytes_are_read_or_refused_with_one_sentence(raw, cut, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.json"
    whole = json.dumps(DATA).encode()
    path.write_bytes(whole[:cut] + raw + (whole[cut + len(raw) :] if cut % 2 else b""))
    try:
        SanityResult.from_json(path)
    except ValueError as error:
        assert str(error)  # noqa: PT017  # anything but a ValueError is the failure


def test_unknown_keys_are_ignored_everywhere():
    data = copy.deepcopy(DATA)
    for path in places(DATA):
        holder = data
        for key in path:
            holder = holder[key]
        if (
            isinstance(holder, dict)
            and "settings" not in path
            and not {"verdicts", "environment", "psi_of", "diagnostics", "trained_maps", "grounds", "reproducibility"}
            & {*path[-2:]}
        ):
            holder["from_the_future"] = 1
    VALIDATOR.validate(data)
    assert json.dumps(SanityResult.from_dict(data).to_dict()) == json.dumps(DATA)


def test_an_older_file_without_a_date_is_read():
    assert SanityResult.from_dict(changed(("created",), None, remove=True)).created == ""


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("version",), True, "'version' must be 1 or more, not true"),
        (("verdicts", "gradcam", "psi"), "high", "'verdicts.gradcam.psi' must be a number or null, not \"high\""),
        (("verdicts", "gradcam", "outcome"), "OK", "must be one of PASS, FAIL, INCONCLUSIVE"),
        (("curves", 0, "values", "shape"), [1 << 40, 3], "all tensors may take"),
        (("curves", 0, "values", "shape"), [-1, -3, -2], "must be up to 8 sizes"),
        (("curves", 0, "values", "dtype"), "object", "must be one of float32, int8, uint8"),
        (("curves", 0, "values", "zlib"), "no base64", "cannot be unpacked"),
        (("curves", 0, "method"), "nobody", "there is a curve of nobody, but no verdict"),
        (("units",), ["one"], "does not fit 1 units"),
    ],
)
def test_a_damaged_result_says_where(path, value, message):
    with pytest.raises(ValueError, match="damaged lightning_sanity result") as caught:
        SanityResult.from_dict(changed(path, value))
    assert message in str(caught.value)


def test_two_curves_of_one_name_are_refused():
    data = copy.deepcopy(DATA)
    data["curves"].append(data["curves"][0])
    with pytest.raises(ValueError, match="twice"):
        SanityResult.from_dict(data)


@pytest.mark.parametrize("text", ['{"psi": NaN}', "1" * 5000, "[" * 100_000, '{"psi": Infinity}'])
def test_what_json_does_not_know_is_not_json(text, tmp_path):
    (tmp_path / "result.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="is not JSON"):
        SanityResult.from_json(tmp_path / "result.json")


@pytest.mark.parametrize(
    "change",
    [{"settings": {"k" * 1_000_000: 1}}, {"verdicts": {"k" * 1_000_000: {}}}, {"validity": "x" * (1 << 21)},
     {"weights_digest": ["x" * 1_000_000]}, {"probe_digest": 10**4000}, {"validity": {"k" * 1_000_000: 1}}],
    ids=["a long key", "a long name", "a long text", "a list", "a long number", "an object"],
)  # fmt: skip
def test_a_refusal_is_short_whatever_it_refuses(change):
    message = refused({**DATA, **change})
    assert message is None or len(message) < 300


def test_values_are_counted_before_any_is_built(tmp_path):
    (tmp_path / "result.json").write_text("[" + "[]," * result_file.MAX_VALUES + "0]", encoding="utf-8")
    with pytest.raises(ValueError, match="is larger than any result is"):
        SanityResult.from_json(tmp_path / "result.json")


def test_a_file_that_is_too_large_is_refused_unread(tmp_path, monkeypatch):
    made().to_json(tmp_path / "result.json")
    monkeypatch.setattr(result_file, "MAX_FILE", 100)
    with pytest.raises(ValueError, match="is larger than"):
        SanityResult.from_json(tmp_path / "result.json")


def test_a_bomb_does_not_unpack_beyond_what_it_claims():
    bomb = result_file.encode(torch.zeros(1 << 22))
    data = changed(("curves", 0, "values"), {**bomb, "shape": [2, 3, 3]})
    result = SanityResult.from_dict(data)
    assert result.curves["gradcam", "spearman"].values.shape == (2, 3, 3)
