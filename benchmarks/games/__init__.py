"""Small games of our own, registered with Gymnasium when this package is imported.

`gymnasium.make("benchmarks.games:smu0/2048-v0")` imports it by itself.
"""

import gymnasium as gym

for _id, _entry in {"2048": "twenty48:Twenty48", "TicTacToe": "tictactoe:TicTacToe"}.items():
    gym.register(
        f"smu0/{_id}-v0",
        entry_point=f"benchmarks.games.{_entry}Env",
        vector_entry_point=f"benchmarks.games.{_entry}VectorEnv",
        # The games check their moves themselves, and a masked action space is more than Gymnasium's checker knows.
        disable_env_checker=True,
        order_enforce=False,
    )
