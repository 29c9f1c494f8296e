"""A row's result is its own: the same bits alone, in any batch and on any number of threads."""

import numpy as np
import pytest

from agent.search import SearchConfig, SearchEngine
from agent.search.network_kernel import allocate_scratch, evaluate, pack


def assert_identical(found, expected, rows=slice(None)) -> None:
    for name in ("visits", "action_weights", "action", "q_values", "root_value", "depth", "chance_probabilities"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name)[rows], err_msg=name)


@pytest.mark.parametrize("root", ["puct", "gumbel"])
def test_a_row_alone_has_the_bits_it_has_in_a_batch(small_core, random_roots, root) -> None:
    weights = small_core(codes=8, latent=70, hidden=130)
    roots = random_roots(batch=41, latent=70)
    engine = SearchEngine(SearchConfig(simulations=30, root=root, chance_selection="sampled"), weights)
    together = engine.search(**roots.arguments, explore=True)
    for row in range(41):
        assert_identical(engine.search(**roots.rows([row]), explore=True), together, [row])


def test_order_in_the_batch_does_not_matter(small_core, random_roots) -> None:
    roots = random_roots(batch=20)
    engine = SearchEngine(SearchConfig(simulations=30), small_core())
    order = list(np.random.default_rng(1).permutation(20))
    assert_identical(engine.search(**roots.rows(order)), engine.search(**roots.arguments), order)


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_the_number_of_threads_does_not_matter(small_core, random_roots, threads) -> None:
    weights = small_core(codes=8)
    roots = random_roots(batch=90)
    options = {"simulations": 30, "chance_selection": "sampled"}
    one = SearchEngine(SearchConfig(threads=1, **options), weights).search(**roots.arguments, explore=True)
    many = SearchEngine(SearchConfig(threads=threads, **options), weights).search(**roots.arguments, explore=True)
    assert_identical(many, one)


def test_searching_again_gives_the_same(small_core, random_roots) -> None:
    """Memory is reused between searches of other sizes; nothing of them may remain."""
    engine = SearchEngine(SearchConfig(simulations=40), small_core())
    roots = random_roots(batch=6)
    first = engine.search(**roots.arguments, explore=True)
    engine.search(**random_roots(batch=33, seed=9).arguments, simulations=90)
    assert_identical(engine.search(**roots.arguments, explore=True), first)


def test_other_seeds_give_other_noise(small_core, random_roots) -> None:
    engine = SearchEngine(SearchConfig(simulations=40), small_core())
    arguments = random_roots(batch=6, masked=False).arguments
    first = engine.search(**arguments, explore=True)
    other = engine.search(**{**arguments, "seeds": arguments["seeds"] + np.uint64(1)}, explore=True)
    assert (first.visits != other.visits).any()


@pytest.mark.parametrize("kind", [0, 1])
def test_the_network_gives_a_row_the_same_bits_in_a_group_of_any_size(small_core, kind) -> None:
    """The property behind the others: products are summed in an order that does not depend on the group."""
    weights = small_core(latent=70, hidden=130, codes=8)
    params, layout, shape = pack(weights, np.float32)
    edges = (8, 3)[kind]
    embedded = np.random.default_rng(0).standard_normal((9, shape.latent_width)).astype(np.float32)
    embedded[:, 70:] = 0.0

    def run(rows: list[int]) -> list[np.ndarray]:
        scratch = allocate_scratch(shape, len(rows), np.float32)
        scratch.embedded[:] = embedded[rows].ravel()
        evaluate(kind, len(rows), edges, params, layout, shape, scratch)
        outputs = [scratch.latent, scratch.heads] + ([scratch.reward] if kind == 1 else [])
        return [output.reshape(len(rows), -1).copy() for output in outputs]

    alone = [run([row]) for row in range(9)]
    for size in range(2, 10):
        for output, singles in zip(run(list(range(size))), zip(*alone, strict=True), strict=True):
            for row in range(size):
                np.testing.assert_array_equal(output[row, : singles[row].shape[1]], singles[row][0])
