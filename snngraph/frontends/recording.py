"""What PyTorch's own tracing can not see, made visible for the time of a capture; and a tracer for what ``torch.export`` refuses.

``torch.export`` runs a model on tensors without values. Code that reads a number (``tau.item()``, ``if self.step > 0``) or works
around autograd (``mem.data = ...``) breaks on those. Two remedies:

* :func:`exportable` gives such code another meaning while it is captured: ``.data`` is ``detach()``, an assignment to it a copy
  in place; copying a tensor deeply is a clone; a scripted function runs as the Python that it was made of; a distribution does
  not check its arguments, which reads them and computes nothing.
* :func:`recorded` runs the model on the real example with ``make_fx`` and returns a module that repeats what was computed.
  Numbers that do not depend on the input are read for real and become constants. One that does may be counted and recorded, as
  models do to watch themselves; where anything else is made of it, it is an error that names its line.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.fx.traceback as fx_traceback
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot, make_fx
from torch.nn.modules import module as hooks
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from snngraph.errors import DataDependentError
from snngraph.frontends.source import model_frames, where_called

__all__ = ["exportable", "recorded", "size_depends_on_data"]

_KEPT = ("item", "tolist", "numpy")  # their result may be kept unused
_READS = (*_KEPT, "__bool__", "__float__", "__int__", "__index__", "__complex__", "__array__")


@contextlib.contextmanager
def _patched(owner: Any, **replacements: Any) -> Iterator[None]:
    """Sets attributes of a class, and removes or restores them afterwards."""
    own = {name: owner.__dict__[name] for name in replacements if name in owner.__dict__}
    try:
        for name, value in replacements.items():
            setattr(owner, name, value)
        yield
    finally:
        for name in replacements:
            if name in own:
                setattr(owner, name, own[name])
            else:
                delattr(owner, name)


@contextlib.contextmanager
def exportable() -> Iterator[None]:
    """Within it, idioms that have no meaning for a tracer have one. See the module's text."""

    def set_data(self: Tensor, value: Tensor) -> None:
        with torch.no_grad():
            if self.shape == value.shape:
                self.copy_(value)
            else:
                self.set_(value)  # type: ignore[call-overload]

    data = property(lambda self: self.detach(), set_data)
    with (
        _patched(Tensor, data=data, __deepcopy__=lambda self, memo: self.detach().clone()),
        _patched(torch.jit.ScriptFunction, __call__=_run_script_as_python(torch.jit.ScriptFunction.__call__)),
        _patched(torch.distributions.Distribution, _validate_args=False),
    ):
        yield


def _run_script_as_python(scripted: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        python = getattr(self, "_torchdynamo_inline", None)
        return scripted(self, *args, **kwargs) if python is None else python(*args, **kwargs)

    return call


# -- recording -----------------------------------------------------------------------------------------------------------------


class _Recorded(nn.Module):
    """Repeats a recorded run. Its parameters and buffers bear the names they have in the model."""

    def __init__(self, program: fx.GraphModule, model: nn.Module) -> None:
        super().__init__()
        names = {id(t): name for name, t in (*model.named_parameters(), *model.named_buffers())}
        for node in program.graph.nodes:
            if node.op == "get_attr":
                tensor = getattr(program, str(node.target))
                name = names.get(id(tensor), str(node.target))
                node.target = _register(self, name, tensor)
        self._graph = program.graph
        self.training = False

    def forward(self, *inputs: Tensor) -> Any:
        return fx.Interpreter(self, graph=self._graph).run(*inputs)


def _register(holder: nn.Module, name: str, tensor: Tensor) -> str:
    """Registers ``tensor`` under a dotted name, and returns the name."""
    *path, leaf = name.split(".")
    for part in path:
        if not hasattr(holder, part):
            holder.add_module(part, nn.Module())
        holder = getattr(holder, part)
    if not hasattr(holder, leaf):
        if isinstance(tensor, nn.Parameter):
            holder.register_parameter(leaf, tensor)
        else:
            holder.register_buffer(leaf, tensor)
    return name


def recorded(model: nn.Module, inputs: Sequence[Tensor]) -> nn.Module:
    """Runs ``model`` on ``inputs`` with ``make_fx`` and returns a module that repeats the operators, for inputs of these shapes.

    Raises:
        DataDependentError: the model reads a number that depends on its input.
    """
    reads = (_patched(Tensor, **_reads()), _patched(torch, from_numpy=_from_numpy(torch.from_numpy)))
    with exportable(), torch.no_grad(), fx_traceback.preserve_node_meta(), _module_paths(model), reads[0], reads[1]:
        # pre_dispatch: layers as the model calls them, not what they are made of
        program = make_fx(model.__call__, tracing_mode="real", pre_dispatch=True, record_stack_traces=True)(*inputs)
    for node in program.graph.nodes:
        if size_depends_on_data(node):
            frames = model_frames(node.stack_trace or "")
            raise DataDependentError(
                f"the size of {node.target} depends on the data{', ' + frames[-1] if frames else ''}: sizes can not be compiled. "
                "Compute with all entries, and masks (torch.where)"
            )
    return _Recorded(program, model)


def size_depends_on_data(node: fx.Node) -> bool:
    """Whether the shape of an operator's result depends on numbers.

    Indexing by a mask is left to the rewrites of masked writes, unless nothing reads its result but its size.
    """
    if torch.Tag.dynamic_output_shape not in getattr(node.target, "tags", ()):
        return False
    if node.target is not torch.ops.aten.index.Tensor:
        return True
    indices: Any = node.args[1]
    masks = [i for i in indices if isinstance(i, fx.Node) and getattr(i.meta.get("val"), "dtype", None) == torch.bool]
    return bool(masks) and not node.users


@contextlib.contextmanager
def _module_paths(model: nn.Module) -> Iterator[None]:
    """Within it, every recorded node knows the modules in whose forward it was made, as ``torch.export`` notes them."""
    names = {module: name for name, module in model.named_modules()}
    stack: list[tuple[str, str]] = []

    def note() -> None:
        fx_traceback.current_meta["nn_module_stack"] = {str(k): entry for k, entry in enumerate(stack)}

    def enter(module: nn.Module, args: Any) -> None:
        stack.append((names.get(module, stack[-1][0] if stack else ""), type(module).__name__))
        note()

    def leave(module: nn.Module, args: Any, result: Any) -> None:
        stack.pop()
        note()

    handles = (hooks.register_module_forward_pre_hook(enter), hooks.register_module_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _reads() -> dict[str, Any]:
    """The methods of a tensor that read its numbers, allowed on what does not depend on the input."""

    def guarded(name: str, read: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            if get_proxy_mode() is None:
                return read(self, *args, **kwargs)
            if _depends_on_input(self):
                unknown = _Unknown(name, where_called())
                return unknown if name in _KEPT else unknown.used()
            with _disable_current_modes(), torch._C._DisableTorchDispatch():
                return read(self, *args, **kwargs)

        return method

    return {name: guarded(name, getattr(Tensor, name)) for name in _READS}


class _Unknown:
    """Numbers that depend on the input: what is computed of them is unknown too; deciding by them, or a tensor of them, fails."""

    __array_ufunc__ = None  # NumPy leaves arithmetic to this class
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, how: str, where: str) -> None:
        self.message = (
            f"the model reads a number that depends on its input ({how}), {where}: control flow on data can not be compiled. "
            "Compute it with tensor operators (torch.where, clamp), or take it out of forward"
        )

    def used(self, *args: Any, **kwargs: Any) -> Any:
        raise DataDependentError(self.message)

    def _kept(self, *others: Any, **kwargs: Any) -> _Unknown:
        return self.used() if any(isinstance(x, Tensor) for x in others) else self

    def __getattr__(self, name: str) -> _Unknown:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        next(x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, cls)).used()

    def __repr__(self) -> str:
        return "?"

    __call__ = __getitem__ = __neg__ = __abs__ = __round__ = _kept
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __pow__ = _kept
    __bool__ = __float__ = __int__ = __index__ = __len__ = __iter__ = __contains__ = __array__ = used
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = used


def _from_numpy(original: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
    """``torch.from_numpy``, which does not say what it was given."""
    return lambda array: array.used() if isinstance(array, _Unknown) else original(array)


def _depends_on_input(tensor: Tensor) -> bool:
    mode = get_proxy_mode()
    slot: Any = None if mode is None else get_proxy_slot(tensor, mode.tracer, None)
    return slot is not None and slot.proxy.node in _made_from_input(slot.proxy.node.graph)


def _made_from_input(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose numbers depend on the input: what is written to a view is in its base, and in every other view of it."""
    memory: dict[fx.Node, set[fx.Node]] = {}  # by node, all nodes that share its memory: one and the same set
    constants: dict[str, fx.Node] = {}
    found: set[fx.Node] = set()
    for node in graph.nodes:
        memory[node] = {node}
        shared = _shares_memory_with(node)
        if node.op == "get_attr":
            shared = [constants.setdefault(str(node.target), node)]
        for other in shared:
            if memory[other] is not memory[node]:
                memory[other] |= memory[node]
                memory.update(dict.fromkeys(memory[node], memory[other]))
        if node.op == "placeholder" or not found.isdisjoint({node, *node.all_input_nodes} | memory[node]):
            found |= memory[node]
    return found


def _shares_memory_with(node: fx.Node) -> list[fx.Node]:
    """The operands of which ``node`` is a view, or which it writes; all of them where the operator does not tell."""
    if node.op != "call_function":
        return []
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return node.all_input_nodes
    given = [*zip(schema.arguments, node.args, strict=False), *((a, node.kwargs.get(a.name)) for a in schema.arguments)]
    operands = pytree.tree_leaves([value for argument, value in given if argument.alias_info is not None])
    return [value for value in operands if isinstance(value, fx.Node)]
