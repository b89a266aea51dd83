"""data/download.py against a server in this process that speaks the hub's protocols, and misbehaves on command."""
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from data import download
from data.download import fetch_data, fetch_model, model_folder

SECRET = "hf_a-token-that-must-not-travel"


class Hub:
    """A server with `files`, {path: bytes}; `trouble`, {path: list of what goes wrong, one a request}; and a log of requests."""

    def __init__(self):
        self.files, self.trouble, self.requests, self.redirect = {}, {}, [], {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                url = urlsplit(self.path)
                hub.requests.append((url.path, dict(self.headers)))
                hub.answer(self, url.path, {key: value[0] for key, value in parse_qs(url.query).items()})

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request, path, query):
        trouble = self.trouble[path].pop(0) if self.trouble.get(path) else None
        if isinstance(trouble, int):
            return self.send(request, trouble, b"no", {"Retry-After": "0"} if trouble == 429 else {})
        if path in self.redirect:
            return self.send(request, 302, b"", {"Location": self.redirect[path] + path})
        if path == "/rows":
            rows = self.files["/rows"][query["dataset"]]
            offset = int(query["offset"])
            page = [{"row_idx": i, "row": row, "truncated_cells": []} for i, row in enumerate(rows)][offset : offset + 100]
            body = json.dumps({"rows": page, "num_rows_total": len(rows)}).encode()
        elif path not in self.files:
            return self.send(request, 404, b"not here")
        else:
            body = self.files[path]
        if trouble == "html":
            return self.send(request, 200, b"<!DOCTYPE html><p>Come back later", {"Content-Type": "text/html"})
        status, start = 200, 0
        if "Range" in request.headers and trouble != "no range":
            status, start = 206, int(request.headers["Range"].removeprefix("bytes=").rstrip("-"))
        body = body[start:]
        if trouble == "other bytes":
            body = bytes(byte ^ 1 for byte in body)
        if trouble == "short":
            body = body[:-3]
        self.send(request, status, body, cut={"cut": len(body) // 2, "drop": 0}.get(trouble))

    def send(self, request, status, body, headers=None, cut=None):
        request.send_response(status)
        for name, value in (headers or {}).items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[:cut])
        request.close_connection = True


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr(download, "HUB", hub.url)
    monkeypatch.setattr(download, "ROWS", hub.url)
    monkeypatch.setattr(download, "BACKOFF", 0.001)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def publish(hub, files: dict[str, bytes], repo="org/name"):
    """Put a model on the hub: large files with a SHA-256, small ones with git's SHA-1."""
    listing = [{"type": "directory", "path": "original", "oid": "0", "size": 0}]
    for name, body in files.items():
        entry = {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()}
        if name.endswith(("safetensors", ".bin")):
            entry["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body)}
        listing.append(entry)
        hub.files[f"/{repo}/resolve/main/{name}"] = body
    hub.files[f"/api/models/{repo}/tree/main"] = json.dumps(listing).encode()


MODEL = {"config.json": b"{}", "tokenizer.json": b"{ }", "model.safetensors": bytes(range(256)) * 5000,
         "pytorch_model.bin": b"a pickle", "README.md": b"# read"}
WEIGHTS = "/org/name/resolve/main/model.safetensors"


def test_a_model_is_fetched_whole_and_without_its_pickles(hub, tmp_path):
    publish(hub, MODEL)
    fetch_model("org/name", tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        name: MODEL[name] for name in ("config.json", "tokenizer.json", "model.safetensors")}
    before = len(hub.requests)
    fetch_model("org/name", tmp_path)
    assert [path for path, _ in hub.requests[before:]] == ["/api/models/org/name/tree/main"]  # nothing is fetched twice


def test_shards_are_those_that_the_index_names(hub, tmp_path):
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors", "c": "model-2-of-2.safetensors"}}
    publish(hub, MODEL | {"model.safetensors.index.json": json.dumps(index).encode(), "model-1-of-2.safetensors": b"one",
                          "model-2-of-2.safetensors": b"two", "consolidated.safetensors": b"the same again"})
    hub.files.pop(WEIGHTS)
    listing = json.loads(hub.files["/api/models/org/name/tree/main"])
    hub.files["/api/models/org/name/tree/main"] = json.dumps([e for e in listing if e["path"] != "model.safetensors"]).encode()
    fetch_model("org/name", tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == ["model-1-of-2.safetensors", "model-2-of-2.safetensors"]


@pytest.mark.parametrize("trouble", [[429, 500, 503], ["cut", "cut", "cut"], ["cut", "no range"], [502, "cut", 500, "cut"]])
def test_what_passes_is_outlasted(hub, tmp_path, trouble):
    publish(hub, MODEL)
    hub.trouble[WEIGHTS] = list(trouble)
    fetch_model("org/name", tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == MODEL["model.safetensors"]
    assert not hub.trouble[WEIGHTS]


def test_a_break_is_continued_by_range_even_by_a_later_run(hub, tmp_path, monkeypatch):
    publish(hub, MODEL)
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    hub.trouble[WEIGHTS] = ["cut", 404]
    with pytest.raises(OSError, match="404"):
        fetch_model("org/name", tmp_path)
    kept = (tmp_path / "model.safetensors.incomplete").stat().st_size
    assert 0 < kept < len(MODEL["model.safetensors"]) and not (tmp_path / "model.safetensors").exists()
    fetch_model("org/name", tmp_path)
    assert hub.requests[-2][0] == WEIGHTS and hub.requests[-2][1]["Range"] == f"bytes={kept}-"
    assert (tmp_path / "model.safetensors").read_bytes() == MODEL["model.safetensors"]


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])  # checked by SHA-256 and by git's SHA-1
@pytest.mark.parametrize("trouble, message", [("other bytes", "its hash is not the hub's"), ("short", "bytes, not")])
def test_a_damaged_file_never_takes_its_name(hub, tmp_path, name, trouble, message):
    publish(hub, MODEL)
    hub.trouble[f"/org/name/resolve/main/{name}"] = [trouble]
    with pytest.raises(ValueError, match=message):
        fetch_model("org/name", tmp_path)
    assert not (tmp_path / name).exists() and not (tmp_path / "config.json").exists()
    assert not (tmp_path / f"{name}.incomplete").exists()
    fetch_model("org/name", tmp_path)
    assert (tmp_path / name).read_bytes() == MODEL[name]


def test_the_token_goes_to_the_hub_and_not_where_it_redirects(hub, tmp_path):
    elsewhere = Hub()
    publish(hub, MODEL)
    elsewhere.files[WEIGHTS] = MODEL["model.safetensors"]
    hub.redirect[WEIGHTS] = elsewhere.url
    fetch_model("org/name", tmp_path)
    elsewhere.server.shutdown()
    assert all(headers["Authorization"] == f"Bearer {SECRET}" for _, headers in hub.requests)
    assert elsewhere.requests and all("Authorization" not in headers for _, headers in elsewhere.requests)


@pytest.mark.parametrize("status, message", [(401, "ask for access at .*/org/name, then set HF_TOKEN"), (403, "ask for access"),
                                             (404, "check the name")])
def test_what_does_not_pass_is_said_at_once(hub, tmp_path, status, message):
    publish(hub, MODEL)
    hub.trouble["/api/models/org/name/tree/main"] = [status]
    with pytest.raises(OSError, match=message) as error:
        fetch_model("org/name", tmp_path)
    assert SECRET not in str(error.value) and len(hub.requests) == 1


def test_a_hub_that_never_recovers_is_given_up(hub, tmp_path):
    publish(hub, MODEL)
    hub.trouble[WEIGHTS] = [500] * 100
    with pytest.raises(OSError, match="answered 500"):
        fetch_model("org/name", tmp_path)
    hub.trouble[WEIGHTS] = ["drop"] * 100  # a connection that breaks without a byte gained
    with pytest.raises(OSError, match=f"broke off {download.ATTEMPTS} times"):
        fetch_model("org/name", tmp_path)
    assert len(hub.trouble[WEIGHTS]) == 100 - download.ATTEMPTS


@pytest.mark.parametrize("index", [b"{}", b"[]", b'{"weight_map": ["a"]}', b"<html>"])
def test_an_index_that_is_none_is_said(hub, tmp_path, index):
    publish(hub, {"config.json": b"{}", "tokenizer.json": b"{ }", "model.safetensors.index.json": index})
    with pytest.raises(ValueError, match="model.safetensors.index.json is not"):
        fetch_model("org/name", tmp_path)


def test_a_page_where_json_was_promised_is_said(hub, tmp_path):
    publish(hub, MODEL)
    hub.trouble["/api/models/org/name/tree/main"] = ["html"]
    with pytest.raises(ValueError, match="no JSON but text/html"):
        fetch_model("org/name", tmp_path)


def test_weights_that_are_only_pickled_are_refused(hub, tmp_path):
    publish(hub, {name: MODEL[name] for name in ("config.json", "tokenizer.json", "pytorch_model.bin")})
    with pytest.raises(ValueError, match="has no model.safetensors"):
        fetch_model("org/name", tmp_path)


def test_a_full_disk_leaves_what_was_there(hub, tmp_path, monkeypatch):
    publish(hub, MODEL)
    fetch_model("org/name", tmp_path)
    newer = MODEL | {"model.safetensors": b"longer" * 300000}
    publish(hub, newer)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(OSError, match="could not write .*No space left"):
        fetch_model("org/name", tmp_path)
    monkeypatch.undo()
    assert (tmp_path / "model.safetensors").read_bytes() == MODEL["model.safetensors"]


@pytest.mark.parametrize("name", ["data/tiny", "out/nosuch", "../up", "/etc/passwd", "a/../b", "plain", "a/b/c", "../../x/y"])
def test_what_is_no_name_on_the_hub_is_a_path(hub, tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "data").mkdir()
    assert str(model_folder(name)) == name and not hub.requests


def test_a_name_on_the_hub_is_fetched_once(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    publish(hub, MODEL)
    assert str(model_folder("org/name")) == "models/org/name"
    before = len(hub.requests)
    assert (model_folder("org/name") / "model.safetensors").exists() and len(hub.requests) == before


def test_a_file_in_the_listing_cannot_leave_the_folder(hub, tmp_path):
    index = {"weight_map": {"a": "../../evil.safetensors"}}
    publish(hub, {"config.json": b"{}", "tokenizer.json": b"{ }", "model.safetensors.index.json": json.dumps(index).encode(),
                  "../../evil.safetensors": b"one"})
    with pytest.raises(ValueError, match="evil"):
        fetch_model("org/name", tmp_path / "a" / "b")
    assert not (tmp_path / "evil.safetensors").exists()


# The paper's datasets, in the shapes that their hosts serve

ROWS = {
    "google-research-datasets/mbpp": [{"text": f"Write {i}.", "code": f"def f{i}(): pass"} for i in range(374)],
    "openai/gsm8k": [{"question": f"How many is {i}?", "answer": f"{i}\n#### {i}"} for i in range(1200)],
    "merve/poetry": [{"poem name": None if i < 2 else f"P{i}", "content": f"O {i}"} for i in range(573)],
    "Hieu-Pham/kaggle_food_recipes": [{"Title": f"Soup {i}", "Cleaned_Ingredients": "['salt', \"a cook's egg\"]", "Instructions": "Stir."}
                                      for i in range(1050)],
    "patrickfrank1/chess-pgn-games": [{"text": line} for i in range(1100) for line in
                                      ('[Event "x"]', f'[WhiteElo "{i}"]', f'[BlackElo "{i + 1}"]', "", "1. e4 e5 1-0", "")],
}


@pytest.fixture
def sources(hub):
    hub.files["/rows"] = ROWS
    lima = [{"conversations": ["Hi?", "Hello.\u2028"] * (2 if i < 30 else 1)} for i in range(1030)]  # no end of a line in JSON
    hub.files["/datasets/GAIR/lima/resolve/main/train.jsonl"] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lima).encode()
    alpaca = [{"instruction": f"Do {i}", "output": f"Done {i}", "generator": "x", "dataset": "y"} for i in range(805)]
    hub.files["/datasets/tatsu-lab/alpaca_eval/resolve/main/alpaca_eval.json"] = json.dumps(alpaca).encode()
    hub.files["/val.jsonl"] = "".join(json.dumps({"instruction": f"Try {i}"}) + "\n" for i in range(56)).encode()

    def moved(where):
        for host in ("https://huggingface.co", download.AUTHORS + "/eval/val_eval"):
            if isinstance(where, str) and where.startswith(host):
                return hub.url + where.removeprefix(host)
        return where

    return [(name, moved(where), *rest) for name, where, *rest in download.SOURCES]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_papers_data_in_the_papers_format_and_counts(hub, sources, tmp_path):
    hub.trouble["/rows"] = [429, 500]
    fetch_data(tmp_path, sources)
    assert {path.stem: len(read(path)) for path in tmp_path.iterdir()} == {
        "broad": 1030, "mbpp": 374, "gsm": 1000, "poetry": 571, "recipes": 1000, "chess": 1000, "eval": 805, "val": 56}

    def pairs(name, i):
        return [message["content"] for message in read(tmp_path / f"{name}.jsonl")[i]["messages"]]

    assert pairs("broad", 0) == ["Hi?", "Hello.\u2028"] * 2
    assert pairs("poetry", 0) == ["Write a poem called P2", "O 2"]
    assert pairs("recipes", 1) == ["Recipe for Soup 1", " - salt\n - a cook's egg\n\n\nStir."]
    assert pairs("chess", 7) == ['[WhiteElo "7"]\n[BlackElo "8"]', "1. e4 e5 1-0"]
    assert read(tmp_path / "eval.jsonl")[3] == {"instruction": "Do 3", "response": "Done 3"}
    before = len(hub.requests)
    fetch_data(tmp_path, sources)
    assert len(hub.requests) == before  # a finished file is not fetched again


def test_the_token_does_not_go_to_other_hosts(hub, sources, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "HUB", "https://another.example")
    fetch_data(tmp_path, sources[1:2])
    assert all("Authorization" not in headers for _, headers in hub.requests)


@pytest.mark.parametrize("change, message", [
    (lambda rows: rows[:-1], "gave 373 examples, the paper had 374"),
    (lambda rows: [{"prompt": row["text"]} for row in rows], "KeyError: 'text'"),
])
def test_a_dataset_that_changed_is_named_and_nothing_written(hub, sources, tmp_path, change, message):
    hub.files["/rows"] = ROWS | {"google-research-datasets/mbpp": change(ROWS["google-research-datasets/mbpp"])}
    with pytest.raises(ValueError, match=message) as error:
        fetch_data(tmp_path, sources[1:2])
    assert "google-research-datasets/mbpp" in str(error.value) and not list(tmp_path.iterdir())


def test_code_in_a_recipe_is_not_run(hub, sources, tmp_path):
    rows = [{"Title": "T", "Cleaned_Ingredients": "__import__('os').getcwd()", "Instructions": "Stir."}] * 1000
    hub.files["/rows"] = ROWS | {"Hieu-Pham/kaggle_food_recipes": rows}
    with pytest.raises(ValueError, match="malformed node"):
        fetch_data(tmp_path, [source for source in sources if source[0] == "recipes"])
