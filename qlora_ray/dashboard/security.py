"""Who may see the page: whoever knows its token, from this machine, under a name of this machine."""

from __future__ import annotations

import hmac
import secrets

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

LOOPBACK = "127.0.0.1"
# Names by which a browser on this machine, or at the end of an SSH tunnel, calls it. With any other a page of another
# site has had its own name resolved to this machine (DNS rebinding).
HOSTS = frozenset({LOOPBACK, "localhost", "[::1]"})
TOKEN = "token"
# Files of the package, which say nothing of a sweep: a page's script and style elements carry no token.
OPEN_PREFIX = "/assets/"

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # The page's address has the token in it.
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def make_token() -> str:
    """A token that nobody guesses."""
    return secrets.token_urlsafe(24)


def guard(token: str) -> Middleware:
    """The middleware that lets nobody in without the token, and sets every answer's headers.

    Args:
        token: What requests carry as `token` in their query, or as a bearer token in their Authorization header.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if _host_of(request) not in HOSTS:
            return _refusal(403, "This page is served under 127.0.0.1 and localhost only.")
        if not request.path.startswith(OPEN_PREFIX) and not is_known(request, token):
            return _refusal(403, "The token is missing or wrong. Open the address that the command printed.")
        try:
            return await handler(request)
        except web.HTTPException as error:
            return _refusal(error.status, error.reason)

    return check


async def set_headers(_request: web.Request, response: web.StreamResponse) -> None:
    """Sets the headers before an answer begins, that of a stream too."""
    response.headers.update(HEADERS)
    # Which library answers, and in which version, is nobody's business.
    response.headers["Server"] = "qlora_ray"


def is_known(request: web.Request, token: str) -> bool:
    """Whether a request carries the token."""
    given = request.query.get(TOKEN) or request.headers.get("Authorization", "").removeprefix("Bearer ")
    # Bytes of a header that are no UTF-8 come as surrogates.
    return hmac.compare_digest(given.encode(errors="surrogateescape"), token.encode())


def is_own_request(request: web.Request, token: str) -> bool:
    """Whether a request that changes something comes from the page itself.

    The token must be in the header, which no form and no link of another site can set, and the body JSON, which
    another site's script may not send unasked.
    """
    has_token = hmac.compare_digest(
        request.headers.get("Authorization", "").encode(errors="surrogateescape"), f"Bearer {token}".encode()
    )
    origin = request.headers.get("Origin")
    is_same = origin in (None, f"http://{request.headers.get('Host')}")
    comes_from = request.headers.get("Sec-Fetch-Site", "same-origin")
    return has_token and is_same and comes_from == "same-origin" and request.content_type == "application/json"


def _host_of(request: web.Request) -> str:
    """The name in the Host header, without a port: behind a tunnel it is another one."""
    host = request.headers.get("Host", "")
    name, colon, port = host.rpartition(":")
    return name.lower() if colon and port.isdecimal() else host.lower()


def _refusal(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text + "\n")
