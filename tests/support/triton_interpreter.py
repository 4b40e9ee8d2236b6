"""Runs Triton kernels on CPU tensors, in this process, with the arithmetic of a GPU and a check of every byte they touch.

``with interpreted() as launches:`` makes each ``kernel[grid](...)`` of a ``triton.jit`` function run in Triton's interpreter, mended by
``support.triton_numerics`` and watched by ``support.triton_sanitizer``, and makes ``ms4_kernels.dispatch`` choose Triton for CPU tensors.
``launches`` fills with one record per launch. On exit all is as before, so that the same kernels can also be compiled ahead of time.
Exercise it: ``pytest tests/test_triton_interpreter.py``.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import triton.language as tl
from support.triton_numerics import repairs
from support.triton_sanitizer import Launch, Launches, MisalignedError, OutOfBoundsError, RaceError, Traffic, Watch, watching
from triton import knobs
from triton.backends.amd.compiler import HIPOptions
from triton.backends.nvidia.compiler import CUDAOptions
from triton.runtime import autotuner, interpreter
from triton.runtime.jit import JITFunction, mangle_type
from triton.tools.tensor_descriptor import TensorDescriptor

from ms4_kernels import dispatch

__all__ = ["Launch", "Launches", "MisalignedError", "OutOfBoundsError", "RaceError", "Traffic", "interpreted"]

_OPTIONS = {field.name for kind in (CUDAOptions, HIPOptions) for field in dataclasses.fields(kind)} | {"grid", "warmup"}
_MISSING = object()


@dataclasses.dataclass
class _Context:
    launches: Launches
    check: bool


_contexts: list[_Context] = []  # innermost last
_running: list[Watch] = []  # that of the launch under way, if any
_rewritten: dict[Callable, Callable] = {}  # source of a kernel or helper -> its interpreted form
_language: list[tuple[Any, str, Any]] = []  # replacements in triton.language while a kernel runs


@contextmanager
def interpreted(*, check: bool = True) -> Iterator[Launches]:
    """Interpret every launch inside the ``with`` block.

    Args:
        check: whether accesses out of bounds, races between programs and overflowing int32 arithmetic raise. Without it nothing is
            checked, and records lack the counts of unique bytes.

    Yields:
        The records of the launches so far, in order. Where contexts nest, the innermost gets the record.

    Raises (from a launch):
        OutOfBoundsError: an access outside the tensor whose pointer it used.
        RaceError: two programs of a launch wrote one byte, or one read what another wrote.
        OverflowError: signed arithmetic of fewer than 64 bits overflowed.
    """
    if knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: kernels then cannot be compiled in this process; unset it")
    context = _Context(Launches(), check)
    undo = [] if _contexts else _replace(_replacements())
    _contexts.append(context)
    dispatch._choose.cache_clear()
    try:
        yield context.launches
    finally:
        _contexts.pop()
        _restore(undo)
        dispatch._choose.cache_clear()


def _replacements() -> Iterator[tuple[Any, str, Any]]:
    real = dispatch.runs_triton
    yield dispatch, "runs_triton", lambda device: device.type == "cpu" or real(device)
    yield JITFunction, "run", _run
    yield JITFunction, "__call__", _call
    yield autotuner.Autotuner, "run", _run_first_configuration
    yield from repairs(lambda count: _running[-1].count_dot(count), lambda: _contexts[-1].check)
    yield from watching(lambda: _running[-1])


def _replace(changes: Iterator[tuple[Any, str, Any]] | list[tuple[Any, str, Any]]) -> list[tuple[Any, str, Any]]:
    """Sets attributes, and returns what puts them back, last first."""
    undo = []
    for owner, name, new in list(changes):
        undo.append((owner, name, vars(owner).get(name, _MISSING)))
        setattr(owner, name, new)
    return undo[::-1]


def _restore(undo: list[tuple[Any, str, Any]]) -> None:
    for owner, name, old in undo:
        if old is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, old)


def _language_replacements() -> list[tuple[Any, str, Any]]:
    """What Triton's interpreter replaces in ``triton.language``, found out once; it would search the modules at every launch."""
    if not _language:
        scope = interpreter._patch_lang(types.FunctionType((lambda: None).__code__, {"tl": tl, "core": tl.core}))
        _language.extend((owner, name, vars(owner)[name]) for owner, name, _ in dict.fromkeys(scope._changes))
        scope.restore()
        # `x.sum()`: a jit function among the methods of a tensor would be called without the tensor.
        methods = [(name, member) for name, member in vars(tl.tensor).items() if isinstance(member, JITFunction)]
        _language.extend((tl.tensor, name, lambda *args, member=member, **kwargs: member(*args, **kwargs)) for name, member in methods)
    return _language


def _run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
    """In place of ``JITFunction.run``: every program of the grid, one after the other."""
    if warmup:
        return
    unknown = kwargs.keys() - set(self.arg_names) - _OPTIONS
    if unknown:
        raise TypeError(f"{self.__name__} has no argument and no launch option {sorted(unknown)}")
    for hook in self.pre_run_hooks:
        hook(*args, **kwargs)
    bound = inspect.signature(self.fn).bind(*args, **{name: value for name, value in kwargs.items() if name in self.arg_names})
    bound.apply_defaults()
    sizes = _grid(grid(bound.arguments) if callable(grid) else grid)
    context = _contexts[-1]
    watch = Watch(Launch(self.__name__, sizes), context.check)
    context.launches.append(watch.launch)
    undo = _replace(_language_replacements())
    _running.append(watch)
    try:
        constants = {param.name for param in self.params if param.is_constexpr}
        arguments = {name: value if name in constants else _converted(value, name, watch) for name, value in bound.arguments.items()}
        watch.begin()
        _run_programs(_interpretable(self.fn), arguments, watch)
        watch.finish()
    finally:
        _running.pop()
        _restore(undo)


def _grid(grid: Any) -> tuple[int, int, int]:
    sizes = tuple(int(size) for size in (grid if isinstance(grid, tuple | list) else (grid,)))
    x, y, z = sizes + (1,) * (3 - len(sizes))
    if not (0 <= x < 2**31 and 0 <= y < 2**16 and 0 <= z < 2**16):
        raise ValueError(f"no GPU takes the grid {(x, y, z)}: at most 2^31 - 1, 65535 and 65535 programs")
    return x, y, z


def _run_programs(function: Callable, arguments: dict[str, Any], watch: Watch) -> None:
    builder = interpreter.interpreter_builder
    builder.set_grid_dim(*watch.launch.grid)
    try:
        # Overflow and 0 / 0 in masked lanes are what hardware computes too.
        with np.errstate(all="ignore"):
            for program in np.ndindex(*watch.launch.grid):
                builder.set_grid_idx(*program)
                watch.program = program
                function(**arguments)
    except Exception as error:
        error.add_note(f"in program {watch.program} of {watch.launch.grid} of kernel {watch.launch.kernel}")
        raise


def _call(self: JITFunction, *args: Any, **kwargs: Any) -> Any:
    """In place of ``JITFunction.__call__``: a kernel calls a helper."""
    if not _running:
        raise RuntimeError(f"{self.__name__} is called outside a kernel; launch it with [grid]")
    return _interpretable(self.fn)(*args, **kwargs)


def _run_first_configuration(self: autotuner.Autotuner, *args: Any, **kwargs: Any) -> Any:
    """In place of ``Autotuner.run``, which would time the configurations on a GPU."""
    configuration = self.configs[0]
    self.nargs = dict(zip(self.arg_names, args, strict=False))
    if configuration.pre_hook is not None:
        configuration.pre_hook({**self.nargs, **kwargs, **configuration.all_kwargs()})
    return self.fn.run(*args, **kwargs, **configuration.all_kwargs())


def _converted(value: Any, name: str, watch: Watch) -> Any:
    """A run-time argument as the kernel sees it: tensors as pointers, numbers as scalars of the type that the launcher would pass."""
    if isinstance(value, TensorDescriptor):
        descriptor = interpreter._implicit_cvt(value)
        descriptor.handle.base.attr["argument"] = watch.add_argument(name, value.base)
        return descriptor
    if isinstance(value, tuple):
        parts = [_converted(part, f"{name}[{index}]", watch) for index, part in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else tl.tuple(parts)
    if isinstance(value, bool | float):
        kind, data = (tl.int1, np.bool_) if isinstance(value, bool) else (tl.float32, np.float32)
        return tl.tensor(interpreter.TensorHandle(np.array([value], dtype=data), kind), kind)
    if not hasattr(value, "data_ptr"):
        return interpreter._implicit_cvt(value)
    if value.device.type != "cpu":
        raise ValueError(f"argument {name} is on {value.device}; the interpreter takes CPU tensors")
    kind: Any = tl.str_to_ty(mangle_type(value), None)
    handle = interpreter.TensorHandle(np.array([value.data_ptr()], dtype=np.uint64), kind)
    handle.attr["argument"] = watch.add_argument(name, value)
    return tl.tensor(handle, kind)


def _interpretable(function: Callable) -> Callable:
    """The function with each assigned value turned into a tensor, as the compiler does; it shares globals and closure with the original."""
    if function not in _rewritten:
        lines, first = inspect.getsourcelines(function)
        start = next(index for index, line in enumerate(lines) if line.lstrip().startswith("def "))
        tree = interpreter.ASTTransformer().visit(ast.parse(textwrap.dedent("".join(lines[start:]))))
        tree.body[0].decorator_list = []
        ast.increment_lineno(tree, first + start - 1)
        # The names that come from outside become variables of an enclosing function, which make up the closure.
        cells = {"interpreter_semantic": types.CellType(interpreter.interpreter_semantic)}
        cells.update(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        names = ast.arguments([], [ast.arg(name) for name in cells], None, [], [], None, [])
        outer: Any = ast.FunctionDef(name="enclosing", args=names, body=tree.body, decorator_list=[], lineno=1, col_offset=0)
        outer.type_params = []  # required from Python 3.12 on
        module = compile(ast.fix_missing_locations(ast.Module([outer], [])), inspect.getfile(function), "exec")
        code = _nested(_nested(module, "enclosing"), function.__name__)
        closure = tuple(cells[name] for name in code.co_freevars)
        _rewritten[function] = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    return _rewritten[function]


def _nested(code: types.CodeType, name: str) -> types.CodeType:
    return next(part for part in code.co_consts if isinstance(part, types.CodeType) and part.co_name == name)
