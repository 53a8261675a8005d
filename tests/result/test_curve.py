"""Very large results: rounded so that nothing that is judged moves, in files of a bounded size that can be read."""

import dataclasses
import math
import tracemalloc

import pytest
import torch
from made_results import made
from torch import nn

from lightning_sanity import SanityResult, parameter_randomization_test
from lightning_sanity.release import gate
from lightning_sanity.result import Curve
from lightning_sanity.result import curve as curves_of
from lightning_sanity.result import file as result_file
from lightning_sanity.result.curve import MOST, WHOLE, fits, packed, rounded, step_for, unpacked
from lightning_sanity.result.evidence import contradictions, judged_anew
from lightning_sanity.result.noninferiority import compare
from lightning_sanity.result.psi import sensitivity

STEPS = [1 / 64, 1 / 16]


def similarities(*shape, seed=0, undefined=0.1):
    """Spread over [-1, 1], some of them exactly 1, 0 and undefined."""
    rng = torch.Generator().manual_seed(seed)
    found = (0.4 + 0.5 * torch.randn(*shape, generator=rng)).clamp(-1, 1)
    found[torch.rand(shape, generator=rng) < 0.05] = 0.0
    return found.masked_fill(torch.rand(shape, generator=rng) < undefined, torch.nan)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("value", [0.003, -0.4999, 0.7, 1 / 3])
def test_the_mean_at_every_depth_stays_even_of_values_that_are_all_alike(step, value):
    found = rounded(torch.full((5, 3, 40), value), step)
    assert (found.mean((0, 2)) - value).abs().max() <= step / 200 + 1e-6


@pytest.mark.parametrize("step", STEPS)
def test_a_value_becomes_one_of_its_two_neighbours(step):
    table = similarities(6, 7, 50)
    found = rounded(table, step)
    known = ~table.isnan()
    assert torch.equal(found.isnan(), table.isnan())
    assert torch.equal((found / step)[known], (found / step)[known].round())
    assert ((found - table).abs()[known] < step).all()
    whole = known & ((table / step).round() == table / step)
    assert whole.sum() > 100
    assert torch.equal(found[whole], table[whole])


@pytest.mark.parametrize("step", STEPS)
def test_of_signed_similarities_the_magnitudes_keep_their_mean(step):
    table = 0.02 * torch.randn(8, 4, 60, generator=torch.Generator().manual_seed(1))
    found = rounded(table, step, absolute=True)
    assert (found.abs().mean((0, 2)) - table.abs().mean((0, 2))).abs().max() <= step / 400
    assert ((found == 0) | (found.sign() == table.sign())).all()


def test_samples_are_not_rounded_up_at_the_same_places_at_every_depth():
    off = rounded(torch.full((4, 50, 64), 0.3), 1 / 16).mean((0, 1)) - 0.3  # of every sample, over all depths
    assert off.abs().max() < 0.25 / 16


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize(("step", "moves"), [(1 / 64, 5e-4), (1 / 16, 2e-3)])
def test_an_index_and_its_interval_hardly_move(step, moves, absolute):
    tables = similarities(10, 40, 64), 0.2 * similarities(10, 40, 64, seed=1)
    before, after = (
        sensitivity(*some, torch.ones(1, 64), absolute=absolute).psi
        for some in (tables, [rounded(table, step, absolute) for table in tables])
    )
    assert math.isclose(before.value, after.value, abs_tol=2e-5)
    assert math.isclose(before.low, after.low, abs_tol=moves)
    assert math.isclose(before.high, after.high, abs_tol=moves)


@pytest.mark.parametrize("step", STEPS)
def test_one_byte_each_holds_them_exactly(step):
    tables = [rounded(similarities(3, 5, 20, seed=seed), step) for seed in (0, 1)]
    curve = Curve(*tables, torch.ones(1, 20), step)
    small = packed(curve)
    assert small.values.dtype == small.floor.dtype == torch.int8
    back = unpacked(small)
    for name in ("values", "floor", "ceiling"):
        assert torch.equal(getattr(back, name).nan_to_num(9), getattr(curve, name).nan_to_num(9))


def test_what_is_rounded_is_told_by_the_number():
    assert step_for(WHOLE) is None
    assert step_for(WHOLE + 1) == 1 / 64
    assert step_for(MOST) == 1 / 16
    assert step_for(MOST + 1) is None


def test_distances_that_no_byte_holds_stay_as_they_are():
    assert fits(torch.tensor([[[1.0, math.nan, -1.9]]]), 1 / 64)
    assert not fits(torch.tensor([[[1.0, 2.5]]]), 1 / 64)
    assert not fits(torch.tensor([[[math.inf]]]), 1 / 16)


# ------------------------------------------------------------------------------------------------------- in a file


def large(depths=256, trials=20, samples=256):
    """A rounded result of twice so many similarities."""
    result = made(controls=False)
    tables = [rounded(similarities(trials, depths, samples, seed=seed), 1 / 64) for seed in (0, 1)]
    units = dataclasses.replace(result.coverage.units[0])
    names = tuple(f"unit {depth}" for depth in range(depths))
    coverage = dataclasses.replace(
        result.coverage, units=tuple(dataclasses.replace(units, name=name) for name in names)
    )
    curves = {("gradcam", "spearman"): Curve(*tables, torch.ones(1, samples), 1 / 64)}
    grounds = {
        name: dataclasses.replace(each, noise=0.9 + 0.01 * torch.rand(3, samples), cross=0.1 * torch.rand(9, samples))
        for name, each in result.grounds.items()
    }
    result = dataclasses.replace(result, units=names, curves=curves, coverage=coverage, grounds=grounds)
    return dataclasses.replace(result, verdicts=judged_anew(result))


def test_a_large_file_is_small_and_written_and_read_in_bounded_memory(tmp_path):
    result = large()
    size = sum(curve.size for curve in result.curves.values())
    tracemalloc.start()
    try:
        result.to_json(tmp_path / "large.json")
        _, writing = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        read = SanityResult.from_json(tmp_path / "large.json")
        _, reading = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    written = (tmp_path / "large.json").stat().st_size
    assert written < 1.2 * size
    assert writing < 2.5 * written  # one table at a time, in text (tensors are not counted)
    assert reading < 5 * written
    for name in ("values", "floor"):
        ours, theirs = (getattr(each.curves["gradcam", "spearman"], name).nan_to_num(9) for each in (result, read))
        assert torch.equal(ours, theirs)
    assert read.verdicts == result.verdicts
    assert not list(contradictions(read))


def test_only_a_rounded_result_asks_for_a_new_reader():
    assert made().to_dict()["version"] == result_file.UNROUNDED
    assert large(depths=2, trials=2, samples=4).to_dict()["version"] == result_file.VERSION


@pytest.mark.parametrize("step", [1 / 64, 0.1, -1.0, 0.0])
def test_a_step_that_does_not_fit_its_tables_is_damage(step):
    data = made().to_dict()
    data["curves"][0]["step"] = step
    with pytest.raises(ValueError, match="not rounded to a multiple"):
        SanityResult.from_dict(data)


def test_bytes_without_a_step_are_no_similarities():
    data = large(depths=2, trials=2, samples=4).to_dict()
    data["curves"][0]["step"] = None
    with pytest.raises(ValueError, match="does not fit"):
        SanityResult.from_dict(data)


def test_what_no_reader_would_take_is_refused_before_anything_is_written(tmp_path):
    result = made(controls=False)
    result.to_json(tmp_path / "result.json")
    before = (tmp_path / "result.json").read_bytes()
    table = torch.zeros(1, 1, 1).expand(1024, 3, 1 << 15)
    huge = dataclasses.replace(result, curves={("gradcam", "spearman"): Curve(table, table, torch.ones(1, 1 << 15))})
    with pytest.raises(ValueError, match=r"201 million similarities, and a file at most 134 million: .*max_steps="):
        huge.to_json(tmp_path / "result.json")
    assert (tmp_path / "result.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize("limit", ["MAX_FILE", "MAX_VALUES", "MAX_TENSORS"])
def test_the_writer_stops_where_the_reader_would(limit, tmp_path, monkeypatch):
    result, path = made(), tmp_path / "result.json"
    result.to_json(path)
    raw = path.read_bytes()
    data = result.to_dict()
    takes = {
        "MAX_FILE": len(raw),
        "MAX_VALUES": sum(map(raw.count, (b",", b"[", b"{"))),
        "MAX_TENSORS": sum(tensor.nbytes for tensor in tensors_of(result)),
    }[limit]
    monkeypatch.setattr(result_file, limit, takes)
    result.to_json(path)
    assert SanityResult.from_json(path).to_dict() == data
    monkeypatch.setattr(result_file, limit, takes - 1)
    with pytest.raises(ValueError, match=r"larger than|claims"):
        SanityResult.from_json(path)
    with pytest.raises(ValueError, match="is not written"):
        result.to_json(path)
    assert path.read_bytes() == raw


def tensors_of(result):
    def collect(value):
        found.append(value)
        return 0

    found = []
    result_file.encode(result._keys(), collect)
    return found


# ------------------------------------------------------------------------------------------------------- in a test


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 3)).eval()
    return model, torch.randn(24, 16)


def ran(problem):
    return parameter_randomization_test(*problem, methods="gradient", trials=6, pictures=False, progress=False)


def test_a_test_that_finds_too_many_similarities_judges_them_rounded_and_says_so(problem, tmp_path, monkeypatch):
    whole = ran(problem)
    monkeypatch.setattr(curves_of, "WHOLE", 1000)
    result = ran(problem)
    assert {curve.step for curve in result.curves.values()} == {1 / 64}
    assert any("similarities are rounded to 1/64" in note for note in result.notes)
    assert "rounded to 1/64" in result.summary()
    for name, verdict in result.verdicts.items():
        assert verdict.outcome is whole.verdicts[name].outcome
        assert math.isclose(verdict.psi, whole.verdicts[name].psi, abs_tol=1e-3) or math.isnan(verdict.psi)
    read = SanityResult.from_json(result.to_json(tmp_path / "result.json"))
    assert read.verdicts == result.verdicts
    assert judged_anew(read) == judged_anew(result)
    assert not list(contradictions(read))
    assert read.to_dict() == result.to_dict()
    decisions = [gate(each) for each in (result, tmp_path / "result.json")]
    assert decisions[0].exit_code == decisions[1].exit_code == gate(whole).exit_code
    assert decisions[0].reason == decisions[1].reason
    assert compare(whole, result, "gradient") == compare(whole, read, "gradient")
