"""Which other programs read a file, and what is left of it after those that rewrite one?

A ResNet-20 (untrained, 90 % sparse, int8 values) in both forms: with functions, and inlined.
Programs that run it are compared with the outputs of stock onnxruntime; what others write is run
likewise, and `hwprune check` says whether its layers are packed still.

    python -m venv other && other/bin/pip install onnx onnxruntime onnxslim onnxsim openvino
    npm install --prefix web --ignore-scripts onnxruntime-node onnxruntime-web
    python benchmarks/interop.py --python other/bin/python --node web [--rows 0,2-4] [--table]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import Experiment, Stopwatch, parse_rows, scratch

RUNS = ("onnxruntime", "ReferenceEvaluator", "openvino")
REWRITES = ("onnx.inliner", "onnx.compose", "onnxslim", "onnxsim")
JAVASCRIPT = ("onnxruntime-node", "onnxruntime-web")  # the latter's WebAssembly, under node
FORMS = {"functions": "raspberry-pi-5", "inlined": "jetson-nano"}  # the target that has the form
SEED, DENSITY, TIMEOUT_S = 0, 0.1, 600

ROWS: list[dict[str, Any]] = [
    {"program": program, "form": form}
    for program in (*RUNS, *REWRITES, "quantize_static", *JAVASCRIPT)
    for form in FORMS
]

# Runs where the other programs are installed; hwprune need not be.
WORKER = """
import importlib.metadata, json, sys
import numpy as np
program, folder = sys.argv[1:]
path, after = folder + "/model.onnx", folder + "/after.onnx"
x = np.load(folder + "/x.npy")
packages = {"ReferenceEvaluator": "onnx", "quantize_static": "onnxruntime"}
package = packages.get(program, program.partition(".")[0])
found = {"version": importlib.metadata.version(package)}

def onnxruntime(path):
    import onnxruntime as ort
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]

def outputs():
    import onnx
    if program == "onnxruntime":
        return onnxruntime(path)
    if program == "ReferenceEvaluator":
        from onnx.reference import ReferenceEvaluator
        run = ReferenceEvaluator(path)
        return run.run(None, {run.input_names[0]: x})[0]
    if program == "openvino":
        import openvino
        # Without these it rounds activations to bf16 or int8 where the processor has it.
        exact = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"}
        compiled = openvino.Core().compile_model(path, "CPU", exact)
        return compiled([x])[compiled.output(0)]
    if program == "quantize_static":
        from onnxruntime import quantization
        class Reader(quantization.CalibrationDataReader):
            left = [{"x": x}]
            def get_next(self):
                return self.left.pop() if self.left else None
        quantization.quantize_static(path, after, Reader())
        return onnxruntime(after)
    model = onnx.load(path)
    if program == "onnx.inliner":
        from onnx import inliner
        model = inliner.inline_local_functions(model)
    elif program == "onnx.compose":
        from onnx import compose
        model = compose.add_prefix(model, prefix="part/")
    elif program == "onnxslim":
        import onnxslim
        model = onnxslim.slim(model)
    else:
        import onnxsim
        model, _ = onnxsim.simplify(model)
    onnx.save(model, after)
    return onnxruntime(after)

try:
    y, right = outputs(), np.load(folder + "/y.npy")
    found["relative_error"] = float(np.abs(y - right).max() / np.ptp(right))
except Exception as error:
    said = (str(error).strip().splitlines() or [""])[-1]
    found["error"] = (type(error).__name__ + ": " + said)[:200]
print(json.dumps(found))
"""

# The same for node.
NODE_WORKER = """
const fs = require("fs");
const [program, packages, folder] = process.argv.slice(1);
const require_ = require("module").createRequire(packages + "/");
const found = {};
(async () => {
  try {
    const about = fs.readFileSync(packages + "/node_modules/" + program + "/package.json");
    found.version = JSON.parse(about).version;
    const ort = require_(program);
    if (program === "onnxruntime-web") ort.env.wasm.numThreads = 1;
    const model = fs.readFileSync(folder + "/model.onnx");
    const session = await ort.InferenceSession.create(model);
    const raw = fs.readFileSync(folder + "/x.bin");
    const x = new Float32Array(new Uint8Array(raw).buffer);
    const fed = {[session.inputNames[0]]: new ort.Tensor("float32", x, [4, 3, 32, 32])};
    const y = (await session.run(fed))[session.outputNames[0]].data;
    const right = new Float32Array(new Uint8Array(fs.readFileSync(folder + "/y.bin")).buffer);
    let most = 0, low = Infinity, high = -Infinity;
    right.forEach((value, place) => {
      most = Math.max(most, Math.abs(value - y[place]));
      low = Math.min(low, value);
      high = Math.max(high, value);
    });
    found.relative_error = most / (high - low);
  } catch (error) {
    found.error = String(error).slice(0, 200);
  }
  console.log(JSON.stringify(found));
  process.exit(0);
})();
"""


def write_file(form: str, folder: Path) -> int:
    """Write model.onnx with inputs and right outputs; return its size in bytes."""
    import numpy as np
    import torch

    from hwprune.frontend.arch import find_arch
    from hwprune.ir import Masks, Model, TensorSpec
    from hwprune.steps.planning import module_weights, prepare
    from hwprune.targets import load
    from hwprune.verify import runner

    torch.manual_seed(SEED)
    module = find_arch("cifar-resnet20").build().eval()
    spec = TensorSpec("x", (None, 3, 32, 32), "float32")
    model = Model("resnet20", "resnet20", "state-dict", module, None, (spec,))
    template = prepare(model, load(FORMS[form])).template
    weights = module_weights(module, template)
    masks = {
        name: np.abs(weight) >= np.quantile(np.abs(weight), 1 - DENSITY)
        for name, weight in weights.items()
    }
    data = template.write_sparse(Masks(masks), "int8").data
    (folder / "model.onnx").write_bytes(data)
    x = np.random.default_rng(SEED).standard_normal((4, 3, 32, 32)).astype(np.float32)
    np.save(folder / "x.npy", x)
    session = runner.open_session(str(folder / "model.onnx"))
    y = runner.run(session, [x])[0]
    np.save(folder / "y.npy", y)
    for name, array in (("x", x), ("y", y)):
        (folder / f"{name}.bin").write_bytes(array.tobytes())
    return len(data)


def measure(config: dict[str, Any], folder: Path, python: str, node: str) -> dict[str, Any]:
    """Let a program read a file; of what it wrote, say what `check` says."""
    from hwprune.verify import check

    size = write_file(config["form"], folder)
    program = config["program"]
    command = [python, "-c", WORKER, program, str(folder)]
    if program in JAVASCRIPT:
        command = ["node", "-e", NODE_WORKER, program, str(Path(node).resolve()), str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {"bytes": size, "error": last[:200]}
    found: dict[str, Any] = {"bytes": size, **json.loads(done.stdout.splitlines()[-1])}
    after = folder / "after.onnx"
    if after.exists():
        result = check(str(after))
        found["after"] = {
            "bytes": after.stat().st_size,
            "packed_layers": len(result.artifact.layers) if result.artifact is not None else 0,
            "check_exit_code": result.exit_code,
        }
    return found


def table(experiment: Experiment) -> str:
    """Return the record as the table of docs/interop.md."""
    lines = ["| program | form | runs | what it writes |", "|---|---|---|---|"]
    for row in experiment.rows():
        found = row.model_extra or {}
        if row.status != "run":
            continue
        name = f"{row.config['program']} {found.get('version', '')}".strip()
        error = found.get("relative_error")
        runs = (
            f"no: {found.get('error')}"
            if error is None
            else f"yes, {f'{error:.0e} apart' if error else 'same bits'}"
        )
        after = found.get("after")
        wrote = ""
        if isinstance(after, dict):
            layers = after["packed_layers"] or "no"
            wrote = f"{after['bytes']:,} B from {found['bytes']:,} B, {layers} packed layers; "
            wrote += f"`check` exits with {after['check_exit_code']}"
        lines.append(f"| {name} | {row.config['form']} | {runs.replace('|', '/')} | {wrote} |")
    return "\n".join(lines)


def main() -> int:
    """Run the rows that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", default=sys.executable, help="of the other programs")
    parser.add_argument("--node", default=".", help="the folder whose node_modules has the rest")
    parser.add_argument("--rows", help="numbers, such as 0,2-4; all without")
    parser.add_argument("--table", action="store_true", help="print the record, run nothing")
    given = parser.parse_args()
    experiment = Experiment(
        "interop", ["python", "benchmarks/interop.py", "--python", "PYTHON", "--node", "FOLDER"]
    )
    if not given.table:
        for number in parse_rows(given.rows, len(ROWS)):
            if experiment.done(ROWS[number], SEED):
                continue
            watch = Stopwatch()
            with scratch() as folder:
                found = measure(ROWS[number], Path(folder), given.python, given.node)
            experiment.add(ROWS[number], SEED, watch.seconds, 0, **found)
    print(table(experiment))
    return 0


if __name__ == "__main__":
    sys.exit(main())
