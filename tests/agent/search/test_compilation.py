"""What compiling must not break: the cache, the memory, other threads."""

import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher

from agent.search import SearchConfig, SearchEngine, kernel


def test_the_cache_key_covers_every_file_that_is_compiled() -> None:
    """numba's cache notices changes only in the file of the kernel it stores; the rest is in the digest."""
    modules = [module for name, module in sys.modules.items() if name.startswith("agent.search.")]
    compiled = {
        value.py_func.__module__
        for module in modules
        for value in vars(module).values()
        if isinstance(value, Dispatcher)
    }
    hashed = {module.__name__ for module in kernel.COMPILED_MODULES}
    assert compiled - {kernel.__name__} <= hashed


def test_searches_from_several_threads_do_not_mix(small_core, random_roots) -> None:
    engine = SearchEngine(SearchConfig(simulations=40, threads=2), small_core())
    batches = [random_roots(batch=12, seed=seed).arguments for seed in range(4)]
    expected = [engine.search(**arguments) for arguments in batches]
    found: list = [None] * 4

    def work(index: int) -> None:
        for _ in range(20):
            found[index] = engine.search(**batches[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.q_values, other.q_values)


def test_arguments_are_neither_kept_nor_changed(small_core, random_roots) -> None:
    """The kernels count no references (compilation.py); the arrays they are handed must not notice."""
    engine = SearchEngine(SearchConfig(simulations=20), small_core())
    arguments = random_roots(batch=5).arguments
    copies = {name: value.copy() for name, value in arguments.items()}
    counts = {name: sys.getrefcount(value) for name, value in arguments.items()}
    for _ in range(10):
        engine.search(**arguments, explore=True)
    assert {name: sys.getrefcount(value) for name, value in arguments.items()} == counts
    for name, value in arguments.items():
        np.testing.assert_array_equal(value, copies[name])


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_a_hundred_thousand_searches_do_not_grow(small_core, random_roots) -> None:
    engine = SearchEngine(SearchConfig(simulations=4, threads=1), small_core())
    arguments = random_roots(batch=2).arguments
    for _ in range(5_000):
        engine.search(**arguments, explore=True)
    before = resident_bytes()
    for _ in range(100_000):
        engine.search(**arguments, explore=True)
    assert resident_bytes() - before < 2 * 2**20
