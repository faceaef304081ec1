"""What is told of a request beside its answer: in errors, in the log."""

from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass
class Facts:
    request_id: str
    caller: str
    """A key's name, or the connection's address: whoever the work is counted for. It is told nowhere."""
    images: int = 0
    models: list[str] = field(default_factory=list)


FACTS: ContextVar[Facts] = ContextVar("facts")
