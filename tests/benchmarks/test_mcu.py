"""The microcontroller benchmark has the networks of MLPerf Tiny, with the zeros they say."""

from __future__ import annotations

import mcu
import numpy as np
import pytest

from hwprune.firmware.network import Conv2d, Linear

# Weights and multiply-accumulates of the dense networks.
DENSE = {
    "resnet8": (77_360, 12_501_632),
    "ds_cnn": (22_016, 2_656_768),
    "mobilenet_v1_025": (208_112, 7_489_664),
    "autoencoder": (264_192, 264_192),
}


@pytest.mark.parametrize("name", mcu.NETWORKS)
def test_networks_have_their_size_and_zeros(name: str) -> None:
    network = mcu.NETWORKS[name](0.1)
    layers = [layer for layer in network.layers if isinstance(layer, (Conv2d, Linear))]
    weights = sum(layer.weight.size for layer in layers)
    assert (weights, sum(map(network.macs, layers))) == DENSE[name]
    for layer in layers:
        dense = layer.name == "stem" or (isinstance(layer, Conv2d) and layer.groups > 1)
        expected = layer.weight.size if dense else round(0.1 * layer.weight.size)
        assert np.count_nonzero(layer.weight) == expected
