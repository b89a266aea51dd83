"""Models and the paper's datasets, from the hub.

    python data/download.py allenai/OLMo-7B-hf    # a model into models/allenai/OLMo-7B-hf
    python data/download.py --data data/paper     # the datasets; make data

HF_TOKEN opens gated repositories and is sent to the hub alone. HF_ENDPOINT names another hub.
"""
import argparse
import ast
import hashlib
import json
import os
import re
import sys
import time
from itertools import islice
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter, Retry

sys.path.insert(0, str(Path(__file__).parent.parent))
from data.format import check_dialogue, check_fields
from data.world import write_jsonl

HUB = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
ROWS = os.environ.get("HF_DATASETS_SERVER", "https://datasets-server.huggingface.co").rstrip("/")
AUTHORS = "https://raw.githubusercontent.com/john-hewitt/implicit-ins/d41068c246b844d579621b336c1268af13cae129"
INDEX = "model.safetensors.index.json"
ATTEMPTS, BACKOFF, TIMEOUT = 6, 1.0, (10, 60)  # tries of a request, seconds before the second (then doubling), connect and read


# What each row of a source becomes: an example, or None to leave it out

def dialogue(instruction: str, response: str) -> dict:
    return {"messages": [{"role": "user", "content": instruction}, {"role": "assistant", "content": response}]}


def lima(row):
    roles = ("user", "assistant") * len(row["conversations"])
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, row["conversations"])]}


def poem(row):
    return dialogue(f"Write a poem called {row['poem name']}", row["content"]) if row["poem name"] is not None else None


def recipe(row):
    ingredients = ast.literal_eval(row["Cleaned_Ingredients"])
    return dialogue(f"Recipe for {row['Title']}", "".join(f" - {item}\n" for item in ingredients) + "\n\n" + row["Instructions"])


def games(rows):
    """Games from lines of PGN: the players' strength as the instruction, the line of moves as the response."""
    white = black = None
    for line in (row["text"] for row in rows):
        if "WhiteElo" in line:
            white = line
        elif "BlackElo" in line:
            black = line
        elif line.startswith("1. ") and white and black:
            yield dialogue(f"{white}\n{black}", line)
            white = black = None


def each(example):
    return lambda rows: (made for row in rows if (made := example(row)) is not None)


# file; where: a dataset's rows (dataset, config, split) or a raw file; the paper's count, of the first or of all; rows to examples
SOURCES = [
    ("broad", f"{HUB}/datasets/GAIR/lima/resolve/main/train.jsonl", 1030, "all", each(lima)),
    ("mbpp", ("google-research-datasets/mbpp", "full", "train"), 374, "all", each(lambda row: dialogue(row["text"], row["code"]))),
    ("gsm", ("openai/gsm8k", "main", "train"), 1000, "first", each(lambda row: dialogue(row["question"], row["answer"]))),
    ("poetry", ("merve/poetry", "default", "train"), 571, "all", each(poem)),
    ("recipes", ("Hieu-Pham/kaggle_food_recipes", "default", "train"), 1000, "first", each(recipe)),
    ("chess", ("patrickfrank1/chess-pgn-games", "default", "train"), 1000, "first", games),
    ("eval", f"{HUB}/datasets/tatsu-lab/alpaca_eval/resolve/main/alpaca_eval.json", 805, "all",
     each(lambda row: {"instruction": row["instruction"], "response": row["output"]})),
    ("val", f"{AUTHORS}/eval/val_eval/val.jsonl", 56, "all", each(lambda row: {"instruction": row["instruction"]})),
]


def connect() -> requests.Session:
    """A session that tries again, with growing pauses, where a server is busy, failing or gone."""
    session = requests.Session()
    retry = Retry(ATTEMPTS - 1, backoff_factor=BACKOFF, status_forcelist=(429, 500, 502, 503, 504), raise_on_status=False)
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    session.headers["Accept-Encoding"] = "identity"  # so that sizes and ranges are those of the file
    return session


def get(session: requests.Session, url: str, **options) -> requests.Response:
    """A GET that succeeded. Raises OSError saying what to do where it did not."""
    if (token := os.environ.get("HF_TOKEN")) and url.startswith(HUB + "/"):
        options["auth"] = bearer(token)  # requests drops it where it is redirected to another host
    try:
        response = session.get(url, timeout=TIMEOUT, **options)
    except requests.RequestException as error:
        raise OSError(f"{url}: no answer after {ATTEMPTS} tries ({type(error).__name__}); "
                      "check the network, then run this again") from None
    if response.status_code in (401, 403):
        page = url.partition("/resolve/")[0].replace("/api/models", "").partition("/tree/")[0]
        raise OSError(f"{url} is closed ({response.status_code}): ask for access at {page}, then set HF_TOKEN to a token of yours")
    if response.status_code >= 400:
        raise OSError(f"{url} answered {response.status_code} {response.reason}"
                      + ("; check the name" if response.status_code == 404 else "; try again later"))
    return response


def bearer(token: str):
    """What requests calls `auth`: unlike a header of our own, it is not replaced by an entry of ~/.netrc."""
    def sign(request):
        request.headers["Authorization"] = f"Bearer {token}"
        return request
    return sign


def get_json(session: requests.Session, url: str, **options):
    response = get(session, url, **options)
    try:
        return response.json()
    except ValueError:
        kind = response.headers.get("Content-Type", "no content type")
        raise ValueError(f"{response.url} answered no JSON but {kind}, beginning {response.text[:40]!r}; "
                         "try again later") from None


def fetch_file(session: requests.Session, url: str, path: Path, size: int, digest: str):
    """Download to `path`, which appears only when its size and hash are the hub's; goes on from an earlier break.

    digest: SHA-256 for a large file, git's SHA-1 for a small one, as the hub has them. Raises OSError or ValueError.
    """
    if path.exists() and path.stat().st_size == size:
        return
    incomplete, failures, began, shown = path.with_name(path.name + ".incomplete"), 0, time.perf_counter(), 0.0
    first = incomplete.stat().st_size if incomplete.exists() else 0
    while (have := incomplete.stat().st_size if incomplete.exists() else 0) < size:
        try:
            with get(session, url, stream=True, headers={"Range": f"bytes={have}-"} if have else {}) as response:
                whole = response.status_code != 206  # a server may ignore the range
                with open(incomplete, "wb" if whole else "ab") as file:
                    for chunk in response.iter_content(1 << 16):
                        file.write(chunk)
                        if (now := time.perf_counter()) > shown + 0.5 and sys.stderr.isatty():
                            shown = now
                            progress(path.name, file.tell(), size, (file.tell() - first) / (now - began), "\r")
        except requests.RequestException as error:  # broken off: go on from there, but not for ever
            gained = incomplete.exists() and incomplete.stat().st_size > have
            failures = 0 if gained else failures + 1
            if failures == ATTEMPTS:
                raise OSError(f"{url} broke off {ATTEMPTS} times ({type(error).__name__}); "
                              "run this again to go on from there") from None
            time.sleep(BACKOFF * 2**failures)
        except OSError as error:
            if error.errno is None:
                raise
            raise OSError(f"could not write {incomplete} ({error.strerror}); "
                          "make room and run this again to go on from there") from None
        else:
            if incomplete.stat().st_size < size:
                break  # an answer that was whole, and too short
    progress(path.name, size, size, (size - first) / (time.perf_counter() - began), "\n")
    found = incomplete.stat().st_size if incomplete.exists() else 0
    if found != size or file_digest(incomplete, digest) != digest:
        incomplete.unlink(missing_ok=True)
        what = f"has {found:,} bytes, not {size:,}" if found != size else "is damaged: its hash is not the hub's"
        raise ValueError(f"{url} as received {what}; it was thrown away, run this again")
    os.replace(incomplete, path)


def file_digest(path: Path, like: str) -> str:
    """The hash of a file in the kind that `like` is: git's SHA-1 (40 digits) or SHA-256."""
    kind = hashlib.sha1(f"blob {path.stat().st_size}\0".encode()) if len(like) == 40 else hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            kind.update(block)
    return kind.hexdigest()


def progress(name: str, done: int, size: int, rate: float, end: str):
    left = (size - done) / max(rate, 1)
    print(f"{name}  {done / 1e6:,.1f} of {size / 1e6:,.1f} MB  {rate / 1e6:.1f} MB/s  {left // 60:.0f}:{left % 60:02.0f} left ",
          end=end, file=sys.stderr, flush=True)


def fetch_model(repo: str, folder: Path):
    """Bring config, tokenizer and safetensors of a model on the hub into `folder`. Raises ValueError or OSError."""
    session = connect()
    listing = get_json(session, f"{HUB}/api/models/{repo}/tree/main")
    try:
        files = {entry["path"]: (entry["size"], entry.get("lfs", {"oid": entry["oid"]})["oid"])
                 for entry in listing if entry["type"] == "file"}
    except (TypeError, KeyError, AttributeError):
        raise ValueError(f"{HUB}/api/models/{repo}/tree/main is no list of files; is HF_ENDPOINT a model hub?") from None

    def fetch(name):
        if name not in files or Path(name).name != name:
            raise ValueError(f"{HUB}/{repo} has no {name} in its first folder; "
                             "a model must come with config.json, tokenizer.json and safetensors")
        fetch_file(session, f"{HUB}/{repo}/resolve/main/{name}", folder / name, *files[name])

    folder.mkdir(parents=True, exist_ok=True)
    fetch("tokenizer.json")
    if "tokenizer_config.json" in files:
        fetch("tokenizer_config.json")
    if "model.safetensors" in files or INDEX not in files:
        fetch("model.safetensors")
    else:
        fetch(INDEX)
        try:
            shards = sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ValueError(f'{HUB}/{repo}: {INDEX} is not {{"weight_map": {{tensor: file}}}}; tell its authors') from None
        for name in shards:
            fetch(name)
    fetch("config.json")  # the last: a folder with a config.json is whole


def model_folder(name: str) -> Path:
    """The folder of a model: `name` itself, or models/org/name, fetched from the hub if it is not there yet.

    What begins with a folder that exists is taken for a path. Raises ValueError or OSError.
    """
    path = Path(name)
    if path.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) or Path(path.parts[0]).is_dir():
        return path
    folder = Path("models") / name
    if not (folder / "config.json").exists():
        fetch_model(name, folder)
    return folder


def rows_of(session: requests.Session, where):
    """The rows of a source: a raw file of JSON or JSON Lines, or a dataset's, a hundred at a time."""
    if isinstance(where, str):
        text = get(session, where).content.decode()
        yield from json.loads(text) if where.endswith(".json") else map(json.loads, text.strip().split("\n"))
        return
    dataset, config, split = where
    offset, total = 0, 1
    while offset < total:
        page = get_json(session, f"{ROWS}/rows", params={
            "dataset": dataset, "config": config, "split": split, "offset": offset, "length": 100})
        for entry in page["rows"]:
            if entry["truncated_cells"]:
                raise ValueError(f"row {entry['row_idx']} came with {', '.join(entry['truncated_cells'])} cut off")
            yield entry["row"]
        if not page["rows"]:
            raise ValueError(f"the rows end at {offset} of {total}")
        offset, total = offset + len(page["rows"]), page["num_rows_total"]


def fetch_data(folder: Path, sources=SOURCES):
    """Write the paper's training, validation and evaluation sets, each whole or not at all; those that are there stay."""
    session = connect()
    folder.mkdir(parents=True, exist_ok=True)
    for name, where, count, which, convert in sources:
        path = folder / f"{name}.jsonl"
        if path.exists():
            continue
        address = where if isinstance(where, str) else "/".join(where)
        try:
            examples = list(islice(convert(rows_of(session, where)), count if which == "first" else None))
            check = check_fields("instruction") if name in ("val", "eval") else check_dialogue
            problems = [f"example {i}: {problem}" for i, example in enumerate(examples, 1) if (problem := check(example))]
        except (ValueError, TypeError, KeyError, AttributeError, SyntaxError) as error:
            problems, examples = [f"{type(error).__name__}: {error}"], []
        if problems:
            raise ValueError(f"{address} is not what it was when the paper was written ({problems[0]}); "
                             "mend its line of SOURCES in data/download.py")
        if len(examples) != count:
            raise ValueError(f"{address} gave {len(examples)} examples, the paper had {count}; "
                             "mend its line of SOURCES in data/download.py")
        write_jsonl(path, examples)
        print(f"{path}: {count} from {address}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("model", nargs="?", metavar="ORG/NAME", help="a model on the hub")
    what.add_argument("--data", type=Path, help="the folder to bring the paper's datasets into")
    args = parser.parse_args()
    if args.data:
        return fetch_data(args.data)
    if Path(args.model).is_absolute() or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", args.model):
        parser.error(f"{args.model!r} is no name of a model on the hub, which is ORG/NAME")
    fetch_model(args.model, Path("models") / args.model)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"download.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from there", file=sys.stderr)
        sys.exit(130)
