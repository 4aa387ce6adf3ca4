"""What the zoo holds, found by looking: a network or a data set is a file in its folder."""

import importlib
import json
import pkgutil
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from secateur.errors import ConfigError, StoreError
from secateur.zoo.places import HERE

WEIGHTS = HERE / "weights"


def names() -> list[str]:
    """List the networks.

    Example:
        >>> "resnet20" in names()
        True
    """
    return _modules("networks")


def data_names() -> list[str]:
    """List the data sets.

    Example:
        >>> "fashion_mnist" in data_names()
        True
    """
    return _modules("data")


def build(name: str) -> nn.Module:
    """Make an untrained network; the caller seeds torch.

    Raises:
        ConfigError: there is no such network.

    Example:
        >>> sum(p.numel() for p in build("resnet8").parameters())
        77754
    """
    return network(name).build()


def load(name: str) -> nn.Module:
    """Make a network with its trained weights, float32, in evaluation mode.

    Raises:
        ConfigError: there is no such network.
        StoreError: its weights are missing or damaged.

    Example:
        >>> load("resnet8").training
        False
    """
    model = build(name)
    read_weights(model, WEIGHTS / f"{name}.safetensors")
    return model.eval()


def read_weights(model: nn.Module, path: Path) -> None:
    """Fill a model from a safetensors file, in the model's own dtypes (float16 on disk)."""
    try:
        stored = load_file(path)
        own = model.state_dict()
        model.load_state_dict({k: v.to(own[k].dtype) if k in own else v for k, v in stored.items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise StoreError(
            f"{path} does not hold this network's weights ({error}); reinstall secateur, "
            f"or train them: python -m secateur.zoo.train {path.stem}"
        ) from error


def card(name: str) -> dict[str, Any]:
    """Read what was measured when the network was trained.

    Keys: `accuracy` (embedded test split), `accuracy_full` (whole test set, if there is a larger
    one), `parameters`, `data`, `licence`, `command`, `recipe`, `seed`, `seconds`, `torch`.

    Raises:
        ConfigError: there is no such network.
        StoreError: the card is missing or damaged.

    Example:
        >>> card("resnet8")["data"]
        'fashion_mnist'
    """
    network(name)
    path = WEIGHTS / f"{name}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} cannot be read ({error}); train: python -m secateur.zoo.train {name}"
        ) from error


def load_data(name: str, split: str, *, full: bool = False) -> Dataset:
    """Read a data set; an item is `(*inputs, target)`.

    Targets are class numbers; -100, cross-entropy's `ignore_index`, marks the nodes of a graph
    that are not of this split.

    Args:
        name: one of `data_names()`.
        split: `"train"` or `"test"`.
        full: the whole set, from SECATEUR_DATA, a Debian package or a download, instead of the
            part that ships with the package.

    Raises:
        ConfigError: no such data set or split.
        DataError: the files are missing (the message says how to get them) or damaged.

    Example:
        >>> len(load_data("fashion_mnist", "test"))
        2000
    """
    if split not in ("train", "test"):
        raise ConfigError(f"data set `{name}` has no split `{split}`: use 'train' or 'test'")
    return data_set(name).load(split, full)


def loaders(
    name: str, batch_size: int = 128, seed: int = 0, *, full: bool = False
) -> tuple[DataLoader, DataLoader]:
    """Make the training loader (shuffled by seed) and the test loader of a data set.

    A graph is one item: its loaders yield it whole, whatever the batch size.

    Args:
        name: a data set, or a network, which stands for the data set it was trained on.
        batch_size: samples a batch.
        seed: of the order of the training samples.
        full: as in `load_data`.

    Raises:
        ConfigError: no such data set or network, or a batch size below 1.
        DataError: as in `load_data`.

    Example:
        >>> train, test = loaders("fashion_mnist", batch_size=100)
        >>> len(train), len(test)
        (100, 20)
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size} for `{name}`: it must be at least 1")
    if name in names():
        name = network(name).RECIPE.data
    train, test = (load_data(name, split, full=full) for split in ("train", "test"))
    size = None if len(train) == 1 else batch_size  # type: ignore[arg-type]
    shuffle = torch.Generator().manual_seed(seed)
    return (
        DataLoader(train, size, shuffle=size is not None, generator=shuffle),
        DataLoader(test, size),
    )


def example_inputs(name: str, batch_size: int = 2) -> tuple[Tensor, ...]:
    """Take the first test samples of a network's data, as the arguments of its forward.

    Raises:
        ConfigError: there is no such network, or the batch size is below 1.

    Example:
        >>> example_inputs("resnet8")[0].shape
        torch.Size([2, 1, 28, 28])
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size} for `{name}`: it must be at least 1")
    data: Any = load_data(network(name).RECIPE.data, "test")
    if len(data) == 1:  # one graph
        return tuple(data[0][:-1])
    return tuple(default_collate([data[i] for i in range(min(batch_size, len(data)))])[:-1])


@torch.no_grad()
def evaluate(model: nn.Module, name: str, *, full: bool = False, batch_size: int = 50) -> float:
    """Measure a model's accuracy on the test split of a network's data set.

    Args:
        model: any model of the network's inputs and outputs, pruned or not, on any device; its
            mode is restored afterwards.
        name: the network (or data set) whose data are meant.
        full: the whole test set instead of the embedded part.
        batch_size: samples a forward.

    Returns:
        The fraction of correct predictions, in [0, 1].

    Raises:
        ConfigError, DataError: as in `loaders`.

    Example:
        >>> evaluate(load("resnet8"), "resnet8") > 0.85
        True
    """
    _, test = loaders(name, batch_size, full=full)
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    correct = total = 0
    try:
        for *inputs, target in test:
            output = model(*(x.to(device) for x in inputs)).argmax(-1).cpu()
            counted = target >= 0
            correct += int((output == target)[counted].sum())
            total += int(counted.sum())
    finally:
        for module, mode in modes:
            module.training = mode
    return correct / total


def network(name: str) -> ModuleType:
    """Import a network's file."""
    return _module("networks", name)


def data_set(name: str) -> ModuleType:
    """Import a data set's file."""
    return _module("data", name)


def _modules(folder: str) -> list[str]:
    found = pkgutil.iter_modules([str(HERE / folder)])
    return sorted(module.name for module in found if not module.ispkg)


def _module(folder: str, name: str) -> ModuleType:
    known = _modules(folder)
    if name not in known:
        what = {"networks": "network", "data": "data set"}[folder]
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean `{close[0]}`? " if close else ""
        raise ConfigError(f"the zoo has no {what} `{name}`: {hint}it has {', '.join(known)}")
    return importlib.import_module(f"secateur.zoo.{folder}.{name}")
