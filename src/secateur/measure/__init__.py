"""What a model costs: parameters, MACs, latency, peak memory, file size, and energy as a model."""

from secateur.measure.energy import Energy, energy
from secateur.measure.latency import Latency, Speedup
from secateur.measure.macs import macs
from secateur.measure.measurement import Comparison, Measurement, measure
from secateur.measure.memory import PeakMemory, file_bytes, peak_memory

__all__ = [
    "Comparison",
    "Energy",
    "Latency",
    "Measurement",
    "PeakMemory",
    "Speedup",
    "energy",
    "file_bytes",
    "macs",
    "measure",
    "peak_memory",
]
