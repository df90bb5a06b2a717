"""load_model: whatever file a user hands in becomes a Model, or an error that fits one screen."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hwprune.errors import ModelError, UsageError
from hwprune.frontend import exported, folders, onnx_file, pickled, scripted, state
from hwprune.frontend.arch import Arch, find_arch
from hwprune.frontend.archive import SAVE_AGAIN, IdentifiedFile, identify
from hwprune.frontend.inputs import InputSources, choose_inputs, parse_input
from hwprune.frontend.prepare import (
    fold,
    give_norms_weights,
    make_plain,
    own_memory,
    prepare,
)
from hwprune.frontend.probe import example_inputs, forward_names, probe
from hwprune.frontend.recognise import (
    Mismatch,
    aligned,
    compare,
    mismatch_error,
    other_num_classes,
    recognise,
    shapes_of,
)
from hwprune.frontend.user_code import first_line
from hwprune.ir import Model, TensorSpec


def load_model(
    path: str | nn.Module | None,
    *,
    arch: str | None = None,
    inputs: Sequence[str | TensorSpec] = (),
    unsafe_load: bool = False,
    fixed_batch: bool = False,
    sample_shapes: Sequence[tuple[int, ...]] | None = None,
    mapped: bool = False,
    entry: str | None = None,
    seed: int = 0,
) -> Model:
    """Load a trained network. Its kind is read from the file's bytes, never from its name.

    Args:
        path: a state dict, a torch.export program, a TorchScript archive, an ONNX file or a
            pickled module;
            the folder of a state dict (a run's ``checkpoint``, or what ``save_pretrained`` wrote);
            a module in memory, which is copied; or None for ``arch`` with random weights.
        arch: what a state dict was saved from; None recognises the built-in architectures.
        inputs: the network's inputs as ``--input`` takes them, in the order of its forward method.
        unsafe_load: read a pickled module, which runs code that the file holds.
        fixed_batch: fix the batch at 1 instead of keeping it dynamic.
        sample_shapes: the data set's shapes per input, without the batch.
        mapped: leave the tensors of a state dict in the file until they are used. Saves time and
            memory; the file must not change as long as the model is used.
        entry: which entry of a training checkpoint holds the weights, where there are several.
        seed: of random weights; the same seed gives the same ones.

    Returns:
        The model in eval mode on the CPU, float32, run once on inputs of the shapes it states.

    Raises:
        UsageError: an input specification that cannot be parsed, no network at all, or an ``arch``
            without a path whose weights are not random.
        UnsafeModelError: reading the file would run code.
        ModelError: the file or the architecture cannot be used.
    """
    sources = InputSources(
        given=tuple(parse_input(each) if isinstance(each, str) else each for each in inputs),
        sample_shapes=tuple(map(tuple, sample_shapes or ())),
    )
    # A wrong name is found before a large file is read.
    chosen = None if arch is None else find_arch(arch)
    if isinstance(path, nn.Module):
        name = type(path).__name__.lower()
        module = copy.deepcopy(path).cpu().eval().float()
        model = Model(name, name, "pickled-module", module, None, ())
    elif path is not None:
        model, sources = _read(path, chosen, sources, entry, unsafe=unsafe_load, mapped=mapped)
    elif chosen is not None:
        model, sources = _random(chosen, sources, seed)
    else:
        raise UsageError(
            "there is neither a MODEL nor an --arch",
            hint="give a trained network's file, or --arch alone to train one from scratch",
        )
    if model.kind != "state-dict":  # a state dict was checked before anything was built
        state.check_memory(model.module.state_dict(), model.source)
        state.check_finite(model.module.state_dict(), model.source)
    _check_precision(model)
    is_onnx = model.kind == "onnx"
    if fixed_batch and is_onnx:
        raise UsageError(
            "an ONNX file keeps the sizes that it states", hint="leave --fixed-batch out"
        )
    sources = replace(sources, names=forward_names(model.module))
    specs, notes = choose_inputs(sources, fixed_batch=fixed_batch)
    if model.kind in ("state-dict", "pickled-module"):
        notes += prepare(model.module, specs, seed=seed)
    else:  # an ONNX file may say of a size that it is free and not mean it
        probe(model.module, tuple(replace(s, free=()) for s in specs) if is_onnx else specs)
    if is_onnx and (why := model.module.try_torch(example_inputs(specs, batch=2))):
        notes += (f"the file's layers cannot be fitted to data: {why}",)
        model = replace(model, trainable=False)
    return replace(model, inputs=specs, notes=(*model.notes, *notes))


def _read(
    path: str,
    chosen: Arch | None,
    sources: InputSources,
    entry: str | None,
    *,
    unsafe: bool,
    mapped: bool,
) -> tuple[Model, InputSources]:
    """Read a file or folder; return the model without inputs, and what says which it has."""
    if Path(path).is_dir():
        files = [identify(name) for name in folders.weight_files(Path(path))]
        if chosen is None and (named := folders.named_arch(Path(path))) is not None:
            chosen = find_arch(named, folder=Path(path))
    else:
        files = [identify(path)]
    if files[0].kind == "exported-program":
        module, specs, notes = exported.read(files[0])
        model = replace(_model(path, files[0].kind, module, notes), batchnorm_frozen=True)
        sources = replace(sources, known=specs)
    elif files[0].kind == "torchscript":
        model = _model(path, files[0].kind, scripted.read(files[0]), ())
        model = replace(model, trainable=False, batchnorm_frozen=True)
    elif files[0].kind == "onnx":
        network, specs = onnx_file.read(files[0])
        model = replace(_model(path, files[0].kind, network, ()), batchnorm_frozen=True)
        specs = onnx_file.sized(specs, sources.given, path)
        sources = replace(sources, given=(), known=specs)
    else:
        prefix, _, name = (chosen.name if chosen else "").partition(":")
        payload, notes, foreign = (
            (folders.read_transformers(name, Path(path)), (), ())
            if prefix == "transformers"
            else _payload(files, path, unsafe=unsafe, mapped=mapped)
        )
        model, sources = _from_payload(path, payload, chosen, sources, entry, notes, foreign)
    if chosen is not None and model.arch is None:
        note = f"--arch {chosen.spec} was not needed: the file carries its own network"
        model = replace(model, notes=(*model.notes, note))
    return model, sources


def _random(chosen: Arch, sources: InputSources, seed: int) -> tuple[Model, InputSources]:
    """Return an architecture with random weights, to be trained from scratch."""
    module = _drawn(chosen, seed)
    if not chosen.meta:  # somebody's own code
        _check_is_random(chosen, module, _drawn(chosen, seed + 1))
    model = Model(
        name=re.sub(r"[^A-Za-z0-9._-]+", "-", Path(chosen.name).name).strip("-"),
        source=chosen.spec,
        kind="state-dict",
        module=module,
        arch=chosen.spec,
        inputs=(),
        trained=False,
        notes=(f"trained from scratch: {chosen.spec} with random weights, seed {seed}",),
    )
    return model, replace(sources, known=chosen.inputs, default=chosen.default_inputs(module))


def _drawn(arch: Arch, seed: int) -> nn.Module:
    # Not torch.manual_seed: it seeds CUDA's generators as well, which nobody puts back.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return arch.build().eval().float()


def _check_is_random(arch: Arch, module: nn.Module, other: nn.Module) -> None:
    """Refuse a builder that gives the same weights whatever the seed: most often trained ones."""
    states = module.state_dict(), other.state_dict()
    same = states[0].keys() == states[1].keys() and all(
        is_lazy(tensor)
        or (tensor.shape == states[1][name].shape and torch.equal(tensor, states[1][name]))
        for name, tensor in states[0].items()
    )
    if same and any(not is_lazy(parameter) for parameter in module.parameters()):
        raise UsageError(
            f"--arch {arch.spec} gives the same weights whatever the seed: they are not random",
            hint="trained weights: save the module's state dict and give it as MODEL, with --arch;"
            " else leave seeding to --seed",
        )


def _check_precision(model: Model) -> None:
    """A graph that was fixed in another precision holds its casts: it cannot be converted here."""
    other = {str(p.dtype) for p in model.module.parameters() if p.dtype != torch.float32}
    if other:
        raise ModelError(
            f"the {model.kind} {model.source} has weights of {', '.join(sorted(other))}",
            hint="save it again in float32: model.float() first",
        )


def _payload(
    files: Sequence[IdentifiedFile], path: str, *, unsafe: bool, mapped: bool
) -> tuple[object, tuple[str, ...], tuple[str, ...]]:
    """Read a checkpoint, which may lie in shards; return what `pickled.read` does."""
    parts: list[object] = []
    notes: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    for file in files:
        if file.kind == "safetensors":
            parts.append(_safetensors(file.path))
        else:
            part, notes, foreign = pickled.read(file, unsafe=unsafe, mapped=mapped)
            parts.append(part)
    if len(parts) == 1:
        return parts[0], notes, foreign
    shards = [part for part in parts if isinstance(part, Mapping)]
    if len(shards) < len(parts):
        raise ModelError(f"{path} does not hold shards of a state dict", hint=SAVE_AGAIN)
    whole = {name: value for part in shards for name, value in part.items()}
    return whole, notes, foreign


def _safetensors(path: str) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise ModelError(
            f"{path} is a safetensors file, and safetensors is not installed",
            hint="pip install safetensors",
        ) from None
    try:
        return load_file(path)
    except Exception as error:  # a damaged file; the reader's errors have no common base
        raise ModelError(
            f"{path} is a safetensors file that cannot be read: {first_line(error)}",
            hint="copy it again, or save the model again",
        ) from error


def _model(path: str, kind: str, module: nn.Module, notes: tuple[str, ...]) -> Model:
    name = Path(path).name.partition(".")[0] or Path(path).name
    return Model(name, path, kind, module, None, (), notes=notes)  # type: ignore[arg-type]


def _from_payload(
    path: str,
    payload: object,
    arch: Arch | None,
    sources: InputSources,
    entry: str | None,
    notes: tuple[str, ...],
    foreign: tuple[str, ...],
) -> tuple[Model, InputSources]:
    """Make a model of what torch.save wrote: a state dict, or (unsafe) a whole module."""
    try:
        payload, unwrapped = state.unwrap(payload, path, entry)
        inside = None if arch is None else pickled.module_state(payload)
    except RecursionError:
        raise ModelError(f"{path} holds itself, or is nested too deeply", hint=SAVE_AGAIN) from None
    notes += unwrapped
    if isinstance(payload, nn.Module):
        return _model(path, "pickled-module", payload.eval().float(), notes), sources
    if inside is not None:
        notes += (f"the weights of a pickled {foreign[0]} were taken; none of its code was run",)
    tensors, cleaned = state.clean(inside or payload, path, foreign)
    notes += cleaned
    if arch is None:
        arch = recognise(tensors, path)
        notes += (f"recognised as {arch.spec}: its keys and shapes are the file's",)
    module, arch, adapted = _build(arch, tensors, path)
    model = _model(path, "state-dict", module.eval(), notes + adapted)
    known = replace(sources, known=arch.inputs, default=arch.default_inputs(module))
    return replace(model, arch=arch.spec), known


def _build(
    arch: Arch, tensors: Mapping[str, Tensor], path: str
) -> tuple[nn.Module, Arch, tuple[str, ...]]:
    """Build the architecture and give it the tensors; the number of classes follows the file."""
    notes: tuple[str, ...] = ()
    module, named, renamed, mismatch = _compared(arch, tensors, path)
    if mismatch and arch.takes_num_classes():
        classes = other_num_classes(mismatch)
        if classes is not None:
            arch = arch.with_kwargs(num_classes=classes)
            module, named, renamed, mismatch = _compared(arch, tensors, path)
            notes = (f"the file's final layer has {classes} classes: {arch.spec}",)
    if mismatch:
        raise mismatch_error(path, arch.spec, mismatch, tensors)
    _check_are_floats(module, named, path)
    _give(module, named, assign=arch.meta)
    if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
        # A tensor that no checkpoint holds (a table made when the network is built).
        module = arch.build()
        _give(module, named, assign=False)
    return module.float(), arch, notes + renamed


def _check_are_floats(module: nn.Module, tensors: Mapping[str, Tensor], path: str) -> None:
    """Refuse whole and complex numbers where the architecture has floats: copying changes them."""
    odd = [
        f"{name} ({str(tensors[name].dtype).removeprefix('torch.')})"
        for name, parameter in module.named_parameters()
        if parameter.is_floating_point() and name in tensors
        if not tensors[name].is_floating_point()
    ]
    if odd:
        raise ModelError(
            f"{path} holds weights that were quantised already, or are no floats: "
            f"{', '.join(odd[:5])}",
            hint="save the float model's state dict; hwprune quantises and packs it itself",
        )


def _compared(
    arch: Arch, tensors: Mapping[str, Tensor], path: str
) -> tuple[nn.Module, Mapping[str, Tensor], tuple[str, ...], Mismatch]:
    """Build the architecture; compare it with the tensors, named as it names them.

    Where they do not fit they may be those of the network with its weights folded, which is what
    a run's own checkpoint holds.
    """
    module = _make(arch)
    named, notes = aligned(tensors, module, path)
    mismatch = compare(shapes_of(named), shapes_of(module.state_dict()))
    plain = _make(arch).eval() if mismatch and not arch.meta else module
    changes = (fold, give_norms_weights, lambda plain: make_plain(plain, tensors))
    if plain is not module and any([bool(change(plain)) for change in changes]):
        other, other_notes = aligned(tensors, plain, path)
        if not compare(shapes_of(other), shapes_of(plain.state_dict())):
            return plain, other, other_notes, Mismatch((), (), (), len(other))
    return module, named, notes, mismatch


def _make(arch: Arch) -> nn.Module:
    if not arch.meta:
        return arch.build()
    with torch.device("meta"):  # no memory and no random start for weights that the file replaces
        return arch.build()


def _give(module: nn.Module, tensors: Mapping[str, Tensor], *, assign: bool) -> None:
    if not assign:
        own_memory(module)  # values cannot be written into an expanded tensor
    own = module.state_dict()
    given = OrderedDict((name, tensor) for name, tensor in tensors.items() if name in own)
    # Some modules ask which version of theirs wrote this: names and shapes are this one's.
    vars(given)["_metadata"] = vars(own).get("_metadata", {})
    # torch's own way: a network's may know fewer options.
    nn.Module.load_state_dict(module, given, strict=False, assign=assign)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
