"""Downloads from the hub: a model by name, one file with resume and hash.

    python data/hub.py allenai/OLMo-7B-hf    # a model into models/allenai/OLMo-7B-hf

HF_TOKEN opens gated repositories and is sent only to the hub. HF_ENDPOINT names another hub.
"""
import difflib
import hashlib
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from data import common  # first: Ctrl-C is quiet from here on

import requests
from urllib3.util import Retry

from data.common import INDEX

HUB = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
BUSY = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # statuses that are worth another try
BACKOFF = 1.0  # seconds of pause, doubled from one try to the next
TIMEOUT = (10, 60)  # seconds to connect, and to wait for the next bytes


def model_folder(name: str) -> Path:
    """The folder of a model: `name` itself, or models/ORG/NAME, fetched from the hub if it is not there yet.

    If its first part is a folder that exists, `name` is a path. Raises ValueError or OSError.
    """
    path, folder = Path(name), Path("models") / name
    if path.exists():
        return path
    near = difflib.get_close_matches(name, [str(config.parent) for config in Path().glob("*/*/config.json")], 1)
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
    """Bring config, tokenizer and safetensors of a model on the hub into `folder`. Raises ValueError or OSError."""
    session, files_at = open_hub(), f"{HUB}/{repo}/resolve/main"

    # What the hub lists (up to 1,000 files): sizes, the SHA-256 of large files, git's SHA-1 of small ones.
    files = {}
    for entry in get_json(session, f"{HUB}/api/models/{repo}/tree/main"):
        files[entry["path"]] = entry["size"], (entry.get("lfs") or entry)["oid"]

    # The weights: one file, or an index and the shards that it names. Pickled ones are never fetched.
    weights = ["model.safetensors"]
    if weights[0] not in files and INDEX in files:
        weights = [INDEX, *sorted(set(get_json(session, f"{files_at}/{INDEX}")["weight_map"].values()))]

    # What a model needs. config.json comes last, so that a folder that has it is whole.
    optional = sorted({"tokenizer.model", "tokenizer_config.json"} & files.keys())
    names = ["tokenizer.json", *optional, *weights, "config.json"]
    for name in names:
        if name not in files or "/" in name:  # the second could leave the folder
            raise ValueError(f"{HUB}/{repo} has no {name} in its first folder; "
                             "a model must come with config.json, tokenizer.json and safetensors")
    folder.mkdir(parents=True, exist_ok=True)
    held = common.hold(folder, wait=True)  # a second run on this folder waits for the first
    try:
        for name in names:
            fetch_file(session, f"{files_at}/{name}", folder / name, *files[name])
    finally:
        os.close(held)


def fetch_file(session: requests.Session, url: str, path: Path, size: int, digest: str):
    """Download to `path`, which appears only if its size and hash are the hub's. Raises OSError or ValueError.

    A download that broke goes on where it was, in a later run, too.
    """
    if path.exists() and path.stat().st_size == size:
        return
    incomplete = path.with_name(path.name + ".incomplete")
    with open(incomplete, "a+b") as file:
        while (start := file.tell()) < size:
            response = get(session, url, stream=True, headers={"Range": f"bytes={start}-"})
            if response.status_code != 206:  # this server sends the whole file
                file.seek(0)
                file.truncate()
            try:
                for piece in response.iter_content(1 << 18):
                    file.write(piece)
                    if sys.stderr.isatty():
                        print(f"\r{path.name}  {file.tell() / 1e6:,.1f} of {size / 1e6:,.1f} MB ",
                              end="\n" if file.tell() == size else "", file=sys.stderr, flush=True)
            except requests.RequestException:  # the connection broke
                pass
            if file.tell() == start:
                raise OSError(f"{url} broke off; check the network, then run this again")
        file.seek(0)
        kind = hashlib.sha256() if len(digest) == 64 else hashlib.sha1(b"blob %d\0" % size)
        found = hashlib.file_digest(file, lambda: kind).hexdigest()
    if found != digest:
        incomplete.unlink()
        raise ValueError(f"{url} sent something else than the {size:,} bytes that the hub lists; they are thrown away, "
                         "run this again")
    os.replace(incomplete, path)


def open_hub() -> requests.Session:
    """A session, if the environment's address and token can be used. Raises ValueError."""
    check_url(HUB, "HF_ENDPOINT")
    secret("HF_TOKEN")
    return open_session()


def get(session: requests.Session, url: str, **options) -> requests.Response:
    """The answer to a GET, which has HF_TOKEN with it if it is the hub's. Raises OSError."""
    auth = bearer(secret("HF_TOKEN") if url.startswith(HUB + "/") else None)
    try:
        response = session.get(url, auth=auth, timeout=TIMEOUT, **options)
    except requests.RequestException as error:
        raise OSError(f"{url} failed ({type(error).__name__}); check the network, then run this again") from None
    if not response.ok:
        raise OSError(f"{url} answered {response.status_code}; check the name, or wait a while and run this again; "
                      "if access must be asked for, do so on its page and set HF_TOKEN")
    return response


def get_json(session: requests.Session, url: str, **options):
    """The JSON value that a GET answers. Raises OSError."""
    try:
        return get(session, url, **options).json()
    except ValueError:
        raise OSError(f"{url} answered no JSON; check that HF_ENDPOINT is a hub, and the network") from None


def open_session(connect: int = 3) -> requests.Session:
    """A session that asks again: up to 6 times if the server is busy, after the pause that its Retry-After asks for;
    twice if it hangs up; `connect` times if it cannot be reached."""
    retry = Retry(6, connect=connect, read=2, other=0, allowed_methods=None, status_forcelist=BUSY,
                  raise_on_status=False, backoff_factor=BACKOFF, backoff_jitter=BACKOFF, backoff_max=60)
    retry.retry_after_max = 60  # seconds; urllib3 before 2.6.3 has no such argument, and no limit
    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"  # nothing is compressed, so sizes are the files' own
    for scheme in ("https://", "http://"):
        session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=256, max_retries=retry))
    return session


def secret(name: str) -> str | None:
    """A key from the environment, or None. Raises ValueError, without showing it, if no header can hold it."""
    value = os.environ.get(name, "").strip()
    if not re.fullmatch(r"[!-~]*", value):
        raise ValueError(f"{name} holds a space, a line break or a letter that no key has; set it again")
    return value or None


def bearer(key: str | None):
    """The `auth` of a request: no entry of ~/.netrc replaces it, and it does not follow a redirect to another host."""
    def sign(request):
        if key:
            request.headers["Authorization"] = f"Bearer {key}"
        return request
    return sign


def check_url(url: str, name: str):
    """Raise ValueError, with the name of the option and without a password, if `url` is not an http(s) address."""
    if not re.fullmatch(r"https?://([\w.-]+|\[[\w:.]+\])(:\d+)?([/?][^\s@#]*)?", url):
        raise ValueError(f"{name} is not an address like https://host or http://localhost:8080")


def main():
    parser = common.parser(__doc__)
    parser.add_argument("model", metavar="ORG/NAME", help="a model on the hub")
    print(model_folder(parser.parse_args().model))


if __name__ == "__main__":
    common.run(main, interrupted="the same command goes on from there")
