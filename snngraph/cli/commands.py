"""How a command is declared: its function, groups of options shared with others, ``--json`` and ``--debug``, and what errors do.

Exit codes: 0 all is well, 1 a verification failed, 2 bad usage or input, 3 a bug, 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

from snngraph.cli.output import Output
from snngraph.errors import SnnGraphError

__all__ = ["command"]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and everything else on stderr.")]
Debug = Annotated[bool, typer.Option("--debug", envvar="SNNGRAPH_DEBUG", help="Show the traceback of any error.")]
_COMPILER = ("torch", "onnx", "onnxscript")
_COMMON = {"as_json": Json, "debug": Debug}


def command(app: typer.Typer, *, examples: tuple[str, ...]) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """Registers a function ``(out: Output, ...)`` as the command of its name; what it returns is the exit code.

    A parameter annotated with a dataclass stands for the dataclass's fields: each becomes an option, and the function gets the
    dataclass. ``--json`` and ``--debug`` are added. The examples are shown below the command's help.
    """

    def register(function: Callable[..., int | None]) -> Callable[..., int | None]:
        parameters, groups = _expand(function)

        def call(**values: Any) -> None:
            debug = values.pop("debug")
            with Output(values.pop("as_json")) as out:
                for name, group in groups.items():
                    values[name] = group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
                code = _run(lambda: function(out, **values), out, debug)
            if code:
                raise typer.Exit(code)

        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        epilog = "\n\n".join(["Examples:" if len(examples) > 1 else "Example:", "\b\n" + "\n".join(f"  {e}" for e in examples)])
        app.command(function.__name__, help=inspect.getdoc(function), epilog=epilog)(call)
        return function

    return register


def _run(work: Callable[[], int | None], out: Output, debug: bool) -> int:
    try:
        return work() or 0
    except SnnGraphError as error:
        out.fail(error, expected=True, debug=debug)
        return 2
    except (typer.Exit, typer.Abort, typer.BadParameter, SystemExit):
        raise
    except KeyboardInterrupt as error:
        out.err.print("interrupted", style="bold red")
        out.result({"error": {"type": type(error).__name__, "message": "interrupted"}})
        return 130
    except BrokenPipeError:  # whoever read our output has left
        raise
    except ModuleNotFoundError as error:
        missing = error.name in _COMPILER
        advice = f'this command needs {error.name}, which is not installed: pip install "snngraph[compile]"'
        out.fail(SnnGraphError(advice).with_traceback(error.__traceback__) if missing else error, expected=missing, debug=debug)
        return 2 if missing else 3
    except Exception as error:
        out.fail(error, expected=False, debug=debug)
        return 3


def _expand(function: Callable[..., Any]) -> tuple[list[inspect.Parameter], dict[str, type[Any]]]:
    """The parameters of the command, and the dataclasses among the function's."""
    hints = get_type_hints(function, include_extras=True)
    found: list[inspect.Parameter] = []
    groups: dict[str, type[Any]] = {}

    def add(name: str, annotation: Any, default: Any) -> None:
        found.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation))

    for name, parameter in list(inspect.signature(function).parameters.items())[1:]:
        kind = hints[name]
        if not dataclasses.is_dataclass(kind):
            add(name, kind, parameter.default)
            continue
        assert isinstance(kind, type)
        groups[name] = kind
        fields = get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            add(field.name, fields[field.name], default)
    for name, kind in _COMMON.items():
        add(name, kind, False)
    return found, groups
