"""``secateur sparsify``: what ``sec.sparsify`` and ``sec.sparsify_folder`` do, by their words."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
import yaml
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers

import secateur as sec
from secateur.engine import layerwise

WORDS = [f"w{i}" for i in range(60)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder ``dense`` with a tiny Llama and its tokenizer, and a text of its words."""
    here = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32,
    }  # fmt: skip
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**shape, tie_word_embeddings=True))
    model.save_pretrained(here / "dense", max_shard_size="40KB")
    tokenizer(len(WORDS)).save_pretrained(here / "dense")
    picked = torch.randint(60, (400,), generator=torch.Generator().manual_seed(1)).tolist()
    (here / "text.txt").write_text(" ".join(WORDS[i] for i in picked))
    return here


def tokenizer(words: int, first: int = 0) -> Any:
    vocabulary = {f"w{i}": i + first for i in range(words)} | {"?": words + first}
    fast = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    return hf.PreTrainedTokenizerFast(tokenizer_object=fast, unk_token="?")


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


TEXT = ["hf:dense", "--text", "text.txt", "--samples", "4", "--length", "16", "--seed", "3"]


def expected(here: Path, method: str, **how: Any) -> Any:
    model = hf.LlamaForCausalLM.from_pretrained(here / "dense")
    text = (here / "text.txt").read_text()
    pieces = sec.language.calibration(tokenizer(60), text, number=4, length=16, seed=3)
    return sec.sparsify(model, method, data=pieces.batches(), progress=False, **how)


@pytest.mark.parametrize("stream", [False, True])
def test_the_result_is_that_of_the_function(secateur: Any, here: Path, stream: bool) -> None:
    how = ["--method", "sparsegpt:damping=0.1", "--pattern", "2:4", "--out", "out"]
    ran = secateur("sparsify", *TEXT, *how, "--json", *["--stream"] * stream)
    assert ran.code == 0, ran.err
    result = expected(here, ("sparsegpt", {"damping": 0.1}), pattern="2:4")
    loaded = hf.AutoModelForCausalLM.from_pretrained(here / "out")
    for name, value in result.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert sec.MaskSet.load(here / "out" / "masks.safetensors") == result.masks
    answer = ran.json
    assert answer["report"]["sparsity"] == 0.5 and answer["report"]["method"] == "sparsegpt"
    assert answer["calibration"]["number"] == 4 and answer["calibration"]["seed"] == 3
    assert hf.AutoTokenizer.from_pretrained(here / "out")("w7 w0")["input_ids"] == [7, 0]
    written = yaml.safe_load((here / "out" / "sparsify.yaml").read_text())
    assert written["calibration"]["sha256"] == answer["calibration"]["sha256"]
    assert written["settings"]["pattern"] == "2:4" and written["environment"]["torch"]
    assert [p.name for p in here.iterdir() if p.name.startswith(".")] == []


def test_globs_say_where_how_much(secateur: Any, here: Path) -> None:
    how = ["--amount", "0.25", "--override", "*.down_proj=0.5", "--ignore", "model.layers.0"]
    ran = secateur("sparsify", *TEXT, "--method", "wanda", *how, "--dry-run", "--json")
    assert ran.code == 0, ran.err
    shown = {row["layer"]: row["removed"] / row["total"] for row in ran.json["layers"]}
    assert secateur("sparsify", *TEXT, "--method", "wanda", *how, "--out", "out").code == 0
    masks = sec.MaskSet.load(here / "out" / "masks.safetensors")
    assert shown == {name: 1 - float(keep.float().mean()) for name, keep in masks.items()}
    assert shown["model.layers.1.mlp.down_proj.weight"] == 0.5 and len(shown) == 14


def test_a_dry_run_writes_nothing(secateur: Any, here: Path) -> None:
    before = sorted(p.name for p in here.rglob("*"))
    for more in ([], ["--stream"]):
        ran = secateur("sparsify", *TEXT, "--method", "wanda", "--dry-run", *more)
        assert ran.code == 0, ran.err
        assert "all 21" in ran.out and "50.0%" in ran.out
    assert sorted(p.name for p in here.rglob("*")) == before


def test_what_needs_no_calibration_gets_none(secateur: Any, here: Path) -> None:
    ran = secateur("sparsify", "hf:dense", "--method", "magnitude", "--out", "out", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["calibration"] is None and ran.json["report"]["sparsity"] == 0.5
    assert {"config.json", "sparsify.yaml", "masks.safetensors"} <= set(ran.json["files"])


@pytest.mark.parametrize("stream", [False, True])
def test_a_broken_run_goes_on(
    secateur: Any, here: Path, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    solve, solved = layerwise._solve_block, []

    def breaking(step: Any, job: Any) -> Any:
        if step.number == 2:
            raise KeyboardInterrupt
        return solve(step, job)

    command = ["sparsify", *TEXT, "--method", "wanda", "--out", "out", *["--stream"] * stream]
    monkeypatch.setattr(layerwise, "_solve_block", breaking)
    ran = secateur(*command)
    assert ran.code == 130 and "the same command goes on" in ran.err
    assert not (here / "out").exists()
    monkeypatch.setattr(
        layerwise, "_solve_block", lambda step, job: solved.append(step.number) or solve(step, job)
    )
    other = secateur(*command, "--amount", "0.6")
    assert other.code == 1 and "holds another run (target differ)" in other.err
    assert secateur(*command).code == 0 and solved == [2]
    model = hf.LlamaForCausalLM.from_pretrained(here / "out").state_dict()
    whole = expected(here, "wanda").model.state_dict()
    assert all(torch.equal(model[name], value) for name, value in whole.items())
    monkeypatch.setattr(layerwise, "_solve_block", breaking)
    again = [*command[: -2 - stream], "--out", "new", *["--stream"] * stream]
    assert secateur(*again).code == 130
    monkeypatch.setattr(layerwise, "_solve_block", solve)
    assert secateur(*again, "--amount", "0.6", "--restart").code == 0
    assert [p.name for p in here.iterdir() if p.name.startswith(".")] == []


def foreign(here: Path) -> list[str]:
    tokenizer(60, first=30).save_pretrained(here / "other")
    return ["--tokenizer", "other"]


def no_tokenizer(here: Path) -> list[str]:
    for path in (here / "dense").glob("tokenizer*"):
        path.unlink()
    return []


def short_text(here: Path) -> list[str]:
    (here / "text.txt").write_text("w1 w2")
    return []


def no_text(here: Path) -> list[str]:
    (here / "text.txt").write_bytes(b"\xff\xfe\x00")
    return []


def no_shard(here: Path) -> list[str]:
    next((here / "dense").glob("model-00002*")).unlink()
    return []


def cut_shard(here: Path) -> list[str]:
    path = next((here / "dense").glob("model-00002*"))
    path.write_bytes(path.read_bytes()[:-9])
    return []


def exists(here: Path) -> list[str]:
    (here / "out").mkdir()
    return []


def said(*more: str) -> Any:
    return lambda _: list(more)


STREAM = said("--stream", "--scope", "owl")
WRONG = [
    (foreign, "tokenize the text with the model's own tokenizer"),
    (no_tokenizer, "dense holds no tokenizer"),
    (short_text, "the text has 2 tokens, but 16 are needed"),
    (no_text, "--text text.txt cannot be read"),
    (said("--length", "33"), "the model takes at most 32"),
    (said("--samples", "0"), "--samples 0: give at least 1"),
    (said("--data", "zoo:fashion-mnist"), "--text and --data are both given"),
    (no_shard, "model-00002"),
    (cut_shard, "model-00002"),
    (exists, "out is there already"),
    (said("--method", "flap"), "no solver for one layer"),
    (said("--pattern", "2:5"), "cannot be split into groups of 5"),
    (said("--pattern", "2:4", "--amount", "0.3"), "contradicts pattern"),
    (said("--ignore", "model.layers.*"), "no layer"),
    (said("--ignore", "lyers"), "no layer that matches"),
    (STREAM, "--scope needs the whole model"),
    (said("--override", "lyers=0.5"), "no layer that matches"),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG, ids=[words for _, words in WRONG])
@pytest.mark.parametrize("dry", [False, True])
def test_bad_input_is_one_line_and_leaves_nothing(
    secateur: Any, here: Path, wrong: Any, words: str, dry: bool
) -> None:
    more = wrong(here)
    before = {p: p.read_bytes() for p in here.rglob("*") if p.is_file()}
    method = [] if "--method" in more else ["--method", "wanda"]
    ran = secateur("sparsify", *TEXT, *method, "--out", "out", *["--dry-run"] * dry, *more)
    assert ran.code == 1, ran.err
    assert words in ran.err and len(ran.err.strip().splitlines()) == 1, ran.err
    assert {p: p.read_bytes() for p in here.rglob("*") if p.is_file()} == before


def test_what_is_missing_is_asked_for(secateur: Any, here: Path) -> None:
    assert "--out DIR is missing" in secateur("sparsify", *TEXT).err
    ran = secateur("sparsify", "hf:dense", "--method", "wanda", "--out", "out")
    assert ran.code == 1 and "needs calibration" in ran.err
    ran = secateur("sparsify", "zoo:lenet300", "--text", "text.txt", "--dry-run")
    assert ran.code == 1 and "--tokenizer DIR" in ran.err
    ran = secateur("sparsify", "zoo:lenet300", "--stream", "--out", "out")
    assert ran.code == 1 and "is no hf:DIR" in ran.err
    assert load_file(next((here / "dense").glob("*.safetensors")))
