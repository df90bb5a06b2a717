"""The trained weights and masks beside the artifact, so that neither is lost with the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hwprune.errors import OutputError
from hwprune.ir import Masks

WEIGHTS_NAME, MASKS_NAME = "weights.safetensors", "masks.safetensors"


def save_checkpoint(module: Any, masks: Masks | None, folder: Path) -> None:
    """Write the module's state (pruned weights exactly zero) and the masks as safetensors.

    Args:
        module: the network after packing.
        masks: what lives; None where nothing was pruned.
        folder: is made here; weights.safetensors, masks.safetensors (uint8, 0 or 1).

    Raises:
        OutputError: the folder cannot be written.
    """
    import safetensors.numpy
    import safetensors.torch

    try:
        folder.mkdir()
        # save_model stores a tied tensor once, under its first name.
        safetensors.torch.save_model(module, str(folder / WEIGHTS_NAME))
        if masks is not None:
            arrays = {name: masks[name].astype(np.uint8) for name in masks}
            safetensors.numpy.save_file(arrays, str(folder / MASKS_NAME))
    except (OSError, safetensors.SafetensorError) as error:
        raise OutputError(
            f"{folder} cannot be written: {error}", hint="check permissions and free space"
        ) from None
