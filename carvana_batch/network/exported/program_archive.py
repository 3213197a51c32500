"""Checks archives of ``torch.export.save`` before torch reads them.

``torch.export.load`` unpickles without limits what an archive declares to be pickled, loads compiled
libraries in it, evaluates expressions with ``sympify``, executes checks of sizes as Python code, and calls
any function of torch by its name (seen in torch 2.13). So what is handed to it is made anew from the parts
that a network needs, and those are looked through before.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from typing import Any

from carvana_batch.errors import ModelError
from carvana_batch.text import shown

PLAIN = re.compile(
    r"archive_format|archive_version|byteorder|\.data/\w+|extra/carvana-batch\.json"
    r"|data/weights/weight_[0-9]+|data/constants/tensor_[0-9]+"
)
"""Members that are handed on as they are: numbers, and short texts that are compared or parsed as JSON."""

MODEL = re.compile(r"models/(\w+)\.json")

CONFIG = re.compile(r"data/(weights|constants)/\w+_(weights|constants)_config\.json")

SAMPLES = re.compile(r"data/sample_inputs/\w+\.pt")
"""Pickled, and not needed; an empty one stands for none."""

OPERATORS = re.compile(
    r"torch\.ops\.aten\.\w+\.\w+|torch\.sym_\w+|math\.\w+"
    r"|_operator\.(abs|add|and_|eq|floordiv|ge|getitem|gt|le|lt|mod|mul|ne|neg|not_|or_|pos|pow|sub|truediv)"
)
"""What a graph may call."""

WITH_FILES = re.compile(r"torch\.ops\.aten\.(from_file|save|to_here|dist_backward)\.")
"""Those of them that open files, or reach other machines."""

MOST_CHARACTERS = 20_000
"""Of one expression; those of sizes have a few hundred."""

FUNCTIONS = re.compile(
    "Add|And|Ceil(Div|ToInt)|CleanDiv|Eq|Float(TrueDiv)?|FloorDiv|FloorToInt|Ge|Gt|Identity|Integer"
    "|IntTrueDiv|Le|Lt|Max|Min|Mod|ModularIndexing|Mul|Ne|Not|Or|Pow|PowByNatural|PythonMod|Rational"
    "|RoundToInt|Symbol|ToFloat|TruncToInt|Where|ceiling|floor|max|min"
)
"""What an expression of sizes may call."""

ARITHMETIC = (
    ast.Expression,
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.Compare,
    ast.Constant,
    ast.Name,
    ast.keyword,
    ast.Load,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
)


def checked_archive(content: bytes) -> bytes:
    """An archive for ``torch.export.load`` with the network in ``content``.

    Raises:
        ModelError: it is no such archive, or holds what could execute code.
    """
    try:
        members = _read_members(content)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        raise ModelError("damaged, or not a file of torch.export.save; export it again") from error
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(f"archive/{name}", _checked(name, data))
    return buffer.getvalue()


def _read_members(content: bytes) -> dict[str, bytes]:
    """The members by their names below the folder that holds them all."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        infos = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if not any(MODEL.fullmatch(name) for name in infos):
            raise ModelError("no program of torch.export; save it with torch.export.save")
        unpacked = sum(info.file_size for info in archive.infolist())
        # torch compresses nothing. This also finds members that lie in the same place of the file.
        if unpacked > len(content) or any(
            info.compress_type != zipfile.ZIP_STORED for info in infos.values()
        ):
            raise ModelError(f"has {len(content):,} bytes and unpacks to {unpacked:,}; export it again")
        return {name: archive.read(info) for name, info in infos.items()}


def _checked(name: str, data: bytes) -> bytes:
    """The content of a member as it is handed on."""
    if PLAIN.fullmatch(name):
        return data
    if SAMPLES.fullmatch(name):
        return b""
    if MODEL.fullmatch(name):
        program = _parse(name, data)
        _check_program(program)
        return json.dumps(program).encode()
    if CONFIG.fullmatch(name):
        config = _parse(name, data)
        _check_config(config)
        return json.dumps(config).encode()
    if name.startswith("extra/"):
        return b""
    raise ModelError(
        f"not loaded, because it also holds {shown(name)}, which may be code; export it with"
        " torch.export.save, on the CPU"
    )


def _parse(name: str, data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"damaged: {shown(name)} in it cannot be read; export it again") from error


def _check_config(config: Any) -> None:
    entries = config.get("config") if isinstance(config, dict) else None
    if not isinstance(entries, dict):
        raise ModelError("damaged: it does not list its weights; export it again")
    for key, entry in entries.items():
        name = entry.get("path_name") if isinstance(entry, dict) else None
        if not re.fullmatch("(weight|tensor)_[0-9]+", str(name)) or entry.get("use_pickle") is not False:
            raise ModelError(f"not loaded, because {shown(str(key))} is pickled; export plain tensors")


def _check_program(program: Any) -> None:
    """Look for all places of a program that torch evaluates, executes or calls."""
    waiting = [program]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            for key, part in value.items():
                if key == "metadata":  # of a node: where in the code it is from
                    value[key] = {}
                elif key == "target":
                    _check_operator(part)
                elif key == "expr_str":
                    _check_expression(part)
                elif key == "guards_code":
                    for guard in part if isinstance(part, list) else [part]:
                        _check_expression(guard)
                elif key == "custom_obj_values" and part:
                    raise ModelError("not loaded, because it holds objects of classes; export it without")
                elif key in ("in_spec", "out_spec"):
                    _check_structure(part)
                else:
                    waiting.append(part)


def _check_operator(target: Any) -> None:
    if target is None:  # of a buffer that is not changed
        return
    if not OPERATORS.fullmatch(str(target)) or WITH_FILES.match(str(target)):
        raise ModelError(
            f"not loaded, because it calls {shown(str(target)[:100])}, which is none of the operators of"
            " networks (torch.ops.aten); export it without, or to ONNX"
        )


def _check_expression(text: Any) -> None:
    """Raise ModelError unless ``text`` is arithmetic of the sizes of the input."""
    try:
        if not isinstance(text, str) or len(text) > MOST_CHARACTERS:
            raise ValueError
        waiting: list[ast.AST] = [ast.parse(text, mode="eval")]
        while waiting:
            node = waiting.pop()
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if not FUNCTIONS.fullmatch(node.func.id):
                    raise ValueError
                waiting += [*node.args, *node.keywords]
            elif isinstance(node, ast.Call | ast.Attribute | ast.Subscript):
                if not re.fullmatch(r"L\['\w+'\](\.size\(\)\[[0-9]\])?", ast.unparse(node)):
                    raise ValueError
            elif isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
                if not re.fullmatch(r"\w+", str(node.value)):
                    raise ValueError
            elif isinstance(node, ARITHMETIC):
                waiting += ast.iter_child_nodes(node)
            else:
                raise ValueError
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ModelError(
            f"not loaded, because it evaluates {shown(str(text)[:100])!r}, which is not arithmetic of sizes;"
            " export it again"
        ) from error


def _check_structure(text: Any) -> None:
    """Raise ModelError unless a pytree is made of tuples, lists and dicts; others import their classes."""
    for kind in re.findall(r'"type":\s*("(?:[^"\\]|\\.)*"|null)', str(text)):
        if kind.strip('"') not in ("null", "builtins.tuple", "builtins.list", "builtins.dict"):
            raise ModelError(
                f"not loaded, because its input or output is a {shown(kind)}; export it with tensors"
            )
