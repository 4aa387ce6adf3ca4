"""Which runs there are: every method twice, a dozen along the curve, channels by MACs, controls."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from secateur.methods import registry

DENSE = "dense"
HAN = "han"  # no method of the registry: train, then prune and retrain round after round
ROUNDS, RETRAINED = 5, 2  # of that chain: rounds, and epochs after each
FASHION, MNIST = "fashion_mnist", "mnist"
EPOCHS = {"lenet300": 6, "resnet8": 4, "lenet5": 4}
LOOKS = 20  # steps between two looks, for methods that take `every`
TWO = (0.9, 0.98)
CURVE = (0.8, 0.9, 0.95, 0.98, 0.99)
SEEDS = (0, 1, 2)
REPRESENTATIVE = (
    "random", "initial_magnitude", "snip", "grasp", "synflow", "force", "dual_ticket", "set",
    "rigl", "granet", "gradual_magnitude", "movement", "pdp",
)  # fmt: skip
COMPRESSION = (12, 50, 310)  # times fewer weights
# Controls: the masks of a method with their places shuffled, under new weights, from half the data.
CONTROLS = ("shuffled", "reinitialised", "half")
CONTROLLED = ("snip", "synflow")
# What suits a run as short as these; all else is the methods' defaults.
SHORT: dict[str, dict[str, Any]] = {
    "continuous_sparsification": {"strength": 1e-5, "lr": 10.0},
    "soft_movement": {"strength": 100.0, "lr": 0.1},
    "l0": {"strength": 30.0, "lr": 0.1, "dropped": 0.1},
}
# Whole channels: options for 2 and 4 times fewer MACs. Where a method takes a fraction, 30 % and
# 50 % of every layer leave about a half and a quarter; a global choice leaves what it does.
HALF, QUARTER, WHOLE = {"amount": 0.3}, {"amount": 0.5}, {"granularity": "channel"}
EPOCH = {
    "every": 79
}  # what sets filters to zero needs time to mend it: the papers look once an epoch
CHANNELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "random": ({**HALF, **WHOLE, "scope": "uniform"}, {**QUARTER, **WHOLE, "scope": "uniform"}),
    "gradual_magnitude": ({**HALF, **WHOLE}, {**QUARTER, **WHOLE}),
    "soft_filter": ({**HALF, **EPOCH}, {**QUARTER, **EPOCH}),
    "asymptotic_soft_filter": ({**HALF, **EPOCH}, {**QUARTER, **EPOCH}),
    "fpgm": ({**HALF, **EPOCH}, {**QUARTER, **EPOCH}),
    "network_slimming": (HALF, QUARTER),
    "growing_regularisation": (HALF, QUARTER),
    "factorized_filters": (HALF, QUARTER),
    "taylor_fo": (HALF, QUARTER),
    "hesso": (HALF, QUARTER),
    "sheared_llama": (HALF, QUARTER),
    "loraprune": (HALF, QUARTER),
    "early_bird": (HALF, QUARTER),
    "morphnet": ({"amount": 0.1}, {"amount": 0.2}),  # of the weights; the dear channels go first
    "ssl": (HALF, QUARTER),
    "l0": ({**HALF, **WHOLE, "strength": 1.0}, {**QUARTER, **WHOLE, "strength": 1.0}),
    "sparse_structure_selection": ({"strength": 0.008}, {"strength": 0.014}),
    "dsa": ({"macs": 0.5}, {"macs": 0.25}),
    "dmcp": ({"macs": 0.5}, {"macs": 0.25}),
}  # fmt: skip
# Where the choice becomes final, as a part of the run, for methods that remove channels and those
# that cut at the end; the rest trains what is left.
SETTLED = 0.75
CUT_AT_THE_END = ("l1", "l2")
# Methods after training: what their options are, where the amount does not say it all; those of
# whole channels that apply to a residual network of convolutions.
AFTER: dict[str, dict[str, Any]] = {
    "threshold": {"quality": 1.0},
    "channel_lasso": {}, "dcp": {}, "thinet": {}, "mask_tuning": {}, "width": {}, "flap": {},
    "llm_pruner": {}, "minitron": {}, "wanda_sp": {},
}  # fmt: skip
# How much a setting matters: (method, option, its middle, amount), each times every factor.
SENSITIVITY: tuple[tuple[str, str, float, float | None], ...] = (
    ("autoprune", "lr", 1e-2, 0.9),
    ("l1", "strength", 1e-2, 0.9),
    ("autoprune", "lr", 1e-2, 0.98),
    ("l1", "strength", 1e-2, 0.98),
    ("autoprune", "strength", 1e-3, None),
)
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
KINDS = ("weights", "compression", "channels", "collapse", "sensitivity", "after")
COLLAPSE = (0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9998)


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        kind: One of ``KINDS``.
        network: Of the zoo, trained from random weights.
        method: As registered, "dense" or "han".
        setting: "90.0%", "2x", "own", ...
        seed: Of weights, batches and everything random.
        control: One of ``CONTROLS``, or nothing.
        options: Of the method.
        data: Of the zoo.
    """

    kind: str
    network: str
    method: str
    setting: str
    seed: int = 0
    control: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    data: str = FASHION

    @property
    def settled(self) -> float:
        """The part of the run after which the choice is final."""
        late = self.kind == "channels" or self.method in CUT_AT_THE_END
        return SETTLED if late and self.method != DENSE else 1.0

    @property
    def key(self) -> str:
        """What the cell is found by among the finished ones."""
        network = self.network if self.data == FASHION else f"{self.network} on {self.data}"
        parts = (self.kind, network, self.method, self.control, self.setting, str(self.seed))
        return "/".join(parts)


def on_channels(name: str) -> bool:
    """Whether a method removes whole channels by default."""
    return registry.find(name).granularity not in ("element",) or name in ("ssl",)


def weights(name: str, amount: float, seed: int, control: str = "") -> Cell:
    """A method on single weights."""
    options = {**_options(name), "amount": amount}
    return Cell("weights", "lenet300", name, f"{amount:.1%}", seed, control, options)


def wanted() -> list[Cell]:
    """All runs, the most informative first."""
    stages = [*registry.names("before"), *registry.names("during")]
    found = [Cell("weights", "lenet300", DENSE, "own"), Cell("channels", "resnet8", DENSE, "own")]
    elements = [n for n in stages if not on_channels(n)]
    takes = {
        n for n in elements if "amount" in inspect.signature(registry.entry(n).function).parameters
    }
    found += [weights(n, amount, 0) for amount in TWO for n in elements if n in takes]
    found += [
        Cell("weights", "lenet300", n, "own", options=_options(n))
        for n in elements
        if n not in takes
    ]
    found += [
        Cell("channels", "resnet8", name, setting, options={**_options(name), **both[k]})
        for k, setting in enumerate(("2x", "4x"))
        for name, both in CHANNELS.items()
    ]
    found += [
        Cell("collapse", network, name, "", options=_options(name))
        for network in ("lenet300", "vgg_bn")
        for name in registry.names("before")
        if registry.find(name).gate is None and name != "dual_ticket"
    ]
    found += _after()
    found += [c for data in (FASHION, MNIST) for c in _compression(data)]
    found += [
        sensitivity(*row, factor, seed)
        for seed in SEEDS
        for row in SENSITIVITY
        for factor in FACTORS
    ]
    for seed in SEEDS:
        for name in CONTROLLED:
            found += [weights(name, a, seed, c) for c in CONTROLS for a in TWO]
        found += [weights(n, a, seed) for n in REPRESENTATIVE for a in CURVE]
        found.append(Cell("weights", "lenet300", DENSE, "own", seed))
    return list({cell.key: cell for cell in found}.values())


def sensitivity(
    name: str, option: str, middle: float, amount: float | None, factor: float, seed: int
) -> Cell:
    """A method on single weights with one of its options moved from the middle."""
    options: dict[str, Any] = {**_options(name), option: middle * factor}
    options |= {} if amount is None else {"amount": amount}
    asked = "own" if amount is None else f"{amount:.1%}"
    return Cell("sensitivity", "lenet300", name, f"{asked} {option} x{factor:g}", seed, "", options)


def _compression(data: str) -> list[Cell]:
    """Both LeNets at few weights, by each way."""
    cells = [Cell("compression", "lenet5", DENSE, "own", data=data)]
    if data != FASHION:  # the dense one of the other tables is the same run
        cells.append(Cell("compression", "lenet300", DENSE, "own", data=data))
    for network in ("lenet5", "lenet300"):
        for k in COMPRESSION:
            amount = {"amount": 1 - 1 / k}
            cells += [
                Cell(
                    "compression", network, n, f"{k}x", options={**_options(n), **amount}, data=data
                )
                for n in ("gradual_magnitude", "autoprune")
            ]
            cells.append(Cell("compression", network, HAN, f"{k}x", options=amount, data=data))
    return cells


def _after() -> list[Cell]:
    """Every method after training that applies to these networks, at two amounts."""
    cells = []
    for name in registry.names("after"):
        whole = {} if name not in AFTER else dict(AFTER[name])
        if registry.find(name).granularity != "element":
            cells += [
                Cell("after", "resnet8", name, setting, options={"amount": amount, **whole})
                for setting, amount in (("2x", 0.3), ("4x", 0.5))
                if name in AFTER
            ]
        elif whole:
            cells.append(Cell("after", "lenet300", name, "own", options=whole))
        else:
            cells += [
                Cell("after", "lenet300", name, f"{amount:.1%}", options={"amount": amount})
                for amount in TWO
            ]
    return cells


def _options(name: str) -> dict[str, Any]:
    options: dict[str, Any] = dict(SHORT.get(name, {}))
    if "every" in registry.entry(name).options():
        options["every"] = LOOKS
    return options
