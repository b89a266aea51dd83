"""HTTP for downloads and judges: busy servers are asked again, and no key is ever shown.

    problems = ask_all(url, bodies, journal, check, secret("OPENAI_API_KEY"))  # many POSTs, each answer kept at once
"""
import os
import re
import sys
import threading
import time
from email.utils import parsedate_to_datetime
from multiprocessing.pool import ThreadPool
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import ConnectTimeoutError, HTTPError, ProxyError, SSLError
from urllib3.util import Retry

from data.common import Journal, clock, parse_json

TIMEOUT = (10, 600)  # seconds to connect, and to wait for an answer: a local server may have others to answer first
MOST_BYTES = 64 << 20  # of a hub's answer that is held in memory
BACKOFF, LONGEST_WAIT = 1.0, 60  # seconds of pause, doubled from one try to the next, and the most
BUSY = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # statuses that are worth another try
FATAL = {*range(300, 400), 401, 402, 403, 404}  # statuses that every other call would get, too


class Patient(Retry):
    """urllib3's rules for asking again, with a pause that is never shorter than its own or than the server wants."""

    def get_retry_after(self, response) -> float:
        return max(self.get_backoff_time(), pause_of(response.status, response.headers))


def connect(retries=0) -> requests.Session:
    """A session that asks for nothing compressed, and keeps a connection for each thread that uses it."""
    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"  # so that sizes are those of the file, and nothing can unfold
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(pool_maxsize=256, max_retries=retries))
    return session


def check_url(url: str, name: str):
    """Raise ValueError, with the name of the option, where `url` is not an http(s) address."""
    try:
        parts = urlsplit(url)
        parts.hostname.encode("idna")  # fails for None, for a part that is empty and for one that is too long
        good = parts.scheme in ("http", "https") and parts.port != 0 and not re.search(r"[\s\x00-\x1f#@]", url)
    except (ValueError, AttributeError):  # a port that is no number, or no host
        good = False
    if not good:
        shown = re.sub(r"//.*@", "//***@", url)  # a password can stand there
        raise ValueError(f"{name} = {shown!r} is not an address like https://host or http://localhost:8080")


def secret(name: str) -> str | None:
    """A key from the environment, or None. Raises ValueError, without showing it, where no header can hold it."""
    value = os.environ.get(name, "").strip()
    if not re.fullmatch(r"[!-~]*", value):
        raise ValueError(f"{name} holds a space, a line break or a letter that no key has; set it again")
    return value or None


def bearer(key: str | None):
    """The `auth` of a request. Unlike a header of our own, it is not replaced by an entry of ~/.netrc, and it is
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


def pause_of(status: int, headers) -> float:
    """The seconds, LONGEST_WAIT at most, for which a busy server asks; 0 if it does not say.

    Retry-After has a number or a date (RFC 9110, 10.2.3). The hub has `RateLimit: ...;t=25` instead, which counts
    with status 429 only: it stands beside other answers, too.
    """
    asked, limit = headers.get("Retry-After", ""), re.search(r";\s*t=(\d+)", headers.get("RateLimit", ""))
    if not asked and limit and status == 429:
        asked = limit[1]
    try:
        pause = parsedate_to_datetime(asked).timestamp() - time.time() if " " in asked else float(asked)
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(pause, LONGEST_WAIT) if pause > 0 else 0.0  # NaN is not above 0


def ask(session: requests.Session, url: str, body: dict, check, key: str | None):
    """check(the JSON value that a server answers to a POST of `body`).

    Raises OSError for what every other call would meet, too: a status in FATAL, or no connection. Raises
    ValueError, with the server's words, for all else that is not an answer, once asking again has not helped.
    """
    def words(text: str) -> str:  # the beginning, printable, and without the key, which some servers repeat
        text = text.replace(key, "***") if key else text
        return "".join(c if c.isprintable() else " " for c in text[:300]).strip()

    place = url.partition("?")[0]
    try:
        response = session.post(url, json=body, auth=bearer(key), timeout=TIMEOUT, allow_redirects=False)
    except (requests.RequestException, HTTPError) as error:
        cause = error.args[0] if error.args else error
        cause = getattr(cause, "reason", cause)  # of the last of several tries
        if isinstance(cause, ConnectTimeoutError | ProxyError | SSLError):  # refused connections and unknown hosts, too
            raise OSError(f"{place}: no connection ({words(str(cause))}); check the address and the server") from None
        raise ValueError(words(f"{type(cause).__name__}: {cause}")) from None
    status, text = response.status_code, response.content.decode(errors="replace")
    if "Location" in response.headers and status in FATAL:
        raise OSError(f"{place} leads to {words(response.headers['Location'])} ({status}), where nothing is sent; "
                      "give the server's own address")
    if status in FATAL:
        raise OSError(f"{place} answered {status} {words(text)}; check the key, the model's name and the address")
    if status >= 400:
        raise ValueError(f"{status} {words(text)}")
    try:  # a key as short as "1" is not a secret, and stands in every number
        return check(parse_json(text.replace(key, "***") if key and len(key) > 7 else text))
    except ValueError as error:
        raise ValueError(f"{error}: {words(text)}") from None


def ask_all(url: str, bodies: dict[str, dict], journal: Journal, check, key: str | None = None,
            workers: int = 8) -> dict[str, str]:
    """POST each of {name: body} that the journal has not, `workers` at a time; put check(answer) there by its name.

    Returns {name: what went wrong} for the calls that failed, which the journal does not get. The worker that has an
    answer writes it down before it takes the next body, so a run that is killed repeats at most `workers` calls.
    Raises OSError as `ask` does, where the journal cannot be written, and where nothing is in the journal and the
    first ten calls all fail. The pool's threads are daemons: an interrupt waits for none of them.
    """
    left = {name: body for name, body in bodies.items() if name not in journal.values}

    # urllib3 asks a busy server again, and one that breaks off; a server that is not there ends the run
    session = connect(Patient(5, connect=0, read=2, other=0, allowed_methods=None, status_forcelist=BUSY,
                              backoff_factor=BACKOFF, backoff_max=LONGEST_WAIT, backoff_jitter=BACKOFF,
                              raise_on_status=False))
    over = threading.Event()  # when one worker meets the end of the run, the others ask nothing more

    def work(item):
        name, body = item
        try:
            if not over.is_set():
                journal.add(name, ask(session, url, body, check, key))
        except ValueError as error:
            return name, str(error)
        except OSError:
            over.set()
            raise
        return name, None

    problems, began, shown = {}, time.monotonic(), 0.0
    with ThreadPool(workers) as pool:
        for done, (name, problem) in enumerate(pool.imap_unordered(work, left.items()), 1):
            if problem:
                problems[name] = problem
            if len(problems) == done == 10 and len(left) == len(bodies):
                raise OSError(f"the first ten calls all failed, the last with {problem}; mend that, then run this "
                              "again")
            if (now := time.monotonic()) > shown + 5 or done == len(left):
                shown, rate = now, done / (now - began)
                failed = f", {len(problems)} without a judgement" if problems else ""
                print(f"{done}/{len(left)} calls{failed}  {rate:.1f}/s  {clock((len(left) - done) / rate)} left",
                      file=sys.stderr, flush=True)
    return problems
