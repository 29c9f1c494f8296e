"""Scalars as distributions: hand values, an inverse pair, and the mean that must not be biased."""

import numpy as np
import pytest
import torch

from agent.networks.support import expectation, inverse_transform, support_atoms, transform, two_hot

ATOMS = torch.from_numpy(support_atoms(50.0, 51))


@pytest.mark.parametrize(("x", "h"), [(1.0, 0.41521356), (100.0, 9.1498756), (-2.5, -0.8733287), (0.0, 0.0)])
def test_transform_hand_values(x: float, h: float) -> None:
    assert transform(np.array([x]))[0] == pytest.approx(h, abs=1e-7)


def test_transform_and_inverse_are_a_pair() -> None:
    x = np.concatenate([-np.logspace(-6, 4, 50), [0.0], np.logspace(-6, 4, 50)])
    np.testing.assert_allclose(inverse_transform(transform(x)), x, rtol=1e-9, atol=1e-10)


def test_atoms_are_symmetric_and_reach_the_limit() -> None:
    atoms = support_atoms(50.0, 51)
    np.testing.assert_allclose(atoms, -atoms[::-1], atol=1e-6)
    assert atoms[-1] == pytest.approx(50.0, rel=1e-6)
    assert atoms[25] == 0.0


def test_every_two_hot_row_sums_to_one_and_has_the_scalar_as_mean() -> None:
    x = torch.linspace(-49.9, 49.9, 999)
    rows = two_hot(x, ATOMS)
    torch.testing.assert_close(rows.sum(-1), torch.ones(999))
    assert int((rows > 0).sum(-1).max()) <= 2
    assert bool((rows >= 0).all())
    torch.testing.assert_close(rows @ ATOMS, x, rtol=1e-5, atol=1e-5)


def test_scalars_beyond_the_support_are_clipped() -> None:
    rows = two_hot(torch.tensor([-1e9, 1e9]), ATOMS)
    torch.testing.assert_close(rows @ ATOMS, torch.tensor([-50.0, 50.0]))


def test_the_mean_of_noisy_returns_is_unbiased() -> None:
    """The reason for interpolating in raw units: transformed units would shrink this mean by a third."""
    generator = torch.Generator().manual_seed(0)
    returns = 0.5 + 3.0 * torch.randn(200_000, generator=generator)
    learnt = two_hot(returns, ATOMS).mean(0)  # what cross-entropy converges to
    assert expectation(learnt.clamp(min=1e-30).log(), ATOMS).item() == pytest.approx(returns.mean().item(), abs=1e-3)
    in_transformed_units = inverse_transform(np.array([transform(returns.double().numpy()).mean()]))[0]
    assert in_transformed_units < 0.7 * returns.mean().item()


@pytest.mark.parametrize(("limit", "count"), [(50.0, 50), (50.0, 1), (0.0, 51), (-1.0, 51)])
def test_bad_supports_are_refused(limit: float, count: int) -> None:
    with pytest.raises(ValueError, match="support needs"):
        support_atoms(limit, count)
