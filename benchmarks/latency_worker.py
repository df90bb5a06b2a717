"""One engine in a process of its own: loads one file, then times bursts of runs on request.

    python latency_worker.py ENGINE FILE THREADS BATCH SHAPE [wall|processor]

It reads one number of runs per line and answers with one line of JSON: the milliseconds of each
run, by the clock or of processor time (the default with one thread). Its first line says how long
loading took and what the process grew by. It needs nothing but the engine itself, so each engine
may live in an environment of its own: ``onnxruntime`` (stock), ``hwprune`` (onnxruntime with
hwprune's kernels), ``hwprune-all`` (with a kernel for every packed
layer), ``deepsparse``, ``openvino``, ``litert`` (XNNPACK).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

ONNXRUNTIME = ("onnxruntime", "hwprune", "hwprune-all")


def resident_bytes() -> int:
    """Return this process's resident memory (Linux)."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def open_onnxruntime(engine: str, path: str, threads: int, size: tuple[int, ...]) -> Any:
    """Return an onnxruntime session on the CPU, for inputs of this size."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if engine.startswith("hwprune"):
        import hwprune

        kernels: Any = "all" if engine == "hwprune-all" else True
        shapes = {"input": size}
        return hwprune.session(path, session_options=options, input_shapes=shapes, kernels=kernels)
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def runner(engine: str, path: str, threads: int, x: np.ndarray[Any, Any]) -> Callable[[], Any]:
    """Load a file and return what runs it once."""
    if engine in ONNXRUNTIME:
        session = open_onnxruntime(engine, path, threads, x.shape)
        feed = {session.get_inputs()[0].name: x}
        return lambda: session.run(None, feed)
    if engine == "deepsparse":
        import deepsparse

        compiled = deepsparse.compile_model(path, batch_size=len(x), num_cores=threads)
        return lambda: compiled.run([x])
    if engine == "openvino":
        import openvino

        core = openvino.Core()
        model = core.read_model(path)
        model.reshape(list(x.shape))
        settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        settings["INFERENCE_PRECISION_HINT"] = "f32"
        settings["ENABLE_CPU_PINNING"] = False  # of two threads on one core one waits
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        return lambda: request.infer([x])
    if engine == "litert":
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(path, num_threads=threads)  # runs on XNNPACK by itself
        interpreter.allocate_tensors()
        source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
        given = quantized(x, source)

        def once() -> Any:
            interpreter.set_tensor(source["index"], given)
            interpreter.invoke()
            return [interpreter.get_tensor(target["index"])]

        return once
    raise SystemExit(f"no engine {engine!r}")


def quantized(x: np.ndarray[Any, Any], details: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Return an input as a LiteRT model wants it."""
    if details["dtype"] == np.float32:
        return x
    scale, zero = details["quantization"]
    low, high = np.iinfo(details["dtype"]).min, np.iinfo(details["dtype"]).max
    return np.clip(np.round(x / scale) + zero, low, high).astype(details["dtype"])


def warm_imports(engine: str) -> str:
    """Import what the engine needs, so that loading a file is all that is timed; its version."""
    if engine in ONNXRUNTIME:
        import onnxruntime as ort

        if engine.startswith("hwprune"):
            import hwprune

            _ = hwprune.session
        return str(ort.__version__)
    if engine == "deepsparse":
        import deepsparse

        return str(deepsparse.__version__)
    if engine == "litert":
        from importlib.metadata import version

        import ai_edge_litert.interpreter

        assert ai_edge_litert.interpreter.Interpreter
        return version("ai-edge-litert")
    import openvino

    return str(openvino.__version__)


def main() -> None:
    """Load, report, then answer requests until the input ends."""
    engine, path, threads, batch, shape, *clock_name = sys.argv[1:7]
    version = warm_imports(engine)
    size = (int(batch), *json.loads(shape))
    x = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    before = resident_bytes()
    start = time.perf_counter()
    run = runner(engine, path, int(threads), x)
    load_ms = 1000 * (time.perf_counter() - start)
    loaded = resident_bytes()
    first = run()
    top = np.asarray(first[0] if isinstance(first, list) else next(iter(first.values())))
    ready = {
        "version": version,
        # What other programs take of one thread's processor does not count.
        "clock": (clock_name or ["processor" if int(threads) == 1 else "wall"])[0],
        "load_ms": load_ms,
        "grown_bytes": loaded - before,
        "grown_bytes_after_run": resident_bytes() - before,
        "classes": np.argmax(top.reshape(len(x), -1), axis=1).tolist(),
        "checksum": float(np.abs(top).sum()),
    }
    print("ready " + json.dumps(ready), flush=True)
    clock = time.process_time if ready["clock"] == "processor" else time.perf_counter
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start = clock()
            run()
            times.append(1000 * (clock() - start))
        print("times " + json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
