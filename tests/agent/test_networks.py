"""Every backbone reads what it is given, with layers of their own."""

from typing import get_args

import pytest
import torch
from torch import nn

from agent.config import NetworkConfig
from agent.networks.core import minmax
from agent.networks.model import StochasticMuZero
from agent.networks.representation import Backbone, ChanceEncoder, Representation

SHAPES = {"window": (16, 3), "account": (4,)}
KINDS: dict[str, dict[str, tuple[int, ...]]] = {
    "window and vector": SHAPES,
    "image and vector": {"picture": (3, 14, 18), "account": (4,)},
    "vector alone": {"observation": (6,)},
}


def _observations(batch: int, shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(batch, *shape, generator=generator) for name, shape in shapes.items()}


def _representation(backbone: Backbone, shapes: dict[str, tuple[int, ...]] = SHAPES) -> Representation:
    torch.manual_seed(1)
    return Representation(shapes, backbone=backbone, width=64, depth=2, latent=32)


@pytest.mark.parametrize("backbone", get_args(Backbone))
def test_latents_fill_the_unit_range(backbone: Backbone) -> None:
    latent = _representation(backbone)(_observations(5)).detach()
    assert latent.shape == (5, 32)
    assert float(latent.min()) == 0.0
    assert float(latent.max()) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("shapes", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("backbone", get_args(Backbone))
def test_changing_one_layer_changes_the_output_and_no_other_layer(
    backbone: Backbone, shapes: dict[str, tuple[int, ...]]
) -> None:
    """A list of one layer repeated would pass a shape test; here each parameter must be its own and must matter."""
    representation = _representation(backbone, shapes)
    observations = _observations(4, shapes)
    before = representation(observations).detach().clone()
    names = [name for name, _ in representation.named_parameters()]
    assert len({p.data_ptr() for p in representation.parameters()}) == len(names)
    for name, parameter in representation.named_parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
        changed = not torch.equal(representation(observations), before)
        with torch.no_grad():
            parameter.copy_(kept)
        # Attention ignores a shift of all keys: softmax is invariant to it. That is the one exception.
        if not name.endswith("in_proj_bias"):
            assert changed, name
    torch.testing.assert_close(representation(observations), before)


@pytest.mark.parametrize("shapes", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("backbone", get_args(Backbone))
def test_gradient_reaches_every_parameter_and_every_input(
    backbone: Backbone, shapes: dict[str, tuple[int, ...]]
) -> None:
    representation = _representation(backbone, shapes)
    observations = {name: entry.requires_grad_() for name, entry in _observations(8, shapes).items()}
    (representation(observations) - 0.3).square().sum().backward()
    for name, entry in observations.items():
        assert entry.grad is not None, name
        assert bool((entry.grad.abs().sum(0) > 0).all()), name
    for name, parameter in representation.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


@pytest.mark.parametrize("backbone", get_args(Backbone))
def test_the_chance_encoder_sees_a_single_changed_number(backbone: Backbone) -> None:
    for shapes in KINDS.values():
        torch.manual_seed(1)
        encoder = ChanceEncoder(shapes, backbone=backbone, width=32, depth=1, codes=4)
        before = _observations(2, shapes)
        after = {name: entry.clone() for name, entry in before.items()}
        unchanged = encoder(before, after).detach()
        for name, entry in after.items():
            entry.flatten()[-1] += 1.0
            assert not torch.equal(encoder(before, after)[-1], unchanged[-1]), name
            entry.flatten()[-1] -= 1.0


@pytest.mark.parametrize("backbone", ["mlp", "resnet"])
def test_a_dark_picture_says_as_much_as_a_bright_one(backbone: Backbone) -> None:
    """Nothing but the picture is in the first latent: what is small in it is not drowned by biases."""
    shapes: dict[str, tuple[int, ...]] = {"picture": (1, 20, 10)}
    representation = _representation(backbone, shapes)
    pictures = _observations(6, shapes)
    dark = {name: 0.05 * picture for name, picture in pictures.items()}
    torch.testing.assert_close(representation(dark), representation(pictures), atol=0.02, rtol=0)


@pytest.mark.parametrize("backbone", get_args(Backbone))
def test_every_bar_of_the_window_matters(backbone: Backbone) -> None:
    representation = _representation(backbone)
    observations = _observations(2)
    observations["window"].requires_grad_(True)
    representation(observations).square().sum().backward()
    gradient = observations["window"].grad
    assert gradient is not None
    assert bool((gradient.abs().sum(-1) > 0).all())


def test_minmax_of_a_constant_row_is_finite() -> None:
    assert torch.equal(minmax(torch.full((2, 8), 3.0)), torch.zeros(2, 8))


def test_minmax_has_the_gradient_of_its_formula() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(minmax, (x,))


def test_export_gives_the_compiled_search_the_same_numbers() -> None:
    torch.manual_seed(0)
    model = StochasticMuZero(SHAPES, 3, NetworkConfig(latent=16, hidden=24, codes=4, support_atoms=11))
    for head in (model.core.chance_head, model.core.reward_head, model.core.q_head, model.core.value_head):
        nn.init.normal_(head.weight, std=0.3)
    weights = model.core.export()
    assert weights.phi_w1.shape == (16, 24)
    latent = torch.rand(7, 16)
    code = torch.nn.functional.one_hot(torch.arange(7) % 4, 4).float()
    after = latent + torch.from_numpy(weights.code_embedding)[torch.arange(7) % 4]
    mean, variance = after.mean(-1, keepdim=True), after.var(-1, keepdim=True, correction=0)
    normed = (after - mean) / (variance + 1e-5).sqrt() * torch.from_numpy(weights.g_gain)
    normed = normed + torch.from_numpy(weights.g_bias)
    hidden = torch.relu(normed @ torch.from_numpy(weights.g_w1) + torch.from_numpy(weights.g_b1))
    out = after + hidden @ torch.from_numpy(weights.g_w2) + torch.from_numpy(weights.g_b2)
    reward = (hidden @ torch.from_numpy(weights.reward_w) + torch.from_numpy(weights.reward_b)).softmax(-1)
    state, reward_logits = model.core.dynamics(latent, code)
    torch.testing.assert_close(minmax(out), state, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        reward @ torch.from_numpy(weights.reward_atoms), model.core.read(reward_logits), rtol=1e-4, atol=1e-4
    )
