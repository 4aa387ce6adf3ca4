"""Sizes of sparse formats, against scipy's own arrays."""

import numpy as np
import pytest
import torch

from secateur.errors import ConfigError
from secateur.measure.storage import total, words


@pytest.mark.parametrize("density", [0.0, 0.1, 0.7, 1.0])
@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (4, 3, 3, 3), (1, 1)])
def test_words_are_those_of_scipys_arrays(shape, density) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    generator = torch.Generator().manual_seed(0)
    tensor = torch.rand(shape, generator=generator) + 0.1
    tensor *= torch.rand(shape, generator=generator) < density
    matrix = tensor.flatten(1).numpy()
    coo = sparse.coo_array(matrix)
    csr, csc = sparse.csr_array(matrix), sparse.csc_array(matrix)
    assert words(tensor) == {
        "dense": matrix.size,
        "coo": coo.row.size + coo.col.size + coo.data.size,
        "csr": csr.data.size + csr.indices.size + csr.indptr.size,
        "csc": csc.data.size + csc.indices.size + csc.indptr.size,
        "bitmask": coo.data.size + -(-np.packbits(matrix != 0).size // 4),
    }


def test_vectors_are_stored_densely_and_have_no_rows() -> None:
    assert total({"w": torch.eye(8), "b": torch.ones(3)}) == {
        name: size + 3 for name, size in words(torch.eye(8)).items()
    }
    with pytest.raises(ConfigError, match=r"\[3\]"):
        words(torch.ones(3))
