"""The page at / and the documentation at /docs: files of our own, which fetch nothing from elsewhere."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

MEDIA_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".jpg": "image/jpeg",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}

_HERE = Path(__file__).parent

FILES = {
    "/": _HERE / "index.html",
    "/docs": _HERE / "docs.html",
    **{f"/page/{file.name}": file for file in sorted(_HERE.iterdir()) if file.suffix in (".css", ".js", ".svg")},
    **{f"/examples/{file.name}": file for file in sorted((Path(__file__).parents[3] / "examples").glob("*.jpg"))},
}
"""By path."""

HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def routes() -> list[Route]:
    return [_route(path, file) for path, file in FILES.items()]


def _route(path: str, file: Path) -> Route:
    data = file.read_bytes()

    async def answer(_: Request) -> Response:
        return Response(data, headers=HEADERS, media_type=MEDIA_TYPES[file.suffix])

    return Route(path, answer)
