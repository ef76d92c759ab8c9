"""Scores of masks against references: anyone's masks, whatever made them.

`segpipe.evaluate` is a function of the public API and, once anything in here is imported, this package, since Python
gives a package's name in its parent to the package. So the package can be called as the function.
"""

import sys
from types import ModuleType
from typing import Any

# Still the function: the name is given to the package once it is imported. An import of segpipe would close a ring.
_evaluate = sys.modules["segpipe"].evaluate


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _evaluate(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
