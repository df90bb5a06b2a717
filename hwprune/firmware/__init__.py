"""Integer networks for microcontrollers: what they compute, and the C that computes it."""

from __future__ import annotations

from hwprune.firmware.network import IntegerNetwork, QuantizedTensor

__all__ = ["IntegerNetwork", "QuantizedTensor"]
