"""Models, inputs and data by name: every kind, and what is said when there is no such thing."""

import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import secateur as sec
from secateur.cli import code, data, models, shapes
from secateur.cli.config import make
from secateur.errors import ConfigError, DataError, SecateurError, StoreError


def same_weights(one, other):
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_a_zoo_model_comes_with_its_weights_inputs_and_data():
    source = models.find("zoo:resnet8")
    model = models.model(source)
    assert same_weights(model, sec.zoo.load("resnet8"))
    assert not model.training
    assert torch.equal(source.inputs(model, 3)[0], sec.zoo.example_inputs("resnet8", 3)[0])
    assert source.data == "zoo:fashion_mnist"


def test_a_torchvision_model_has_inputs_it_runs_on():
    pytest.importorskip("torchvision")
    for name, shape in {"squeezenet1_1": (1, 1000), "mobilenet_v3_small": (1, 1000)}.items():
        source = models.find(f"torchvision:{name}")
        model = models.model(source)
        assert model(*source.inputs(model, 1)).shape == shape
        assert not source.trained


def test_a_timm_model_has_inputs_it_runs_on():
    pytest.importorskip("timm")
    source = models.find("timm:vit_tiny_patch16_224")
    model = models.model(source)
    assert [tuple(x.shape) for x in source.inputs(model, 2)] == [(2, 3, 224, 224)]
    with torch.no_grad():
        assert model(*source.inputs(model, 1)).shape == (1, 1000)


def small_configs():
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = shape | {"intermediate_size": 20, "vocab_size": 40, "max_position_embeddings": 12}
    return {
        "BertModel": transformers.BertConfig(**text),
        "LlamaForCausalLM": transformers.LlamaConfig(**text, num_key_value_heads=1),
        "T5ForConditionalGeneration": transformers.T5Config(
            d_model=16, d_kv=8, d_ff=20, num_layers=1, num_heads=2, vocab_size=40
        ),
        "ViTForImageClassification": transformers.ViTConfig(
            **shape, intermediate_size=20, image_size=16, patch_size=8
        ),
        "Wav2Vec2Model": transformers.Wav2Vec2Config(
            **shape, intermediate_size=20, vocab_size=40, conv_dim=[8, 8], conv_stride=[20, 20],
            conv_kernel=[20, 20], num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        ),
        "CLIPModel": transformers.CLIPConfig(
            text_config=text | {"eos_token_id": 2},
            vision_config=shape | {"intermediate_size": 20, "image_size": 16, "patch_size": 8},
            projection_dim=8,
        ),
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "BertModel",
        "LlamaForCausalLM",
        "T5ForConditionalGeneration",
        "ViTForImageClassification",
        "Wav2Vec2Model",
        "CLIPModel",
    ],
)
def test_a_folder_of_transformers_is_loaded_as_it_was_saved(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = small_configs()[name]
    saved = getattr(transformers, name)(config).eval()
    saved.save_pretrained(tmp_path)
    source = models.find(f"hf:{tmp_path}")
    model = models.model(source)
    assert type(model).__name__ == name
    assert same_weights(model, saved)
    inputs = source.inputs(model, 2)
    assert all(len(x) == 2 for x in inputs.values())
    with torch.no_grad():
        assert model(**inputs).to_tuple()
    assert sec.trace(model, inputs).free
    assert source.build().state_dict().keys() == saved.state_dict().keys()


def test_nothing_of_a_folder_of_transformers_is_run(tmp_path):
    pytest.importorskip("transformers")
    marker = tmp_path / "ran"
    (tmp_path / "modeling_evil.py").write_text(f"open({str(marker)!r}, 'w')")
    (tmp_path / "config.json").write_text(
        '{"model_type": "evil", "architectures": ["Evil"], "auto_map": '
        '{"AutoConfig": "modeling_evil.Config", "AutoModel": "modeling_evil.Evil"}}'
    )
    with pytest.raises(ConfigError):
        models.find(f"hf:{tmp_path}")
    assert not marker.exists()


def test_a_users_file_builds_model_and_inputs(net):
    for spec in (f"{net}:build", str(net)):
        source = models.find(spec)
        assert source.spec == f"{net}:build"
        model = models.model(source)
        assert model(source.inputs(model, 1)).shape == (2, 3)


def test_a_users_module_is_found_from_the_current_folder(net, monkeypatch):
    monkeypatch.chdir(net.parent)
    monkeypatch.setattr(sys, "path", list(sys.path))
    net.rename(net.with_name("mine_by_name.py"))
    assert isinstance(models.model(models.find("mine_by_name:build")), nn.Sequential)
    assert code.absolute("mine_by_name:build") == "mine_by_name:build"


def test_weights_come_from_a_safetensors_file(net, tmp_path):
    source = models.find(str(net))
    wanted = source.build()
    save_file(wanted.state_dict(), tmp_path / "w.safetensors")
    assert same_weights(models.model(source, str(tmp_path / "w.safetensors")), wanted)
    save_file({"0.weight": torch.zeros(2, 2)}, tmp_path / "w.safetensors")
    with pytest.raises(StoreError, match="does not hold the weights"):
        models.model(source, str(tmp_path / "w.safetensors"))
    torch.save(wanted.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="safetensors file"):
        models.model(source, str(tmp_path / "w.pt"))
    with pytest.raises(ConfigError, match="no weights to download"):
        models.model(source, "pretrained")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("zoo:resnet9", "did you mean 'resnet8'"),
        ("torchvision:resnet51", "did you mean 'resnet"),
        ("timm:vit_tiny_patch16_225", "did you mean 'vit_tiny_patch16_224'"),
        ("hf:bert-base-uncased", "save_pretrained"),
        ("zooo:resnet8", "no kind of model 'zooo': did you mean 'zoo'"),
        ("resnet8", "there is no model 'resnet8', nor a folder"),
        ("no/such/file.py:build", "there is no file"),
        ("no_such_module:build", "there is no module 'no_such_module'"),
        ("net.py:biuld", "did you mean 'build'"),
        ("net.py:not_a_model", "is a int, not a function"),
        ("net.py:no_model", "gave a int: return a torch.nn.Module"),
        ("net.py:broken", "raised KeyError: 'weights' (net.py, line 34)"),
        ("wrong.py:build", "could not be imported: SyntaxError"),
        ("leaves.py:build", "could not be imported: SystemExit: 3 (leaves.py, line 1)"),
        ("empty", "holds no plan.json"),
    ],
)
def test_a_model_that_cannot_be_had_is_one_clear_error(spec, words, net, monkeypatch):
    monkeypatch.chdir(net.parent)
    (net.parent / "wrong.py").write_text("def build(:\n")
    (net.parent / "leaves.py").write_text("raise SystemExit(3)\n")
    (net.parent / "empty").mkdir()
    with pytest.raises(SecateurError) as caught:
        models.model(models.find(spec))
    assert words in str(caught.value)


def test_example_inputs_are_read_from_shapes():
    image, tokens = shapes.inputs(["2x3x8x8", "2x5:int64:9"])
    assert (image.shape, image.dtype) == ((2, 3, 8, 8), torch.float32)
    assert (tokens.shape, tokens.dtype) == ((2, 5), torch.int64)
    assert 0 <= tokens.min() <= tokens.max() < 9
    named = shapes.inputs(["ids=2x5:int32:7", "mask=2x5:bool"])
    assert {k: v.dtype for k, v in named.items()} == {"ids": torch.int32, "mask": torch.bool}
    assert torch.equal(shapes.inputs(["4"], seed=1)[0], shapes.inputs(["4"], seed=1)[0])
    assert not torch.equal(shapes.inputs(["4"], seed=1)[0], shapes.inputs(["4"], seed=2)[0])


@pytest.mark.parametrize(
    "texts", [["3x"], ["3,4"], ["x=3x4", "3x4"], ["x=3", "x=4"], ["3:float99"], ["3:int64:0"],
              ["3:float32:5"], [""], ["-1x3"]],
)  # fmt: skip
def test_a_wrong_shape_is_refused(texts):
    with pytest.raises(ConfigError):
        shapes.inputs(texts)


def test_a_model_without_inputs_asks_for_them(tmp_path):
    file = tmp_path / "bare.py"
    file.write_text("from torch import nn\ndef build(): return nn.Linear(3, 2)\n")
    with pytest.raises(ConfigError, match="--input 1x3x224x224"):
        models.open_model(make({"model": str(file)}))
    _, model, (x,) = models.open_model(make({"model": str(file), "inputs": ["5x3"]}))
    assert model(x).shape == (5, 2)
    _, model, (x,) = models.open_model(
        make({"model": str(file), "inputs": ["5x3"], "dtype": "float64"})
    )
    assert model(x).dtype == torch.float64
    for wrong in ({"device": "nowhere"}, {"dtype": "float31"}, {"threads": 0}, {"batch": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            models.open_model(make({"model": str(file), "inputs": ["5x3"], **wrong}))


def test_judging_by_the_zoos_data_gives_the_zoos_accuracy():
    found = data.find("zoo:fashion-mnist", 100, 0)
    evaluate, metric = data.judge(found.test)
    model = sec.zoo.load("lenet300")
    with torch.no_grad():
        assert evaluate(model) == sec.zoo.evaluate(model, "lenet300")
    assert metric.percent
    assert metric.higher_is_better


@torch.no_grad()
def test_regression_and_a_loss_of_ones_own_are_judged_by_the_mean_loss():
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    model = nn.Linear(4, 1)
    batches = [(x[:6], x[:6, :1]), (x[6:], x[6:, :1])]
    evaluate, metric = data.judge(batches)
    expected = sum(float(((model(i) - t) ** 2).mean()) for i, t in batches) / 2
    assert evaluate(model) == pytest.approx(expected)
    assert not metric.higher_is_better
    evaluate, _ = data.judge(batches, lambda output, target: (output - target).abs().max())
    expected = sum(float((model(i) - t).abs().max()) for i, t in batches) / 2
    assert evaluate(model) == pytest.approx(expected)
    evaluate, _ = data.judge(batches, batches=1)
    assert evaluate(model) == pytest.approx(float(((model(x[:6]) - x[:6, :1]) ** 2).mean()))


def test_negative_targets_and_pixels_are_judged_as_they_should():
    logits = torch.tensor([[[0.0, 1, 2], [1, 0, 0]]])  # (1, classes 2, pixels 3) -> 1, 0, 0
    target = torch.tensor([[1, -100, 1]])
    evaluate, _ = data.judge([(logits, target)])
    assert evaluate(nn.Identity()) == 0.5
    with pytest.raises(DataError, match="no batch"):
        data.judge([])
    evaluate, _ = data.judge([(torch.zeros(2, 5, 7), torch.zeros(2, dtype=torch.long))])
    with pytest.raises(DataError, match="no classification"):
        evaluate(nn.Identity())


def test_a_users_loaders_get_batch_size_and_seed_if_they_want_them(net):
    found = data.find(f"{net}:loaders", 7, 3)
    same = data.find(str(net), 7, 3)
    other = data.find(str(net), 7, 4)
    assert len(found.test.dataset) == 20
    assert data.fingerprint(found.train) == data.fingerprint(same.train)
    assert data.fingerprint(found.train) != data.fingerprint(other.train)


def test_a_fingerprint_leaves_generators_as_they_were_and_sees_every_change():
    class Squares:
        def __len__(self):
            return 5

        def __getitem__(self, i):
            return torch.full((2,), float(i * i)), i

    loader = torch.utils.data.DataLoader(
        Squares(), 2, shuffle=True, generator=torch.Generator().manual_seed(0)
    )
    before = loader.generator.get_state(), torch.get_rng_state()
    found = data.fingerprint(loader)
    assert found.endswith("over 5 of 5 samples")
    assert torch.equal(before[0], loader.generator.get_state())
    assert torch.equal(before[1], torch.get_rng_state())
    assert data.fingerprint(loader) == found
    batches = [{"ids": torch.arange(3)}]
    assert data.fingerprint(batches).endswith("over the first 1 batches")
    assert data.fingerprint(batches) != data.fingerprint([{"ids": torch.arange(3) + 1}])


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("zoo:fashion_mnits", "did you mean 'fashion_mnist'"),
        ("fashion-mnist", "there are no data"),
        ("net.py:not_a_model", "not a function"),
        ("net.py:no_model", "gave a int: return a DataLoader"),
        ("net.py:build", "gave a Sequential: return a DataLoader"),
    ],
)
def test_data_that_cannot_be_had_are_one_clear_error(spec, words, net, monkeypatch):
    monkeypatch.chdir(net.parent)
    with pytest.raises(ConfigError) as caught:
        data.find(spec, 10, 0)
    assert words in str(caught.value)
