"""What a search can be asked to do."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class SearchConfig(BaseModel):
    """Options of the tree search; the defaults are Stochastic MuZero's (Antonoglou et al. 2022, App. B)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    simulations: int = Field(
        default=50,
        ge=0,
        description="simulations per root; each expands one edge, so an environment step deep costs two. "
        "0 acts by the prior",
    )
    root: Literal["puct", "gumbel"] = Field(
        default="puct",
        description="puct: visits by prior and value, Dirichlet noise to explore (MuZero). gumbel: actions drawn "
        "without replacement and halved by value, policy targets from completed Q values (Danihelka et al. 2022)",
    )
    discount: float = Field(default=0.997, ge=0.0, le=1.0, description="γ per environment step")
    c1: float = Field(default=1.25, ge=0.0, description="PUCT: weight of the prior (MuZero App. B)")
    c2: float = Field(
        default=19652.0, gt=0.0, description="PUCT: visits at which the prior's weight begins to grow (MuZero App. B)"
    )
    normalisation: Literal["siblings", "tree"] = Field(
        default="siblings",
        description="range that scales Q to [0, 1]: siblings: the values of the node and of its visited children "
        "(mctx); tree: every value met in the tree so far (MuZero App. B)",
    )
    min_q_range: float = Field(
        default=0.0,
        ge=0.0,
        description="smallest range used to scale Q, in units of the environment's reward. Above 0 it keeps a "
        "difference that is only noise from being stretched to the whole of [0, 1]; markets want it",
    )
    chance_selection: Literal["proportional", "sampled"] = Field(
        default="proportional",
        description="proportional: the outcome that lags its probability most, argmax Pr(c)/(N(c)+1); sampled: "
        "drawn from the probabilities, needs seeds",
    )
    chance_values: Literal["mean", "expected"] = Field(
        default="mean",
        description="what an afterstate is worth: mean: the mean of its visits (Antonoglou et al. 2022); expected: its "
        "own evaluation and what the outcomes looked at so far change in it, each by its probability, until those "
        "cover all. With few visits a mean is that of the likeliest outcomes only, which in a market is noise",
    )
    max_depth: int | None = Field(
        default=None,
        ge=1,
        description="deepest leaf, in tree edges from the root (an environment step is two); none: no limit",
    )
    dirichlet_alpha: float = Field(
        default=0.3, gt=0.0, description="PUCT exploration: concentration of the noise at the root"
    )
    dirichlet_fraction: float = Field(
        default=0.25, ge=0.0, le=1.0, description="PUCT exploration: share of noise in the root's prior"
    )
    max_considered_actions: int = Field(
        default=16, ge=1, description="Gumbel: actions drawn at the root, before halving"
    )
    gumbel_value_scale: float = Field(
        default=0.1, ge=0.0, description="Gumbel: c_scale, weight of Q against the logits (Danihelka et al. 2022)"
    )
    gumbel_visit_offset: float = Field(
        default=50.0, ge=0.0, description="Gumbel: c_visit, visits added to the largest count when Q is weighed"
    )
    samples: int = Field(
        default=16,
        ge=2,
        description="K, combinations a decision node looks at where an action has parts (MultiDiscrete, MultiBinary, "
        "Box) with more combinations than this (Hubert et al. 2021)",
    )
    samples_even_share: float = Field(
        default=0.25,
        ge=0.0,
        lt=1.0,
        description="share of even chances in what an exploring root draws its combinations from; the others follow "
        "the policy",
    )
    players: int = Field(
        default=1,
        ge=1,
        description="players who take turns, one action each; a value counts for the player it belongs to and "
        "against every other",
    )
    precision: Literal["float32", "float64"] = Field(
        default="float32", description="arithmetic of network and tree; float64 is for exactness tests"
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description="threads a batch is divided among; results do not depend on it. None: the available cores",
    )

    @model_validator(mode="after")
    def _gumbel_normalises_per_node(self) -> Self:
        if self.root == "gumbel" and self.normalisation == "tree":
            raise ValueError(
                "a gumbel root scales completed Q values per node: normalisation must be 'siblings', found 'tree'"
            )
        return self
