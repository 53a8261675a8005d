import pytest
from made_results import FAILING, OPEN, PASSING, made

from lightning_sanity.release import Policy
from lightning_sanity.testing import assert_passes


def test_assert_passes_is_silent_on_a_pass():
    assert_passes(made())
    assert_passes(made({"gradcam": PASSING, "lime": FAILING}), "gradcam")


def test_assert_passes_names_every_method_that_did_not():
    with pytest.raises(AssertionError) as caught:
        assert_passes(made({"gradcam": PASSING, "lime": FAILING, "rise": OPEN}), policy=Policy(min_trials=2))
    first, *lines = str(caught.value).splitlines()
    assert first == "saliency maps: FAIL"
    assert [line.split(":")[0].split() for line in lines] == [["FAIL", "lime"], ["INCONCLUSIVE", "rise"]]
    assert "below 0.65" in lines[0]
