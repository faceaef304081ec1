"""What is told of a request beside its answer: in errors, in the log."""

from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass
class Facts:
    request_id: str
    images: int = 0
    models: list[str] = field(default_factory=list)


FACTS: ContextVar[Facts] = ContextVar("facts")
