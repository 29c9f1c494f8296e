"""How the compiled functions of this package are made: four things numba does not do by itself.

**A cache that sees every source.** Numba's on-disk cache notices a change in the file a function stands in, not in the
files of the functions it calls. Here drivers inline formulas from `fills.py`, `costs.py`, `rewards.py` and `rng.py`, so
an edit there would leave a stale driver that still trades by the old formula. Every cache entry is therefore stamped
with a hash over all modules that hold compiled code: touch one, and all recompile.

**No reference counting.** Arrays handed from one compiled function to another are reference-counted with locked
instructions; per account and bar that would be a third of the time. `_nrt=False` compiles without numba's run-time
memory management: nothing is counted, and nothing can be allocated inside (the callers bring the memory).

**Wide vectors.** Where a processor has 512-bit vectors LLVM still prefers 256 bits; the loops over accounts are 6%
faster with the wide form. `prefer_wide_vectors` asks for it in the function that calls it (see also
docs/decisions/0030); processors without such vectors ignore it.

**IEEE arithmetic.** No `fastmath`: the same operations in the same order give the same float64 in every driver, one
lane at a time or eight. Division follows IEEE too (`error_model="numpy"`); callers guard their denominators.
"""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit, typeof, types
from numba.extending import intrinsic

_Function = TypeVar("_Function", bound=Callable[..., object])

_COMPILED_MODULES = (
    "_compile.py", "analytic_kernel.py", "costs.py", "fills.py", "kernel.py", "layout.py", "rewards.py", "rng.py",
    "rows.py", "snapshot.py",
)  # fmt: skip
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False}


@cache
def source_stamp() -> str:
    """Hex hash over the sources of the modules that hold compiled code."""
    digest = hashlib.sha256()
    for name in _COMPILED_MODULES:
        path = Path(__file__).with_name(name)
        digest.update(path.read_bytes() if path.exists() else b"absent")
    return digest.hexdigest()


def inlined(function: _Function) -> _Function:
    """A formula or a pass over lanes: merged into the compiled functions that call it."""
    return cast(_Function, njit(forceinline=True, **_OPTIONS)(function))


def compiled(function: _Function) -> _Function:
    """An entry point, called from Python: compiled on its first call and cached on disk."""
    dispatcher = njit(cache=True, **_OPTIONS)(function)
    index = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if index is not None and hasattr(index, "_source_stamp"):  # absent under NUMBA_DISABLE_JIT
        index._source_stamp = source_stamp()
    return cast(_Function, dispatcher)


def _wide_vectors(typing_context: Any) -> Any:
    """Ask for 512-bit vectors in the compiled function that calls this."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        attributes = builder.function.attributes
        if isinstance(attributes, set):  # llvmlite's own `add` refuses attributes with a value
            for attribute in ('"prefer-vector-width"="512"', '"min-legal-vector-width"="512"'):
                set.add(attributes, attribute)
        return context.get_dummy_value()

    return types.void(), generate


prefer_wide_vectors: Callable[[], None] = cast(Any, intrinsic(_wide_vectors))


def direct(function: Callable[..., Any], *arguments: object) -> Callable[..., Any]:
    """The machine code of a compiled function for arguments of these very types.

    Numba looks up the types of all arguments at each call, which takes longer than a single environment's whole step.
    The result trusts its caller instead: it must only be given arguments of the same types.
    """
    signature = tuple(typeof(argument) for argument in arguments)  # type: ignore[no-untyped-call]
    try:
        function.compile(signature)  # type: ignore[attr-defined]
        entry: Callable[..., Any] = function.overloads[signature].entry_point  # type: ignore[attr-defined]
    except AttributeError:  # no dispatcher (NUMBA_DISABLE_JIT), or one that hides its machine code
        return function
    return entry
