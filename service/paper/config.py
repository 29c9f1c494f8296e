"""How the paper trader keeps time and keeps trying: every bound, with its unit."""

from enum import StrEnum
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from data.timeframe import Timeframe


class FeedKind(StrEnum):
    """Where bars come from."""

    AUTO = "auto"
    CCXT = "ccxt"
    REPLAY = "replay"
    SYNTHETIC = "synthetic"


class PaperConfig(BaseModel):
    """Behaviour of the loop. "Real" seconds are this machine's; the rest are by the venue's clock."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    clock: Literal["checked", "venue"] = Field(
        "checked",
        description="\"checked\": this machine's clock should agree with the venue's, a difference is reported and "
        'stops new risk; "venue": only the venue\'s clock counts, however fast it runs (a mock, a replay)',
    )
    grace_seconds: float = Field(2.0, ge=0.0, description="after its close a bar is asked for")
    late_fraction: float = Field(
        0.05, gt=0.0, le=0.5, description="of a bar: how long after its close a bar may still be decided on"
    )
    late_floor_seconds: float = Field(
        20.0, ge=0.0, description="no bar is late before that, where that is under half a bar"
    )
    poll_seconds: float = Field(60.0, gt=0.0, description="real; longest sleep between two looks at the venue")
    command_seconds: float = Field(0.5, gt=0.0, description="real; longest a command waits to be noticed")
    heartbeat_seconds: float = Field(5.0, gt=0.0, description="real; how often the loop says that it turns")
    retry_base_seconds: float = Field(1.0, gt=0.0, description="real; first wait after a failed request, then doubled")
    retry_limit_seconds: float = Field(15.0, gt=0.0, description="real; the same after being told to slow down")
    overdue_seconds: float = Field(1.0, gt=0.0, description="real; first wait for a bar that is due, then doubled")
    retry_longest_seconds: float = Field(60.0, gt=0.0, description="real; longest wait between failed requests")
    overlap_bars: int = Field(3, ge=1, description="known bars asked for again, to notice revisions")
    hold_after_gap_bars: int | None = Field(
        None, ge=1, description="bars without decisions after a missing bar; null: the model's window"
    )
    skew_warning_seconds: float = Field(1.0, gt=0.0, description="|clock difference| that is worth an event")

    @classmethod
    def for_venue_time(cls, **changes: float) -> Self:
        """For a clock that is not ours: look often, because a minute there may be a moment here, and be lenient with
        lateness for the same reason."""
        return cls.model_validate(
            {"clock": "venue", "grace_seconds": 0.0, "late_fraction": 0.5, "poll_seconds": 0.25} | changes
        )

    def late_after_ms(self, timeframe: Timeframe) -> int:
        """Milliseconds after its close at which a bar is too old to be decided on: its order would be given a price
        that is no longer there."""
        bar = timeframe.milliseconds
        return int(min(max(self.late_fraction * bar, self.late_floor_seconds * 1_000.0), 0.5 * bar))
