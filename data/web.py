"""HTTP that survives bad servers: every answer has a limit in bytes and in seconds, and no key is ever shown.

    status, headers, body = answer(connect(), "GET", url, bearer(secret("HF_TOKEN")))
    ask_all(url, bodies, journal, check, secret("OPENAI_API_KEY"))  # many POSTs at a time, each answer kept as it comes
"""
import os
import queue
import random
import re
import sys
import threading
import time
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from data.files import Journal, clock, parse_json

TIMEOUT = (10, 120)  # seconds to connect, and between two pieces of an answer
DEADLINE = 300  # seconds for a whole answer, headers included
MOST_BYTES = 64 << 20  # of an answer that is held in memory
ANSWER_BYTES = 1 << 20  # of an answer to one question of ask_all
ATTEMPTS, BACKOFF, LONGEST_WAIT = 8, 1.0, 60  # tries of a question, seconds before the second (then doubling), the most
BUSY = {408, 409, 425, 429}  # worth another try, as all of 5xx are
GRACE = 0.7  # seconds in which calls under way may end when a run is interrupted


def connect() -> requests.Session:
    """A session that asks for nothing compressed, and keeps a connection for each thread that uses it."""
    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"  # so that sizes are those of the file, and nothing can unfold
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(pool_maxsize=256))
    return session


def check_url(url: str, name: str) -> str:
    """`url` without its last slash. Raises ValueError, with the name of the option, where it is no http(s) address."""
    try:
        parts = urlsplit(url)
        parts.hostname.encode("idna")  # fails for None, for a part that is empty and for one that is too long
        good = parts.scheme in ("http", "https") and parts.port != 0 and not re.search(r"[\s\x00-\x1f?#@]", url)
    except (ValueError, AttributeError):  # a port that is no number, or no host
        good = False
    if not good:
        shown = re.sub(r"//.*@", "//***@", url)  # a password can stand there
        raise ValueError(f"{name} = {shown!r} is not an address like https://host or http://localhost:8080")
    return url.rstrip("/")


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


def answer(session: requests.Session, method: str, url: str, auth=None, most: int | None = None,
           deadline: float | None = None, **options) -> tuple[int, dict, bytes]:
    """(status, headers, body) of one request. options: as for requests.

    Raises requests.RequestException where the connection fails, TimeoutError after `deadline` seconds, and
    ValueError where the body has more than `most` bytes or is compressed.
    """
    most = MOST_BYTES if most is None else most
    deadline = DEADLINE if deadline is None else deadline
    end = time.monotonic() + deadline

    def work():
        with session.request(method, url, auth=auth, stream=True, timeout=TIMEOUT, **options) as response:
            body = bytearray()
            try:
                while chunk := response.raw.read1(1 << 16, decode_content=False):
                    body += chunk
                    if len(body) > most:
                        raise ValueError(f"the answer is longer than {most:,} bytes")
                    if time.monotonic() > end:  # no one waits for this any more
                        raise TimeoutError
            except urllib3.exceptions.HTTPError as error:
                raise requests.ConnectionError(f"the answer broke off ({type(error).__name__})") from None
            if body and response.headers.get("Content-Encoding", "identity") != "identity":
                raise ValueError("the answer is compressed, which was not asked for")
            return response.status_code, response.headers, bytes(body)

    return within(deadline, work)


def retry_after(header: str) -> float:
    """The seconds that a Retry-After header asks for, by a number or a date (RFC 9110, 10.2.3); 0 if it is neither."""
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time() if " " in header else float(header))
    except (ValueError, TypeError, OverflowError):
        return 0.0


def ask(session: requests.Session, url: str, body: dict, check, key: str | None, stop: threading.Event, say):
    """check(the JSON value that a server answers to a POST of `body`). Asks again, with growing pauses, where the
    server is busy or broken or check raises ValueError; say(text) is told of it.

    Raises OSError at once where the server refuses or leads elsewhere, after ATTEMPTS tries, and when `stop` is set.
    """
    def line(text: str) -> str:  # the beginning, printable, and without the key, which some servers repeat
        text = text.replace(key, "***") if key else text
        return "".join(c if c.isprintable() else " " for c in text[:300]).strip()

    for attempt in range(ATTEMPTS):
        wait = BACKOFF * 2**attempt * random.uniform(1, 1.5)
        try:
            status, headers, text = answer(session, "POST", url, bearer(key), ANSWER_BYTES, json=body,
                                           allow_redirects=False)
        except ValueError as error:  # too long, or compressed: trying again does not help
            raise OSError(f"{url}: {line(str(error))}") from None
        except (requests.RequestException, TimeoutError) as error:
            problem = type(error).__name__
        else:
            problem = f"{status} {line(text.decode(errors='replace'))}"
            if status < 300:
                try:
                    return check(parse_json(text))
                except ValueError:
                    problem = f"not what was asked for, {problem}"
            elif status < 400:
                raise OSError(f"{url} leads to {line(headers.get('Location', 'nowhere'))} ({status}), "
                              "where nothing is sent; give the server's own address")
            elif status < 500 and status not in BUSY:
                raise OSError(f"{url} answered {problem}")
            if (pause := retry_after(headers.get("Retry-After", ""))) > LONGEST_WAIT:
                say(f"{url} asks for a pause of {pause:g} s; trying again after {LONGEST_WAIT:g} s")
            wait = max(wait, min(pause, LONGEST_WAIT))
        if attempt == 2:
            say(f"{url}: {problem}; still trying")
        if attempt + 1 == ATTEMPTS or stop.wait(wait):
            raise OSError(f"{url}: no answer after {attempt + 1} tries, the last was {problem}; "
                          "what is answered is kept, run this again later")


def ask_all(url: str, bodies: dict[str, dict], journal: Journal, check, key: str | None = None, workers: int = 8):
    """POST each of {name: body} to `url`, `workers` at a time, and put check(answer) into the journal under its name.

    The worker that gets an answer writes it down before it takes the next body, so a run that is killed repeats at
    most `workers` calls. Raises OSError as `ask` does, or where the journal cannot be written. An interrupt ends
    this after GRACE seconds, whatever the server does: the workers are daemons, for which no one waits.
    """
    left, events, stop, session = queue.SimpleQueue(), queue.SimpleQueue(), threading.Event(), connect()
    for item in bodies.items():
        left.put(item)

    def work():
        try:
            while not stop.is_set():
                name, body = left.get_nowait()
                journal.add(name, ask(session, url, body, check, key, stop, events.put))
                events.put(None)
        except queue.Empty:
            pass
        except BaseException as error:
            events.put(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(workers, len(bodies)))]
    done, said, began, shown = 0, set(), time.monotonic(), 0.0
    try:
        for thread in threads:
            thread.start()
        while done < len(bodies):
            try:  # Ctrl-C in the instant before a wait is seen only after it, so no wait is long
                event = events.get(timeout=1)  # an exception, a text to show once, or None for one more answer
            except queue.Empty:
                continue
            if isinstance(event, BaseException):
                raise event
            done += event is None
            if event is None and ((now := time.monotonic()) > shown + 5 or done == len(bodies)):
                shown, rate = now, done / (now - began)
                event = f"{done}/{len(bodies)} calls  {rate:.1f}/s  {clock((len(bodies) - done) / rate)} left"
            if event and event not in said:
                said.add(event)
                print(event, file=sys.stderr, flush=True)
    finally:
        stop.set()
        end = time.monotonic() + GRACE
        for thread in filter(threading.Thread.is_alive, threads):
            thread.join(max(0.0, end - time.monotonic()))
