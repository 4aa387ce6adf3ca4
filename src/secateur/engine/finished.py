"""Finished blocks in a folder, so that a run that was killed goes on where it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from secateur.engine.checkpoint import load_state, save_state
from secateur.engine.masks import MaskSet
from secateur.engine.parallel import agreed, exchange, place
from secateur.engine.sequential import Step, Walk
from secateur.errors import ConfigError, StoreError


@dataclass(frozen=True)
class Row:
    """What was done to one layer.

    Attributes:
        layer, block: Names.
        removed, total: Weights.
        tokens: How many tokens its statistics are of.
        error: Squared error of its output relative to what was aimed at, behind all that was done
            to the layer, where the Gram matrix is known.
        seconds: Of the solver.
        note: What the solver wants to be known.
    """

    layer: str
    block: str
    removed: int
    total: int
    tokens: int
    error: float | None
    seconds: float
    note: str = ""


@dataclass
class Solution:
    """Masks (True = stays) by parameter, and one row a layer."""

    masks: MaskSet = field(default_factory=lambda: MaskSet({}))
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, other: Solution) -> None:
        self.masks = self.masks.beside(other.masks)
        self.rows += other.rows
        self.notes += other.notes


@dataclass
class Finished:
    """What is finished: one file a block, one with its masks, and the outputs of the last one.

    Of several processes the first writes what all have; each writes the outputs of its samples.

    Attributes:
        folder: Where, seen by all processes; None if nothing is kept.
        identity: What a run must have in common with the one that is resumed.
        elsewhere: The weights and masks are kept elsewhere, not in the files of blocks and not in
            memory.
        walk: State of the walk that is resumed.
    """

    folder: Path | None
    identity: Mapping[str, Any]
    elsewhere: bool = False
    walk: dict[str, Any] | None = None

    @property
    def activations(self) -> Path | None:
        """A folder for activations that outlives the process."""
        return None if self.folder is None else self.folder / "activations" / str(place()[0])

    def load(self, model: nn.Module) -> Solution:
        """Bring back what is finished, into the model too; else begin.

        Raises:
            ConfigError: Not all processes do the same.
            StoreError: The folder holds another run, or is damaged.
        """
        first, *others = exchange(dict(self.identity))
        for rank, other in enumerate(others, 1):
            differ = [k for k, v in first.items() if other.get(k) != v]
            if differ:
                raise ConfigError(
                    f"process {rank} has another {differ[0]} than process 0: all processes must "
                    "make the same call, with all of the data, which are split over them"
                )
        with agreed():
            return self._load(model)

    def _load(self, model: nn.Module) -> Solution:
        solution = Solution()
        if self.folder is None:
            return solution
        if not exchange(self._position.exists())[0]:
            if place()[0] == 0:
                self._save(0)
            return solution
        saved = load_state(self._position)
        if saved["identity"] != self._identity:
            differ = [k for k, v in self._identity.items() if saved["identity"].get(k) != v]
            raise StoreError(
                f"{self.folder} holds another run ({', '.join(differ) or 'options'} differ): give "
                "the arguments of that run, or another folder"
            )
        parameters = dict(model.named_parameters())
        for number in range(saved["position"]):
            block = load_state(self._block(number))
            for name, value in block["weights"].items():
                parameters[name].data.copy_(value)
            masks = MaskSet({}) if self.elsewhere else MaskSet.load(self.masks(number))
            solution.add(Solution(masks, [Row(**r) for r in block["rows"]], block["notes"]))
        if saved["position"]:
            self.walk = load_state(self._state(saved["position"]))
        return solution

    def block(self, step: Step, done: Solution) -> None:
        """Keep one block, before what comes behind it is computed."""
        if self.folder is None:
            return
        weights = {} if self.elsewhere else step.weights()
        done.masks.save(self.masks(step.number))
        save_state(
            self._block(step.number),
            {
                "weights": {n: w for n, w in weights.items() if n in done.masks},
                "rows": [asdict(row) for row in done.rows],
                "notes": done.notes,
            },
        )

    def commit(self, walk: Walk) -> None:
        """Note how far the walk has come, once every process has kept its outputs."""
        if self.folder is None:
            return
        with agreed():
            save_state(self._state(walk.position), walk.state())
        with agreed():
            if place()[0] == 0:
                self._save(walk.position)
        self._state(walk.position - 1).unlink(missing_ok=True)

    def masks(self, number: int) -> Path:
        """The file with the masks of a block."""
        assert self.folder is not None
        return self.folder / f"masks-{number:04}.safetensors"

    def _save(self, position: int) -> None:
        save_state(self._position, {"identity": self._identity, "position": position})

    @property
    def _identity(self) -> dict[str, Any]:
        return {**self.identity, "processes": place()[1]}

    @property
    def _position(self) -> Path:
        assert self.folder is not None
        return self.folder / "position.safetensors"

    def _state(self, position: int) -> Path:
        assert self.folder is not None
        return self.folder / f"walk-{position:04}-{place()[0]}.safetensors"

    def _block(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"block-{number:04}.safetensors"
