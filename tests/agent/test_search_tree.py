"""The drawing of a search shows what the search counted."""

import io
import re

import numpy as np
import torch
from rich.console import Console

from agent.config import NetworkConfig
from agent.networks.model import StochasticMuZero
from agent.planner import Planner
from agent.search import SearchConfig
from agent.search_tree import draw


def test_the_drawing_accounts_for_every_simulation() -> None:
    torch.manual_seed(0)
    network = NetworkConfig(width=16, encoder_width=16, latent=8, hidden=16, codes=4, support_atoms=11)
    model = StochasticMuZero({"observation": (2,)}, 3, network)
    torch.nn.init.normal_(model.core.chance_head.weight, std=0.5)
    planner = Planner(model, SearchConfig(simulations=40))
    observation = {"observation": np.array([[0.3, -1.0]], np.float32)}
    result, _ = planner.plan(observation, action_mask=None, with_tree=True)
    assert result.trees is not None
    drawing = draw(result.trees, 0, action_names=lambda a: ["short", "flat", "long"][a], code_names={1: "up"}, depth=2)
    console = Console(file=io.StringIO(), width=200)
    console.print(drawing)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "41 visits" in text.splitlines()[0]  # the root's own evaluation and 40 simulations
    for action, name in enumerate(("short", "flat", "long")):
        line = next(line for line in text.splitlines() if name in line)
        assert f"{result.visits[0, action]} visits" in line
        assert f"Q {result.q_values[0, action]:+.3f}" in line
    # Under each action, its own evaluation and its outcomes (drawn or counted) make up its visits.
    blocks = re.split(r"\n(?=[├└]── (?:short|flat|long))", text)[1:]
    for block in blocks:
        first, *below = block.splitlines()
        own = int(re.search(r"(\d+) visits", first).group(1))  # type: ignore[union-attr]
        assert own == 1 + sum(int(re.search(r"(\d+) visit", line).group(1)) for line in below)  # type: ignore[union-attr]
    assert "code 1 (up)" in text
