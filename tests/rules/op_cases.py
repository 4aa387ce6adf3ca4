"""Small networks, one subtlety each, that every plan must leave equal to their masked originals.

``CASES[name]`` holds a builder, inputs and what is subtle about it (the builder's docstring). The
networks are in three files: convolutions and index moves (``op_images``), attention and sequences
(``op_sequences``), and what modules and Python do around the operators (``op_modules``).
"""

from tests.rules import op_images, op_modules, op_sequences  # noqa: F401 - they register
from tests.rules.op_net import CASES, OpCase

__all__ = ["CASES", "OpCase"]
