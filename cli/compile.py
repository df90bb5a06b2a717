"""``hwprune compile``: a trained network and a device in, a verified sparse artifact out."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hwprune.cli.main import print_json
from hwprune.cli.modelling import collector_paused, load, model_options, require_torch
from hwprune.cli.options import (
    VALUES,
    Parsed,
    completed,
    console,
    json_option,
    require_option,
    task_option,
)
from hwprune.errors import UsageError

if TYPE_CHECKING:
    from hwprune.targets import Target
    from hwprune.verify import Limit


def _max_drop(text: str) -> float | None:
    from hwprune.job import parse_max_drop

    return parse_max_drop(text)


def _strategies() -> list[str]:
    from hwprune.sparsity import STRATEGIES

    return ["auto", *STRATEGIES]


def _recipes() -> list[str]:
    # By their files: importing who reads them imports torch.
    folder = Path(__file__).resolve().parent.parent
    packages = (folder / "training", folder / "hwprune" / "training")  # installed, in a checkout
    return [file.stem for place in packages for file in (place / "recipes").glob("*.toml")]


@click.command("compile")
@click.argument("model", type=click.Path(), metavar="[MODEL]", required=False)
@model_options
@click.option(
    "--data", metavar="SPEC",
    help="digits, cifar10:DIR, cifar100:DIR, fashion-mnist:DIR, imagefolder:DIR, npz:FILE or "
    "path/to/file.py:callable, with ?normalize=none|raw255|imagenet|cifar10|MEAN/STD. Without it "
    "nothing is trained or measured, and weights are fitted to what BN layers remember.",
)  # fmt: skip
@task_option
@click.option(
    "--strategy", metavar="NAME", shell_complete=lambda *asked: completed(_strategies())(*asked),
    help="auto (the default), which takes what our records have ahead; cubic, iterative, one-shot, "
    "rigl or set, which go to the budget; "
    "bidirectional, bidirectional-single, bidirectional-one-shot or bidirectional-iterative, which "
    "go below it and grow back; east, for 99 % and beyond; or dense.",
)  # fmt: skip
@click.option(
    "--values", default="auto", show_default=True, type=VALUES,
    metavar="auto|TYPE",
    help="The type of the stored weights: fp32, fp16 or int8; int4, codebook16 or codebook256. "
    "auto compares them on validation data; it takes int4 and codebook16 only after trying them in "
    "training, and codebook256 never.",
)  # fmt: skip
@click.option(
    "--firmware/--no-firmware", default=None,
    help="Whether a microcontroller gets a C library and a linked image: int8 activations, "
    "calibrated with --data, and every tensor compared on an emulated board. Made where it can be "
    "without either; --firmware refuses where it cannot, and without --data activations are fp32.",
)  # fmt: skip
@click.option(
    "--recipe", metavar="NAME|FILE.toml",
    shell_complete=lambda *asked: completed(_recipes())(*asked),
    help="How to train, and the strategy with its options, in a file; or one of the built-in "
    "recipes rewind, four-bit, flat and east. --epochs and --strategy come before what it says.",
)  # fmt: skip
@click.option(
    "--epochs", type=click.IntRange(0), metavar="N",
    help="Passes over the training data (default: the recipe's, else 12; of an ONNX file 0); "
    "0 trains nothing: what survives is fitted to the dense network by least squares, without "
    "labels.",
)  # fmt: skip
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True,
    help="Of everything that is random.",
)  # fmt: skip
@click.option(
    "--device", default="auto", show_default=True, metavar="NAME",
    help="Where to train: cpu, cuda, cuda:N or mps; auto takes CUDA, else MPS, else the CPU.",
)  # fmt: skip
@click.option(
    "--resume", is_flag=True,
    help="Continue the run that was interrupted in the output folder, bit for bit as it would have "
    "gone on; where there is none, start. The rest of the command must be the same.",
)  # fmt: skip
@click.option(
    "--restart", is_flag=True,
    help="Start anew where an interrupted run is in the output folder: its checkpoint is replaced.",
)  # fmt: skip
@click.option(
    "--checkpoint-every", "checkpoint_seconds", type=click.FloatRange(0), default=30.0,
    show_default=True, metavar="SECONDS",
    help="The least time between two checkpoints; they are written after an epoch.",
)  # fmt: skip
@click.option(
    "--embed-preprocessing", type=click.Choice(["nchw", "nhwc"]), metavar="nchw|nhwc",
    help="Let the file normalise: it reads images of the network's size as uint8 in that layout.",
)  # fmt: skip
@require_option
@click.option(
    "--max-drop", metavar="DROP|off", type=Parsed("drop", _max_drop),
    help="What accuracy or the task's metric may lose, such as 5%; off allows anything. Without "
    "it, and without a --require on it: 2 points, or a tenth of what is above chance.",
)  # fmt: skip
@click.option(
    "-o", "--output", type=click.Path(), metavar="DIR",
    help="The output folder (default ./<model>-<target>/).",
)  # fmt: skip
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    model: str | None,
    target: Target,
    data: str | None,
    recipe: str | None,
    device: str,
    limits: tuple[Limit, ...],
    output: str | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Compile MODEL into the most accurate sparse file that fits a device's byte budget.

    MODEL is a state dict (.pt .pth .safetensors), a torch.export program (.pt2), an ONNX file
    (.onnx; pruned, fitted, and with --epochs N trained on), or with --unsafe-load a pickled module.
    Without MODEL the network that --arch names is trained from random weights. The folder gets
    model.onnx, report.json, report.html, README.md (a model card) and checkpoint/; a file that is
    not verified or misses a --require is kept as rejected.onnx, and beside an earlier model.onnx,
    which stays whole, in rejected/. An interrupted run leaves a checkpoint there: repeat the
    command with --resume.

    A limit on latency.p50 ('latency.p50<=0.3x') is planned for: masks keep to it as to the bytes,
    by a model of the target's core; what is measured on this host is what it is judged by.

    Several GPUs or processes: torchrun --nproc-per-node N -m hwprune.cli compile MODEL ...

    Exit codes: 0 fits, verified, and about as good as before; 2 bad usage or input; 3 a limit is
    not met, or accuracy fell (--max-drop); 4 no pruning reaches the budget, or the latency; 5
    verification failed.
    """
    from hwprune.cli.watching import resumable, watching
    from hwprune.ir import Status
    from hwprune.report import record as reports
    from hwprune.report import render

    if output == "":
        raise UsageError("-o is empty", hint="give a folder, or leave -o out")
    with ExitStack() as stack:
        say = stack.enter_context(watching())
        of = model or asked["arch"] or "the network"
        say(Status("read", f"{of}, for {target.name}, and the libraries to compile it"))
        with collector_paused():
            require_torch()
            from hwprune.compiler import compile_model
            from hwprune.job import resolve
            from hwprune.training import devices, joined, recipe_file

            found_recipe = None if recipe is None else recipe_file.load(recipe)
            device = devices.resolve(device, **_place_on_this_machine())
            world = stack.enter_context(joined(device))
            loaded, source = load(model, asked, data=data, task=asked["task"], seed=asked["seed"])
            folder = Path(output) if output else Path(f"{loaded.name}-{target.name}")
            job = resolve(
                loaded,
                target,
                source,
                folder,
                recipe=found_recipe,
                limits=[limit.text for limit in limits],
                device=device,
                world=world,
                command=("hwprune", *sys.argv[1:]),
                **asked,
            )
        with resumable(folder):
            artifact = compile_model(job, say)
    if not world.leads:
        ctx.exit(artifact.verdict.exit_code)
    place = Path(artifact.path).parent
    found = reports.read(place)
    if as_json:
        print_json(found.model_dump(mode="json"))
    render.terminal(found, console(stderr=as_json))
    console(stderr=as_json).print(f"\n{artifact.path}\n{place / 'report.html'}", soft_wrap=True)
    ctx.exit(artifact.verdict.exit_code)


def _place_on_this_machine() -> dict[str, int]:
    """Return which of how many processes this is, where ``torchrun`` started several."""
    from hwprune.training.distributed import launched

    if not launched():
        return {}
    environ = os.environ
    return {
        "local_rank": int(environ.get("LOCAL_RANK", "0")),
        "local_size": int(environ.get("LOCAL_WORLD_SIZE", "1")),
    }
