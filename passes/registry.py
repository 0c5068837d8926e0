"""Passes by name: our own, and those of outside packages under the entry point group ``snngraph.passes``.

An entry point names a :class:`~snngraph.passes.base.Pass` class, or a function without arguments that returns a pass. On the
command line and in ``passes=[...]`` a pass is written as its name, or with options: ``"my_pass(limit=3)"``.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from snngraph import pipelines
from snngraph.errors import NameClashError, PassError, UnknownPassError
from snngraph.passes.base import Pass, Pipeline

__all__ = ["PassInfo", "available", "find", "pipeline"]

GROUP = "snngraph.passes"
_BUILTIN = {
    "canonicalize": "snngraph.passes.canonicalize:Canonicalize",
    "compose_low_rank": "snngraph.passes.compose_low_rank:ComposeLowRank",
    "eliminate_dead": "snngraph.passes.eliminate_dead:EliminateDead",
    "expand_fused": "snngraph.passes.expand_fused:ExpandFused",
    "flatten_time": "snngraph.passes.flatten_time:FlattenTime",
    "fold_attention": "snngraph.passes.fold_attention:FoldAttention",
    "fold_average_pool": "snngraph.passes.fold_average_pool:FoldAveragePool",
    "fold_batch_norm": "snngraph.passes.fold_batch_norm:FoldBatchNorm",
    "fuse_modules": "snngraph.passes.fuse_modules:FuseModules",
    "hoist_static": "snngraph.passes.hoist_static:HoistStatic",
    "integer_synapses": "snngraph.passes.integer_synapses:IntegerSynapses",
    "lift_neurons": "snngraph.passes.lift_neurons:LiftNeurons",
    "mark_levels": "snngraph.passes.mark_levels:MarkLevels",
    "merge_time": "snngraph.passes.merge_time:MergeTime",
    "sink_scales": "snngraph.passes.sink_scales:SinkScales",
    "unroll_time": "snngraph.passes.unroll_time:UnrollTime",
}
_PIPELINES: dict[str, Callable[[], Pipeline]] = {"capture": pipelines.capture, "default": pipelines.default}


@dataclass(frozen=True, slots=True)
class PassInfo:
    """One pass that can be used by name.

    Args:
        name: its name.
        package: the package that brings it.
        exactness: ``"bitwise"``, ``"real"`` or ``"approximate"``.
        summary: the first line of its documentation.
        options: its options with their defaults.
    """

    name: str
    package: str
    exactness: str
    summary: str
    options: dict[str, Any]


def find(name: str) -> Callable[..., Pass]:
    """The class or factory of a pass or pipeline.

    Raises:
        UnknownPassError: there is none of this name.
        NameClashError: an outside package brings one that exists already.
        PassError: an outside package's entry point is broken.
    """
    outside = _outside()
    if name in _BUILTIN:
        module, attribute = _BUILTIN[name].split(":")
        return cast("Callable[..., Pass]", getattr(import_module(module), attribute))
    if name in _PIPELINES:
        return _PIPELINES[name]
    if name in outside:
        return _load(outside[name])
    known = sorted([*_BUILTIN, *_PIPELINES, *outside])
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UnknownPassError(f"no pass is named {name!r}{hint} Known: {', '.join(known)}")


def available() -> tuple[PassInfo, ...]:
    """Every pass that can be used by name, sorted, outside ones included.

    Raises:
        NameClashError: an outside package brings one that exists already.
    """
    packages = {name: _package(entry) for name, entry in _outside().items()}
    infos = []
    for name in sorted([*_BUILTIN, *_PIPELINES, *packages]):
        factory = find(name)
        options: dict[str, Any] = {}
        if isinstance(factory, type):
            options = {f.name: f.default for f in dataclasses.fields(factory)}
        exactness = getattr(factory, "exactness", Pipeline.exactness)
        summary = (factory.__doc__ or "").strip().partition("\n")[0]
        infos.append(PassInfo(name, packages.get(name, "snngraph"), exactness, summary, options))
    return tuple(infos)


def pipeline(passes: Iterable[str | Pass], title: str = "custom") -> Pipeline:
    """A pipeline of passes given as objects, names, or names with options.

    Raises:
        UnknownPassError: no pass has that name.
        PassError: the options do not fit the pass.
    """
    return Pipeline(tuple(p if isinstance(p, Pass) else _from_text(p) for p in passes), title=title)


def _from_text(text: str) -> Pass:
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        if isinstance(tree, ast.Name):
            name, options = tree.id, {}
        elif isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.args:
            name, options = tree.func.id, {str(k.arg): ast.literal_eval(k.value) for k in tree.keywords}
        else:
            raise ValueError("no name")
    except (SyntaxError, ValueError):
        raise PassError(f"{text!r} is no pass: expected a name, or a name with options like my_pass(limit=3)") from None
    factory = find(name)
    try:
        return factory(**options)
    except (TypeError, ValueError) as error:
        known = ", ".join(f.name for f in dataclasses.fields(factory)) if dataclasses.is_dataclass(factory) else ""
        raise PassError(f"{text!r}: {error}; the options of {name} are: {known or 'none'}") from None


def _outside() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        package, other = _package(entry), found.get(entry.name)
        if entry.name in _BUILTIN or entry.name in _PIPELINES:
            raise NameClashError(f"package {package!r} brings a pass {entry.name!r}, which is the name of one of snngraph's own")
        if other is not None and other.value != entry.value:
            raise NameClashError(f"packages {_package(other)!r} and {package!r} both bring a pass {entry.name!r}")
        found[entry.name] = entry
    return found


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.module


def _load(entry: EntryPoint) -> Callable[..., Pass]:
    title = f"the pass {entry.name!r} of package {_package(entry)!r}"
    try:
        factory = entry.load()
    except Exception as error:
        raise PassError(f"{title} can not be imported ({entry.value}): {error}") from error
    if not callable(factory) or (isinstance(factory, type) and not issubclass(factory, Pass)):
        raise PassError(f"{title} ({entry.value}) is no Pass class and no factory of one")
    return cast("Callable[..., Pass]", factory)
