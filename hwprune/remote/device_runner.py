# mypy: ignore-errors
"""What runs on the device: one file, needing nothing but Python 3.8, NumPy and onnxruntime.

It is sent over stdin and never stored. It says what machine it is on, takes the files, measures in
a temporary folder, prints one line of JSON, and takes the folder away, however it ends. It has no
type hints: old Pythons read it.
"""

import gc
import json
import math
import os
import platform
import shutil
import signal
import sys
import tempfile
import threading
import time


def facts():
    """Return what the machine and its Python are."""
    found = {"machine": platform.machine(), "python": platform.python_version(), "cpu": _cpu()}
    found["cores"] = os.cpu_count()
    found["clock_hz"] = _clock()
    found["ram_bytes"] = _memory()
    found["last_level_cache_bytes"] = _cache()
    for name in ("numpy", "onnxruntime"):
        try:
            found[name] = __import__(name).__version__
        except Exception as error:  # noqa: PERF203 - a wheel for another machine fails somehow
            found[name] = None
            found[name + "_error"] = f"{type(error).__name__}: {error}"
    return found


def _cpu():
    try:
        with open("/proc/device-tree/model") as file:  # boards: "Raspberry Pi 5 Model B Rev 1.0"
            return file.read().strip("\0\n ")
    except (OSError, UnicodeDecodeError):
        pass
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except (OSError, UnicodeDecodeError):
        pass
    return platform.processor() or platform.machine()


def _clock():
    """Return the highest clock in Hz, else the present one, None where nothing says it."""
    most = _number("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq", 1e-3)
    for line in (_text("/proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        if most is None and name.strip() == "cpu MHz":
            try:
                most = 1e6 * float(value)
            except ValueError:
                pass
    return None if most is None else round(most)


def _memory():
    for line in (_text("/proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return 1024 * int(line.split()[1])
    return None


def _cache():
    """Return the bytes of the last level of cache, None where the system does not say."""
    folder, found = "/sys/devices/system/cpu/cpu0/cache/", {}
    for number in range(8):
        place = folder + f"index{number}/"
        level, size = _number(place + "level", 1), _text(place + "size")
        if level and size and size[:-1].isdigit() and _text(place + "type") != "Instruction":
            found[level] = int(size[:-1]) * {"K": 1 << 10, "M": 1 << 20}.get(size[-1], 1)
    return found[max(found)] if found else None


def state():
    """Return what moves a latency: temperature in degrees Celsius, governor, clock in MHz."""
    cpu = "/sys/devices/system/cpu/cpu0/cpufreq/"
    degrees = _number("/sys/class/thermal/thermal_zone0/temp", 1000.0)
    clock = _number(cpu + "scaling_cur_freq", 1000.0)
    return {"celsius": degrees, "governor": _text(cpu + "scaling_governor"), "clock_mhz": clock}


def _text(path):
    try:
        with open(path) as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError):
        return None


def _number(path, unit):
    try:
        return float(_text(path) or "") / unit
    except ValueError:
        return None


def receive(folder, files, stream):
    """Write the files that come, under names that the other side made up."""
    for name, size in files:
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            while size:
                part = stream.read(min(size, 1 << 20))
                if not part:
                    raise EOFError("the connection ended while files were sent")
                file.write(part)
                size -= len(part)


def resident_bytes():
    """Return what this process holds in memory, None where the system does not say."""
    for line in (_text("/proc/self/status") or "").splitlines():
        if line.startswith("VmRSS:"):
            return 1024 * int(line.split()[1])
    return None


def measure(folder, asked):
    """Measure each speed of the file in turn; return results by label."""
    import numpy
    import onnxruntime

    with numpy.load(os.path.join(folder, "inputs.npz")) as arrays:
        feed = {name: arrays[name] for name in arrays.files}
    path = os.path.join(folder, "model.onnx")
    results, sessions = {}, {}
    for label in asked["labels"]:
        gc.collect()
        before, loads = resident_bytes(), []
        for _ in range(3):
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = asked["threads"]
            options.inter_op_num_threads = 1
            options.log_severity_level = 4
            start = time.perf_counter()
            if label == "kernels":
                sys.path.insert(0, folder)
                from hwprune.kernels import session, status

                results["kernels_status"] = status()
                sessions[label] = session(path, session_options=options, time_both=False)
            else:
                cpu = ["CPUExecutionProvider"]
                sessions[label] = onnxruntime.InferenceSession(path, options, providers=cpu)
            loads.append(1000 * (time.perf_counter() - start))
        after = resident_bytes()
        added = None if before is None or after is None else max(0, after - before)
        results[label] = {"load_ms": sorted(loads)[1], "added_bytes": added}
    for _ in range(10):
        for each in sessions.values():
            each.run(None, feed)
    times = {label: [] for label in sessions}
    for _ in range(asked["runs"]):
        for label, each in sessions.items():
            start = time.perf_counter()
            each.run(None, feed)
            times[label].append(1000 * (time.perf_counter() - start))
    outputs = {label: each.run(None, feed) for label, each in sessions.items()}
    for label, taken in times.items():
        p50, p90 = numpy.percentile(taken, [50, 90])
        results[label].update(p50_ms=float(p50), p90_ms=float(p90), runs=len(taken))
    if "kernels" in outputs:
        apart = max(
            float(numpy.max(numpy.abs(a - b)) / max(1e-30, float(numpy.max(numpy.abs(b)))))
            for a, b in zip(outputs["kernels"], outputs["stock"])  # noqa: B905 - not in Python 3.8
        )
        results["difference"] = apart if math.isfinite(apart) else None
    results["resident_bytes"] = resident_bytes()
    return results


def watch(stream, folder):
    """Take the folder away and end as soon as the other side is gone: nothing else tells of it."""
    if not stream.read(1):
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)


def _ended(number, frame):
    raise SystemExit(128 + number)


def main():
    """Serve one measurement."""
    for name in ("SIGHUP", "SIGTERM", "SIGPIPE"):  # a lost connection: the folder still goes
        signal.signal(getattr(signal, name), _ended)
    sys.dont_write_bytecode = True  # a file that appears while the folder goes would keep it
    stream, folder, at = sys.stdin.buffer, None, "write"
    print(json.dumps(facts()), flush=True)
    try:
        line = stream.readline()
        if not line:
            return
        asked = json.loads(line)
        folder = tempfile.mkdtemp(prefix="hwprune-bench-")
        receive(folder, asked["files"], stream)
        at = "run"
        threading.Thread(target=watch, args=(stream, folder), daemon=True).start()
        before = state()
        answer = {"results": measure(folder, asked), "before": before, "after": state()}
    except SystemExit:
        raise
    except BaseException as error:
        answer = {"error": f"{type(error).__name__}: {error}", "at": at}
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(answer), flush=True)


main()
