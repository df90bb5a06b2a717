"""How many bytes does a pruned layer take, and a pruned network, against everything else?

Three questions, each with rows of its own:

- layer: one weight with a random uniform mask; the index of every codec against the entropy bound,
  and whole stored forms with fp32 values against ONNX's sparse_initializer (COO), SciPy's CSR with
  32-bit indices, and gzip and xz of the dense array.
- network: whole ONNX files, ResNet-20 (pretrained where the weights are at hand, else untrained)
  and VGG16 for CIFAR (untrained), masked one-shot by LAMP scores; nothing was trained, which does
  not matter to a size.
- accuracy: the pretrained ResNet-20 with each value type and no retraining of any kind, on the test
  images, in onnxruntime: what rounding alone costs.

    python benchmarks/size.py [--data-dir DIR] [--rows 0,2-4] [--table]
"""

from __future__ import annotations

import argparse
import gzip
import io
import lzma
import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import scipy.sparse
from common import Experiment, Stopwatch, data_folder, parse_rows, scratch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
LAYERS = ((16, 16, 3, 3), (64, 64, 3, 3), (256, 256, 3, 3), (512, 512, 3, 3), (1000, 2048))
NETWORKS = ("cifar-resnet20", "cifar-vgg16-bn")
WEIGHTS = {"cifar-resnet20": Path("weights") / "cifar10_resnet20.pth"}
VALUES = ("fp32", "fp16", "int8", "int4", "codebook16", "codebook256")
TARGET = "raspberry-pi-5"
SEED = 0

ROWS: list[dict[str, Any]] = [
    *({"kind": "layer", "shape": list(n), "sparsity": s} for n in LAYERS for s in SPARSITIES),
    *({"kind": "network", "network": n, "sparsity": s} for n in NETWORKS for s in SPARSITIES),
    *({"kind": "accuracy", "network": NETWORKS[0], "sparsity": s, "values": v}
      for s in (0.0, 0.5) for v in VALUES),
]  # fmt: skip


# -- what others make of it ---------------------------------------------------------------------


def _coo(name: str, weight: NDArray[np.float32]) -> onnx.SparseTensorProto:
    flat = weight.reshape(-1)
    places = np.flatnonzero(flat)
    values = numpy_helper.from_array(flat[places], name)
    indices = numpy_helper.from_array(places.astype(np.int64), f"{name}i")
    return helper.make_sparse_tensor(values, indices, list(weight.shape))


def _csr_bytes(weights: Iterable[NDArray[np.float32]]) -> int:
    """Return the bytes of uncompressed .npz files as SciPy writes them."""
    total = 0
    for weight in weights:
        matrix = scipy.sparse.csr_array(weight.reshape(len(weight), -1))
        matrix.indices, matrix.indptr = (
            a.astype(np.int32) for a in (matrix.indices, matrix.indptr)
        )
        buffer = io.BytesIO()
        scipy.sparse.save_npz(buffer, matrix, compressed=False)
        total += buffer.tell()
    return total


def _compressed(data: bytes) -> dict[str, int]:
    return {"gzip": len(gzip.compress(data, 6)), "xz": len(lzma.compress(data, preset=6))}


# -- rows ---------------------------------------------------------------------------------------


def measure_layer(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return bytes of one layer."""
    from hwprune.encoding import CODECS, index_bound, pack

    shape = tuple(config["shape"])
    weights = math.prod(shape)
    generator = np.random.default_rng(SEED)
    nonzeros = round((1 - config["sparsity"]) * weights)
    mask = np.zeros(weights, np.bool_)
    mask[generator.permutation(weights)[:nonzeros]] = True
    mask = mask.reshape(shape)
    weight = (generator.standard_normal(shape) * mask).astype(np.float32)
    index: dict[str, int] = {}
    arrays: dict[str, int] = {}
    for codec in CODECS:
        if codec == "dense" or not CODECS[codec].accepts(shape):
            continue
        packed = pack("w", weight, mask, codec=codec, value_type="fp32", channel_axis=0)
        index[codec] = int(packed.arrays["index"].nbytes)
        arrays[codec] = sum(int(array.nbytes) for array in packed.arrays.values())
    return {
        "weights": weights,
        "nonzeros": nonzeros,
        "index_bytes": index,
        "index_bound_bytes": round(index_bound(weights, nonzeros), 1),
        "fp32_bytes": {
            "best": min(arrays.values()),
            "coo": _coo("w", weight).ByteSize(),
            "csr": _csr_bytes([weight]),
            "dense": weight.nbytes,
            **_compressed(weight.tobytes()),
        },
    }


def prepared_network(network: str, data: Path | None) -> tuple[Any, bool]:
    """Return a network, traced for the target, and whether it was trained."""
    import torch

    from hwprune.frontend import load_model
    from hwprune.frontend.zoo import ARCHITECTURES
    from hwprune.ir import Model
    from hwprune.steps.planning import prepare
    from hwprune.targets import load

    path = None if data is None or network not in WEIGHTS else data / WEIGHTS[network]
    trained = path is not None and path.is_file()
    if path is not None and trained:
        model = load_model(str(path))
    else:
        torch.manual_seed(SEED)
        known = ARCHITECTURES[network]
        model = Model(network, network, "state-dict", known.build().eval(), network, known.inputs)
    return prepare(model, load(TARGET)), trained


def lamp_masks(prepared: Any, sparsity: float) -> Any:
    """Return the masks of one-shot LAMP pruning."""
    from hwprune.sparsity import rank_weights
    from hwprune.steps.planning import module_weights

    weights = module_weights(prepared.model.module, prepared.template)
    count = round((1 - sparsity) * sum(weight.size for weight in weights.values()))
    ranking = rank_weights(weights, "lamp", count)
    return ranking.masks(count)


def measure_network(config: Mapping[str, Any], data: Path | None) -> dict[str, Any]:
    """Return the sizes of whole files."""
    from dataclasses import replace

    from hwprune.encoding import CODECS
    from hwprune.export.artifact import read_artifact

    prepared, trained = prepared_network(config["network"], data)
    template = prepared.template
    masks = lamp_masks(prepared, config["sparsity"])
    files: dict[str, int] = {}
    best: dict[str, Any] = {}
    with scratch() as folder:
        path = Path(folder) / "model.onnx"
        for values in VALUES:
            path.write_bytes(template.write_sparse(masks, values).data)
            found = read_artifact(str(path))
            files[f"best {values}"] = found.bytes
            best[values] = {
                "index_bytes": sum(layer.index_bytes for layer in found.layers),
                "index_bound_bytes": round(sum(layer.bound.index for layer in found.layers), 1),
                "value_bytes": sum(layer.value_bytes for layer in found.layers),
                "bound_bytes": round(sum(layer.bound.total for layer in found.layers), 1),
                "function_bytes": found.function_bytes,
                "node_bytes": found.graph_bytes,
                "codecs": sorted({layer.codec for layer in found.layers}),
            }
    for codec in CODECS:
        if codec in ("dense", "cols8"):  # cols8 cannot store wide rows
            continue
        alone = replace(template, codecs=(codec,))
        files[f"{codec} int8"] = len(alone.write_sparse(masks, "int8").data)
    living = {
        tensor.name: (template.graph.tensors[tensor.name] * masks[tensor.name]).astype(np.float32)
        for tensor in template.prunable
    }
    tensors = {**template.graph.tensors, **living}
    masked = replace(template, graph=replace(template.graph, tensors=tensors)).write_dense().data
    model = onnx.load_from_string(masked)
    pruned = {name: w for name, w in living.items() if np.count_nonzero(w) < w.size}
    by_shape = [(w.shape, w.tobytes()) for w in pruned.values()]
    kept = []
    for entry in model.graph.initializer:
        array = numpy_helper.to_array(entry)
        if (array.shape, array.tobytes()) in by_shape:
            model.graph.sparse_initializer.append(_coo(entry.name, array))
        else:
            kept.append(entry)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    if len(model.graph.sparse_initializer) != len(pruned):
        raise RuntimeError("a pruned tensor was not found in the dense file")
    files["coo fp32"] = model.ByteSize()
    # The rest of the file stays; SciPy stores the matrices beside it.
    files["csr fp32"] = _csr_bytes(pruned.values()) + model.ByteSize() - sum(
        entry.ByteSize() for entry in model.graph.sparse_initializer
    )  # fmt: skip
    files["dense fp32"] = len(masked)
    files |= {f"{name} fp32": size for name, size in _compressed(masked).items()}
    return {
        "trained": trained,
        "weights": masks.weights,
        "nonzeros": masks.nonzeros,
        "files": files,
        "best": best,
    }


def measure_accuracy(config: Mapping[str, Any], data: Path) -> dict[str, Any]:
    """Return the test accuracy of a file whose values were only rounded."""
    from hwprune.frontend import load_data
    from hwprune.tasks import CLASSIFICATION
    from hwprune.verify import metric_of

    prepared, _ = prepared_network(config["network"], data)
    masks = lamp_masks(prepared, config["sparsity"])
    written = prepared.template.write_sparse(masks, config["values"])
    images = load_data(f"cifar10:{data}?normalize=imagenet", seed=SEED)
    with scratch() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(written.data)
        return {
            "accuracy": metric_of(str(path), images.test, CLASSIFICATION),
            "samples": len(images.test),
            "artifact_bytes": len(written.data),
            "retrained": False,
        }


# -- tables -------------------------------------------------------------------------------------


def print_tables(experiment: Experiment) -> None:
    """Print the record as Markdown."""
    rows = [row for row in experiment.rows() if row.status == "run"]
    rows.sort(key=lambda row: ROWS.index(dict(row.config)))
    found = {kind: [r for r in rows if r.config["kind"] == kind] for kind in
             ("layer", "network", "accuracy")}  # fmt: skip
    codecs = ("gap4", "gap8", "gap16", "cols16", "bitmap", "rice")
    print("Index bytes over the entropy bound, random masks:\n")
    print(f"| layer | sparsity | nonzeros | bound, B | {' | '.join(codecs)} |")
    print("|---|" + "---:|" * (3 + len(codecs)))
    for row in found["layer"]:
        extra: Any = row.model_extra
        bound = extra["index_bound_bytes"]
        cells = [f"{extra['index_bytes'][c] / bound:.3f}" for c in codecs]
        print(_line(_shape(row), _percent(row), f"{extra['nonzeros']:,}", f"{bound:,.0f}", *cells))
    names = ("best", "coo", "csr", "gzip", "xz", "dense")
    print("\nBytes a nonzero, fp32 values (4 of them are the value):\n")
    print(f"| layer | sparsity | {' | '.join(names)} |")
    print("|---|" + "---:|" * (1 + len(names)))
    for row in found["layer"]:
        extra = row.model_extra
        cells = [f"{extra['fp32_bytes'][n] / extra['nonzeros']:.2f}" for n in names]
        print(_line(_shape(row), _percent(row), *cells))
    columns = ("dense fp32", "coo fp32", "csr fp32", "gzip fp32", "xz fp32", "best fp32",
               "best int8", "best int4", "best codebook16")  # fmt: skip
    print("\nWhole files, bytes:\n")
    print(f"| network | sparsity | {' | '.join(columns)} |")
    print("|---|" + "---:|" * (1 + len(columns)))
    for row in found["network"]:
        extra = row.model_extra
        name = str(row.config["network"]) + ("" if extra["trained"] else " (untrained)")
        print(_line(name, _percent(row), *(f"{extra['files'][c]:,}" for c in columns)))
    print("\nint8 files: what the bytes are, and every codec alone:\n")
    parts = ("gap4", "gap8", "gap16", "cols16", "bitmap", "rice")
    heads = "| network | sparsity | index over bound | nodes + bodies, B | best | "
    print(heads + " | ".join(parts) + " |")
    print("|---|" + "---:|" * (4 + len(parts)))
    for row in found["network"]:
        extra = row.model_extra
        best = extra["best"]["int8"]
        ratio = best["index_bytes"] / best["index_bound_bytes"] if best["index_bound_bytes"] else 1
        print(_line(
            row.config["network"], _percent(row), f"{ratio:.3f}",
            f"{best['node_bytes'] + best['function_bytes']:,}", f"{extra['files']['best int8']:,}",
            *(f"{extra['files'][f'{c} int8']:,}" for c in parts),
        ))  # fmt: skip
    print("\nTest accuracy without any retraining:\n")
    print("| network | sparsity | values | accuracy | bytes |\n|---|---:|---|---:|---:|")
    for row in found["accuracy"]:
        extra = row.model_extra
        print(_line(
            row.config["network"], _percent(row), row.config["values"],
            f"{100 * (row.accuracy or 0):.2f} %", f"{extra['artifact_bytes']:,}",
        ))  # fmt: skip


def _line(*cells: Any) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _shape(row: Any) -> str:
    return "×".join(map(str, row.config["shape"]))


def _percent(row: Any) -> str:
    return f"{100 * row.config['sparsity']:g} %"


def main() -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="the folder with CIFAR-10 and weights/")
    parser.add_argument("--rows", help=f"0-{len(ROWS) - 1}, such as 0,2-4")
    parser.add_argument("--table", action="store_true", help="print the record as Markdown")
    arguments = parser.parse_args()
    experiment = Experiment("size", ["python", "benchmarks/size.py", "--data-dir", "DIR"])
    if arguments.table:
        print_tables(experiment)
        return 0
    data = data_folder(arguments.data_dir) if arguments.data_dir else None
    for number in parse_rows(arguments.rows, len(ROWS)):
        config = ROWS[number]
        if experiment.done(config, SEED) or (config["kind"] == "accuracy" and data is None):
            continue
        watch = Stopwatch()
        if config["kind"] == "layer":
            measured = measure_layer(config)
        elif config["kind"] == "network":
            measured = measure_network(config, data)
        else:
            assert data is not None
            measured = measure_accuracy(config, data)
        experiment.add(config, SEED, watch.seconds, 0, **measured)
        print(f"row {number}: {config} {watch.seconds:.1f} s", file=sys.stderr)
    experiment.declare((config, SEED) for config in ROWS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
