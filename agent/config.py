"""Everything about an agent that a user may set, with its unit and meaning."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agent.networks.representation import Backbone
from agent.search import SearchConfig


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NetworkConfig(_Config):
    """Sizes of the model."""

    backbone: Backbone = Field("mlp", description="how windows [T, F], images [K, H, W] and lone vectors are read")
    width: int = Field(256, ge=8, description="units of the backbone's layers")
    depth: int = Field(2, ge=1, description="layers (stages, levels) of the backbone")
    encoder_width: int = Field(128, ge=8, description="units of the chance encoder's layers")
    encoder_depth: int = Field(1, ge=1, description="layers of the chance encoder's backbone")
    latent: int = Field(128, ge=4, description="L, units of a latent state")
    hidden: int = Field(256, ge=4, description="H, hidden units of the recurrent core")
    codes: int = Field(32, ge=1, description="C, chance codes; 1 makes the model deterministic")
    action_bins: int = Field(
        11, ge=2, description="categories that stand for one continuous dimension of an action, evenly over its bounds"
    )
    support_limit: float = Field(
        50.0, gt=0, description="largest |value| and |reward| that can be told, in reward units"
    )
    support_atoms: int = Field(51, ge=3, description="V, atoms of value, reward and Q; odd")

    @model_validator(mode="after")
    def _odd_support(self) -> Self:
        if self.support_atoms % 2 == 0:
            raise ValueError(f"support_atoms must be odd so that zero is an atom; found {self.support_atoms}")
        return self


class SelfPlayConfig(_Config):
    """How experience is gathered."""

    num_envs: int = Field(64, ge=1, description="environments stepped together; their searches share one batch")
    temperature: float = Field(
        1.0, ge=0, description="exponent 1/temperature on visits when sampling an action (PUCT); 0 is greedy"
    )
    temperature_final: float = Field(1.0, ge=0, description="temperature at the end of `temperature_steps`")
    temperature_steps: int = Field(
        200_000, ge=1, description="environment steps over which temperature and noise fall linearly"
    )
    temperature_delay: int = Field(0, ge=0, description="environment steps before temperature and noise begin to fall")
    noise_final: float = Field(
        1.0, ge=0, le=1, description="share of search.dirichlet_fraction that is left at the end of `temperature_steps`"
    )


class ReplayConfig(_Config):
    """What is remembered and what is learnt from."""

    capacity_bytes: int = Field(512 * 1024**2, ge=2**16, description="memory bound of the stored steps, in bytes")
    capacity_steps: int = Field(30_000, ge=8, description="most environment steps kept, all envs together")
    window_fraction: float = Field(
        0.0,
        ge=0,
        le=1,
        description="learn from this newest fraction of all experience so far, once that is more than `window_steps`: "
        "the first, ignorant steps are forgotten soon, later more of them average out the noise; 0: all that is kept",
    )
    window_steps: int = Field(30_000, ge=1, description="newest steps that are always learnt from, with a window")
    min_steps: int = Field(2_000, ge=1, description="environment steps before learning starts")
    prioritised: bool = Field(False, description="sample in proportion to |root value − target|^alpha")
    priority_alpha: float = Field(0.6, ge=0, description="exponent α of the priorities")
    importance_beta: float = Field(0.4, ge=0, le=1, description="exponent β of the importance weights")
    n_step: int = Field(5, ge=1, description="rewards summed before the bootstrap, in steps")
    td_lambda: float | None = Field(
        None, ge=0, le=1, description="λ of TD(λ) over the same n_step horizon; none takes the n-step return"
    )
    correct_exploration: bool = Field(
        False,
        description="values and returns of the policy that does not explore, from the actions of the one that does: "
        "the search's value weighs its actions by visits^target_sharpness, and a return fades at an action that policy "
        "would hardly take (after V-trace and Retrace); false: what was done is what it is worth",
    )
    target_sharpness: float = Field(4.0, ge=1, description="exponent on visits of the policy that values are of")
    absorbing: bool = Field(
        False,
        description="learn what lies past the end of an episode that terminated: nothing, whatever is done there "
        "(MuZero App. G). A search that looks past the end needs it most where a whole game is shorter than the search",
    )
    reanalyse_ratio: float = Field(
        0.0, ge=0, description="stored steps searched anew per step of a batch (MuZero Unplugged)"
    )
    reanalyse_mode: Literal["share", "switch"] = Field(
        "share",
        description="share: that many after every update; switch: a whole batch with that probability, else none",
    )
    demonstrations: Path | None = Field(
        None, description="file of recorded episodes to learn from (python -m agent record)"
    )
    demonstration_ratio: float = Field(
        0.25, ge=0, le=1, description="share of a batch that comes from the demonstrations, once there is self-play too"
    )
    demonstration_updates: int | None = Field(
        None, ge=0, description="updates after which demonstrations are left alone; none: never"
    )
    counterfactual_ratio: float = Field(
        0.0,
        ge=0,
        description="steps lived again under other actions per environment step, where the environment can be set "
        "back to a stored state; batches mix both kinds in this proportion",
    )
    counterfactual_length: int = Field(16, ge=2, description="steps of each second life; the first action is random")
    counterfactual_hold: int = Field(
        1,
        ge=1,
        description="most steps for which a second life keeps its random first action; how many is drawn uniformly",
    )
    counterfactual_states: int = Field(
        32, ge=1, description="stored states that second lives begin from, the oldest replaced first"
    )


class LearnerConfig(_Config):
    """How the model is fitted."""

    batch_size: int = Field(256, ge=1, description="sequences per update")
    unroll: int = Field(5, ge=1, description="K, model steps unrolled from each sampled state")
    learning_rate: float = Field(1e-3, gt=0, description="peak step size of AdamW")
    learning_rate_final: float = Field(1e-4, ge=0, description="step size after `decay_updates` (cosine)")
    warmup_updates: int = Field(100, ge=0, description="updates over which the step size rises linearly")
    decay_updates: int = Field(20_000, ge=1, description="updates over which the step size falls (cosine)")
    weight_decay: float = Field(1e-4, ge=0, description="decoupled weight decay of AdamW")
    gradient_clip: float = Field(5.0, gt=0, description="largest norm of the whole gradient")
    value_weight: float = Field(0.5, ge=0, description="weight of the value and the afterstate-value loss")
    reward_weight: float = Field(1.0, ge=0, description="weight of the reward loss")
    policy_weight: float = Field(1.0, ge=0, description="weight of the policy loss")
    chance_weight: float = Field(1.0, ge=0, description="weight of the chance loss")
    commitment_weight: float = Field(
        0.02,
        ge=0,
        description="β, weight of the commitment loss; at 0.25 it freezes the first codes before they mean anything",
    )
    encoder_delay: int = Field(
        0,
        ge=0,
        description="updates before the chance encoder begins to learn. The first gradients of all only fit the mean "
        "reward and would pull every pair to one code; where that happens (2048), some hundred updates prevent it",
    )
    consistency_weight: float = Field(
        0.0,
        ge=0,
        description="weight of the distance between imagined latents and those of the observations that came "
        "(after EfficientZero); 0 leaves it out",
    )
    updates_per_env_step: float = Field(
        0.01, gt=0, description="updates per environment step; × batch_size = the replay ratio"
    )
    target_every: int = Field(
        0,
        ge=0,
        description="updates between copies of the weights into the target network, which reanalyse searches with "
        "and consistency compares with; 0: the present weights",
    )
    average: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay per update of the running mean of the weights (Polyak & Juditsky 1992), which then acts, is "
        "evaluated and becomes the best checkpoint; 0: the weights themselves",
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description="arithmetic of the forward pass (autocast); weights stay float32, float16 scales its loss",
    )
    compile: bool = Field(
        False, description="fuse the losses with torch.compile: pays on a GPU or in long runs, costs a minute to begin"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to learn; auto: a GPU if there is one")
    threads: int = Field(
        1,
        ge=0,
        description="torch threads; 0 leaves torch's own choice. A second one gains a fifth on idle cores and "
        "loses everything on busy ones; with one, runs are bit-identical",
    )


class TrainingConfig(_Config):
    """When training stops, and how often it looks up."""

    offline_updates: int = Field(
        0, ge=0, description="updates from demonstrations alone, before the environment is first played"
    )
    env_steps: int = Field(
        300_000, ge=0, description="environment steps in all; 0 learns from demonstrations and does not play"
    )
    evaluate_every: int = Field(500, ge=1, description="updates between evaluations on the validation env")
    checkpoint_every: int = Field(500, ge=1, description="updates between resumable checkpoints")
    evaluation_episodes: int = Field(8, ge=1, description="episodes per evaluation, played side by side")


class AgentConfig(_Config):
    """An agent, completely."""

    discount: float = Field(0.99, gt=0, le=1, description="γ per environment step, of targets and of search alike")
    network: NetworkConfig = NetworkConfig()
    search: SearchConfig = SearchConfig()
    self_play: SelfPlayConfig = SelfPlayConfig()
    replay: ReplayConfig = ReplayConfig()
    learner: LearnerConfig = LearnerConfig()
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _known_exploration(self) -> Self:
        """The correction needs the probability of the action that was taken."""
        if self.replay.correct_exploration and self.search.root != "puct":
            raise ValueError(
                f"replay.correct_exploration needs search.root puct, whose actions are drawn by visits; found "
                f"{self.search.root}. Set replay.correct_exploration to false"
            )
        return self

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> Self:
        if self.training.offline_updates and self.replay.demonstrations is None:
            raise ValueError("training.offline_updates needs replay.demonstrations: a file of recorded episodes")
        if not self.training.offline_updates and not self.training.env_steps:
            raise ValueError("training.env_steps 0 and offline_updates 0: expected something to learn from; set one")
        return self

    @model_validator(mode="before")
    @classmethod
    def _one_discount(cls, raw: Any) -> Any:
        """The search discounts as the targets do; two different discounts would plan for another problem."""
        if not isinstance(raw, dict):
            return raw
        discount = raw.get("discount", cls.model_fields["discount"].default)
        search = raw.get("search", {})
        if isinstance(search, SearchConfig):
            search = search.model_dump(exclude_unset=True)
        if not isinstance(search, dict):
            return raw
        if search.get("discount", discount) != discount:
            raise ValueError(
                f"search.discount {search['discount']} differs from discount {discount}: set agent.discount alone"
            )
        return {**raw, "search": {**search, "discount": discount}}
