"""Downloads from the hub: a model by name, one file with resume and hash.

    python data/hub.py allenai/OLMo-7B-hf    # a model into models/allenai/OLMo-7B-hf

HF_TOKEN opens gated repositories and is sent to the hub alone. HF_ENDPOINT names another hub.
"""
import difflib
import hashlib
import io
import os
import re
import shutil
import sys
import time
from functools import partial
from pathlib import Path
from urllib.parse import urljoin

sys.path.insert(0, str(Path(__file__).parent.parent))
from data import common  # first: Ctrl-C is quiet from here on

import requests
from urllib3.exceptions import HTTPError

from data.common import hold, parse_json
from data.web import BUSY, MOST_BYTES, bearer, check_url, connect, pause_of, secret, within

HUB = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
INDEX = "model.safetensors.index.json"
ATTEMPTS, BACKOFF = 4, 1.0  # tries, and seconds before the second (then doubling)
MOST_PAGES = 1000  # of a listing
STALL, LEAST = 60, 10_000  # an answer has stalled when so many seconds bring fewer bytes


def model_folder(name: str) -> Path:
    """The folder of a model: `name` itself, or models/ORG/NAME, fetched from the hub if it is not there yet.

    What begins with a folder that exists is taken for a path. Raises ValueError or OSError: where nothing has that
    name, the sentence says first that there is no such folder, and which folder of a model is called nearly so.
    """
    path, folder = Path(name), Path("models") / name
    if path.exists():
        return path
    ours = [str(file.parent) for depth in ("*", "*/*", "*/*/*") for file in Path().glob(f"{depth}/config.json")]
    near = difflib.get_close_matches(name, ours, 1)
    missing = f"there is no folder {name}" + (f" (did you mean {near[0]}?)" if near else "")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) or Path(path.parts[0]).is_dir():
        raise FileNotFoundError(f"{missing}; give a model's folder, or its ORG/NAME on the hub")
    try:
        if not (folder / "config.json").exists():
            fetch_model(name, folder)
    except (ValueError, OSError) as error:
        if folder.exists():  # the hub has a model of that name
            raise
        raise OSError(f"{missing}, and it was not found on the hub: {error}") from None
    return folder


def fetch_model(repo: str, folder: Path):
    """Bring config, tokenizer files and safetensors of a model on the hub into `folder`. Raises ValueError or OSError.

    config.json comes last, so a folder that has it is whole. A second run on the same folder waits for the first.
    """
    session, files_at, weights = open_hub(), f"{HUB}/{repo}/resolve/main", ["model.safetensors"]
    try:
        files = {entry["path"]: (entry["size"], (entry.get("lfs") or entry)["oid"])
                 for entry in listing(session, f"{HUB}/api/models/{repo}/tree/main") if entry["type"] == "file"}
        if weights[0] not in files and INDEX in files:
            weights = [INDEX, *sorted(set(get(session, f"{files_at}/{INDEX}")["weight_map"].values()))]
    except (TypeError, KeyError, AttributeError):
        raise ValueError(f"{HUB} gives no list of {repo}'s files, or of its shards, that can be read") from None
    optional = sorted({"tokenizer.model", "tokenizer_config.json"} & files.keys())
    names, need = ["tokenizer.json", *optional, *weights, "config.json"], 0
    for name in names:
        if name not in files or Path(name).name != name:
            raise ValueError(f"{HUB}/{repo} has no {name!a:.80} in its first folder; "
                             "a model must come with config.json, tokenizer.json and safetensors")
        size, digest = files[name]
        if type(size) is not int or not 0 < size < 1 << 60 or not re.fullmatch(r"\w{40}|\w{64}", str(digest)):
            raise ValueError(f"{HUB}/{repo} lists {name} with a size or a hash that cannot be; tell its authors")
        if length(folder / name) != size:
            need += size - length(folder / f"{name}.incomplete")
    folder.mkdir(parents=True, exist_ok=True)
    if need > (free := shutil.disk_usage(folder).free):
        raise OSError(f"{repo} takes {need / 1e9:,.1f} GB more, and {folder} has {free / 1e9:,.1f} GB left; make room")
    held = hold(folder, wait=True)
    try:
        for name in names:
            fetch_file(session, f"{files_at}/{name}", folder / name, *files[name])
    finally:
        os.close(held)


def fetch_file(session: requests.Session, url: str, path: Path, size: int, digest: str):
    """Download to `path`, which appears only when its size and hash are the hub's; goes on from an earlier break.

    digest: SHA-256 for a large file, git's SHA-1 for a small one, as the hub has them. Raises OSError or ValueError.
    """
    if length(path) == size:
        return
    incomplete = path.with_name(path.name + ".incomplete")
    try:
        with open(incomplete, "a+b") as file:
            if file.tell() < size:  # a run can be killed between the last byte and the renaming
                receive(session, url, file, size)
            file.seek(0)
            kind = hashlib.sha256() if len(digest) == 64 else hashlib.sha1(f"blob {size}\0".encode())
            good = hashlib.file_digest(file, lambda: kind).hexdigest() == digest
    except OSError as error:
        if error.errno is None:  # of the network, already a sentence
            raise
        raise OSError(f"could not write {incomplete} ({error.strerror}); make room, then run this again") from None
    if not good:
        incomplete.unlink()
        raise ValueError(f"{url} sent something else than the {size:,} bytes that the hub lists; it was thrown away, "
                         "run this again")
    os.replace(incomplete, path)


def length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def open_hub() -> requests.Session:
    """A session, if the environment's address and token can be used. Raises ValueError."""
    check_url(HUB, "HF_ENDPOINT")
    secret("HF_TOKEN")
    session = connect()  # a redirect's own body may be endless: close it before requests reads it
    session.hooks["response"].append(lambda response, **_: response.is_redirect and response.raw.close() or None)
    return session


def listing(session: requests.Session, url: str):
    """The items of a listing that may have several pages; the Link header of a page names the next one."""
    for _ in range(MOST_PAGES):
        items, url = get_linked(session, url)
        yield from items
        if url is None:
            return
    raise ValueError(f"{HUB} gives a listing of more than {MOST_PAGES} pages; tell its authors")


def get(session: requests.Session, url: str, parse=parse_json, **options):
    """parse(the body of an answer). Raises OSError."""
    return get_linked(session, url, parse, **options)[0]


def get_linked(session: requests.Session, url: str, parse=parse_json, **options):
    """(parse(the body of an answer), the address of the next page or None). Raises OSError."""
    following = receive(session, url, body := io.BytesIO(), MOST_BYTES, **options)
    try:
        if body.tell() > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES:,} bytes")
        return parse(body.getvalue()), following
    except ValueError as error:
        raise OSError(f"{url} answered no JSON ({error}) but {body.getvalue()[:40]!r}; try again later") from None


def receive(session: requests.Session, url: str, file, size: int, **options) -> str | None:
    """Append the body of `url` to an open file, until it ends or the file has more than `size` bytes. Returns the
    address of the next page, if the answer has one.

    A server that is busy, failing, gone or too slow is asked again after a growing pause, for the rest alone (by
    Range). Raises OSError after ATTEMPTS that brought nothing new, or at once where the server refuses.
    """
    auth = bearer(secret("HF_TOKEN") if url.startswith(HUB + "/") else None)  # requests drops it on another host
    failures = 0
    while failures < ATTEMPTS:
        start, pause = file.tell(), BACKOFF * 2**failures
        options |= {"stream": True, "timeout": (10, STALL), "headers": {"Range": f"bytes={start}-"} if start else {}}
        try:
            with within(STALL, partial(session.get, url, auth=auth, **options)) as response:
                status = response.status_code
                if status in (200, 416):  # the range was ignored, or lies outside the file
                    file.seek(file.truncate(0))
                if status in (200, 206):
                    store(response, file, size)
                    following = response.links.get("next", {}).get("url")
                    return following and urljoin(response.url, following)
                if status < 500 and status not in BUSY | {416}:
                    raise OSError(f"{url} answered {status}; check the name, and if access to it must be asked for, "
                                  "do so on its page and set HF_TOKEN to a token of yours")
                problem, remedy = f"answered {status}", "wait a while"
                pause = max(pause, pause_of(status, response.headers))
        except (requests.RequestException, HTTPError, TimeoutError) as error:
            problem = f"failed ({error if type(error) is TimeoutError else type(error).__name__})"
            remedy = "check the network"
        failures = 0 if file.tell() > start + LEAST else failures + 1
        if failures < ATTEMPTS:
            print(f"{url} {problem}; trying again in {pause:.0f} s", file=sys.stderr)
            time.sleep(pause)
    raise OSError(f"{url} {problem}, {ATTEMPTS} times; {remedy}, then run this again")


def store(response: requests.Response, file, size: int):
    """Append a body as it comes, and show how far it is. Raises TimeoutError where it has stalled."""
    due, least, shown = 0.0, 0, 0.0
    while file.tell() <= size and (piece := response.raw.read1(1 << 20, decode_content=False)):
        file.write(piece[: size + 1 - file.tell()])
        now, done = time.monotonic(), file.tell()
        if now > due:
            if done < least:
                raise TimeoutError(f"fewer than {LEAST:,} bytes in {STALL} s")
            due, least = now + STALL, done + LEAST
        if hasattr(file, "name") and sys.stderr.isatty() and (now > shown + 0.5 or done == size):
            shown = now
            print(f"\r{Path(file.name).stem}  {done / 1e6:,.1f} of {size / 1e6:,.1f} MB ",
                  end="\n" if done == size else "", file=sys.stderr, flush=True)


def main():
    parser = common.parser(__doc__)
    parser.add_argument("model", metavar="ORG/NAME", help="a model on the hub")
    print(model_folder(parser.parse_args().model))


if __name__ == "__main__":
    common.run(main, interrupted="the same command goes on from there")
