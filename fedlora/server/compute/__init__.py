"""The server's part of the model: forward, backward, adapters, shared head."""

from fedlora.server.compute.adapter_update import MOST_NORM, gradient_size
from fedlora.server.compute.batch import ClientRows, OpenBatch, SpoiledError
from fedlora.server.compute.engine import AdapterState, SplitEngine
from fedlora.server.compute.shared_head import SharedHead, Weights, most_common

__all__ = [
    "MOST_NORM",
    "AdapterState",
    "ClientRows",
    "OpenBatch",
    "SharedHead",
    "SplitEngine",
    "SpoiledError",
    "Weights",
    "gradient_size",
    "most_common",
]
