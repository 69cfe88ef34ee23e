"""Whether Ray answers at an address, asked in seconds: Ray itself tries for minutes, and writes a line for each try.

The question is a call of gRPC over HTTP/2, by hand: Ray's own client can be given no time (ray 2.60).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

# For both: the connection, and the answer to a call, which a GCS gives in milliseconds.
LIMIT_S = 10.0
# Whatever is called, gRPC answers with HTTP's status 200 and says the rest in a status of its own.
METHOD = b"/ray.rpc.NodeInfoGcsService/CheckAlive"
# RFC 9113: the preface of a client, and kinds and flags of frames. RFC 7541: fields by their number in its table.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, GO_AWAY = 0, 1, 3, 4, 7
END_STREAM, END_HEADERS = 1, 4
POST, HTTP, PATH, AUTHORITY, STATUS_200 = b"\x83", b"\x86", b"\x04", b"\x01", b"\x88"
# Answers of Ray are shorter; what is no HTTP/2 may claim any length.
MAX_FRAME_BYTES = 2**16


def check_answering(host: str, port: int) -> None:
    """Raises OSError, whose words say why, unless a server of gRPC answers a call within LIMIT_S."""
    until = time.monotonic() + LIMIT_S
    try:
        with socket.create_connection((host, port), timeout=LIMIT_S / 2) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                return
            connection.sendall(_call())
            for kind, content in _read_frames(connection, until):
                if kind == HEADERS and content.startswith(STATUS_200):
                    return
                if kind in (HEADERS, RESET, GO_AWAY):
                    break
    except TimeoutError:
        raise TimeoutError(f"nothing answers within {LIMIT_S:.0f} s") from None
    raise ConnectionError("what answers there is not Ray")


def _call() -> bytes:
    # Whatever name it is called by: Ray does not look at it.
    fields = POST + HTTP + PATH + _text(METHOD) + AUTHORITY + _text(b"ray")
    for name, value in ((b"content-type", b"application/grpc"), (b"te", b"trailers")):
        fields += b"\0" + _text(name) + _text(value)
    # The message: not compressed, and empty.
    message = _frame(DATA, END_STREAM, 1, bytes(5))
    return PREFACE + _frame(SETTINGS, 0, 0, b"") + _frame(HEADERS, END_HEADERS, 1, fields) + message


def _text(value: bytes) -> bytes:
    assert len(value) < 127, "longer ones have a length of several bytes"
    return bytes([len(value)]) + value


def _frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return len(content).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + content


def _read_frames(connection: socket.socket, until: float) -> Iterator[tuple[int, bytes]]:
    """Kind and content of each frame that comes; ends where what comes is none."""
    while True:
        head = _read(connection, 9, until)
        size = int.from_bytes(head[:3], "big")
        if len(head) < 9 or size > MAX_FRAME_BYTES:
            return
        yield head[3], _read(connection, size, until)


def _read(connection: socket.socket, size: int, until: float) -> bytes:
    """So many bytes; fewer where the other side ends. Raises TimeoutError."""
    content = b""
    while len(content) < size:
        connection.settimeout(max(until - time.monotonic(), 0.001))
        more = connection.recv(size - len(content))
        if not more:
            break
        content += more
    return content
