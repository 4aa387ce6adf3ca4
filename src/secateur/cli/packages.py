"""Models of torchvision, timm and transformers, and example inputs that fit them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.cli.source import PRETRAINED, Source
from secateur.errors import ConfigError, DataError, MissingExtraError
from secateur.names import unknown

if TYPE_CHECKING:
    from torch import nn

_TOKENS = 16


def torchvision(name: str) -> Source:
    """A model of torchvision, with random weights unless they are downloaded."""
    models = _import("torchvision.models", "vision")
    if name not in models.list_models():
        raise ConfigError(unknown("model of torchvision called", name, models.list_models()))
    kind = models.get_model_builder(name).__module__.split(".")[2]

    def load(download: bool) -> nn.Module:
        options: dict[str, Any] = {"weights": "DEFAULT" if download else None}
        if kind in ("segmentation", "detection") and not download:
            options["weights_backbone"] = None
        if name in ("googlenet", "inception_v3") and not download:
            options["init_weights"] = False  # scipy's truncated normal takes a minute
        return _downloaded(lambda: models.get_model(name, **options), f"torchvision:{name}")

    def inputs(model: nn.Module, batch: int) -> Any:
        return _torchvision_inputs(name, kind, model, batch)

    return Source(f"torchvision:{name}", lambda: load(False), load, inputs, trained=False)


def _torchvision_inputs(name: str, kind: str, model: nn.Module, batch: int) -> Any:
    if kind == "detection":
        return ([_normal(3, 320, 320) for _ in range(batch)],)
    if kind == "video":
        side = 224 if name.startswith(("mvit", "s3d", "swin")) else 112
        return (_normal(batch, 3, 16, side, side),)
    if kind == "optical_flow":
        return (_normal(batch, 3, 128, 128), _normal(batch, 3, 128, 128))
    side = 299 if name == "inception_v3" else getattr(model, "image_size", 224)
    return (_normal(batch, 3, side, side),)


def timm(name: str) -> Source:
    """A model of timm, with random weights unless they are downloaded."""
    package = _import("timm", "vision")
    if not package.is_model(name.partition(".")[0]):
        known = package.list_models()
        raise ConfigError(unknown("model of timm called", name, known))

    def load(download: bool) -> nn.Module:
        return _downloaded(lambda: package.create_model(name, pretrained=download), f"timm:{name}")

    def inputs(model: nn.Module, batch: int) -> Any:
        config = importlib.import_module("timm.data").resolve_model_data_config(model)
        return (_normal(batch, *config["input_size"]),)

    return Source(f"timm:{name}", lambda: load(False), load, inputs, trained=False)


def huggingface(name: str) -> Source:
    """A model of transformers in a local folder; nothing is fetched, and no code of it runs."""
    folder = Path(name).expanduser().resolve()
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"hf:{name}: {folder} holds no config.json: give a folder that save_pretrained wrote "
            "(models are not fetched from a hub)"
        )
    from secateur.engine.shards import INDEX, SINGLE, open_shards

    package = _import("transformers", "hf")
    importlib.import_module("transformers.utils.logging").disable_progress_bar()
    local = {"local_files_only": True, "trust_remote_code": False}
    config = _of_folder(lambda: package.AutoConfig.from_pretrained(folder, **local), folder)
    named = (getattr(config, "architectures", None) or ["AutoModel"])[0]
    network = getattr(package, named, None)
    if network is None:
        raise ConfigError(
            f"{folder} holds a {named}, which is no class of transformers: build it in a file of "
            "your own and give FILE.py:FUNCTION"
        )

    def build() -> nn.Module:
        if named == "AutoModel":
            return network.from_config(config)
        return network(config)

    def load(download: bool) -> nn.Module:
        if download:
            raise ConfigError(f"hf:{name} is a folder: leave weights={PRETRAINED} out")
        if any((folder / weights).is_file() for weights in (SINGLE, INDEX)):
            open_shards(folder)  # says which file is missing or cut off
        return _of_folder(
            lambda: network.from_pretrained(folder, use_safetensors=True, **local), folder
        )

    return Source(f"hf:{folder}", build, load, _huggingface_inputs)


def tokenizer(name: str) -> Any:
    """The tokenizer in a local folder; nothing is fetched, and no code of it runs.

    Raises:
        ConfigError: There is none.
    """
    folder = Path(name).expanduser().resolve()
    package = _import("transformers", "hf")
    if not any(folder.glob("tokenizer*")) and not any(folder.glob("vocab*")):
        raise ConfigError(
            f"{folder} holds no tokenizer: give the folder of the model's own as --tokenizer DIR"
        )
    return _of_folder(
        lambda: package.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        ),
        folder,
    )


def _huggingface_inputs(model: nn.Module, batch: int) -> dict[str, Any]:
    """Dummy inputs by the name of a model's main input."""
    config: Any = model.config
    main = getattr(model, "main_input_name", "input_ids")
    if main == "pixel_values":
        return {main: _pixels(config, batch)}
    if main == "input_values":
        return {main: _normal(batch, 16000)}
    if main == "input_features" and hasattr(config, "max_source_positions"):
        made = {main: _normal(batch, config.num_mel_bins, 2 * config.max_source_positions)}
        return made | {"decoder_input_ids": _tokens(config, batch)}
    if main != "input_ids":
        raise ConfigError(
            f"{type(model).__name__} takes {main}, for which there are no dummy inputs: give them "
            f"as --input {main}=SHAPE"
        )
    import torch

    ids = _tokens(config, batch)
    made = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if getattr(config, "is_encoder_decoder", False):
        made["decoder_input_ids"] = _tokens(config, batch)
    if hasattr(config, "vision_config") and hasattr(config, "projection_dim"):  # as of CLIP
        made["pixel_values"] = _pixels(config.vision_config, batch)
    return made


def _tokens(config: Any, batch: int) -> Any:
    import torch

    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None) or _TOKENS
    length = max(1, min(_TOKENS, longest - 2))  # some position tables begin after the padding
    low = min(3, text.vocab_size - 1)  # special tokens come first in most vocabularies
    generator = torch.Generator().manual_seed(0)
    return torch.randint(low, text.vocab_size, (batch, length), generator=generator)


def _pixels(config: Any, batch: int) -> Any:
    size = getattr(config, "image_size", 224)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return _normal(batch, getattr(config, "num_channels", 3), height, width)


def _normal(*shape: int) -> Any:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _import(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"{name.partition('.')[0]} is not installed: pip install 'secateur[{extra}]'"
        ) from error


def _downloaded(build: Callable[[], nn.Module], spec: str) -> nn.Module:
    try:
        return build()
    except (OSError, RuntimeError) as error:  # URLError and hub errors are OSErrors
        raise DataError(
            f"{spec} could not be made: {error}. Without a network, leave weights={PRETRAINED} out "
            "or give a .safetensors file."
        ) from error


def _of_folder(read: Callable[[], Any], folder: Path) -> Any:
    try:
        return read()
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"{folder} cannot be read by transformers: {error}") from error
