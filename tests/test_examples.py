import pytest
from made_examples import EXAMPLES, load

from lightning_sanity import attribution


@pytest.mark.filterwarnings("ignore:saliency maps failed")
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_quickstart_prints_verdicts(tmp_path, capsys):
    result = load("quickstart").main(tmp_path, epochs=2)
    assert result.verdicts["gradient"].passed
    assert "guided_backprop" in capsys.readouterr().out


def test_every_method_writes_its_table_and_picture(tmp_path, capsys):
    names = ["gradient", "guided_backprop", "cam"]
    load("every_method").main(tmp_path, methods=names, trials=2, samples=8, epochs=2)
    table = (tmp_path / "every_method.md").read_text()
    assert all(f"| {name} |" in table for name in names)
    assert (tmp_path / "every_method.png").stat().st_size > 10_000


def test_the_page_of_every_method_lists_every_method():
    page = (EXAMPLES / "every_method.md").read_text()
    assert [name for name in attribution.available() if f"| {name} " not in page] == []


def test_random_labels_compares_both_kinds_of_models(tmp_path, capsys):
    settings = {"models": 1, "samples": 8, "size": 64, "max_epochs": 2, "methods": ["gradient", "gradcam"]}
    result = load("random_labels").main(tmp_path, **settings)
    assert result.settings["test"] == "data_randomization"
    assert "learned only" in result.validity  # two epochs are too few
    assert "| gradient | INCONCLUSIVE |" in capsys.readouterr().out
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("label_maps.png", "verdicts.png"))


def test_orders_writes_its_figure(tmp_path):
    results = load("orders").main(tmp_path, trials=2, samples=6, epochs=1)
    assert set(results) == {"cascading", "bottom_up", "independent", "full"}
    assert (tmp_path / "orders.png").stat().st_size > 10_000


def test_two_tasks_tell_a_map_of_the_network_from_one_of_the_picture(tmp_path):
    rows = load("two_tasks").main(tmp_path, epochs=2, samples=16)
    assert rows["edge_detector"]["alike"] == pytest.approx(1)
    assert rows["gradient"]["alike"] < rows["input_x_gradient"]["alike"] < 1
    assert (tmp_path / "two_tasks.png").stat().st_size > 10_000


def test_roar_writes_its_figure(tmp_path):
    found = load("roar").main(tmp_path, shares=(0.5,), epochs=1, seeds=1)
    assert set(found) == {"gradient", "integrated_gradients", "edge_detector", "random"}
    assert (tmp_path / "roar.png").stat().st_size > 10_000


def test_smoothing_study_covers_the_cascade_of_both_networks(tmp_path):
    names, found = load("smoothing_study").main(tmp_path, samples=3, epochs=1)
    assert names[0] == "trained"
    assert {kind for _, kind in found} == {"original", "smoothed"}
    assert all(len(values) == len(names) for values in found.values())
    assert (tmp_path / "smoothing_study.png").stat().st_size > 10_000
