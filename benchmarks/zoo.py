"""Which networks compile? Those of zoo_networks.py, with --epochs 0, for two devices.

A row is one network in a process of its own, with a limit on CPU time and memory: it is built with
seeded random weights, saved as a state dict, and compiled from that file for each device at 40 % of
its dense bytes. What is written is then run in onnxruntime at batches 1, 2 and 7. Where hwprune
refuses a network, torch alone is asked whether it exports it. Inputs that are made up for least
squares are few and rough here (`SAMPLES`, `STEPS`): they move weights, not whether it compiles.

    python -m venv zoo && zoo/bin/pip install -e '.[compile]' timm torchvision transformers ...
    zoo/bin/python benchmarks/zoo.py [--rows 0-9] [--names vae,...] [--again refused] [--table]
    zoo/bin/python benchmarks/zoo.py --whole   # how long whole commands take, with all the inputs

docs/networks.md names the packages. Rows whose package is missing are left for later. The record is
benchmarks/results/zoo.json; after each run docs/networks.md is written from it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from common import ROOT, Experiment, Stopwatch, command_line, parse_rows
from plan import save
from plan import whole as whole_command
from zoo_networks import NETWORKS

from hwprune.frontend.torchvision_shim import import_torchvision

TARGETS = ("raspberry-pi-5", "jetson-nano")
SHARE, SEED, SECONDS, MEMORY = 0.4, 0, 900, 10 * 1024**3
BATCHES = (1, 2, 7)
SAMPLES, STEPS = 8, 2
PAGE = ROOT / "docs" / "networks.md"
PACKAGES = (
    "timm", "torchvision", "ultralytics", "transformers", "torchaudio", "speechbrain", "asteroid",
    "demucs", "conformer", "pytorch-tcn", "segmentation-models-pytorch", "monai", "diffusers",
    "open-clip-torch", "pytorchcv", "efficientnet-pytorch", "vit-pytorch", "deepctr-torch",
)  # fmt: skip

ROWS: list[dict[str, Any]] = [{"network": name} for name in NETWORKS]
# Whole commands, at a budget in bytes; and the CPU seconds that they took before the work on them.
WHOLE: list[tuple[dict[str, Any], float]] = [
    ({"network": "cifar-vgg16-bn", "input": "x:Nx3x32x32", "budget_bytes": 6_000_000}, 173),
    (
        {
            "network": "timm:mobilenetv3_small_050",
            "input": "x:Nx3x224x224",
            "budget_bytes": 640_000,
        },
        217,
    ),
]


# -- one network, in a process of its own ---------------------------------------------------------


def worker(name: str, folder: Path, answers: Connection) -> None:
    """Compile one network for every target; send what came of each."""
    import torch

    from hwprune.least_squares import synthesis
    from hwprune.steps import planning
    from hwprune.targets import load

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    errors = os.open(folder / "errors", os.O_WRONLY | os.O_CREAT)
    os.dup2(errors, 1)
    os.dup2(errors, 2)
    torch.set_num_threads(1)
    synthesis.SAMPLES, synthesis.STEPS, synthesis._LEAST_STEPS = SAMPLES, STEPS, 1
    planning.trace = _traced(planning.trace)
    try:
        module = build(name)
    except ImportError as error:
        answers.send({"missing": str(error)})
        return
    held = [*module.parameters(), *module.buffers()]
    dense = sum(tensor.numel() * 4 for tensor in {id(each): each for each in held}.values())
    answers.send({"weights": sum(p.numel() for p in module.parameters())})
    torch.save(module.state_dict(), folder / "model.pt")
    del module, held
    for target in TARGETS:
        watch, cpu = Stopwatch(), time.process_time()
        found = compiled(name, folder, load(target), int(SHARE * dense))
        found |= {
            "seconds": round(watch.seconds, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
        }
        answers.send({target: found})


def _traced(trace: Any) -> Any:
    """Return a tracer that answers for the second target what it found for the first."""
    known: list[Any] = []

    def once(model: Any) -> Any:
        if not known:
            known.append(trace(model))
        return known[0]

    return once


def build(name: str) -> Any:
    """Return the network in eval mode, its lazy modules called once."""
    import torch

    from hwprune.frontend.inputs import parse_input
    from hwprune.frontend.prepare import is_waiting
    from hwprune.frontend.probe import example_inputs

    torch.manual_seed(SEED)
    module = NETWORKS[name].build().eval()
    if is_waiting(module):
        module(*example_inputs(tuple(map(parse_input, NETWORKS[name].inputs)), batch=2))
    # What training would leave of norms that begin as 1 and 0, and of branches that begin at 0.
    generator = torch.Generator().manual_seed(SEED)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.ndim == 1 and tensor.is_floating_point() and len(tensor) > 1:
            span = torch.aminmax(tensor.detach())
            if span.min == span.max:
                tensor.data += 0.1 * torch.rand(tensor.shape, generator=generator)
    return module


def compiled(
    name: str, folder: Path, target: Any, budget: int, *, again: bool = False
) -> dict[str, Any]:
    """Load the saved file and compile it for one target; return what came of it.

    A budget that dense tensors alone exceed is raised once: to what they take, and half of what was
    given for the rest.
    """
    from hwprune.compiler import compile_model
    from hwprune.errors import ExportError, HwpruneError, InfeasibleError
    from hwprune.frontend import load_model
    from hwprune.job import resolve

    arch = f"{Path(__file__).with_name('zoo_networks.py')}:make(name={name!r})"
    try:
        model = load_model(str(folder / "model.pt"), arch=arch, inputs=NETWORKS[name].inputs)
        job = resolve(
            model, target, None, folder / target.name, budget_bytes=budget, epochs=0, seed=SEED
        )
        artifact = compile_model(job)
    except InfeasibleError as error:
        least = re.search(r"--budget (\d+)", error.hint or "")
        if least is None or again:
            return {"outcome": "refused", "exit_code": error.exit_code, "said": error.message}
        more = int(least[1]) + budget // 2
        return compiled(name, folder, target, more, again=True) | {"budget_bytes": more}
    except HwpruneError as error:
        found = {"outcome": "refused", "exit_code": error.exit_code, "said": error.message}
        if error.exit_code == ExportError.exit_code:
            found["torch_says"] = exported_by_torch(name)
        return found
    except Exception as error:
        if os.environ.get("ZOO_TRACE"):
            raise
        said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        return {"outcome": "internal error", "exit_code": 1, "said": said[:300]}
    verdict = artifact.verdict
    if verdict.exit_code:
        problems = [str(n) for n in artifact.report["notes"] if str(n).startswith("problem: ")]
        said = "; ".join(problems).replace(str(folder), "")[:300]
        return {"outcome": "rejected", "exit_code": verdict.exit_code, "said": said}
    found = {"outcome": "compiled", "exit_code": 0, "bytes": artifact.bytes}
    return found | {"batches": run_batches(artifact.path, name)}


def run_batches(path: str, name: str, *, whole: bool = False) -> str:
    """Run a file at each batch; return "same", or what differs. Rows are looked up by zeros."""
    import numpy as np
    import onnxruntime

    from hwprune.frontend.inputs import parse_input
    from hwprune.frontend.probe import example_inputs

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    specs = tuple(map(parse_input, NETWORKS[name].inputs))
    most = example_inputs(specs, batch=max(BATCHES), whole=whole)
    feeds = dict(zip((each.name for each in session.get_inputs()), most, strict=True))
    outputs: dict[int, Any] = {}
    for batch in BATCHES:
        try:
            outputs[batch] = session.run(None, {k: v[:batch].numpy() for k, v in feeds.items()})
        except Exception as error:  # noqa: PERF203 - onnxruntime's errors have no common base
            if "out of data bounds" in str(error) and not whole:
                return run_batches(path, name, whole=True)
            return f"batch {batch}: {str(error).splitlines()[0][:200]}"
    for batch in BATCHES[:-1]:
        for few, many in zip(outputs[batch], outputs[max(BATCHES)], strict=True):
            # Not of what compares the samples of a batch with each other, as CLIP does.
            alike = few.ndim and few.shape[1:] == many.shape[1:] and len(many) == max(BATCHES)
            if alike and not np.allclose(
                few, many[:batch], rtol=0, atol=1e-3 * max(1e-6, float(np.abs(many).max())),
                equal_nan=True,
            ):  # fmt: skip
                return f"batch {batch} differs from the first of {max(BATCHES)}"
    return "same"


def exported_by_torch(name: str, *, whole: bool = False) -> str:
    """Return "exports", or why torch alone does not: its file, with a free batch, has to run."""
    import onnxruntime
    import torch

    from hwprune.frontend.inputs import parse_input
    from hwprune.frontend.probe import example_inputs, forward_names

    specs = tuple(map(parse_input, NETWORKS[name].inputs))
    names = forward_names(module := build(name))
    if {each.name for each in specs} != set(names[: len(specs)]):
        specs = tuple(replace(each, name=name) for each, name in zip(specs, names, strict=False))
    named = {
        each.name: tensor
        for each, tensor in zip(specs, example_inputs(specs, batch=2, whole=whole), strict=True)
    }
    try:
        with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
            torch.onnx.export(
                module, (), file.name, kwargs=named, dynamo=True, verbose=False,
                dynamic_shapes={each.name: {0: torch.export.Dim.DYNAMIC} for each in specs},
            )  # fmt: skip
            session = onnxruntime.InferenceSession(file.name, providers=["CPUExecutionProvider"])
            three = [each.numpy() for each in example_inputs(specs, batch=3, whole=whole)]
            given = zip((each.name for each in session.get_inputs()), three, strict=True)
            session.run(None, dict(given))
    except Exception as error:
        if not whole and ("out of data bounds" in str(error) or isinstance(error, IndexError)):
            return exported_by_torch(name, whole=True)
        while error.__cause__ is not None:  # torch's own first line may only name a step
            error = error.__cause__
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200]
    return "exports"


def time_whole(experiment: Experiment, config: dict[str, Any]) -> None:
    """Compile a network with random weights and no data, as a command; record what that took."""
    watch = Stopwatch()
    with tempfile.TemporaryDirectory(prefix="hwprune-zoo-") as folder:
        path = Path(folder, "model.pt")
        save(config["network"], path)
        words = ["--arch", config["network"], "--input", config["input"], "--epochs", "0"]
        words += ["--budget", str(config["budget_bytes"]), "--target", TARGETS[0]]
        command = [sys.executable, "-m", "hwprune.cli", "compile", str(path), *words]
        used = whole_command([*command, "-o", str(Path(folder, "out"))])
    del used["seconds"]  # the row's own are those of saving the network, too
    experiment.add(config, SEED, watch.seconds, 0, **used)


# -- the rows -------------------------------------------------------------------------------------


def run(name: str) -> dict[str, Any] | None:
    """Run one network's process; None where its package is missing.

    It is forked, so that what all of them import is imported once.
    """
    found: dict[str, Any] = {"targets": {}}
    with tempfile.TemporaryDirectory(prefix="hwprune-zoo-") as folder:
        forked = multiprocessing.get_context("fork")
        reader, writer = forked.Pipe(duplex=False)
        child = forked.Process(target=worker, args=(name, Path(folder), writer))
        child.start()
        writer.close()
        with contextlib.suppress(EOFError):
            while True:
                said = reader.recv()
                if "missing" in said:
                    print(f"  left out: {said['missing']}", flush=True)
                    return None
                found["targets"] |= {key: said[key] for key in said if key in TARGETS}
                found |= {key: said[key] for key in said if key not in TARGETS}
        child.join()
        late = child.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
        log = Path(folder, "errors").read_text(errors="replace")
    last = (
        f"stopped after {SECONDS} s of CPU time"
        if late
        else (log.strip().splitlines() or [""])[-1][:300]
    )
    for target in TARGETS:
        found["targets"].setdefault(
            target, {"outcome": "not built" if "weights" not in found else "died", "said": last}
        )
    if os.environ.get("ZOO_TRACE"):
        print(log, file=sys.stderr)
    return found


def import_once() -> None:
    """Import what the networks' processes share."""
    for name in ("onnxscript", "hwprune.compiler", "hwprune.frontend", "timm", "transformers"):
        with contextlib.suppress(ImportError):
            import_torchvision()
            importlib.import_module(name)


def versions() -> dict[str, str]:
    """Return the packages' versions."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def outcome(found: dict[str, Any]) -> str:
    """Return the kind of outcome that a table counts."""
    if found["outcome"] == "refused" and found.get("torch_says", "exports") != "exports":
        return "torch does not export"
    if found["outcome"] == "compiled" and found["batches"] != "same":
        return "batch fixed"
    return str(found["outcome"])


def rows_of(experiment: Experiment) -> dict[str, dict[str, Any]]:
    return {
        str(row.config["network"]): dict(row.model_extra or {})
        for row in experiment.rows()
        if row.status == "run" and row.config["network"] in NETWORKS
    }


def sentence(found: dict[str, Any]) -> str:
    """Return why a network did not compile, in one line."""
    said = found.get("said") or found.get("batches", "")
    kind = outcome(found)
    why = found["torch_says"] if kind == "torch does not export" else said.splitlines()[0]
    why = re.sub(r"\x1b\[[0-9;]*m", "", why)  # torch's colours
    return f"{kind}: {why}".replace("|", "/").replace(str(ROOT) + "/", "")


def table(experiment: Experiment) -> str:
    """Return the record as the tables of docs/networks.md."""
    rows = rows_of(experiment)
    lines = ["| networks | run | exported by torch |" + "".join(f" {name} |" for name in TARGETS)]
    lines.append("|---|---|---|" + "---|" * len(TARGETS))
    families = list(dict.fromkeys(network.family for network in NETWORKS.values()))
    for family in [*families, "all"]:
        names = [n for n in rows if family in ("all", NETWORKS[n].family)]
        if not names:
            continue
        made = {n: [outcome(rows[n]["targets"][target]) for target in TARGETS] for n in names}
        by_torch = [n for n in names if "torch does not export" not in made[n]]
        counts = [sum(made[n][i] == "compiled" for n in by_torch) for i in range(len(TARGETS))]
        shares = [f"{count} ({count / max(1, len(by_torch)):.0%})" for count in counts]
        lines.append(f"| {family} | {len(names)} | {len(by_torch)} | {' | '.join(shares)} |")
    lines += [
        "",
        "| network | weights | " + " | ".join(f"{name}, bytes" for name in TARGETS) + " |",
    ]
    lines.append("|---|---|" + "---|" * len(TARGETS))
    for name in NETWORKS:
        if name not in rows:
            continue
        cells = []
        for target in TARGETS:
            found = rows[name]["targets"][target]
            ok = outcome(found) == "compiled"
            cells.append(
                f"{found['bytes']:,}{' *' * ('budget_bytes' in found)}" if ok else sentence(found)
            )
        weights = f"{rows[name]['weights']:,}" if "weights" in rows[name] else ""
        lines.append(f"| `{name}` | {weights} | {' | '.join(cells)} |")
    left = [name for name in NETWORKS if name not in rows]
    if left:
        lines += ["", f"Not run yet: {', '.join(left)}."]
    return "\n".join(lines)


def whole_table(experiment: Experiment) -> str:
    """Return what whole commands took as a table of docs/networks.md."""
    lines = ["| network | budget | CPU seconds | before | peak memory | load before |"]
    lines.append("|---|---|---|---|---|---|")
    measured = {str(row.config): row.model_extra or {} for row in experiment.rows()}
    for config, before in WHOLE:
        if (used := measured.get(str(config))) is not None:
            lines.append(
                f"| {config['network']}, {config['input']} | {config['budget_bytes']:,} B "
                f"| {used['cpu_seconds']:.0f} | {before} "
                f"| {used['peak_rss_bytes'] / 1024**3:.2f} GiB | {used['load_average_before']} |"
            )
    return "\n".join(lines)


def page(experiment: Experiment) -> str:
    """Return docs/networks.md."""
    used = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"""\
# Which networks compile

<!-- Written by benchmarks/zoo.py from benchmarks/results/zoo.json: do not edit. -->

Networks of other people's packages and some of our own, each the smallest of its kind, configured
to be small (`short_`, fewer and narrower layers) or with every layer of the package's own and an
eighth of the channels (`narrow_`), and with random weights: nothing here says anything about
accuracy. Each was saved as a state dict, loaded, compiled with `--epochs 0` at 40 % of its dense
bytes and verified; what was written then ran in onnxruntime at batches 1, 2 and 7.

- An asterisk: 40 % was less than what stays dense and the nodes take (tiny networks, mostly), and
  the budget was raised to that and a fifth of the dense bytes.
- *torch does not export*: `torch.onnx.export` alone, with a free batch, ends in the error shown,
  or writes a file that does not run.
  Of torchvision's detection networks it is their choice of boxes: how many there are depends on
  the image's values (`GuardOnDataDependentSymNode`). Where torchvision was built for another torch,
  as it was here, its operators (`nms`, `roi_align`) are missing, too, and they do not even run.
- *refused*: hwprune said the sentence that is shown and ended with exit code 2 or 4.
- *rejected* would be a file that is not what was promised (exit code 5), *internal error* a defect.
- *died* is a row without an answer: its process crashed, or was stopped at {SECONDS:,} s of CPU
  time or {MEMORY >> 30} GiB. It counts as not compiled, until it is run again.

{table(experiment)}

## How long that takes without data

Whole commands, `hwprune compile --epochs 0` with one thread, from the interpreter's start to its
end, with all the inputs that are made up (a progress line says what is being done and how long it
will take).

{whole_table(experiment)}

The machine had two cores, as idle as the load says: CPU seconds grow with that. The aim was a
third of what it took before, 58 and 72 s: VGG16 misses it. Of mobilenetv3's, by a profile, 41
of 85 s made the inputs, 16 traced, 9 judged connections, 9 wrote and verified; memory that a step
frees is kept for the next one since, which took 8 s of page faults away.

Of VGG16's 110 s, by the shares of a profile (`cProfile`, on a busy machine), 29 s made the
inputs, 26 judged connections, 17 refitted them, 11 ranked and counted bytes for the value
types, 11 verified the file and timed it, 10 imported and traced. Without the first three 38 s
are left, so that 58 would leave 20 s for what takes 72, and making the inputs alone comes near
to that: 64 of them in 38 steps are 1.5e12 multiply-adds, 52e9 a second, which is what a core
does; its share is 28 s in convolutions, forward and backward, and 1 in all else. Fewer steps
are a change of results (28 steps would save 8 s, judging layers of 1,152 columns once and not
in rounds some 8 more), which no trained network of this size is at hand to measure; for one
machine to use more than another's instructions (bf16) would make the result depend on it. What
was tried before and stayed: conjugate gradients take 19 products of all rows, not 51 (a layer
of 512 rows, 4,608 columns and 896 places: 6.5 s, now 2.3; held-out errors are no larger), large
systems are factorised only where that is quicker (256 rows, 2,304 columns, 3,584 places: 13.7
s, now 0.8), rankings are sorted by a table (1.2 s, now 0.4), and memory is kept from step to
step.

## To make it anew

```bash
python -m venv zoo
zoo/bin/pip install -e '.[compile,timm]'
zoo/bin/pip install --no-deps PACKAGE...   # and what these need in pure Python
zoo/bin/python benchmarks/zoo.py           # goes on where it was stopped
zoo/bin/python benchmarks/zoo.py --again bad   # runs again what did not compile
```

The packages were {used}.
A torchaudio of another torch imports without its compiled libraries: delete `torchaudio/lib/*.so`.
A network whose package is missing is left out. The inputs that least squares makes up from BN's
statistics are {SAMPLES}, made in {STEPS} steps here.
"""


def main(arguments: Sequence[str]) -> int:
    """Run the rows that are not there yet."""
    parser = command_line(__doc__, data=False)
    parser.add_argument("--names", help="which networks, with commas between")
    parser.add_argument("--again", help="run rows anew that had this outcome, or all")
    parser.add_argument("--whole", action="store_true", help="time whole commands instead")
    given = parser.parse_args(arguments)
    experiment = Experiment("zoo", ["python", "benchmarks/zoo.py"])
    numbers = [] if given.table or given.whole else parse_rows(given.rows, len(ROWS))
    for config, _ in WHOLE if given.whole else ():
        time_whole(experiment, config)
    if given.names:
        numbers = [list(NETWORKS).index(name) for name in given.names.split(",")]
    done = rows_of(experiment)
    if numbers:
        import_once()
    for number in numbers:
        name = ROWS[number]["network"]
        if name in done:
            had = {outcome(found) for found in done[name]["targets"].values()}
            if given.again not in had | {"all"} and (given.again != "bad" or had == {"compiled"}):
                continue
        print(f"row {number}: {name}", flush=True)
        watch = Stopwatch()
        found = run(name)
        if found is not None:
            experiment.add(ROWS[number], SEED, watch.seconds, 0, **found)
            for target, one in found["targets"].items():
                said = one.get("said") or f"{one.get('bytes'):,} B, batches {one.get('batches')}"
                print(f"  {target}: {outcome(one)} {one.get('cpu_seconds')} s: {said}", flush=True)
    PAGE.write_text(page(experiment), encoding="utf-8")
    print(table(experiment))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
