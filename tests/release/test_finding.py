"""Which results count: of several callbacks, of a series, about one model."""

import json
import os
from dataclasses import replace

import pytest
import torch
from made_results import FAILING, OPEN, PASSING, made
from torch import nn

from lightning_sanity.model.clone import weights_digest
from lightning_sanity.release import Policy, gate
from lightning_sanity.result.noninferiority import against

DAYS = [f"2026-01-{day:02}T10:00:00+00:00" for day in range(1, 29)]


def wrote(folder, **results):
    """Files of results, by name without ending; ``__`` is a folder."""
    for name, result in results.items():
        result.to_json(folder / f"{name.replace('__', '/').replace('step', 'step=')}.json")
    return folder


# -------------------------------------------------------------------------------------------------- folders and series


def test_results_of_several_callbacks_are_all_judged(tmp_path):
    assert gate(wrote(tmp_path, result_a=made({"gradcam": FAILING}), result_b=made())).exit_code == 1
    decision = gate(wrote(tmp_path, result_a=made(), result_b=made({"lime": PASSING})))
    assert decision.exit_code == 0
    assert {check.source.rpartition("/")[2] for check in decision.checks} == {"result_a.json", "result_b.json"}


def test_results_of_callbacks_in_folders_of_their_own_are_judged(tmp_path):
    assert gate(wrote(tmp_path, latest=made(), other__latest=made({"gradcam": FAILING}))).exit_code == 1


@pytest.mark.parametrize(
    ("latest", "beside", "code"),
    [
        ({"step": 10, "created": DAYS[0]}, {"step": 20, "created": DAYS[1]}, 1),
        ({"step": 10, "created": ""}, {"step": 20, "created": ""}, 1),
        ({"step": None, "created": ""}, {"step": 20, "created": DAYS[1]}, 1),
        ({"step": 10, "created": "yesterday"}, {"step": None, "created": "today"}, 1),
        ({"step": 10, "created": DAYS[1]}, {"step": 20, "created": DAYS[1]}, 1),
        ({"step": 10, "created": DAYS[1]}, {"step": 10, "created": DAYS[1]}, 1),
        ({"step": 10, "created": "2026-01-01T12:00:00+02:00"}, {"step": 10, "created": "2026-01-01T11:00:00Z"}, 1),
        ({"step": 20, "created": DAYS[1]}, {"step": 10, "created": DAYS[0]}, 0),
        ({"step": 10, "created": DAYS[1]}, {"step": 20, "created": DAYS[0]}, 0),
        ({"step": 20, "created": ""}, {"step": 10, "created": ""}, 0),
    ],
    ids=["older", "older by step", "undated", "neither told", "same date", "same place", "zones", "newer",
         "tested again", "newer by step"],
)  # fmt: skip
def test_a_good_latest_wins_only_where_it_is_the_newest(latest, beside, code, tmp_path):
    failing = made({"gradcam": FAILING}, **beside)
    assert gate(wrote(tmp_path, latest=made(**latest), step20=failing)).exit_code == code


def test_of_two_stages_each_has_its_newest(tmp_path):
    wrote(tmp_path, step1=made({"gradcam": FAILING}, created=DAYS[0]), step2=made(created=DAYS[1]))
    assert gate(tmp_path).exit_code == 0
    (tmp_path / "test-step=1.json").write_bytes((tmp_path / "step=1.json").read_bytes())
    assert gate(tmp_path).exit_code == 1


def test_a_damaged_result_in_a_folder_is_named(tmp_path):
    wrote(tmp_path, latest=made(), step3=made())
    (tmp_path / "step=3.json").write_text(
        '{"schema": "lightning_sanity.result", "version": 2, "created": "2030-01-01"}'
    )
    with pytest.raises(ValueError, match=r"step=3\.json"):
        gate(tmp_path)


def test_a_file_that_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ValueError, match=r"pipe\.json' is no regular file"):
        gate(tmp_path)


# --------------------------------------------------------------------------------------------------------- one model

A, B = "a" * 64, "b" * 64


def test_results_about_different_models_are_an_error():
    with pytest.raises(ValueError, match=r"about 2 models .*aaaaaaaaaaaa.*bbbbbbbbbbbb"):
        gate([made(weights_digest=A), made(weights_digest=B)])


def test_several_models_may_be_asked_for():
    several = Policy(several_models=True)
    assert gate([made(weights_digest=A), made(weights_digest=B)], several).exit_code == 0
    assert gate([made(weights_digest=A), made({"gradcam": OPEN}, weights_digest=B)], several).exit_code == 3


def test_required_methods_must_hold_for_each_model():
    pair = [made({"gradcam": PASSING}, weights_digest=A), made({"lime": PASSING}, weights_digest=B)]
    decision = gate(pair, Policy(require=("gradcam", "lime"), several_models=True))
    assert decision.exit_code == 1
    assert "required but not measured" in decision.reason
    assert gate([replace(each, weights_digest=A) for each in pair], Policy(require=("gradcam", "lime"))).exit_code == 0


def test_buffers_that_no_checkpoint_holds_make_another_model():
    pair = [made(settings={**made().settings, "unsaved_buffers": {"scale": digest}}) for digest in "xy"]
    with pytest.raises(ValueError, match="about 2 models"):
        gate(pair)


def test_a_folder_says_which_results_are_about_other_weights(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "w.pt")
    about = weights_digest(_loaded(tmp_path / "w.pt"))
    folder = wrote(tmp_path, result_a=made(weights_digest=about), result_b=made({"lime": FAILING}))
    decision = gate(folder, Policy(weights=tmp_path / "w.pt"))
    assert decision.exit_code == 0
    assert any("result_b.json" in check.reason for check in decision.checks if check.name == "other results")


def _loaded(path):
    model = nn.Linear(2, 2)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model


# ------------------------------------------------------------------------------------------------------------ weights


class Ordered(nn.Module):
    """Its predictions hang on extra state, or on a buffer that is not saved."""

    def __init__(self, extra=None, buffer=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.extra = nn.Linear(3, 2), extra
        self.register_buffer("shift", torch.tensor(buffer), persistent=False)

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state


NESTED = [{"a": {"b": [torch.full((1,), value)]}} for value in (0.0, 1.0)]
EXTRA = [[0, 1], [1, 0], (0, 1, 2), {"a": 1}, {"a": 2}, {"b": 1}, {1, 2}, "01", b"01", 1, 1.0, True, None,
         torch.tensor([0, 1]), torch.tensor([1, 0]), torch.float32, *NESTED]  # fmt: skip


def test_no_two_extra_states_have_one_digest():
    assert len({weights_digest(Ordered(extra)) for extra in EXTRA}) == len(EXTRA)


@pytest.mark.parametrize("extra", EXTRA, ids=str)
def test_a_result_about_other_extra_state_is_about_other_weights(extra, tmp_path):
    torch.save(Ordered(extra).state_dict(), tmp_path / "w.pt")
    mine, other = (made(weights_digest=weights_digest(Ordered(each))) for each in (extra, "another"))
    assert gate(mine, Policy(weights=tmp_path / "w.pt")).exit_code == 0
    assert gate(other, Policy(weights=tmp_path / "w.pt")).exit_code == 1


def test_weights_that_cannot_be_told_whole_are_never_compared(tmp_path):
    torch.save(Ordered([1]).state_dict(), tmp_path / "w.pt")
    result = made(weights_digest=weights_digest(Ordered(object())))
    assert result.weights_digest.startswith("partial-")
    for given in (result, wrote(tmp_path, latest=result)):
        with pytest.raises(ValueError, match="could not be told whole"):
            gate(given, Policy(weights=tmp_path / "w.pt"))


# ------------------------------------------------------------------------------------------------ one way out of a FAIL


@pytest.mark.parametrize("min_psi", [None, 0.65, 0.5, 0.1])
def test_a_fail_against_the_baseline_survives_every_threshold(min_psi):
    result = made({"gradcam": 0.3}, criterion=None)
    worse = against(result, made({"gradcam": 0.0}, weights_digest=A), max_drop=0.0)
    assert worse.verdicts["gradcam"].outcome.value == "FAIL"
    decision = gate(worse, Policy(min_psi=min_psi))
    assert decision.exit_code == 1
    assert "against the baseline" in decision.reason


def test_a_result_does_not_lower_the_bar_for_itself():
    from lightning_sanity import Criterion

    lax = made({"gradcam": OPEN + 0.2}, criterion=Criterion(min_psi=0.2))
    assert lax.passed
    assert gate(lax).exit_code == 1
    assert gate(lax, Policy(min_psi=0.2)).exit_code == 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "about the very weights that are judged"),
        ({"weights_digest": A, "probe_digest": B}, "another probe"),
        ({"weights_digest": A, "settings": {**made().settings, "model": "VisionTransformer"}}, "model was"),
        ({"weights_digest": A, "settings": {**made().settings, "target": "runner-up"}}, "target was"),
        ({"weights_digest": A, "settings": {**made().settings, "explained": "depth"}}, "explained was"),
    ],
    ids=["itself", "probe", "model", "target", "input"],
)
def test_a_foreign_baseline_shows_nothing(changes, says, tmp_path):
    decision = gate(made(), Policy(baseline=made(**changes).to_json(tmp_path / "b.json")))
    assert decision.exit_code == 3
    assert says in decision.reason


def test_what_is_new_or_gone_against_the_baseline_is_said(tmp_path):
    baseline = made({"gradcam": PASSING, "lime": PASSING}, weights_digest=A).to_json(tmp_path / "b.json")
    decision = gate(made({"gradcam": PASSING, "rise": PASSING}), Policy(baseline=baseline))
    said = {check.name: check for check in decision.checks}
    assert decision.exit_code == 3
    assert "does not hold it" in said["lime against the baseline"].reason
    assert said["rise against the baseline"].reason.startswith("new")
    assert gate(made({"gradcam": PASSING}), Policy(baseline=baseline, require=("gradcam",))).exit_code == 0


def test_a_baseline_that_contradicts_itself_is_refused(tmp_path):
    path = made({"gradcam": FAILING}, weights_digest=A).to_json(tmp_path / "b.json")
    data = json.loads(path.read_text())
    data["verdicts"]["gradcam"]["outcome"] = "PASS"
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"b\.json' contradicts itself"):
        gate(made(), Policy(baseline=path))
