"""A file at an address that a user gave: http or https, up to a length and within a time.

Used for pictures and for weights, which differ in what is done with the bytes and in the exception
that it becomes.
"""

import time
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from urllib.request import OpenerDirector

# Bytes of one read: what has come so far, so that a server that sends little at a time does not
# outwait the limit.
BLOCK = 1 << 16


def receive(address: str, file: IO[bytes], limit: int, seconds: float, silence: float) -> None:
    """Write what a server sends into `file`.

    `limit` is in bytes, `seconds` are for all of it, and `silence` is how many the server may send
    nothing. Raises `ValueError` in words for more, longer or less than the server said, and
    `OSError`, `ValueError` or `HTTPException` for whatever the server or the way to it refuses,
    also for a redirection to something else than http or https.
    """
    until, received = time.monotonic() + seconds, 0
    with _opener().open(address, timeout=silence) as response:
        said = response.headers.get("Content-Length") or ""
        expected = int(said) if said.isdecimal() else 0
        if expected > limit:
            raise ValueError(f"it has {expected} bytes; at most {limit} are fetched")
        while block := response.read1(BLOCK):
            received += len(block)
            if received > limit:
                raise ValueError(f"it has more than the {limit} bytes that are fetched")
            if time.monotonic() > until:
                raise ValueError(f"only {received} bytes came within {seconds:g} s")
            file.write(block)
    if received < expected:
        raise ValueError(f"it ended after {received} of {expected} bytes")


def _opener() -> "OpenerDirector":
    """Unlike that of `urlopen`, it knows no files and no FTP, to which a server could send it."""
    from urllib import request

    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(),
        request.UnknownHandler(),
        request.HTTPHandler(),
        request.HTTPSHandler(),
        request.HTTPDefaultErrorHandler(),
        request.HTTPRedirectHandler(),
        request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener
