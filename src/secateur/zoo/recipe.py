"""How a network of the zoo is trained: the few numbers that its file states."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Recipe:
    """The data set and the settings with which `python -m secateur.zoo.train NAME` trains.

    Args:
        data: name of a data set (`secateur.zoo.data_names()`).
        epochs: passes over the training split; the learning rate follows one cycle over all.
        lr: peak learning rate.
        batch_size: samples a step; ignored where the data set is one graph.
        optimizer: `"sgd"` (Nesterov momentum 0.9) or `"adamw"`.
        weight_decay: decoupled for AdamW, L2 for SGD; biases and norms are not decayed.
        label_smoothing: of the cross-entropy.
    """

    data: str
    epochs: int
    lr: float
    batch_size: int = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
