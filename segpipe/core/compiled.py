"""Compilation of the loops of this package: by numba, once per machine, kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numba
from llvmlite import ir
from numba.extending import intrinsic

from segpipe.core.progress import say

Function = TypeVar("Function", bound=Callable[..., Any])
_SECONDS = 30  # to compile everything on one slow core


def kernel(function: Function) -> Function:
    """Compile a function on its first call, to run without Python's lock; kept on disk where a folder is writable."""
    return _compile(function)


def kernel_without_nan(function: Function) -> Function:
    """Compile a function that meets no NaN: a minimum then takes several values in one step.

    Nothing else is reordered, so results are the same to the last bit.
    """
    return _compile(function, fastmath={"nnan", "nsz"})


def _compile(function: Function, **options: Any) -> Function:
    compiled: Any
    try:
        compiled = numba.njit(cache=True, nogil=True, **options)(function)
    except RuntimeError:  # no folder is writable: compile again in each process
        compiled = numba.njit(nogil=True, **options)(function)
    return compiled


@lru_cache(maxsize=64)
def say_first_use(function: Any) -> None:
    """Announce a compilation before a kernel's first call, once for all kernels."""
    text = first_use_text(function)
    if text:
        _say_once(text)


_say_once = lru_cache(maxsize=1)(say)


def first_use_text(function: Any) -> str | None:
    """The announcement before a kernel's first call; None if its code is on disk already.

    Args:
        function: A result of `kernel`.
    """
    source, folder = Path(function.py_func.__code__.co_filename), function.stats.cache_path
    kept = Path(folder).glob(f"{source.stem}.{function.__name__}-*.nbi") if folder else ()
    if any(file.stat().st_mtime >= source.stat().st_mtime for file in kept):
        return None
    scope = "once on this machine" if folder else "in every process, because no folder for compiled code is writable"
    return f"compiling the metrics, {scope}: up to {_SECONDS} s"


def _word_kernel(instruction: Callable[[Any, Any], Any]) -> Any:
    """Make a kernel of one processor instruction on a 64-bit word."""

    def with_type(context: Any, word: Any) -> Any:  # noqa: ARG001 (numba's signature)
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
            return instruction(builder, arguments[0])

        return numba.uint64(numba.uint64), generate

    return intrinsic(with_type)


_DEFINED = ir.Constant(ir.IntType(1), 0)  # a word without a set bit has 64 zeros
trailing_zeros = _word_kernel(lambda builder, word: builder.cttz(word, _DEFINED))
leading_zeros = _word_kernel(lambda builder, word: builder.ctlz(word, _DEFINED))
count_ones = _word_kernel(lambda builder, word: builder.ctpop(word))
