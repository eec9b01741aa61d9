"""Structural identity of a piece: equal fingerprints may share one compiled artifact.

:func:`describe` writes a piece as text, one line per symbol, relation, input and node;
:func:`fingerprint` is the SHA-256 of that text. Two texts can be compared with ``diff``.

What counts
    * each input in its order: dtype, device type, size, stride, storage offset, ``requires_grad``; for a
      number, whether it is symbolic; for another scalar, its value and type;
    * each symbol: its bounds, whether it is backed, whether it is the one that ranges are about; the
      relations between symbols;
    * each node in its order: what it calls, its arguments by position, their types, their containers;
      dead nodes too. Ops count by name and overload, and outside torch's namespaces by schema; functions
      by where they are imported from, and outside torch and Python by their bytecode, defaults, closure
      and the globals they read; methods by name; Triton kernels by source and launch settings;
    * every constant with its type: ``1``, ``1.0`` and ``True`` differ, ``0.0`` and ``-0.0`` too; dtypes,
      layouts, memory formats, slices, strings;
    * nested graphs by their structure, called modules by class, settings, tensors and children, tensor
      constants by bytes, dtype, size, stride, device, and by whether two names are one object or share
      memory.

What does not count
    * names: of the piece, its nodes, placeholders, attributes and symbols, and its index;
    * metadata of nodes (stack traces, module stacks, example values, custom annotations), type
      annotations, and the text of the checks that Dynamo adds for traced expressions;
    * a symbol's hint;
    * the order of keyword arguments;
    * indices of accelerators, as long as each stands for the same one throughout and nothing names a
      device in another way (:mod:`~torch_piecewise.fingerprint.placement`);
    * strings of custom ops that the caller declares as labels. An artifact made from one piece calls its
      ops with the strings of *that* piece, so a string that selects anything is no label.

What belongs elsewhere in the key, because a piece does not hold it: versions of torch, Triton and Python;
bodies of custom ops; compiler options; and the state of torch that graphs depend on without naming it
(default dtype and device, grad mode and autocast at entry, matmul precision, deterministic algorithms).

What has no stable identity is refused with a :class:`~torch_piecewise.errors.FingerprintError`: lambdas
and local functions, modules with hooks, fake, sparse and subclassed tensor constants, live objects
(generators, streams, process groups), places in tables of the process.
"""

from __future__ import annotations

import hashlib

from torch_piecewise.errors import FingerprintError
from torch_piecewise.fingerprint.graph import GraphWriter, LabelStrings
from torch_piecewise.fingerprint.placement import Placement
from torch_piecewise.fingerprint.symbols import SymbolNames
from torch_piecewise.fingerprint.values import stable_text
from torch_piecewise.piece import InputSpec, IntSpec, Piece, TensorSpec

__all__ = ["NO_LABELS", "LabelStrings", "describe", "fingerprint", "stable_text"]

NO_LABELS: frozenset[tuple[str, str]] = frozenset()
"""Every string counts."""

_FORMAT = "torch-piecewise piece, format 1"


def fingerprint(piece: Piece, *, label_strings: LabelStrings = NO_LABELS) -> str:
    """SHA-256 in hex (64 digits) of :func:`describe`: the same in every process.

    Args:
        label_strings: which string arguments of custom ops only label and do not count: a predicate on
            the node and the string, or a set of (``ns::op`` or ``ns::op.overload``, argument name).

    Raises:
        FingerprintError: the piece is malformed, or holds something that has no stable identity; names
            the node, the value, and what to do.
    """
    text = describe(piece, label_strings=label_strings)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def describe(piece: Piece, *, label_strings: LabelStrings = NO_LABELS) -> str:
    """The canonical text of a piece: one line per symbol, relation, input and node, then nested graphs.

    Args:
        label_strings: as for :func:`fingerprint`.

    Raises:
        FingerprintError: as for :func:`fingerprint`.
    """
    placeholders = sum(node.op == "placeholder" for node in piece.graph.graph.nodes)
    if placeholders != len(piece.inputs):
        raise FingerprintError(
            f"Piece {piece.name} does not describe its inputs",
            expected=f"{placeholders} inputs, one per placeholder",
            got=str(len(piece.inputs)),
            hint="give Piece.inputs one description per placeholder, in order",
        )
    symbols, placement = SymbolNames(piece), Placement()
    writer = GraphWriter(symbols, placement, label_strings)
    inputs = [_input_text(spec, symbols, writer) for spec in piece.inputs]
    lines = [_FORMAT, *symbols.lines(), *_graph_lines(piece, writer, inputs)]
    placed = placement.line()
    return "\n".join([*lines, placed] if placed else lines) + "\n"


def _graph_lines(piece: Piece, writer: GraphWriter, inputs: list[str]) -> list[str]:
    try:
        return writer.lines(piece.graph, inputs)
    except FingerprintError as error:
        raise FingerprintError(
            f"Piece {piece.name}: {error.what}", expected=error.expected, got=error.got, hint=error.hint
        ) from error


def _input_text(spec: InputSpec, symbols: SymbolNames, writer: GraphWriter) -> str:
    if isinstance(spec, TensorSpec):
        return (
            f"input tensor {spec.dtype} {writer.text(spec.device)} size={symbols.dims(spec.size)} "
            f"stride={symbols.dims(spec.stride)} offset={symbols.text(spec.storage_offset)} "
            f"requires_grad={spec.requires_grad}"
        )
    if isinstance(spec, IntSpec):
        return f"input int {symbols.text(spec.value)}"
    return f"input constant {writer.text(spec.value)}"
