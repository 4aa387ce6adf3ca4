"""``secateur measure`` says what zeros are worth: sizes of sparse formats, the sparse kernel."""

FILE = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 2))
    with torch.no_grad():
        net[0].weight[:, 2:].zero_()
    return net

def example_inputs():
    return torch.randn(3, 40)
"""


def test_sizes_of_formats_and_the_break_even_are_shown(secateur, tmp_path) -> None:
    path = tmp_path / "sparse.py"
    path.write_text(FILE)
    line = ("measure", f"{path}:build", "--input", "3x40", "--repeats", "2")
    ran = secateur(*line)
    assert ran.code == 0, ran.err
    assert "stored as" in ran.out and "bring no speed-up" in ran.out
    assert "CSR kernel" in ran.out and "(0, 30 x 40, 3 rows of input" in ran.out
    answer = secateur(*line, "--json").json
    a = 30 * 2 + 30 * 2  # nonzeros of both weights
    assert answer["storage"]["csr"] == 2 * a + (30 + 1) + (2 + 1) + 32
    assert len(answer["csr"]["csr_ms"]) == len(answer["csr"]["sparsities"])
