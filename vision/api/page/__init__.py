"""The documentation page at /: three files of our own, which read /docs.json and fetch nothing from elsewhere."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
"""Path -> file and media type."""

HEADERS = {"content-security-policy": "default-src 'self'", "x-content-type-options": "nosniff"}


def routes() -> list[Route]:
    return [_route(path, *file) for path, file in FILES.items()]


def _route(path: str, name: str, media_type: str) -> Route:
    text = (Path(__file__).parent / name).read_text()

    async def answer(_: Request) -> Response:
        return Response(text, headers=HEADERS, media_type=media_type)

    return Route(path, answer)
