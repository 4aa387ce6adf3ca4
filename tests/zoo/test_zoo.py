"""Every network loads, does what its card says, and is found by looking."""

import hashlib

import pytest
import torch

from secateur import zoo
from secateur.errors import ConfigError, StoreError
from secateur.zoo import document, registry
from secateur.zoo.places import HERE


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_zoo_has_each_family():
    wanted = {"resnet20", "resnet8", "vgg_bn", "vit", "lstm", "gat", "dgcnn", "lenet5", "lenet300"}
    assert wanted <= set(zoo.names())


def test_a_network_is_a_file_in_the_folder():
    files = {path.stem for path in (HERE / "networks").glob("*.py")} - {"__init__"}
    assert set(zoo.names()) == files


@pytest.mark.parametrize("name", zoo.names())
def test_the_measured_accuracy_is_the_card_s(name):
    model = zoo.load(name)
    card = zoo.card(name)
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) == card["parameters"]
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert abs(zoo.evaluate(model, name) - card["accuracy"]) <= 0.005


@pytest.mark.parametrize("name", zoo.names())
def test_the_card_is_of_these_weights(name):
    card = zoo.card(name)
    weights = (registry.WEIGHTS / f"{name}.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == card["sha256"]
    assert len(weights) == card["bytes"]
    assert card["command"].startswith(f"python -m secateur.zoo.train {name}")


@pytest.mark.parametrize("name", zoo.names())
def test_float16_on_disk_costs_no_accuracy(name):
    card = zoo.card(name)
    assert abs(card["accuracy"] - card["accuracy_float32"]) <= 0.0025


@pytest.mark.parametrize("name", zoo.names())
def test_example_inputs_are_what_the_forward_takes(name):
    with torch.no_grad():
        output = zoo.build(name).eval()(*zoo.example_inputs(name))
    classes = {"austen": 6, "wordnet": 7}.get(zoo.card(name)["data"], 10)
    assert output.shape[-1] == classes
    assert output.isfinite().all()


@pytest.mark.parametrize("name", ["resnet8", "resnet20"])
def test_the_residual_networks_reach_their_target(name):
    assert zoo.card(name)["accuracy_full"] >= {"resnet8": 0.90, "resnet20": 0.91}[name]
    assert zoo.card(name)["test_samples_full"] == 10_000


def test_data_and_weights_stay_small():
    files = [*(HERE / "data" / "files").iterdir(), *registry.WEIGHTS.iterdir()]
    assert sum(path.stat().st_size for path in files) < 12e6


def test_evaluate_counts_like_a_plain_loop_and_leaves_the_mode_alone():
    model = zoo.load("lenet300").train()
    model.fc2.eval()
    pixels, labels = zoo.load_data("fashion_mnist", "test")[:]
    right = sum(int(model(p[None]).argmax()) == int(t) for p, t in zip(pixels, labels, strict=True))
    assert zoo.evaluate(model, "lenet300", batch_size=333) == right / len(labels)
    assert model.training and model.fc1.training and not model.fc2.training


def test_an_untrained_network_is_near_chance():
    torch.manual_seed(0)
    assert zoo.evaluate(zoo.build("resnet8"), "resnet8") < 0.3


@pytest.mark.parametrize("function", [zoo.build, zoo.load, zoo.card, zoo.example_inputs])
def test_an_unknown_network_gets_a_suggestion(function):
    with pytest.raises(ConfigError, match="no network `resnet-20`: did you mean `resnet20`"):
        function("resnet-20")


def test_an_empty_example_is_refused():
    with pytest.raises(ConfigError, match="batch_size=0"):
        zoo.example_inputs("resnet8", 0)


@pytest.mark.parametrize("damage", ["truncated", "another network's", "missing"])
def test_bad_weights_are_one_clear_error(damage, tmp_path):
    path = tmp_path / "lenet5.safetensors"
    if damage == "truncated":
        path.write_bytes((registry.WEIGHTS / "lenet5.safetensors").read_bytes()[:1000])
    elif damage == "another network's":
        path.write_bytes((registry.WEIGHTS / "lenet300.safetensors").read_bytes())
    with pytest.raises(StoreError, match=r"lenet5.*does not hold this network's weights"):
        registry.read_weights(zoo.build("lenet5"), path)


def test_the_page_s_table_is_the_cards_():
    page = HERE.parents[2] / "docs" / "zoo.md"
    assert document.table() in page.read_text(encoding="utf-8")
