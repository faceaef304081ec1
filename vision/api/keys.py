"""API keys: who may ask, and how much. `python -m vision.api.keys NAME` makes a key and the setting's entry for it."""

import hashlib
import hmac
import secrets
import sys
from collections.abc import Mapping
from time import monotonic

from vision.bento.workers import bucket_of, in_flight_of
from vision.core.errors import Code, VisionError
from vision.core.ledger import Ledger


class Keys:
    """The live keys and their quotas. Only sha256 digests are held: keys are 256 random bits, so no salt is needed.

    What a key may send in a minute is a bucket that fills through the minute, and stands in the ledger.
    """

    def __init__(
        self, digests: Mapping[str, str], per_minute: int | None, in_flight: int | None, ledger: Ledger
    ) -> None:
        self._digests = digests
        self._per_minute = per_minute
        self._in_flight = in_flight
        self._ledger = ledger

    def name(self, authorization: str | None) -> str | None:
        """Return whose key an Authorization header holds; None where no keys are set.

        Raises VisionError: missing_key or unknown_key. Every digest is compared, each in constant time.
        """
        if not self._digests:
            return None
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise VisionError(Code.MISSING_KEY, "Send a key: `Authorization: Bearer KEY`.")
        digest = hashlib.sha256(key.strip().encode()).hexdigest()
        names = [name for name, expected in self._digests.items() if hmac.compare_digest(digest, expected)]
        if not names:
            raise VisionError(Code.UNKNOWN_KEY, "This key is not known here; ask the operator for one.")
        return names[0]

    def enter(self, name: str | None) -> None:
        """Count a request that begins. Raises VisionError: quota_exceeded."""
        if name is None:
            return
        column = in_flight_of(name)
        with self._ledger.exclusive():
            if self._in_flight and self._ledger.is_full(column, self._in_flight):
                raise VisionError(
                    Code.QUOTA_EXCEEDED, f"This key has {self._in_flight} requests in work; wait for them."
                )
            if self._per_minute:
                self._spend(name, self._per_minute)
            self._ledger.count(column, 1)

    def leave(self, name: str | None) -> None:
        """Count a request that ended, once for each `enter` that did not raise."""
        if name is not None:
            self._ledger.count(in_flight_of(name), -1)

    def _spend(self, name: str, per_minute: int) -> None:
        tokens, updated = bucket_of(name)
        now, then = monotonic(), self._ledger.cell(updated)
        refilled = self._ledger.cell(tokens) + (now - then) * per_minute / 60
        left = min(per_minute, refilled) if then else per_minute  # a new bucket is full
        self._ledger.put(updated, now)
        self._ledger.put(tokens, left - 1 if left >= 1 else left)
        if left < 1:
            raise VisionError(Code.QUOTA_EXCEEDED, f"This key may send {per_minute} requests a minute.")


def main() -> None:
    if len(sys.argv) != 2 or not sys.argv[1].isidentifier():
        sys.exit("usage: python -m vision.api.keys NAME  (letters, digits and underscores)")
    key = secrets.token_urlsafe(32)
    print(f"key, for whoever calls: {key}")
    print(f"entry, for VISION_API_KEYS: {sys.argv[1]}:{hashlib.sha256(key.encode()).hexdigest()}")


if __name__ == "__main__":
    main()
