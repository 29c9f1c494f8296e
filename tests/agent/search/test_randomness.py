"""The random numbers have the distributions they claim and depend on their address only."""

import numpy as np
import pytest
from numba import njit

from agent.search.randomness import CHANCE, ROOT_NOISE, dirichlet_noise, gumbel_noise, uniform, uniforms

SEEDS = np.arange(20_000, dtype=np.uint64)


def test_uniforms_are_uniform_and_uncorrelated() -> None:
    numbers = uniforms(SEEDS, ROOT_NOISE, 2)
    np.testing.assert_allclose(np.histogram(numbers, bins=10, range=(0, 1))[0] / numbers.size, 0.1, atol=0.005)
    assert abs(np.corrcoef(numbers.T)[0, 1]) < 0.03
    assert abs(np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]) < 0.03
    assert 0.0 < numbers.min() < numbers.max() < 1.0


def test_streams_are_independent() -> None:
    one, other = uniforms(SEEDS, ROOT_NOISE, 1)[:, 0], uniforms(SEEDS, CHANCE, 1)[:, 0]
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.03


def test_compiled_and_interpreted_numbers_agree() -> None:
    compiled = njit(lambda seed, index: uniform(seed, CHANCE, index))
    for seed, index in [(0, 0), (1, 2), (2**64 - 1, 2**40 + 5)]:
        interpreted = uniform(np.array([seed], np.uint64), np.array([CHANCE]), np.array([index], np.uint64))[0]
        assert compiled(np.uint64(seed), np.uint64(index)) == interpreted


def test_gumbel_noise_has_the_mean_and_variance_of_its_distribution() -> None:
    noise = gumbel_noise(SEEDS, 3)
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.02)
    assert noise.var() == pytest.approx(np.pi**2 / 6, rel=0.03)


@pytest.mark.parametrize("alpha", [0.03, 0.3, 2.0])
def test_dirichlet_noise_has_the_mean_and_variance_of_its_distribution(alpha) -> None:
    mask = np.ones((len(SEEDS), 4), np.bool_)
    mask[:, 1] = False
    noise = dirichlet_noise(SEEDS, mask, alpha)
    np.testing.assert_allclose(noise.sum(axis=1), 1.0)
    assert (noise[:, 1] == 0.0).all()
    np.testing.assert_allclose(noise[:, [0, 2, 3]].mean(axis=0), 1 / 3, atol=0.012)
    np.testing.assert_allclose(noise[:, 0].var(), (1 / 3) * (2 / 3) / (3 * alpha + 1), rtol=0.05)


def test_dirichlet_noise_survives_a_vanishing_alpha() -> None:
    noise = dirichlet_noise(SEEDS[:100], np.ones((100, 3), np.bool_), 1e-6)
    np.testing.assert_allclose(noise.sum(axis=1), 1.0)
