"""How the service behaves under load: every bound it keeps, with its unit."""

from pydantic import BaseModel, ConfigDict, Field


class ServiceConfig(BaseModel):
    """Limits of the API. The defaults serve one small machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    body_limit: int = Field(1024**2, ge=1024, description="largest request body, bytes")
    max_batch: int = Field(64, ge=1, description="decisions the worker takes on at once, and rows of /v1/act/batch")
    queue_limit: int = Field(256, ge=1, description="decisions that may wait; one more is refused with 503")
    deadline_seconds: float = Field(5.0, gt=0, description="longest a decision may take, waiting included")
    stuck_seconds: float = Field(30.0, gt=0, description="a batch that takes longer makes the service not ready")
    requests_per_second: float = Field(
        5000.0, gt=0, description="sustained requests per client address; a batch counts its rows"
    )
    request_burst: int = Field(10_000, ge=1, description="requests a client may make at once")
    failed_logins_per_second: float = Field(1.0, gt=0, description="sustained wrong keys per client address")
    failed_login_burst: int = Field(20, ge=1, description="wrong keys a client may present at once")
    idempotency_entries: int = Field(1024, ge=1, description="answers remembered for a repeated Idempotency-Key")
    idempotency_seconds: float = Field(24 * 3600.0, gt=0, description="how long an answer is remembered")
    session_limit: int = Field(
        64, ge=1, description="browsers that may be logged in at once; the least used goes first"
    )
    session_seconds: float = Field(7 * 24 * 3600.0, gt=0, description="longest a login lasts")
    session_idle_seconds: float = Field(24 * 3600.0, gt=0, description="a login that is not used ends after this")
    ledger_workers: int = Field(2, ge=1, description="threads that read the ledger")
    ledger_queue_limit: int = Field(32, ge=1, description="reads that may wait or run; one more is refused with 503")
    ledger_deadline_seconds: float = Field(5.0, gt=0, description="longest a read of the ledger may take")
    stream_clients: int = Field(32, ge=1, description="open event streams; one more is refused with 503")
    stream_poll_seconds: float = Field(
        0.5, gt=0, description="how often the ledger is asked for news, while anyone listens"
    )
    stream_keepalive_seconds: float = Field(15.0, gt=0, description="longest silence on an event stream")
