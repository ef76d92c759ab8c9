"""Scores of masks against references: anyone's masks, whatever made them.

`segpipe.evaluate` is a function of the public API and, once anything in here is imported, this package, since Python
gives a package's name in its parent to the package. So the package can be called as the function.
"""

import sys
from types import ModuleType
from typing import Any

import segpipe

_evaluate = segpipe.evaluate  # still the function: the name is given to the package when it is imported


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _evaluate(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
