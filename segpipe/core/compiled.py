"""How the loops of this package are compiled: by numba, once for each machine, kept on disk."""

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
_SECONDS = 30  # of compiling everything, on one slow core


def kernel(function: Function) -> Function:
    """Compile a function on its first call, without Python's lock; kept on disk where there is a folder for it."""
    return _compiled(function)


def kernel_without_nan(function: Function) -> Function:
    """As `kernel`, of a function that meets no NaN: then a minimum takes several values in one step. Nothing else is
    reordered, so results are the same to the last bit."""
    return _compiled(function, fastmath={"nnan", "nsz"})


def _compiled(function: Function, **options: Any) -> Function:
    compiled: Any
    try:
        compiled = numba.njit(cache=True, nogil=True, **options)(function)
    except RuntimeError:  # no folder to keep compiled code in: compile again in each process
        compiled = numba.njit(nogil=True, **options)(function)
    return compiled


@lru_cache(maxsize=64)
def say_first_use(function: Any) -> None:
    """A word to the person who waits if a kernel is to be compiled at its first call; one word for all of them."""
    text = first_use_text(function)
    if text:
        _say_once(text)


_say_once = lru_cache(maxsize=1)(say)


def first_use_text(function: Any) -> str | None:
    """What to say before a kernel's first call if it is to be compiled then; None if it lies on disk.

    Args:
        function: What `kernel` returned.
    """
    source, folder = Path(function.py_func.__code__.co_filename), function.stats.cache_path
    kept = Path(folder).glob(f"{source.stem}.{function.__name__}-*.nbi") if folder else ()
    if any(file.stat().st_mtime >= source.stat().st_mtime for file in kept):
        return None
    again = "once for this machine" if folder else "in every process, since no folder for compiled code is writable"
    return f"compiling the metrics, {again}: up to {_SECONDS} s"


def _of_word(instruction: Callable[[Any, Any], Any]) -> Any:
    """A kernel of one processor instruction on a 64-bit word."""

    def typed(context: Any, word: Any) -> Any:  # noqa: ARG001 (numba's signature)
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
            return instruction(builder, arguments[0])

        return numba.uint64(numba.uint64), generate

    return intrinsic(typed)


_DEFINED = ir.Constant(ir.IntType(1), 0)  # a word without a bit has 64 zeros
trailing_zeros = _of_word(lambda builder, word: builder.cttz(word, _DEFINED))
leading_zeros = _of_word(lambda builder, word: builder.ctlz(word, _DEFINED))
count_ones = _of_word(lambda builder, word: builder.ctpop(word))
