"""TorchScript inside a model: what it holds stays whole, with the reason; all else is pruned."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sec


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


def outer(compiled: Any) -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Linear(6, 16), compiled(Inner()), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3)]
    return nn.Sequential(*body).eval()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize(
    "compiled", [torch.jit.script, lambda m: torch.jit.trace(m, torch.randn(2, 16))]
)
def test_a_scripted_submodule_stays_whole_and_is_named(compiled: Any, tmp_path: Path) -> None:
    model, x = outer(compiled), torch.randn(2, 6)
    graph = sec.trace(model, x)
    assert set(graph.free) == {"2"}
    assert graph.classes["1.a"].locked is not None
    assert "the module that it was made from" in graph.classes["1.a"].locked
    result = sec.prune(model, x, amount=0.5, progress=False, measure=False)
    assert result.verification.ok and result.plan.notes == ()
    assert result.plan.removed == {"2": 16}
    result.save(tmp_path / "small")
    loaded = sec.load(outer(compiled), tmp_path / "small")
    torch.testing.assert_close(loaded(x), result.model(x))
    with pytest.raises(sec.SecateurError, match="TorchScript"):
        sec.prune(nn.Sequential(compiled(Inner())), torch.randn(2, 16), amount=0.5)
