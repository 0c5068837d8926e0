"""What PyTorch's own tracing can not see, made visible for the time of a capture; and a tracer for what ``torch.export`` refuses.

``torch.export`` runs a model on tensors without values. Code that reads a number (``tau.item()``, ``if self.step > 0``) or works
around autograd (``mem.data = ...``) breaks on those. Two remedies:

* :func:`exportable` gives such code another meaning while it is captured: ``.data`` is ``detach()``, an assignment to it a copy
  in place; copying a tensor deeply is a clone; a scripted function runs as the Python that it was made of; a distribution does
  not check its arguments, which reads them and computes nothing.
* :func:`recorded` runs the model on the real example with ``make_fx`` and returns a module that repeats what was computed.
  Numbers that do not depend on the input are read for real and become constants; one that does is an error that names its line.
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
from torch.utils._python_dispatch import _disable_current_modes

from snngraph.errors import DataDependentError
from snngraph.frontends.source import where_called

__all__ = ["exportable", "recorded"]

_READS = ("item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__", "__complex__", "__array__")


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
        _unchecked(),
    ):
        yield


def _unchecked() -> contextlib.AbstractContextManager[None]:
    return _patched(torch.distributions.Distribution, _validate_args=False)


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
    with torch.no_grad(), fx_traceback.preserve_node_meta(), _module_paths(model), _patched(Tensor, **_reads()), _unchecked():
        # pre_dispatch: layers as the model calls them, not what they are made of
        program = make_fx(model.__call__, tracing_mode="real", pre_dispatch=True, record_stack_traces=True)(*inputs)
    return _Recorded(program, model)


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
                raise DataDependentError(
                    f"the model reads a number that depends on its input ({name}), {where_called()}: control flow on data can "
                    "not be compiled. Compute it with tensor operators (torch.where, clamp), or take it out of forward"
                )
            with _disable_current_modes(), torch._C._DisableTorchDispatch():
                return read(self, *args, **kwargs)

        return method

    return {name: guarded(name, getattr(Tensor, name)) for name in _READS}


def _depends_on_input(tensor: Tensor) -> bool:
    mode = get_proxy_mode()
    slot: Any = None if mode is None else get_proxy_slot(tensor, mode.tracer, None)
    if slot is None:
        return False
    waiting, seen = [slot.proxy.node], {slot.proxy.node}
    while waiting:
        node = waiting.pop()
        if node.op == "placeholder":
            return True
        fresh = [n for n in node.all_input_nodes if n not in seen]
        seen.update(fresh)
        waiting.extend(fresh)
    return False
