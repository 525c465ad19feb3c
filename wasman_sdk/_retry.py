"""When a failed activity is tried again."""

from __future__ import annotations

from datetime import timedelta
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from wasman_host.activity import Retry

__all__ = ["RetryPolicy"]


class RetryPolicy(BaseModel):
    """When a failed activity is tried again.

    Attributes:
        initial_interval: Wait before the second attempt.
        backoff_coefficient: How much longer each further wait is.
        maximum_interval: The longest wait.
        maximum_attempts: Attempts in all; 0 for no end. Attempts during which a worker died count, so a call that
            kills its worker runs out of them.
        non_retryable_error_types: Names of errors for which another attempt cannot help.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")

    initial_interval: timedelta = Field(default=timedelta(seconds=1), ge=timedelta(0))
    backoff_coefficient: float = Field(default=2.0, ge=1.0)
    maximum_interval: timedelta = Field(default=timedelta(seconds=100), ge=timedelta(0))
    maximum_attempts: int = Field(default=5, ge=0)
    non_retryable_error_types: frozenset[str] = frozenset()

    def for_host(self) -> Retry:
        """The same in the engine's terms."""
        return Retry(
            initial_interval=self.initial_interval.total_seconds(),
            backoff_coefficient=self.backoff_coefficient,
            maximum_interval=self.maximum_interval.total_seconds(),
            maximum_attempts=self.maximum_attempts,
            non_retryable=self.non_retryable_error_types,
        )
