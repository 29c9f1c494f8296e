"""One decorator for every compiled function of this package.

Numba's on-disk cache notices a change in the file a function stands in, not in the files of the functions it
calls. Here a driver in `kernel.py` inlines formulas from `fills.py`, `costs.py`, `rewards.py` and `rng.py`, so an
edit there would leave a stale driver in the cache that still trades by the old formula. `compiled` therefore
stamps every cache entry with a hash over the sources of all the compiled modules: touch one, and all recompile.
"""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar, cast

from numba import njit

_Function = TypeVar("_Function", bound=Callable[..., object])

_COMPILED_MODULES = (
    "_compile.py", "analytic_kernel.py", "costs.py", "fills.py", "kernel.py", "rewards.py", "rng.py", "rows.py",
    "snapshot.py"
)  # fmt: skip


@cache
def source_stamp() -> str:
    """Hex hash over the sources of the modules that hold compiled code."""
    digest = hashlib.sha256()
    for name in _COMPILED_MODULES:
        path = Path(__file__).with_name(name)
        digest.update(path.read_bytes() if path.exists() else b"absent")
    return digest.hexdigest()


def inlined(function: _Function) -> _Function:
    """`compiled`, but always merged into its callers by LLVM: for the arithmetic inside the loops.

    For functions of numbers and rows. An array argument would be reference-counted at each call even when inlined.
    """
    return cast(_Function, njit(nogil=True, error_model="numpy", forceinline=True)(function))


def compiled(function: _Function) -> _Function:
    """`numba.njit` with this package's settings: cached, GIL-free, IEEE arithmetic.

    No `fastmath`: the same operations in the same order must give the same float64 in every driver. Division
    follows IEEE (`error_model="numpy"`): the callers guard their denominators.
    """
    dispatcher = njit(cache=True, nogil=True, error_model="numpy")(function)
    index = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if index is not None and hasattr(index, "_source_stamp"):  # absent under NUMBA_DISABLE_JIT
        index._source_stamp = source_stamp()
    return cast(_Function, dispatcher)
