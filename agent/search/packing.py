"""A model as the kernel reads it: one flat array of parameters and a table of where each piece starts."""

import numpy as np
from numpy.typing import NDArray

from agent.search import kernel, network_kernel
from agent.search.kernel import ModelArrays
from agent.search.network_kernel import NetworkShape
from agent.search.tables import TableModel
from agent.search.weights import CoreWeights


def pack_model(model: CoreWeights | TableModel, dtype: type[np.floating]) -> ModelArrays:
    """The model as the kernel reads it."""
    if isinstance(model, CoreWeights):
        params, layout, shape = network_kernel.pack(model, dtype)
        starts = np.cumsum([0, *model.action_factors[:-1]]).astype(np.int32)
        return ModelArrays(False, params, layout, starts, shape)
    # Looking under an action finds the afterstate's tables (kind 0), under a code the state's (kind 1).
    pieces: tuple[tuple[NDArray[np.floating], ...], ...] = (
        (np.maximum(model.chance_logits, -1e30), model.afterstate_values, np.zeros(0)),
        (model.policy_logits, model.values, model.rewards),
    )
    layout = np.zeros((2, network_kernel.PIECES), np.int64)
    layout[1, kernel.TABLE_LINKS] = model.afterstate_of.size
    end = 0
    for kind, tables in enumerate(pieces):
        for piece, table in enumerate(tables):
            layout[kind, piece] = end
            end += table.size
    params = np.concatenate([table.ravel() for tables in pieces for table in tables]).astype(dtype)
    links = np.concatenate((model.afterstate_of.ravel(), model.state_of.ravel())).astype(np.int32)
    shape = NetworkShape(model.num_actions, model.num_codes, 1, 0, 1, 1, 1)
    return ModelArrays(True, params, layout, links, shape)
