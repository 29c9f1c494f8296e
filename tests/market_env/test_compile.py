"""The compiled code is what the sources say, and does IEEE arithmetic."""

import numpy as np

from market_env import _compile, analytic_kernel, kernel, rows
from market_env._compile import compiled, direct, inlined, source_stamp


def test_every_module_with_compiled_code_is_part_of_the_cache_stamp():
    """Else an edit there would leave stale machine code in the caches of its callers."""
    folder = _compile.Path(_compile.__file__).parent
    users = {
        path.name
        for path in folder.glob("*.py")
        if "import compiled" in path.read_text() or "import inlined" in path.read_text()
    }
    assert users <= set(_compile._COMPILED_MODULES)


def test_entry_points_carry_the_stamp():
    for function in (kernel.advance_one, kernel.run_series, rows.step_blocks, rows.step_one, analytic_kernel.step_rows):
        assert function._cache._cache_file._source_stamp == source_stamp()


def test_products_and_sums_are_not_fused():
    """A fused multiply-add rounds once: the same account would differ by how its loop was compiled."""

    @inlined
    def formula(a, b, c):
        return a * b + c

    @compiled
    def one(a, b, c):
        return formula(a, b, c)

    @compiled
    def many(values, out):
        for k in range(len(out)):
            out[k] = formula(values[k], values[k], -1.0)

    value = 1.0 + 2.0**-30
    out = np.empty(64)
    many(np.full(64, value), out)
    fused = 2.0**-29 + 2.0**-60
    assert one(value, value, -1.0) == 2.0**-29 != fused
    assert (out == 2.0**-29).all()


def test_the_direct_entry_is_the_same_function():
    @compiled
    def double(x):
        return 2.0 * x

    assert direct(double, 1.5)(4.0) == double(4.0) == 8.0
