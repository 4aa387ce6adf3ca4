"""A small noisy training run for the resume tests: ``python resumable.py FOLDER OUT`` runs it."""

import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset

from secateur.recovery import FineTune


class Noisy(Dataset):
    """Every generator that an augmentation may draw from is drawn from."""

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause

    def __len__(self) -> int:
        return 44

    def __getitem__(self, index: int):
        time.sleep(self.pause)
        x = torch.full((6,), index / 44) + 0.1 * torch.randn(6)
        return x * random.uniform(0.9, 1.1) + float(np.random.randn()) * 0.01, index % 3


def build() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)
    )


def settings(folder: Path | None, **options) -> FineTune:
    chosen = {"epochs": 4, "optimizer": "adamw", "lr": 0.01, "every": 3, "schedule": "one-cycle"}
    return FineTune(checkpoint=folder, progress=False, **chosen | options)


def main(folder: str, out: str) -> None:
    torch.set_num_threads(1)
    model = build()
    loader = DataLoader(Noisy(pause=0.001), batch_size=4, shuffle=True)
    report = settings(Path(folder)).heal(model, data=loader)
    step = -1 if report["resumed_at"] is None else report["resumed_at"]
    save_file(model.state_dict() | {"resumed_at": torch.tensor(step)}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
