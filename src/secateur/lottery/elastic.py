"""Elastic tickets: a ticket found in one depth of a network becomes one of another depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from secateur.errors import ConfigError
from secateur.names import unknown


def evenly(source: int, target: int, order: str = "interleave") -> list[int]:
    """Which block of ``source`` each of ``target`` blocks comes from.

    Block 0, which may change the size, becomes block 0; the others are repeated, or some of them
    dropped, as evenly as can be.

    Args:
        source, target: Blocks of the stage, at least 1.
        order: "interleave" puts copies side by side (1, 1, 2, 2), "append" repeats the row
            (1, 2, 1, 2); dropping is always even.

    Raises:
        ConfigError: A number below 1, an unknown order, or only block 0 to make others of.

    Example:
        >>> evenly(3, 5), evenly(3, 5, "append"), evenly(5, 3)
        ([0, 1, 1, 2, 2], [0, 1, 2, 1, 2], [0, 1, 3])
    """
    if order not in ("interleave", "append"):
        raise ConfigError(unknown("order", order, ("interleave", "append")))
    if source < 1 or target < 1 or (source == 1 and target > 1):
        raise ConfigError(
            f"{source} blocks cannot become {target}: block 0 is kept for block 0, so at least one "
            "other is needed"
        )
    rest, wanted = source - 1, target - 1
    if order == "append" and wanted > rest:
        return [0, *(1 + i % rest for i in range(wanted))]
    return [0, *(1 + i * rest // wanted for i in range(wanted))]


def elastic(
    tensors: Mapping[str, Tensor], stages: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    r"""Copy blocks of each stage to where the other network has them, weights or masks alike.

    The tensor ``stage.j.rest`` of the new network is ``stage.stages[stage][j].rest`` of the old
    one; what is in no stage (stem, head) stays. Masks, and the weights $\theta_k$ that they belong
    to, go through the same map; densities of blocks go along.

    Args:
        tensors: State dict, or masks by the same names.
        stages: Name of a stage, whose children are numbered blocks -> for each block of the new
            network, the block that it is a copy of (see ``evenly``).

    Raises:
        ConfigError: A stage or block that is not there.

    Example:
        >>> old = {"stem": torch.zeros(1), "stage.0.w": torch.ones(1), "stage.1.w": torch.ones(2)}
        >>> sorted(elastic(old, {"stage": evenly(2, 3)}))
        ['stage.0.w', 'stage.1.w', 'stage.2.w', 'stem']

    Paper: Chen et al., arXiv:2103.16547.
    """
    blocks: dict[str, dict[int, dict[str, Tensor]]] = {stage: {} for stage in stages}
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stage = next((s for s in stages if name.startswith(f"{s}.")), None)
        if stage is None:
            result[name] = tensor
            continue
        number, _, rest = name[len(stage) + 1 :].partition(".")
        if not number.isdecimal():
            raise ConfigError(f"{name}: the children of stage {stage!r} are not numbered blocks")
        blocks[stage].setdefault(int(number), {})[rest] = tensor
    for stage, sources in stages.items():
        for target, source in enumerate(sources):
            if source not in blocks[stage]:
                raise ConfigError(
                    f"stage {stage!r} has the blocks {sorted(blocks[stage])}, not {source}"
                )
            for rest, tensor in blocks[stage][source].items():
                result[f"{stage}.{target}.{rest}"] = tensor.clone()
    return result
