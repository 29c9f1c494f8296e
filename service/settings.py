"""Secrets and places: the only module of the service that reads environment variables.

How the service behaves is configuration (`service.config`), not environment.

SMU0_SETTINGS may name a file of NAME=VALUE lines that supplies what the environment leaves out: processes of one
deployment, and a command an operator runs beside them, then agree on which ledger they mean.
"""

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.auth import MINIMUM_SECRET_LENGTH

ENVIRONMENT_PREFIX = "SMU0_"
LEDGER_FILE = "ledger.sqlite3"


class Settings(BaseSettings):
    """Read from variables that begin with SMU0_, such as SMU0_API_KEY. Empty ones count as absent."""

    # hide_input_in_errors: a key that is too short must not be printed by the complaint about it.
    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, env_ignore_empty=True, frozen=True, extra="ignore", hide_input_in_errors=True
    )

    api_key: Annotated[SecretStr, Field(min_length=MINIMUM_SECRET_LENGTH)] | None = Field(
        None, description="a key with every scope, beside those in the key file"
    )
    state: Path = Field(
        Path("var/service"),
        description="directory the service writes to: the key file, logins, and by default the ledger",
    )
    database_url: SecretStr | None = Field(
        None,
        description="where the ledger is, such as postgresql+psycopg://USER:PASSWORD@HOST/DATABASE; default: "
        "ledger.sqlite3 in the state directory",
    )
    exchange_url: str | None = Field(
        None, description="where the exchange answers, instead of its own address: a mock, or a proxy"
    )
    runs: Path = Field(Path("var/runs"), description="where training runs lie")
    models: Path = Field(Path("models"), description="where bundled models lie")

    @property
    def ledger_url(self) -> str:
        """The ledger's database. May hold a password: never log it."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.state / LEDGER_FILE}"


def read_settings() -> Settings:
    """The settings of this process. Raises ValueError naming the variable, never its value."""
    file = os.environ.get(f"{ENVIRONMENT_PREFIX}SETTINGS") or None
    if file is not None and not Path(file).is_file():
        raise ValueError(f"{ENVIRONMENT_PREFIX}SETTINGS: expected a file of settings at {file}, found none")
    try:
        return Settings(_env_file=file)
    except ValidationError as error:
        problems = "; ".join(
            f"{ENVIRONMENT_PREFIX}{'_'.join(str(part) for part in problem['loc']).upper()}: {problem['msg']}"
            for problem in error.errors(include_input=False, include_url=False, include_context=False)
        )
        raise ValueError(f"environment: {problems}") from None
