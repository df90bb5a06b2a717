"""What a file says beside its weights, put together from what was asked for and from the data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from hwprune.errors import UsageError
from hwprune.export.deployment import NONZEROS, Deployment, chosen
from hwprune.ir import Data, Model
from hwprune.preprocessing import InputLayout
from hwprune.targets import Target
from hwprune.training import identity


def metadata_of(target: Target, budget_bytes: int, data: Data | None) -> dict[str, str]:
    """Return all that is to be known of a file, what a device needs first.

    ``preprocessing`` and ``classes`` are JSON; ``data`` is a name and a digest of the training
    part: of all labels, and of 256 samples.
    """
    known = {}
    if data is not None and data.preprocessing is not None:
        known["preprocessing"] = data.preprocessing.as_json()
    known |= {
        "hwprune": identity.version(),
        "target": target.name,
        "budget": str(budget_bytes),
        NONZEROS: "",
    }
    if data is not None:
        known["data"] = f"{data.name} {identity.split_digest(data.train)}"
        if data.class_names:
            known["classes"] = json.dumps(
                data.class_names, separators=(",", ":"), ensure_ascii=False
            )
    return known


def deployment_of(
    metadata: Mapping[str, str],
    budget_bytes: int,
    *,
    model: Model,
    target: Target,
    data: Data | None,
    embed: InputLayout | None = None,
) -> Deployment:
    """Return what goes into the file.

    Args:
        metadata: of ``metadata_of``.
        budget_bytes: what the file may weigh.
        model: the network.
        target: the device.
        data: say how stored values become inputs.
        embed: let the file do that, and read uint8 in this layout.

    Raises:
        UsageError: it cannot be embedded.
    """
    if embed is None:
        return chosen(metadata, budget_bytes)
    how = None if data is None else data.preprocessing
    why = ""
    if target.kind == "microcontroller":
        why = "the firmware of a microcontroller reads int8, by its own scale"
    elif data is None:
        why = "how stored values become inputs is known of data alone: give --data"
    elif how is None or how.layout != "NCHW" or len(model.inputs) != 1 or model.inputs[0].free:
        why = "the network does not read images of one size alone"
    elif how.scale == 1:
        why = f"{data.name} holds no bytes that are to be normalised"
    if why or how is None:
        raise UsageError(
            f"--embed-preprocessing: {why}", hint="leave it out: the recipe is in the report"
        )
    within = replace(how, embedded=True, layout=embed.upper())
    return chosen({**metadata, "preprocessing": within.as_json()}, budget_bytes, embedded=within)
