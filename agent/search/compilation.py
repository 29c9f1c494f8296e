"""How the search's kernels are compiled: three things numba does not do by itself, kept in one place.

**No reference counting.** The kernels pass arrays around in named tuples and allocate nothing. numba counts a
reference, atomically, each time such a field is read, which took 85% of the time of a tree step where it was
measured (docs/decisions/0031). numba's `_nrt=False` compiles without its run-time memory management, so there is
nothing to count; a kernel that did allocate would fail to compile.

**One piece of machine code.** Every kernel is copied into the entry that calls it. Left to itself, numba also compiles
each kernel on its own, and the process that compiles calls that copy, while a process that finds the entry in the cache
calls the one inside it. The two are optimised in different surroundings and round differently, so the very first run
on a machine gave other numbers than every later one (tests/agent/search/test_first_run.py).

**Wide vectors.** On processors with 512-bit vectors LLVM prefers 256 bits, because on the first of them wide
arithmetic lowered the clock. For loops that do nothing but multiply and add the wide form is faster, by a third
where it was measured (docs/decisions/0030). The hint is an attribute of the function that calls
`prefer_wide_vectors`; where there are no such vectors LLVM ignores it.
"""

from collections.abc import Callable
from typing import Any

from numba import njit, types
from numba.extending import intrinsic

# Products and sums may be contracted into fused multiply-adds, and zeros may lose their sign. No reassociation:
# it would let the compiler sum in an order that depends on the number of rows.
FIXED_ORDER = frozenset({"contract", "nnan", "ninf", "nsz", "arcp"})
# Sums along a row may be reordered: every row goes through the same instructions anyway.
ANY_ORDER = FIXED_ORDER | {"reassoc"}

_WIDE = ('"prefer-vector-width"="512"', '"min-legal-vector-width"="512"')


def compiled(*, fastmath: frozenset[str] = frozenset(), entry: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Compile a kernel, on its first call, without reference counting.

    fastmath: liberties taken with floating point; none by default. entry: it is called from Python: release the GIL
    and cache the machine code on disk.
    """
    # error_model: a division is a division, as in numpy, without a test that raises ZeroDivisionError.
    options: dict[str, Any] = {"_nrt": False, "forceinline": not entry, "error_model": "numpy"}
    if fastmath:
        options["fastmath"] = set(fastmath)
    if entry:
        options |= {"nogil": True, "cache": True}
    decorator: Callable[[Callable[..., Any]], Any] = njit(**options)
    return decorator


@intrinsic
def prefer_wide_vectors(typing_context: Any) -> Any:
    """Ask for wide vectors in the calling compiled function."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        attributes = builder.function.attributes
        # llvmlite's own `add` accepts only attributes without a value; the set it is built on takes any text.
        if isinstance(attributes, set):
            for attribute in _WIDE:
                set.add(attributes, attribute)
        return context.get_dummy_value()

    return types.void(), generate
