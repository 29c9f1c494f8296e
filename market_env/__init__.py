"""The market's side of the conversation: bars replayed with stochastic fills, costs, margin and liquidation.

Importing this package registers the Gymnasium ids; the modules behind them load when an environment is made.
"""

from gymnasium.envs.registration import register

# Verification markets: the best possible score is known (see `analytic.py`).
VERIFICATION_MARKETS = ("Regime", "MeanReversion", "Momentum", "Martingale", "Leak", "KnownMoves", "Barrier")

register(
    id="smu0/Market-v0",
    entry_point="market_env.defaults:make_env",
    vector_entry_point="market_env.defaults:make_vector_env",
)
for _name in VERIFICATION_MARKETS:
    register(
        id=f"smu0/{_name}-v0",
        entry_point="market_env.analytic_env:make_env",
        vector_entry_point="market_env.analytic_env:make_vector_env",
        kwargs={"market": _name},
    )
