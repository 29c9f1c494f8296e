"""The market's side of the conversation: bars replayed with stochastic fills, costs, margin and liquidation.

Importing this package registers the Gymnasium ids; the modules behind them load when an environment is made.
"""

from gymnasium.envs.registration import register

# id -> (module, scalar env, vector env)
_ENVIRONMENTS = {
    "smu0/Market-v0": ("market_env.defaults", "make_env", "make_vector_env"),
}


def _register_all() -> None:
    for env_id, (module, scalar, vector) in _ENVIRONMENTS.items():
        register(
            id=env_id,
            entry_point=f"{module}:{scalar}",
            vector_entry_point=f"{module}:{vector}",
            order_enforce=True,
        )


_register_all()
