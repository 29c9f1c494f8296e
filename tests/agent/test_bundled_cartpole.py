"""The bundled CartPole model is found by its name, describes itself, and balances the pole."""

from pathlib import Path

from agent.checkpoint import load_policy
from agent.evaluation import evaluate
from agent.planner import Planner
from configs.checkpoints import find_checkpoint
from configs.gymnasium_experiment import GymnasiumExperiment, parse_any

MODELS = Path(__file__).parents[2] / "models"


def test_the_bundled_cartpole_plays_as_its_card_says() -> None:
    place = find_checkpoint("cartpole", runs=Path("nowhere"), models=MODELS)
    policy = load_policy(place)
    experiment = parse_any(policy.metadata.experiment, str(place))
    assert isinstance(experiment, GymnasiumExperiment)
    assert experiment.env.id == "CartPole-v1"
    result = evaluate(
        experiment.environments().validation(4, 0), Planner(policy.model, experiment.agent.search), seed=0
    )
    assert result.score > 400  # of 500; the card has 100 episodes
    assert (place / "MODEL_CARD.md").is_file()
    assert (place / "weights.safetensors").stat().st_size < 2**20
