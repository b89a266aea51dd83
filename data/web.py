"""HTTP that survives bad servers: every answer has a limit in bytes and in seconds, and no key is ever shown.

    status, headers, body = answer(connect(), "GET", url, bearer(secret("HF_TOKEN")))
"""
import os
import re
import threading
from urllib.parse import urlsplit

import requests

TIMEOUT = (10, 60)  # seconds to connect, and between two pieces of an answer
DEADLINE = 300  # seconds for a whole answer, headers included
MOST_BYTES = 64 << 20  # of an answer that is held in memory


def connect() -> requests.Session:
    """A session that follows no redirect to another host with a body, and asks for nothing compressed."""
    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"  # so that sizes are those of the file, and nothing can unfold
    return session


def check_url(url: str, name: str) -> str:
    """`url` without the last slash. Raises ValueError, naming the option or variable, where it is no http(s) address."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        good = False
    if not good:
        raise ValueError(f"{name} = {url!r} is not an address like https://host or http://localhost:8080")
    return url.rstrip("/")


def secret(name: str) -> str | None:
    """A key from the environment, or None. Raises ValueError, without showing it, where no header can hold it."""
    value = os.environ.get(name, "").strip()
    if not re.fullmatch(r"[!-~]*", value):
        raise ValueError(f"{name} holds a space, a line break or a letter that no key has; set it again")
    return value or None


def bearer(key: str | None):
    """What requests calls `auth`: unlike a header of our own, it is not replaced by an entry of ~/.netrc, and it is
    dropped where a redirect leads to another host."""
    def sign(request):
        if key:
            request.headers["Authorization"] = f"Bearer {key}"
        return request
    return sign


def within(seconds: float, work):
    """The result of work(), or its exception. Raises TimeoutError where it takes longer than `seconds`.

    A server can send a byte a second for ever, and no timeout of a socket ends that; so the work is done in a
    thread that is left to itself when its time is over.
    """
    result = []

    def run():
        try:
            result.append((work(), None))
        except BaseException as error:
            result.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not result:
        raise TimeoutError(f"no whole answer within {seconds:g} s")
    value, error = result[0]
    if error:
        raise error
    return value


def answer(session: requests.Session, method: str, url: str, auth=None, most: int | None = None,
           deadline: float | None = None, **options) -> tuple[int, dict, bytes]:
    """(status, headers, body) of one request. options: as for requests.

    Raises requests.RequestException where the connection fails, TimeoutError after `deadline` seconds, and
    ValueError where the body has more than `most` bytes or is compressed.
    """
    most = MOST_BYTES if most is None else most

    def work():
        with session.request(method, url, auth=auth, stream=True, timeout=TIMEOUT, **options) as response:
            body = bytearray()
            while chunk := response.raw.read1(1 << 16, decode_content=False):
                body += chunk
                if len(body) > most:
                    raise ValueError(f"the answer is longer than {most:,} bytes")
            if body and response.headers.get("Content-Encoding", "identity") != "identity":
                raise ValueError("the answer is compressed, which was not asked for")
            length = response.headers.get("Content-Length", "")
            if length.isdecimal() and len(length) < 20 and len(body) < int(length):
                raise requests.ConnectionError(f"the answer broke off after {len(body):,} of {length} bytes")
            return response.status_code, response.headers, bytes(body)

    return within(DEADLINE if deadline is None else deadline, work)
