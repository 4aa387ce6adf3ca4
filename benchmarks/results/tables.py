"""Which cells each table is made of, in the order in which they are worth having."""

from collections.abc import Callable
from itertools import product
from typing import Any

from benchmarks.results.cell import Cell

CRITERIA = ("random", "l2", "taylor", "bn_scale", "fpgm", "hrank")
LAYERWISE = ("lasso", "thinet", "discrimination")  # what the next layer needs
OTHERS = (
    "l1", "lp", "bn_gamma_beta", "lamp", "activation", "activation_level", "apoz", "cosine",
    "fluctuation", "wanda", "ria", "saliency", "synflow", "grasp", "fisher", "obd", "sosp",
    "taylor2", "taylor_gate", "taylor_vector",
)  # fmt: skip
KEEP = (0.5, 0.25)
SEEDS = (0, 1, 2)
# One of each family; quick ones first.
FAMILIES = ("gcn", "gat", "lenet300", "lenet5", "lstm", "pointnet", "vgg_bn", "vit", "dgcnn")
SCOPED = ("random", "l2", "taylor", "bn_scale", "hrank", "lamp")
STREAMS = ("conv1", "layer2.0.conv2", "layer3.0.conv2")  # what the shortcuts add up
WAYS: dict[str, dict[str, Any]] = {
    "uniform": {"scope": "uniform"},
    "isomorphic": {"scope": "isomorphic"},
    "global": {"scope": "global"},
    "global, at most half of a layer": {"scope": "global", "max_ratio": 0.5},
    "uniform, inside blocks only": {"scope": "uniform", "ignore": STREAMS},
}
RECOVERIES = (
    (),
    ("bn",),
    ("least-squares",),
    ("least-squares", "bn"),
    ("fine-tune",),
    ("least-squares", "bn", "fine-tune"),
)


def cnn() -> list[Cell]:
    """ResNet-20: six criteria, twice and four times fewer MACs, three seeds; the rest once."""
    return [
        *(Cell("resnet20", c, k, s) for s, k, c in product(SEEDS, KEEP, CRITERIA)),
        *(Cell("resnet20", c, k) for k, c in product(KEEP, LAYERWISE)),
        *(Cell("resnet20", "l2", k, fresh=True) for k in KEEP),
        Cell("resnet20", "random", 1.0),
        *(Cell("resnet20", c, 0.5) for c in OTHERS),
    ]


def families() -> list[Cell]:
    """The other networks: a criterion, chance and the control, twice fewer MACs, one seed."""
    return [
        *(Cell(n, c, 0.5) for c, n in product(("random", "l2"), FAMILIES)),
        *(Cell(n, "random", 1.0) for n in FAMILIES),
    ]


def scopes() -> list[Cell]:
    """ResNet-20: how much to take where, with batch norms recalibrated, then with training."""
    ways = WAYS.values()
    return [
        *(Cell("resnet20", c, 0.5, recovery=("bn",), **w) for c, w in product(SCOPED, ways)),
        *(Cell("resnet20", c, 0.5, **w) for c, w in product(("l2", "taylor"), ways)),
    ]


def recoveries() -> list[Cell]:
    """ResNet-20: what each way of healing gives back, and whether the criterion still matters."""
    return [
        *(Cell("resnet20", "l2", k, recovery=r) for k, r in product(KEEP, RECOVERIES)),
        *(
            Cell("resnet20", c, k, recovery=r)
            for c, k, r in product(("random", "taylor"), KEEP, RECOVERIES)
            if r not in ((), ("least-squares", "bn"))
        ),
        *(Cell("resnet20", "discrimination", 0.5, recovery=r) for r in (("bn",), ("fine-tune",))),
    ]


TABLES: dict[str, Callable[[], list[Cell]]] = {
    "cnn": cnn,
    "families": families,
    "scopes": scopes,
    "recoveries": recoveries,
}
