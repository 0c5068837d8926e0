"""A NIR graph as a flat network: its nodes by name, what feeds them, and which connections are read one step late.

Nested graphs are laid open, ``outer.inner``. Several edges into one node are a sum. Around a cycle one connection has to be read
a step late, for a spike can not reach its own neuron within its step. That is the edge that closes a loop, in the sense of
compilers: ``u -> v`` where every way from an input to ``u`` leads through ``v``. Which edges do is a matter of the graph alone,
whatever the order of nodes in the file; where a cycle can be entered at two places it is not, and has to be said. A ``Delay`` of
a step or more breaks a cycle by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from snngraph.errors import NirDiscretisationError, NirGraphError
from snngraph.frontends.nir.layers import LAYERS
from snngraph.frontends.nir.neurons import NEURONS

__all__ = ["Edge", "Network", "Node", "components", "edges_read_late", "network_of", "ordered"]

Edge: TypeAlias = tuple[str, str]


@dataclass
class Node:
    """One node: what the file has, and the nodes that feed it, in the order of the edges."""

    name: str
    kind: str
    node: Any
    sources: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Network:
    """The nodes by name, and the names of inputs and outputs, sorted: a file does not keep their order."""

    nodes: dict[str, Node]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    unused: tuple[str, ...] = ()

    @property
    def edges(self) -> list[Edge]:
        """All edges."""
        return [(source, node.name) for node in self.nodes.values() for source in node.sources]


def network_of(graph: Any, title: str) -> Network:
    """Lays a ``nir.NIRGraph`` open, without what reaches no output.

    Raises:
        NirGraphError: edges lead nowhere or come twice, nothing feeds a node, a node's kind is unknown, inputs or outputs lack.
    """
    nodes: dict[str, Node] = {}
    for source, target in _laid_open(graph, "", nodes, title):
        if source in nodes[target].sources:
            raise NirGraphError(f"{title}: the edge {source!r} -> {target!r} comes twice; a Scale of 2 says it once")
        nodes[target].sources.append(source)
    inputs = tuple(sorted(n.name for n in nodes.values() if n.kind == "Input"))
    outputs = tuple(sorted(n.name for n in nodes.values() if n.kind == "Output"))
    if not inputs or not outputs:
        raise NirGraphError(f"{title} has no {'Input' if not inputs else 'Output'} node")
    live = set(_reached(outputs, {n.name: n.sources for n in nodes.values()}))
    for node in nodes.values():
        if node.name in live and node.kind == "Input" and node.sources:
            raise NirGraphError(f"{title}: {node.sources[0]!r} feeds the input {node.name!r}")
        if node.name in live and node.kind != "Input" and not node.sources:
            raise NirGraphError(f"{title}: nothing feeds {node.name!r} ({node.kind})")
    kept = {name: node for name, node in nodes.items() if name in live or node.kind == "Input"}
    return Network(kept, inputs, outputs, tuple(sorted(nodes.keys() - kept.keys())))


def _laid_open(graph: Any, prefix: str, nodes: dict[str, Node], title: str) -> Iterator[Edge]:
    """Adds the nodes of a graph and of those in it; gives their edges."""
    begin: dict[str, str] = {}
    end: dict[str, str] = {}
    for key, node in graph.nodes.items():
        name, kind = f"{prefix}{key}", type(node).__name__
        if kind == "NIRGraph":
            yield from _laid_open(node, f"{name}.", nodes, title)
            ports = [[k for k, n in node.nodes.items() if type(n).__name__ == port] for port in ("Input", "Output")]
            if [len(p) for p in ports] != [1, 1]:
                raise NirGraphError(
                    f"{title}: the graph {name!r} within has {len(ports[0])} inputs and {len(ports[1])} outputs, not one"
                )
            begin[key], end[key] = f"{name}.{ports[0][0]}", f"{name}.{ports[1][0]}"
            continue
        if kind not in (*LAYERS, *NEURONS, "Delay", "Input", "Output"):
            why = "its writer had no NIR node for that layer" if node is None else "it is not known here"
            raise NirGraphError(f"{title}: {name!r} is a {kind}: {why}")
        if name in nodes:
            raise NirGraphError(f"{title}: two nodes are named {name!r}")
        nodes[name] = Node(name, "Identity" if prefix and kind in ("Input", "Output") else kind, node)
        begin[key] = end[key] = name
    for source, target in graph.edges:
        for key in (source, target):
            if key not in begin:
                raise NirGraphError(f"{title}: the edge {source!r} -> {target!r} is at {prefix + key!r}, which is no node")
        yield end[source], begin[target]


def _reached(roots: Iterable[str], neighbours: Mapping[str, Iterable[str]]) -> list[str]:
    found: dict[str, None] = {}
    stack = list(roots)
    while stack:
        name = stack.pop()
        if name not in found:
            found[name] = None
            stack.extend(neighbours.get(name, ()))
    return list(found)


# -- cycles --------------------------------------------------------------------------------------------------------------------


def components(names: Sequence[str], edges: Iterable[Edge]) -> list[list[str]]:
    """The strongly connected components, every one after those that feed it (Kosaraju)."""
    targets, sources = _adjacency(names, edges)
    finished = _postorder(names, targets)
    found: list[list[str]] = []
    seen: set[str] = set()
    for name in reversed(finished):
        if name not in seen:
            found.append(sorted(_postorder([name], sources, seen), key=names.index))
    return found


def _adjacency(names: Sequence[str], edges: Iterable[Edge]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    targets: dict[str, list[str]] = {name: [] for name in names}
    sources: dict[str, list[str]] = {name: [] for name in names}
    for a, b in edges:
        if a in targets and b in targets:
            targets[a].append(b)
            sources[b].append(a)
    return targets, sources


def _postorder(roots: Iterable[str], neighbours: Mapping[str, list[str]], seen: set[str] | None = None) -> list[str]:
    seen = set() if seen is None else seen
    order: list[str] = []
    for root in roots:
        if root in seen:
            continue
        seen.add(root)
        stack = [(root, iter(neighbours[root]))]
        while stack:
            name, rest = stack[-1]
            following = next((n for n in rest if n not in seen), None)
            if following is None:
                order.append(name)
                stack.pop()
            else:
                seen.add(following)
                stack.append((following, iter(neighbours[following])))
    return order


def ordered(names: Sequence[str], edges: Iterable[Edge]) -> list[str]:
    """Every node after what feeds it; there must be no cycle."""
    return [name for component in components(names, edges) for name in component]


def edges_read_late(
    network: Network, breaks: Callable[[Node], bool], stated: Iterable[Edge] | None, title: str
) -> frozenset[Edge]:
    """The edges that are read one step late.

    Args:
        network: the network.
        breaks: whether a node gives nothing of the current step (a ``Delay`` of one or more).
        stated: the caller's own choice instead.
        title: the network, for messages.

    Raises:
        NirDiscretisationError: the choice has an edge that is not there, or leaves a cycle; or the graph does not tell.
    """
    names = list(network.nodes)
    late = frozenset(stated) if stated is not None else _loop_edges(network)
    late = frozenset(edge for edge in late if not set(edge) & set(network.unused))
    if unknown := sorted(late - set(network.edges)):
        raise NirDiscretisationError(f"{title}: late_edges has {unknown[0]}, which is no edge")
    at_once = [(a, b) for a, b in network.edges if not breaks(network.nodes[b])]
    if stated is None:  # a loop that a Delay breaks already needs nothing more
        cyclic = [set(c) for c in components(names, at_once)]
        late = frozenset(e for e in late if e in at_once and any(set(e) <= c for c in cyclic))
    for component in components(names, [e for e in at_once if e not in late]):
        inner = [e for e in at_once if e not in late and set(e) <= set(component)]
        if inner and (len(component) > 1 or inner[0][0] == inner[0][1]):
            raise NirDiscretisationError(
                f"{title}: which connection of the cycle through {', '.join(component)} is read one step late is not clear, as "
                f"it is entered at several places; say so with late_edges=[(source, target), ...], some of {inner}"
            )
    return late


def _loop_edges(network: Network) -> frozenset[Edge]:
    """The edges ``u -> v`` with ``v`` on every way from an input to ``u``."""
    targets, _ = _adjacency(list(network.nodes), network.edges)
    cyclic = [set(c) for c in components(list(network.nodes), network.edges)]
    found = set()
    for u, v in network.edges:
        if any({u, v} <= c for c in cyclic):
            without = {n: [m for m in after if m != v] for n, after in targets.items() if n != v}
            if u == v or u not in _reached([n for n in network.inputs if n != v], without):
                found.add((u, v))
    return frozenset(found)
