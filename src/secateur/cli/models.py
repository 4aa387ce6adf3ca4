"""Where a model comes from: ``zoo:resnet20``, ``timm:NAME``, ``hf:DIR``, ``file.py:build``, ..."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.cli import code, shapes
from secateur.cli.source import FORMS, PRETRAINED, Source
from secateur.errors import ConfigError, StoreError
from secateur.names import unknown

if TYPE_CHECKING:
    from torch import nn

    from secateur.cli.config import Config


def find(spec: str, original: str | None = None, *, _seen: frozenset[str] = frozenset()) -> Source:
    """The source that a spec means.

    Args:
        spec: One of ``FORMS``.
        original: For a folder of ours: the architecture that was pruned; default: what the folder's
            config.yaml says, unless that is Python code.

    Raises:
        ConfigError: No such model, or a package is missing (MissingExtraError).

    Example:
        >>> find("zoo:resnet8").data
        'zoo:fashion_mnist'
    """
    from secateur.cli import packages

    kinds = {
        "zoo": _zoo,
        "torchvision": packages.torchvision,
        "timm": packages.timm,
        "hf": packages.huggingface,
    }
    kind, colon, name = spec.partition(":")
    if colon and kind in kinds:
        return kinds[kind](name)
    if code.is_code(spec) and not _misspelt(kind, kinds):
        return _code(spec)
    if Path(spec).is_dir():
        return _saved(Path(spec).resolve(), original, _seen)
    if colon:
        raise ConfigError(unknown("kind of model", kind, kinds, f"a model is {FORMS}"))
    raise ConfigError(f"there is no model {spec!r}, nor a folder: a model is {FORMS}")


def _misspelt(kind: str, kinds: Iterable[str]) -> bool:
    """Whether this is rather a wrong ``zoo:`` than the name of a module."""
    return bool(get_close_matches(kind, kinds, 1, 0.7)) and not importlib.util.find_spec(kind)


def model(source: Source, weights: str | None = None) -> nn.Module:
    """A fresh model of a source, in evaluation mode.

    Args:
        source: From ``find``.
        weights: None for what the source comes with, ``pretrained`` to download, or a safetensors
            file with a state dict.

    Raises:
        StoreError: The weights cannot be read, or are of another model.
    """
    if weights in (None, PRETRAINED):
        return source.load(weights == PRETRAINED).eval()
    made = source.build()
    _read(made, Path(str(weights)))
    return made.eval()


def prepare(config: Config) -> None:
    """Seed and threads, as a configuration says.

    Raises:
        ConfigError: No thread.
    """
    import torch

    torch.manual_seed(config.seed)
    if config.threads is not None:
        if config.threads < 1:
            raise ConfigError(f"threads={config.threads}: give at least 1")
        torch.set_num_threads(config.threads)


def open_bare(config: Config) -> tuple[Source, nn.Module]:
    """The source and the model that a configuration names, without example inputs.

    Raises:
        ConfigError: No such model.
    """
    prepare(config)
    source = find(str(config.model), config.original)
    return source, _placed(model(source, config.weights), None, config)[0]


def open_model(config: Config) -> tuple[Source, nn.Module, Any]:
    """The source, the model and the example inputs that a configuration names.

    Raises:
        ConfigError: No such model, or its example inputs must be given.
    """
    prepare(config)
    if config.batch < 1:
        raise ConfigError(f"batch={config.batch}: give at least 1")
    source = find(str(config.model), config.original)
    made = model(source, config.weights)
    if config.inputs:
        inputs = shapes.inputs(config.inputs, config.seed)
    elif source.inputs is not None:
        inputs = source.inputs(made, config.batch)
    else:
        raise ConfigError(
            f"{config.model} does not say what it takes: give --input 1x3x224x224, or define "
            "example_inputs() beside the function that builds it"
        )
    return source, *_placed(made, inputs, config)


def dtype_of(config: Config) -> Any:
    """The torch.dtype asked for, or None.

    Raises:
        ConfigError: There is no such type.
    """
    import torch

    dtype = None if config.dtype is None else getattr(torch, config.dtype, None)
    if config.dtype is not None and not isinstance(dtype, torch.dtype):
        raise ConfigError(f"dtype={config.dtype}: give one of torch's, as float32")
    return dtype


def _placed(made: nn.Module, inputs: Any, config: Config) -> tuple[nn.Module, Any]:
    """Model and inputs on the device and of the dtype asked for."""
    import torch

    from secateur.measure.calling import to_device

    dtype = dtype_of(config)
    try:
        device = torch.device(config.device)
        made = made.to(device, dtype)
        inputs = to_device(inputs, device)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ConfigError(
            f"device={config.device}, dtype={config.dtype} cannot be had here: {error}"
        ) from error
    if dtype is not None:
        inputs = _cast(inputs, dtype)
    return made, inputs


def _cast(inputs: Any, dtype: Any) -> Any:
    from torch import Tensor
    from torch.utils._pytree import tree_map

    def cast(x: Any) -> Any:
        return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

    return tree_map(cast, inputs)


def _read(made: nn.Module, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix != ".safetensors":
        raise ConfigError(
            f"weights={path}: give {PRETRAINED!r} or a .safetensors file (others can hide code); "
            "safetensors.torch.save_file(model.state_dict(), path) makes one"
        )
    if not path.is_file():
        raise StoreError(f"weights={path}: there is no such file")
    try:
        made.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise StoreError(
            f"{path} does not hold the weights of this {type(made).__name__}: {error}"
        ) from error


def _zoo(name: str) -> Source:
    from secateur import zoo

    name = name.replace("-", "_")
    if name not in zoo.names():
        raise ConfigError(unknown("model of the zoo called", name, zoo.names()))

    def inputs(_: nn.Module, batch: int) -> Any:
        return zoo.example_inputs(name, batch)

    data = f"zoo:{zoo.card(name)['data']}"
    build, load = partial(zoo.build, name), _no_download(f"zoo:{name}", partial(zoo.load, name))
    return Source(f"zoo:{name}", build, load, inputs, data)


def _code(spec: str) -> Source:
    spec = code.absolute(spec if not spec.endswith(".py") else f"{spec}:build")
    found = code.find(spec, "build")
    companion: Any = getattr(code.module_of(spec), "example_inputs", None)
    where = spec.rpartition(":")[0]

    def build() -> nn.Module:
        from torch import nn

        made = copy.deepcopy(found) if isinstance(found, nn.Module) else code.call(found, spec)
        if not isinstance(made, nn.Module):
            raise ConfigError(f"{spec} gave a {type(made).__name__}: return a torch.nn.Module")
        return made

    def inputs(_: nn.Module, __: int) -> Any:
        return code.call(companion, f"{where}:example_inputs")

    return Source(spec, build, _no_download(spec, build), inputs if callable(companion) else None)


def _saved(folder: Path, original: str | None, seen: frozenset[str]) -> Source:
    from secateur import load

    spec = str(folder)
    if spec in seen:
        raise ConfigError(
            f"{folder} says that it was pruned from itself: pass what it was pruned from as "
            "--original MODEL"
        )
    if not (folder / "plan.json").is_file():
        broken = (folder / "unfinished").is_dir()
        raise ConfigError(
            f"{folder} holds a run that was broken off: secateur prune --resume --out {folder} "
            "goes on with it"
            if broken
            else f"{folder} holds no plan.json: a model is {FORMS}"
        )
    base = find(original or _original(folder), _seen=seen | {spec})

    def build() -> nn.Module:
        return load(base.build, folder)

    inputs = base.inputs or _same_inputs(folder)
    return Source(spec, build, _no_download(spec, build), inputs, base.data)


def _same_inputs(folder: Path) -> Callable[[nn.Module, int], Any] | None:
    """Inputs of the shapes that the run in a folder was given, if it was."""
    texts = _settings(folder).get("inputs")
    return (lambda _, __: shapes.inputs(texts)) if texts else None


def _original(folder: Path) -> str:
    """The architecture that a folder says it was pruned from; never code, which it could bring."""
    found = _settings(folder).get("model")
    if not isinstance(found, str):
        raise ConfigError(
            f"{folder} does not say what it was pruned from: pass it as --original MODEL"
        )
    if code.is_code(found) and found.partition(":")[0] not in ("zoo", "torchvision", "timm", "hf"):
        raise ConfigError(
            f"{folder} was pruned from {found}, which is Python code: if you trust it, pass it as "
            "--original"
        )
    return found


def _settings(folder: Path) -> dict[str, Any]:
    from secateur.cli.config import read

    config = folder / "config.yaml"
    return dict(read(config)) if config.is_file() else {}


def _no_download(spec: str, load: Callable[[], nn.Module]) -> Callable[[bool], nn.Module]:
    def without(download: bool) -> nn.Module:
        if download:
            raise ConfigError(f"{spec} has no weights to download: leave weights={PRETRAINED} out")
        return load()

    return without
