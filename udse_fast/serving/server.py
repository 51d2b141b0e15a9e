"""Lets clients in, within what the machine computes in real time; the page, the health, the metrics; the way down."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import importlib.resources
import json
import logging
import re
import ssl
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from udse_fast.enhancer import Enhancer
from udse_fast.errors import UdseError, reason, report_error
from udse_fast.serving.batcher import Batcher
from udse_fast.serving.limits import Limits
from udse_fast.serving.metrics import CONTENT_TYPE, Metrics
from udse_fast.serving.session import Refused, Session, Wanted

LOG = logging.getLogger("udse_fast.serving")
LOG.addHandler(logging.NullHandler())  # silent unless who embeds the server wants to hear it
HANDSHAKE_SECONDS, PING_SECONDS, CLOSE_SECONDS = 10, 20, 2
TOO_MANY = "all streams of this server are taken; try again later"


class Server:
    """Serves streams of `enhancer`.

    Args:
        enhancer: whose streams are computed together.
        capacity: channels that are served at once; further clients are refused (close code 1013).
        limits: of each connection.
        tokens: one of them must come with a stream or a look at the metrics, `Authorization: Bearer ...` or
            `?token=...`; none: everybody is let in.
        batch_wait_seconds: see `Batcher`.
        stream_settings: of `Enhancer.open_stream`, for all streams.
    """

    def __init__(
        self,
        enhancer: Enhancer,
        capacity: int,
        limits: Limits | None = None,
        tokens: Collection[str] = (),
        batch_wait_seconds: float = 0.004,
        stream_settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.enhancer, self.capacity, self.limits = enhancer, capacity, limits or Limits()
        self._tokens = [token.encode() for token in tokens]
        self._stream_settings = dict(stream_settings or {})
        self.metrics = Metrics(lambda: self.channels, lambda: self.capacity)
        self._batcher = Batcher(batch_wait_seconds, self.metrics)
        self._sessions: set[Session] = set()
        self._draining = False
        self._page, self._page_policy = _page()

    @property
    def channels(self) -> int:
        """Of all open streams."""
        return sum(session.wanted.channels for session in self._sessions)

    @asynccontextmanager
    async def listening(
        self, host: str, port: int, tls: ssl.SSLContext | None = None, shutdown_seconds: float = 10.0
    ) -> AsyncIterator[int]:
        """Serve inside the block, which is given the port. At its end streams get their rest within `shutdown_seconds`.

        Raises:
            UdseError: the address cannot be listened on.
        """
        try:
            listener = await serve(
                self._serve_client,
                host,
                port,
                ssl=tls,
                process_request=self._request,
                max_size=self.limits.message_bytes,
                max_queue=4,
                open_timeout=HANDSHAKE_SECONDS,
                ping_interval=PING_SECONDS,
                ping_timeout=PING_SECONDS,
                close_timeout=CLOSE_SECONDS,
                compression=None,  # noise does not get smaller
                logger=LOG,
                server_header="udse-fast",
            )
        except (OSError, OverflowError) as error:
            raise UdseError(f"cannot listen on {host} port {port}: {reason(error)}") from None
        batches = asyncio.create_task(self._batcher.run())
        try:
            yield int(next(iter(listener.sockets)).getsockname()[1])
        finally:
            self._draining = True
            listener.close(close_connections=False)
            for session in self._sessions:
                session.drain()
            try:
                await asyncio.wait_for(asyncio.shield(listener.wait_closed()), shutdown_seconds)
            except asyncio.TimeoutError:
                for session in self._sessions:
                    session.connection.transport.abort()
                await listener.wait_closed()
            batches.cancel()

    # -- requests --------------------------------------------------------------------------------------------------

    def _request(self, connection: ServerConnection, request: Request) -> Response | None:
        """The answer to a plain request; None goes on to the websocket's handshake."""
        try:
            address, origin = urlsplit(request.path), urlsplit(request.headers.get("Origin", ""))
        except ValueError:  # brackets that are not closed
            return self._refusal(HTTPStatus.BAD_REQUEST, "expected an address")
        if address.path == "/":
            return _response(HTTPStatus.OK, self._page, "text/html; charset=utf-8", self._page_policy)
        if address.path == "/health":
            status = HTTPStatus.SERVICE_UNAVAILABLE if self._draining else HTTPStatus.OK
            facts = {
                "status": "going down" if self._draining else "ok",
                "streams": self.channels,
                "capacity": self.capacity,
            }
            return _response(status, json.dumps(facts).encode() + b"\n", "application/json")
        if address.path not in ("/metrics", "/stream"):
            return self._refusal(HTTPStatus.NOT_FOUND, "there are /, /stream, /health and /metrics")
        if not self._is_known(request, address):
            return self._refusal(HTTPStatus.UNAUTHORIZED, "expected a token of this server")
        if address.path == "/metrics":
            return _response(HTTPStatus.OK, self.metrics.text().encode(), CONTENT_TYPE)
        if "Origin" in request.headers and origin.netloc != request.headers.get("Host"):
            return self._refusal(HTTPStatus.FORBIDDEN, "pages of other servers may not use this one")
        return None

    def _refusal(self, status: HTTPStatus, text: str) -> Response:
        self.metrics.refused.add(label=status.phrase.lower().replace(" ", "_"))
        return _response(status, f"{text}\n".encode(), "text/plain; charset=utf-8")

    def _is_known(self, request: Request, address: SplitResult) -> bool:
        """Whether the request brings a token; compared in a time that does not tell how much of it is right."""
        if not self._tokens:
            return True
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = parse_qs(address.query).get("token", [""])[-1]
        return any([hmac.compare_digest(given.strip().encode(), token) for token in self._tokens])

    # -- streams ---------------------------------------------------------------------------------------------------

    async def _serve_client(self, connection: ServerConnection) -> None:
        """One client from the handshake to the close frame."""
        code, text = CloseCode.NORMAL_CLOSURE, ""
        try:
            session = self._open(connection)
            self._sessions.add(session)
            self._batcher.streams = len(self._sessions)
            self.metrics.opened.add()
            try:
                await session.run()
            finally:
                self._sessions.discard(session)
                self._batcher.streams = len(self._sessions)
        except Refused as refused:
            code, text = refused.code, refused.reason
        except ConnectionClosed:
            pass
        except Exception as error:  # of the computation: this stream ends, the server goes on
            self.metrics.failed.add()
            report_error(f"a stream failed: {reason(error)[:200]}")
            code, text = CloseCode.INTERNAL_ERROR, "the server failed in this stream"
        if code == CloseCode.TRY_AGAIN_LATER:
            self.metrics.refused.add(label="no_room")
        else:
            self.metrics.closed.add(label=str(connection.close_code or int(code)))
        await connection.close(code, text.encode()[:120].decode(errors="ignore"))

    def _open(self, connection: ServerConnection) -> Session:
        """A stream for the client.

        Raises:
            Refused: there is no room, or what the client asks for is not served.
        """
        assert connection.request is not None
        try:
            wanted = Wanted.read(urlsplit(connection.request.path).query, self.limits)
            if self.channels + wanted.channels > self.capacity:
                raise Refused(CloseCode.TRY_AGAIN_LATER, TOO_MANY)
            stream = self.enhancer.open_stream(wanted.rate, wanted.channels, **self._stream_settings)
        except UdseError as error:
            raise Refused(CloseCode.POLICY_VIOLATION, str(error)) from None
        return Session(connection, wanted, stream, self._batcher, self.limits, self.metrics)


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS with a certificate (PEM, with the chain) and its key.

    Raises:
        UdseError: files that cannot be read, are of another kind or do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for name, path in (("certificate", certificate), ("key", key)):
        try:
            path.open("rb").close()
        except OSError as error:
            raise UdseError(f"--{name}: cannot read {path}: {error.strerror}") from None
    try:  # a key with a passphrase would ask for it on the terminal
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:
        raise UdseError(
            f"--certificate and --key: expected a certificate and its key in PEM, without a passphrase, got "
            f"{certificate} and {key}: {reason(error)}"
        ) from None
    return context


def _page() -> tuple[bytes, str]:
    """The page, and the policy that lets it do what it does and nothing else."""
    page = (importlib.resources.files("udse_fast.serving") / "page.html").read_bytes()
    hashes = {
        tag: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(body).digest()).decode()}'"
            for body in re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), page, re.DOTALL)
        )
        for tag in ("script", "style")
    }
    return page, (
        f"default-src 'none'; script-src {hashes['script']} blob:; style-src {hashes['style']}; "
        "connect-src 'self' ws: wss:; media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _response(status: HTTPStatus, body: bytes, kind: str, policy: str = "default-src 'none'") -> Response:
    headers = Headers(
        {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Connection": "close",
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
    )
    return Response(status.value, status.phrase, headers, body)
