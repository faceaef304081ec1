"""Pages of other origins: what a browser must be told before it lets them call (the Fetch standard's CORS protocol)."""

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from vision.settings import SETTINGS


def around(door: ASGIApp) -> ASGIApp:
    """Let pages of the origins that the settings name read every answer, the door's refusals too.

    A browser asks first, without a key, so that is answered before keys are checked. Cookies are never asked for.
    """
    if not SETTINGS.cors_origins:
        return door
    return CORSMiddleware(
        door,
        allow_origins=SETTINGS.cors_origins,
        allow_methods=("GET", "POST"),
        allow_headers=("Authorization", "Content-Type", "X-Request-ID"),
        expose_headers=("X-Request-ID", "Retry-After"),
        allow_private_network=True,  # the service stands inside a company, the page may not
    )
