"""torch.export programs (.pt2), loaded without trusting them.

``torch.export.load`` warns that it may unpickle. It also evaluates the text of shape expressions,
looks operators up by dotted name (which reaches any function that torch imports), and pastes
names into Python source that it then compiles. So the archive is never handed over as it is:
`vetted` reads its members, checks each and writes a clean copy in memory, and only that copy is
loaded. What is not known to be harmless is refused, not skipped.

As a module a program has frozen BN, and the inputs that it was exported for.
"""

from __future__ import annotations

import ast
import io
import json
import logging
import re
import warnings
import zipfile
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn

from hwprune.errors import ModelError, UnsafeModelError
from hwprune.frontend.archive import SAVE_AGAIN, IdentifiedFile
from hwprune.frontend.user_code import first_line
from hwprune.ir import TensorSpec

# The members that torch.export.save writes; see torch/csrc/export/pt2_archive_constants.h.
_PLAIN = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/\w+|\.format_version|"
    r"data/(?:weights|constants)/(?:weight|tensor)_\d+"
)
_CONFIG = re.compile(r"data/(?:weights|constants)/\w+_config\.json")
_SAMPLES = re.compile(r"data/sample_inputs/\w+\.pt")
_PROGRAM = "models/model.json"

# Operators that compute. ATen has two more that reach the file system: save and from_file.
_TARGETS = (
    re.compile(r"torch\.ops\.(?:aten|prims)\.(?!(?:save|from_file)\b)\w+\.\w+"),
    re.compile(
        r"torch\.ops\.higher_order\."
        r"(?:wrap_with_set_grad_enabled|wrap_with_autocast|cond|while_loop|map_impl|scan)"
    ),
    re.compile(
        r"_operator\.(?:getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|"
        r"and_|or_|xor|not_|lshift|rshift|index)"
    ),
    re.compile(r"math\.[a-z0-9]+"),
    re.compile(r"torch\.(?:sym_\w+|_sym_\w+)"),
)
_FUNCTIONS = {
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Abs", "Mod", "Eq",
    "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "Xor", "Piecewise", "ExprCondPair",
    "FloorDiv", "ModularIndexing", "Where", "PythonMod", "CleanDiv", "CeilToInt", "FloorToInt",
    "CeilDiv", "LShift", "RShift", "PowByNatural", "FloatPow", "FloatTrueDiv", "IntTrueDiv",
    "TruncToFloat", "TruncToInt", "RoundToInt", "RoundDecimal", "ToFloat",
    "Identity", "floor", "ceiling", "sqrt",
}  # fmt: skip
# sympy computes an expression while it is read. What an export writes is short and its powers are
# small: a few of them cannot make a number, and no text a name, that takes long.
_MOST_NODES, _LONGEST_NAME, _MOST_POWERS, _LARGEST_POWER = 2000, 64, 4, 63
_POWERS = (
    "Pow", "PowByNatural", "FloatPow", "LShift", "RShift", ast.Pow, ast.LShift, ast.RShift, "Float",
    "RoundDecimal",
)  # fmt: skip
_EXPRESSION = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.keyword, ast.Call, ast.BinOp, ast.UnaryOp,
    ast.Compare, ast.BoolOp, ast.operator, ast.unaryop, ast.cmpop, ast.boolop,
)  # fmt: skip
_WORD = re.compile(r"[\w.@:+/<>=()\[\], *-]*")
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*|")
_PATH = re.compile(r"[\w.]*(?:@\d+)?")
_KEPT_METADATA = ("nn_module_stack", "torch_fn")
_STRUCTURES = (
    None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict",
    "builtins.NoneType",
)  # fmt: skip

_ATEN: Any = torch.ops.aten

# Operators that behave differently in training, with the argument (position, name) that says so.
_TRAINING_ARGUMENT: dict[Any, tuple[int, str]] = {
    _ATEN.batch_norm.default: (5, "training"),
    _ATEN.dropout.default: (2, "train"),
    _ATEN.dropout_.default: (2, "train"),
    _ATEN.feature_dropout.default: (2, "train"),
    _ATEN.alpha_dropout.default: (2, "train"),
    _ATEN.rrelu.default: (3, "training"),
}
# The same after decomposition, and drawing random numbers: here the choice can no longer be undone.
_TRAINING_ONLY = (
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_functional",
    "native_dropout",
    "bernoulli",
    "bernoulli_",
    "rand",
    "rand_like",
    "uniform_",
)


class _Refused(Exception):
    """Something in the archive that no export writes."""


def read(file: IdentifiedFile) -> tuple[nn.Module, tuple[TensorSpec, ...], tuple[str, ...]]:
    """Load a torch.export program; return it as a module in eval mode, its inputs, and notes.

    Raises:
        UnsafeModelError: loading it could run code.
        ModelError: truncated, damaged, or written by a torch that this one does not understand;
            inputs by keyword or not tensors, or a training form that is decomposed.
    """
    return _as_module(_load(file), file.path)


def _load(file: IdentifiedFile) -> torch.export.ExportedProgram:
    try:
        clean = vetted(file.path)
    except _Refused as refused:
        raise UnsafeModelError(
            f"{file.path} is a torch.export program that holds {refused}: "
            "loading it could run code",
            hint=f"where it was made, {SAVE_AGAIN} and give that with --arch, or export it again",
        ) from None
    except Exception as error:  # a damaged archive can break any of its readers
        raise _damaged(file, error) from error
    log = logging.getLogger("torch.export")
    level = log.level
    try:
        # torch logs a whole traceback for a program that it cannot load; ours is one sentence.
        log.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(clean)
    except Exception as error:  # torch raises whatever it meets
        raise _damaged(file, error) from error
    finally:
        log.setLevel(level)


def vetted(path: str) -> io.BytesIO:
    """Return a copy of the archive that holds only what was checked."""
    clean = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(clean, "w") as copy:
        names = archive.namelist()
        if len(set(names)) != len(names):
            raise _Refused("two members of one name")
        root = names[0].partition("/")[0] + "/" if "/" in names[0] else ""
        pickled: set[str] = set()
        for name in names:
            if _CONFIG.fullmatch(name.removeprefix(root)):
                pickled |= _pickled_members(archive.read(name))
        for info in archive.infolist():
            name = info.filename.removeprefix(root)
            if info.compress_type != zipfile.ZIP_STORED:
                raise _Refused(f"the compressed member {name}")
            content = archive.read(info)
            if name == _PROGRAM:
                content = json.dumps(_check_program(json.loads(content))).encode()
            elif _SAMPLES.fullmatch(name) or name.rpartition("/")[2] in pickled:
                content = _unpickled(name, content)
            elif _CONFIG.fullmatch(name):
                _walk(json.loads(content), "")
            elif not _PLAIN.fullmatch(name):
                raise _Refused(f"the member {name!r}")
            copy.writestr("program/" + name, content)
    clean.seek(0)
    return clean


def _pickled_members(content: bytes) -> set[str]:
    entries = json.loads(content)["config"].values()
    return {str(entry["path_name"]) for entry in entries if entry.get("use_pickle")}


def _unpickled(name: str, content: bytes) -> bytes:
    """Unpickle tensors and containers only, and pickle them again."""
    if not content:
        return content
    try:
        value = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # refused, whatever is wrong with it
        raise _Refused(f"a pickle that is not plain tensors ({name})") from error
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _check_program(program: dict[str, Any]) -> dict[str, Any]:
    """Check a program's text and leave out what only explains it.

    Guards are Python source that torch would compile: hwprune checks the inputs' shapes itself.
    """
    program["guards_code"] = []
    _walk(program, "")
    return program


def _walk(value: Any, key: str) -> None:
    """Visit every string of the program; each has to look like what its place calls for."""
    if isinstance(value, dict):
        if key == "custom_obj_values" and value:
            raise _Refused("objects of custom classes")
        if isinstance(value.get("metadata"), dict):
            kept = {k: v for k, v in value["metadata"].items() if k in _KEPT_METADATA}
            value["metadata"] = {k: v for k, v in kept.items() if _WORD.fullmatch(str(v))}
        for name, item in value.items():
            _require(_PATH.fullmatch(name), "the key", name)
            _walk(item, name)
    elif isinstance(value, list):
        for item in value:
            _walk(item, key)
    elif isinstance(value, str):
        if key in _CHECKS:
            _CHECKS[key](value)
        else:
            known = _NAMES.get(key, _WORD).fullmatch(value)
            _require(known, "the name" if key in _NAMES else "the text", value)


def _check_target(text: str) -> None:
    _require(any(pattern.fullmatch(text) for pattern in _TARGETS), "the operator", text)


def _check_expression(text: str) -> None:
    try:
        tree = ast.parse(text.strip(), mode="eval")
        nodes = list(ast.walk(tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _Refused(f"the shape expression {text[:60]!r}") from None
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    names = {
        id(node.args[0])
        for node in nodes
        if isinstance(node, ast.Call) and _kind(node) == "Symbol" and node.args
    }
    powers = 0
    for node in nodes:
        known = isinstance(node, _EXPRESSION)
        if isinstance(node, ast.Call):
            known = _kind(node) in _FUNCTIONS
        elif isinstance(node, ast.Name):
            known = not node.id.startswith("_") and (
                id(node) not in called or node.id in _FUNCTIONS
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            known = id(node) in names and re.fullmatch(r"[a-z]\w*", node.value) is not None
            known = known and len(node.value) <= _LONGEST_NAME
        elif isinstance(node, ast.Constant):
            known = isinstance(node.value, int | float) and abs(node.value) < 2**64
        if _kind(node) in _POWERS:
            powers += 1
            known = known and powers <= _MOST_POWERS and all(map(_is_small, _exponents(node)))
        _require(known and len(nodes) <= _MOST_NODES, "the shape expression", text)


def _kind(node: ast.AST) -> object:
    """Return the function that a call names, the operator of a term."""
    if isinstance(node, ast.Call):
        return node.func.id if isinstance(node.func, ast.Name) else None
    return type(node.op) if isinstance(node, ast.BinOp) else None


def _exponents(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.BinOp):
        return [node.right]
    assert isinstance(node, ast.Call)  # there is nothing else in _POWERS
    return [*node.args[1:], *(word.value for word in node.keywords)]


def _is_small(value: ast.expr) -> bool:
    """Return whether an exponent, a shift's width or a precision is a small plain number."""
    if isinstance(value, ast.UnaryOp):
        return _is_small(value.operand)
    if isinstance(value, ast.Call) and _kind(value) in ("Integer", "Rational"):
        return all(map(_is_small, value.args))
    number = value.value if isinstance(value, ast.Constant) else None
    return isinstance(number, int | float) and abs(number) <= _LARGEST_POWER


def _check_structure(text: str) -> None:
    """Check how inputs or outputs are nested; torch imports the types that such a text names."""
    try:
        _, spec = json.loads(text)
        pending = [spec]
        while pending:
            node = pending.pop()
            known = node["type"] in _STRUCTURES
            keys = [] if node["context"] in (None, "null") else json.loads(node["context"])
            known = known and all(isinstance(k, str) and k.isidentifier() for k in keys or [])
            _require(known, "the structure", text)
            pending += node["children_spec"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _Refused(f"the structure {text[:60]!r}") from None


_CHECKS: dict[str, Callable[[str], None]] = {
    **dict.fromkeys(("target", "as_operator"), _check_target),
    "expr_str": _check_expression,
    **dict.fromkeys(("in_spec", "out_spec"), _check_structure),
    # torch quotes an operator's string argument wherever it is used; any text is harmless
    **dict.fromkeys(("as_string", "as_strings"), lambda text: None),
}
# Names by the key that they stand under; all else is free text.
_NAMES = {
    **dict.fromkeys(("name", "as_name", "user_input_name", "forward_arg_names"), _IDENTIFIER),
    **dict.fromkeys(("fqn", "parameter_name", "buffer_name", "tensor_constant_name"), _PATH),
}


def _require(known: object, what: str, text: str) -> None:
    if not known:
        raise _Refused(f"{what} {text[:60]!r}")


def _damaged(file: IdentifiedFile, error: Exception) -> ModelError:
    return ModelError(
        f"{file.path} is a torch.export program that cannot be loaded: {first_line(error)}",
        hint="it may be truncated, or written by another version of torch "
        f"(this is {torch.__version__}): export it again",
    )


# -- a loaded program as a module ----------------------------------------------------------------


def _as_module(
    program: torch.export.ExportedProgram, path: str
) -> tuple[nn.Module, tuple[TensorSpec, ...], tuple[str, ...]]:
    inputs, notes = _inputs(program, path)
    module: Any = program.module(check_guards=False)
    switched = _evaluate(module, path)
    if switched:
        notes += (
            f"the program was exported in training mode: {switched} operators were switched to "
            "evaluation",
        )
    # torch refuses train() and eval() on such a module. Its graph is in evaluation for good, so
    # both may be called and change nothing but the flag that people read.
    for owner in module.modules():
        owner.train = MethodType(_set_training, owner)
        owner.eval = MethodType(lambda self: _set_training(self, False), owner)
        owner.training = False
    return module, inputs, (*notes, "the program's BN is frozen while it is trained")


def _set_training(self: nn.Module, mode: bool = True) -> nn.Module:
    for owner in self.modules():
        owner.training = mode
    return self


def _inputs(
    program: torch.export.ExportedProgram, path: str
) -> tuple[tuple[TensorSpec, ...], tuple[str, ...]]:
    example = program.example_inputs
    if example is not None and len(example) == 2 and example[1]:
        raise ModelError(
            f"{path} was exported with inputs by keyword ({', '.join(example[1])})",
            hint="export it again with all inputs in args",
        )
    specs, notes = [], []
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    for name in program.graph_signature.user_inputs:
        value = values.get(str(name))
        if not isinstance(value, torch.Tensor):
            raise ModelError(
                f"{path} has the input {name}, which is not a tensor",
                hint="export it again with tensors as its only inputs",
            )
        shape: list[int | None] = []
        sizes: tuple[Any, ...] = tuple(value.shape)  # int, or SymInt where it is dynamic
        for axis, size in enumerate(sizes):
            if isinstance(size, int):
                shape.append(size)
            elif axis == 0:
                shape.append(None)
            else:
                shape.append(int(size.node.hint))
                notes.append(f"dimension {axis} of {name} is dynamic; {shape[-1]} was taken")
        if shape and shape[0] is not None:
            notes.append(f"the program fixes the batch of {name} at {shape[0]}")
        specs.append(TensorSpec(str(name), tuple(shape), str(value.dtype).removeprefix("torch.")))
    return tuple(specs), tuple(notes)


def _evaluate(module: Any, path: str) -> int:
    """Switch the graph's operators to evaluation; return how many were in training."""
    switched = 0
    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _TRAINING_ARGUMENT:
            position, name = _TRAINING_ARGUMENT[node.target]
            if len(node.args) > position and node.args[position]:
                node.update_arg(position, False)
                switched += 1
            elif node.kwargs.get(name):
                node.update_kwarg(name, False)
                switched += 1
        elif str(node.target).split(".")[1:2] in ([name] for name in _TRAINING_ONLY):
            raise ModelError(
                f"{path} was exported in training mode, which cannot be undone ({node.target})",
                hint=f"call model.eval() before torch.export.export; or {SAVE_AGAIN}",
            )
        elif _counts_batches(node):
            module.graph.erase_node(node)
    for number, node in enumerate(list(module.graph.nodes)):
        if node.target == _ATEN.batch_norm.default and node.args[1] is None:
            _give_weights(module, node, f"batch_norm_{number}")
    module.graph.lint()
    module.recompile()
    return switched


def _give_weights(module: Any, node: Any, name: str) -> None:
    """Give BN without weight and bias those that do nothing: it is folded by them."""
    mean = node.args[3]
    if mean is None or mean.op != "get_attr":
        return
    like = module.get_buffer(mean.target)
    for position, (kind, value) in enumerate((("weight", 1.0), ("bias", 0.0)), start=1):
        parameter = nn.Parameter(torch.full_like(like, value), requires_grad=False)
        module.register_parameter(f"{name}_{kind}", parameter)
        with module.graph.inserting_before(node):
            node.update_arg(position, module.graph.get_attr(f"{name}_{kind}"))


def _counts_batches(node: Any) -> bool:
    """Return whether this only counts BN's batches: it would change a buffer at every run."""
    first = node.args[0] if node.args else None
    return (
        node.target == _ATEN.add_.Tensor
        and not node.users
        and str(getattr(first, "target", "")).endswith("num_batches_tracked")
    )
