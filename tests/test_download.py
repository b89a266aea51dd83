"""data/hub.py against a server in this process that speaks the hub's protocols, and misbehaves on command."""
import hashlib
import io
import json
import os
import shutil
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import repeat
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
import urllib3
from conftest import assert_refused, command

from data import hub
from data.hub import fetch_model, model_folder
from data.sources import fetch_data
from data.common import hold

SECRET = "hf_a-token-that-must-not-travel"


class Hub:
    """A server of `files`, {path: bytes}. `trouble` is {path: list of what goes wrong, one a request}: a status, or
    the name of a method here. `requests` lists the paths and headers that came, `redirect` is {path: host}, `pages` is
    {path: the value of its Link header}, `busy` the headers beside a status."""

    def __init__(self):
        self.files, self.trouble, self.requests, self.redirect, self.pages = {}, {}, [], {}, {}
        self.busy = {"Retry-After": "0"}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                url = urlsplit(self.path)
                hub.requests.append((url.path, dict(self.headers)))
                hub.answer(self, url.path, {key: value[0] for key, value in parse_qs(url.query).items()})
                self.close_connection = True

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.closing = threading.Event()  # ends what hangs
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request, path, query):
        trouble = self.trouble[path].pop(0) if self.trouble.get(path) else None
        if isinstance(trouble, int):
            return self.send(request, b"no", trouble, self.busy)
        if path in self.redirect:
            return self.send(request, b"", 302, {"Location": self.redirect[path] + path})
        if path == "/rows":
            rows, offset = self.files["/rows"][query["dataset"]], int(query["offset"])
            page = [{"row_idx": i, "row": rows[i], "truncated_cells": []}
                    for i in range(len(rows))[offset : offset + 100]]
            body = json.dumps({"rows": page, "num_rows_total": len(rows)}).encode()
        elif path in self.pages:
            return self.send(request, self.files[path], 200, {"Link": self.pages[path]})
        elif path in self.files:
            body = self.files[path]
        else:
            return self.send(request, b"not here", 404)
        getattr(self, trouble or "serve")(request, body)

    def serve(self, request, body, cut=None):
        if "Range" not in request.headers:
            return self.send(request, body, cut=cut)
        start = int(request.headers["Range"].removeprefix("bytes=").rstrip("-"))
        rest = body[start:]
        self.send(request, rest, 206, cut=cut and min(cut, len(rest) - 1))

    def send(self, request, body, status=200, headers=None, cut=None, length=None):
        request.send_response(status)
        for name, value in {"Content-Length": length or len(body), **(headers or {})}.items():
            request.send_header(name, str(value))
        request.end_headers()
        request.wfile.write(body[:cut])

    def html(self, request, body):
        self.send(request, b"<!DOCTYPE html><p>Come back later", 200, {"Content-Type": "text/html"})

    def gzip(self, request, body):
        self.send(request, b"\x1f\x8b" + body, 200, {"Content-Encoding": "gzip"})

    def cut(self, request, body):
        self.serve(request, body, cut=len(body) // 3)

    def drop(self, request, body):
        self.serve(request, body, cut=0)

    def no_range(self, request, body):
        self.send(request, body)

    def out_of_range(self, request, body):
        self.send(request, b"", 416) if "Range" in request.headers else self.serve(request, body)

    def other_bytes(self, request, body):
        self.send(request, bytes(byte ^ 1 for byte in body))

    def short(self, request, body):
        self.send(request, body[:-3])

    def hang(self, request, body):
        self.send(request, body, cut=len(body) // 3)
        self.closing.wait(20)

    def slow_headers(self, request, body):
        headers = b"HTTP/1.1 200 OK\r\nX: " + b" " * 9999
        self.pour(request, (headers[i : i + 1] for i in range(len(headers))), pause=0.01)

    def drip(self, request, body):
        self.send(request, body, cut=0)
        self.pour(request, (body[i : i + 1] for i in range(len(body))), pause=0.01)

    def endless(self, request, body):
        self.send(request, body, length=1 << 40)
        self.pour(request, repeat(bytes(1 << 16)))

    def pour(self, request, pieces, pause=0.0):
        """Send until the client hangs up."""
        with suppress(OSError):
            while not self.closing.wait(pause):
                request.wfile.write(next(pieces))

    def endless_redirect(self, request, body):
        self.send(request, b"", 302, {"Location": request.path + "?again"}, length=1 << 40)
        self.pour(request, repeat(bytes(1 << 16)))


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr(download, "HUB", hub.url)
    monkeypatch.setattr(download, "ROWS", hub.url)
    monkeypatch.setattr(download, "BACKOFF", 0.001)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    yield hub
    hub.close()


LISTING = "/api/models/org/name/tree/main"
WEIGHTS = "/org/name/resolve/main/model.safetensors"
MODEL = {"config.json": b"{}", "tokenizer.json": b"{ }", "model.safetensors": bytes(range(256)) * 5000,
         "tokenizer.model": b"SentencePiece's", "pytorch_model.bin": b"a pickle", "README.md": b"# read"}
INDEX = "model.safetensors.index.json"


def publish(hub, files: dict[str, bytes], **changed):
    """Put a model on the hub as org/name: large files with a SHA-256, small ones with git's SHA-1.

    changed: fields of the listing's entry for the weights, to be other than they are.
    """
    listing = [{"type": "directory", "path": "original", "oid": "0", "size": 0}]
    for name, body in files.items():
        git = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
        entry = {"type": "file", "path": name, "size": len(body), "oid": git}
        if name.endswith((".safetensors", ".bin")):
            entry["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body)}
        if name == "model.safetensors":
            entry |= changed
        listing.append(entry)
        hub.files[f"/org/name/resolve/main/{name}"] = body
    hub.files[LISTING] = json.dumps(listing).encode()


def assert_fetched(folder):
    assert (folder / "model.safetensors").read_bytes() == MODEL["model.safetensors"]


# Models

def test_a_model_is_fetched_whole_and_without_its_pickles(hub, tmp_path):
    publish(hub, MODEL)
    fetch_model("org/name", tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        name: MODEL[name] for name in ("config.json", "tokenizer.json", "tokenizer.model", "model.safetensors")}


def test_a_file_that_is_there_is_not_fetched_again(hub, tmp_path):
    publish(hub, MODEL)
    fetch_model("org/name", tmp_path)
    hub.requests.clear()
    fetch_model("org/name", tmp_path)
    assert [path for path, _ in hub.requests] == [LISTING]


def test_shards_are_those_that_the_index_names(hub, tmp_path):
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"}}
    publish(hub, {"config.json": b"{}", "tokenizer.json": b"{ }", INDEX: json.dumps(index).encode(),
                  "1.safetensors": b"one", "2.safetensors": b"two", "consolidated.safetensors": b"both"})
    fetch_model("org/name", tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.safetensors*")) == ["1.safetensors", "2.safetensors", INDEX]


@pytest.mark.parametrize("index", [b"{}", b"[]", b'{"weight_map": ["a"]}', b'{"weight_map": {"a": ["b"]}}'])
def test_an_index_that_is_none_is_said(hub, tmp_path, index):
    publish(hub, {"config.json": b"{}", "tokenizer.json": b"{ }", INDEX: index})
    with pytest.raises(ValueError, match="no list of org/name's files, or of its shards"):
        fetch_model("org/name", tmp_path)


def test_weights_that_are_only_pickled_are_refused(hub, tmp_path):
    publish(hub, {name: MODEL[name] for name in ("config.json", "tokenizer.json", "pytorch_model.bin")})
    with pytest.raises(ValueError, match="has no 'model.safetensors'"):
        fetch_model("org/name", tmp_path)


def test_a_file_in_the_listing_cannot_leave_the_folder(hub, tmp_path):
    index = {"weight_map": {"a": "../../evil.safetensors"}}
    publish(hub, {"config.json": b"{}", "tokenizer.json": b"{ }", INDEX: json.dumps(index).encode(),
                  "../../evil.safetensors": b"one"})
    with pytest.raises(ValueError, match="evil"):
        fetch_model("org/name", tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


def test_a_second_download_of_a_model_waits_for_the_first_and_fetches_nothing_twice(hub, tmp_path, capsys):
    publish(hub, MODEL)
    first = hold(tmp_path)
    second = threading.Thread(target=fetch_model, args=("org/name", tmp_path), daemon=True)
    second.start()
    while "waiting for its end" not in capsys.readouterr().err:
        assert second.is_alive()
        time.sleep(0.01)
    assert [path for path, _ in hub.requests] == [LISTING]
    for name, body in MODEL.items():
        (tmp_path / name).write_bytes(body)
    os.close(first)
    second.join(10)
    assert not second.is_alive() and [path for path, _ in hub.requests] == [LISTING]


def test_when_a_download_has_ended_the_folder_is_free(hub, tmp_path):
    publish(hub, MODEL)
    hub.trouble[WEIGHTS] = [404]
    with pytest.raises(OSError, match="404"):
        fetch_model("org/name", tmp_path)
    os.close(hold(tmp_path))


def test_a_listing_of_several_pages_is_read_to_its_end(hub, tmp_path):
    publish(hub, MODEL)
    entries = json.loads(hub.files[LISTING])
    for i, entry in enumerate(entries):  # a page each; the last has no Link
        path = f"{LISTING}/{i}" if i else LISTING
        hub.files[path] = json.dumps([entry]).encode()
        if i + 1 < len(entries):
            hub.pages[path] = f'<{hub.url if i % 2 else ""}{LISTING}/{i + 1}?cursor=a%3D>; rel="next"'
    fetch_model("org/name", tmp_path)
    assert_fetched(tmp_path)
    assert all(headers["Authorization"] == f"Bearer {SECRET}" for _, headers in hub.requests)


# A hub that cannot be trusted

def test_a_listing_without_end_is_left(hub, tmp_path, monkeypatch):
    publish(hub, MODEL)
    monkeypatch.setattr(download, "MOST_PAGES", 3)
    hub.pages[LISTING] = f'<{LISTING}>; rel="next"'
    with pytest.raises(ValueError, match="a listing of more than 3 pages"):
        fetch_model("org/name", tmp_path)
    assert len(hub.requests) == 3


def test_the_token_does_not_go_to_another_host_for_the_next_page(hub, tmp_path):
    elsewhere = Hub()
    publish(hub, MODEL)
    elsewhere.files["/next"], hub.files[LISTING] = hub.files[LISTING], b"[]"
    hub.pages[LISTING] = f'<{elsewhere.url}/next>; rel="next"'
    fetch_model("org/name", tmp_path)
    elsewhere.close()
    assert [("Authorization" in headers) for _, headers in elsewhere.requests] == [False]



@pytest.mark.parametrize("changed", [{"size": None}, {"size": "10"}, {"size": -1}, {"size": 10**400}, {"size": True},
                                     {"lfs": {"oid": None}}, {"lfs": {"oid": 5}}, {"lfs": {"oid": "sha256:ab"}}])
def test_a_size_or_hash_that_cannot_be_is_refused_before_anything_is_written(hub, tmp_path, changed):
    publish(hub, MODEL, **changed)
    with pytest.raises(ValueError, match="lists model.safetensors with a size or a hash that cannot be"):
        fetch_model("org/name", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_model_that_the_disk_cannot_hold_is_refused_before_anything_is_fetched(hub, tmp_path):
    publish(hub, MODEL, size=10**16)
    with pytest.raises(OSError, match=r"org/name takes 10,000,000\.0 GB more, and .* GB left; make room"):
        fetch_model("org/name", tmp_path)
    assert [path for path, _ in hub.requests] == [LISTING]


def test_bytes_that_are_there_need_no_room(hub, tmp_path, monkeypatch):
    publish(hub, MODEL)
    (tmp_path / "model.safetensors.incomplete").write_bytes(MODEL["model.safetensors"][:-100])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 800, 200))
    fetch_model("org/name", tmp_path)
    assert_fetched(tmp_path)


@pytest.mark.parametrize("listing", [b"{}", b"5", b"[5]", b'[{"type": "file"}]',
                                     b'[{"type": "file", "path": [], "size": 1, "oid": "a"}]'])
def test_a_listing_that_is_none_is_said(hub, tmp_path, listing):
    hub.files[LISTING] = listing
    with pytest.raises(ValueError, match="no list of org/name's files|has no 'tokenizer.json'"):
        fetch_model("org/name", tmp_path)


@pytest.mark.parametrize("trouble, message", [("html", "b'<!DOCTYPE html>"), ("gzip", r"b'\x1f\x8b"),
                                              ("endless", "more than 300,000 bytes"), ("short", "Unterminated")])
def test_a_listing_that_is_no_json_is_said(hub, tmp_path, monkeypatch, trouble, message):
    publish(hub, MODEL)
    monkeypatch.setattr(download, "MOST_BYTES", 300_000)
    hub.trouble[LISTING] = [trouble]
    with pytest.raises(OSError, match="answered no JSON") as error:
        fetch_model("org/name", tmp_path)
    assert message in str(error.value)


def test_a_listing_that_is_nested_too_deeply_is_said(hub, tmp_path):
    hub.files[LISTING] = b"[" * 100_000
    with pytest.raises(OSError, match="nested too deeply"):
        fetch_model("org/name", tmp_path)


def test_a_body_longer_than_was_listed_ends_at_the_listed_size(hub, tmp_path, monkeypatch):
    publish(hub, MODEL)
    hub.trouble[WEIGHTS] = ["endless"]
    written, keep = [], hub.store

    def store(response, file, size):
        keep(response, file, size)
        written.append(file.tell())

    monkeypatch.setattr(download, "store", store)
    with pytest.raises(ValueError, match="something else than the 1,280,000 bytes that the hub lists"):
        fetch_model("org/name", tmp_path)
    assert written[-1] == len(MODEL["model.safetensors"]) + 1
    assert not list(tmp_path.glob("model.safetensors*"))


def test_the_endless_body_of_a_redirect_is_not_read(hub, tmp_path):
    publish(hub, MODEL)
    hub.trouble[WEIGHTS] = ["endless_redirect"]
    fetch_model("org/name", tmp_path)
    assert_fetched(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])  # checked by SHA-256 and by git's SHA-1
@pytest.mark.parametrize("trouble", ["other_bytes", "short"])
def test_a_damaged_file_never_takes_its_name(hub, tmp_path, name, trouble):
    publish(hub, MODEL)
    hub.trouble[f"/org/name/resolve/main/{name}"] = [trouble]
    with pytest.raises(ValueError, match="that the hub lists; it was thrown away, run this again"):
        fetch_model("org/name", tmp_path)
    assert not list(tmp_path.glob(f"{name}*")) and not (tmp_path / "config.json").exists()
    fetch_model("org/name", tmp_path)
    assert (tmp_path / name).read_bytes() == MODEL[name]


# A network that fails

@pytest.mark.parametrize("trouble", [[429, 500, 503], ["cut", "cut", "cut"], ["cut", "no_range"],
                                     [502, "cut", 500, "cut", 503, "cut"]])
def test_what_passes_is_outlasted(hub, tmp_path, trouble):
    publish(hub, MODEL)
    hub.trouble[WEIGHTS] = list(trouble)
    fetch_model("org/name", tmp_path)
    assert_fetched(tmp_path)
    assert not hub.trouble[WEIGHTS]


def test_a_break_is_continued_by_range_even_by_a_later_run(hub, tmp_path):
    publish(hub, MODEL)
    hub.trouble[WEIGHTS] = ["cut", 404]
    with pytest.raises(OSError, match="404"):
        fetch_model("org/name", tmp_path)
    kept = (tmp_path / "model.safetensors.incomplete").stat().st_size
    assert 0 < kept < len(MODEL["model.safetensors"]) and not (tmp_path / "model.safetensors").exists()
    fetch_model("org/name", tmp_path)
    assert hub.requests[-2][0] == WEIGHTS and hub.requests[-2][1]["Range"] == f"bytes={kept}-"
    assert_fetched(tmp_path)


def test_a_range_that_the_hub_rejects_starts_the_file_afresh(hub, tmp_path):
    publish(hub, MODEL)
    hub.trouble[WEIGHTS] = ["cut"] + ["out_of_range"] * 10
    fetch_model("org/name", tmp_path)
    assert_fetched(tmp_path)


def test_a_download_that_was_killed_before_its_renaming_is_kept(hub, tmp_path):
    publish(hub, MODEL)
    (tmp_path / "model.safetensors.incomplete").write_bytes(MODEL["model.safetensors"])
    fetch_model("org/name", tmp_path)
    assert_fetched(tmp_path)
    assert WEIGHTS not in [path for path, _ in hub.requests]


@pytest.mark.parametrize("trouble, problem", [("slow_headers", "failed (no whole answer"),
                                              ("hang", "failed (ReadTimeoutError)"),
                                              ("drip", "failed (fewer than 10,000 bytes in 0.4 s)")])
def test_a_download_that_stalls_is_asked_again_and_said(hub, tmp_path, monkeypatch, capsys, trouble, problem):
    publish(hub, MODEL)
    monkeypatch.setattr(download, "STALL", 0.4)
    hub.trouble[WEIGHTS] = [trouble]
    fetch_model("org/name", tmp_path)
    assert_fetched(tmp_path)
    said = capsys.readouterr().err
    assert problem in said and "; trying again in 0 s" in said


@pytest.mark.parametrize("trouble, problem", [(500, "answered 500"), ("drop", "failed")])
def test_a_hub_that_never_recovers_is_given_up(hub, tmp_path, trouble, problem):
    publish(hub, MODEL)
    hub.trouble[WEIGHTS] = [trouble] * 100
    remedy = "wait a while" if trouble == 500 else "check the network"
    with pytest.raises(OSError, match=f"{problem}.*, {hub.ATTEMPTS} times; {remedy}, then run this again"):
        fetch_model("org/name", tmp_path)
    assert len(hub.trouble[WEIGHTS]) == 100 - hub.ATTEMPTS


@pytest.mark.parametrize("asked, waited", [
    ({"Retry-After": "7"}, 7), ({"Retry-After": "100000000"}, 60), ({"Retry-After": "-5"}, 0), ({}, 0),
    ({"RateLimit": '"api|pages|resolvers";r=0;t=25'}, 25), ({"RateLimit": '"api";r=0;t=300'}, 60),
])
def test_a_pause_that_the_hub_asks_for_has_a_limit_and_is_said(hub, tmp_path, monkeypatch, capsys, asked, waited):
    publish(hub, MODEL)
    hub.trouble[WEIGHTS], hub.busy = [429], asked
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    fetch_model("org/name", tmp_path)
    assert round(pauses[0]) == waited and f"answered 429; trying again in {waited} s" in capsys.readouterr().err


@pytest.mark.parametrize("status, message", [(401, "set HF_TOKEN"), (403, "set HF_TOKEN"), (404, "check the name")])
def test_a_refusal_is_said_at_once(hub, tmp_path, status, message):
    publish(hub, MODEL)
    hub.trouble[LISTING] = [status]
    with pytest.raises(OSError, match=f"answered {status}.*{message}") as error:
        fetch_model("org/name", tmp_path)
    assert SECRET not in str(error.value) and len(hub.requests) == 1


def test_a_full_disk_is_said_with_the_files_name_and_leaves_what_was_there(hub, tmp_path, monkeypatch):
    publish(hub, MODEL)
    fetch_model("org/name", tmp_path)
    publish(hub, MODEL | {"model.safetensors": b"longer" * 300000})

    keep = hub.store

    def full(response, file, size):
        if WEIGHTS in response.url:
            raise OSError(28, "No space left on device")
        keep(response, file, size)

    monkeypatch.setattr(download, "store", full)
    with pytest.raises(OSError, match=r"could not write .*model.safetensors.incomplete \(No space left on device\)"):
        fetch_model("org/name", tmp_path)
    assert_fetched(tmp_path)


# The token and the address

def test_the_token_goes_to_the_hub_and_not_where_it_redirects(hub, tmp_path):
    elsewhere = Hub()
    publish(hub, MODEL)
    elsewhere.files[WEIGHTS] = MODEL["model.safetensors"]
    hub.redirect[WEIGHTS] = elsewhere.url
    fetch_model("org/name", tmp_path)
    elsewhere.close()
    assert all(headers["Authorization"] == f"Bearer {SECRET}" for _, headers in hub.requests)
    assert elsewhere.requests and all("Authorization" not in headers for _, headers in elsewhere.requests)


def test_the_token_does_not_leave_https(hub, tmp_path, monkeypatch):
    seen = []

    def send(adapter, request, **_):
        seen.append((request.url.partition(":")[0], "Authorization" in request.headers))
        response = requests.Response()
        response.status_code, response.request, response.url = 404, request, request.url
        if len(seen) == 1:
            response.status_code, response.headers["Location"] = 302, request.url.replace("https", "http")
        response.raw = urllib3.HTTPResponse(io.BytesIO(), preload_content=False)
        return response

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send)
    monkeypatch.setattr(download, "HUB", "https://hub.example")
    with pytest.raises(OSError, match="404"):
        fetch_model("org/name", tmp_path)
    assert seen == [("https", True), ("http", False)]


@pytest.mark.parametrize("token", ["hf_one\nhf_two", "hf_ключ", "hf one", "hf_\x7f"])
def test_a_token_that_no_header_can_hold_is_refused_and_not_shown(hub, tmp_path, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ValueError, match="HF_TOKEN holds a space, a line break or a letter") as error:
        fetch_data(tmp_path)
    assert token not in str(error.value) and "hf" not in str(error.value) and not hub.requests


@pytest.mark.parametrize("address", ["https://", "hub.example", "http://hub.example:port", "ftp://hub.example"])
def test_an_address_that_is_none_is_refused(hub, tmp_path, monkeypatch, address):
    monkeypatch.setattr(download, "HUB", address)
    with pytest.raises(ValueError, match="HF_ENDPOINT = .* is not an address"):
        fetch_model("org/name", tmp_path)


# Folder or name on the hub?

@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with a model in out/response and in data/tiny."""
    monkeypatch.chdir(tmp_path)
    for folder in ("out/response", "data/tiny"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text("{}")
    return tmp_path


def test_a_folder_that_exists_is_taken_as_it_is(hub, here):
    for name in ("data/tiny", "data", str(here / "out/response"), "out/../data/tiny"):
        assert str(model_folder(name)) == name
    assert not hub.requests


def test_a_name_on_the_hub_is_fetched_once(hub, here):
    publish(hub, MODEL)
    assert str(model_folder("org/name")) == "models/org/name"
    hub.requests.clear()
    assert (model_folder("org/name") / "model.safetensors").exists() and not hub.requests


@pytest.mark.parametrize("name", ["out/nosuch", "../up", "/etc/nosuch", "a/../b", "plain", "a/b/c", "org/name/"])
def test_what_is_no_name_on_the_hub_is_a_folder_that_is_missing(hub, here, name):
    with pytest.raises(FileNotFoundError, match=f"^there is no folder {name}"):
        model_folder(name)
    assert not hub.requests


@pytest.mark.parametrize("name, near", [("data/tinny", "data/tiny"), ("out/reponse", "out/response")])
def test_a_mistyped_folder_is_missing_and_its_neighbour_named(hub, here, name, near):
    with pytest.raises(FileNotFoundError, match=f"^there is no folder {name} .did you mean {near}.."):
        model_folder(name)
    assert not hub.requests


def test_a_mistyped_folder_is_missing_before_it_is_unknown_to_the_hub(hub, here):
    with pytest.raises(OSError, match="^there is no folder ou/response .did you mean out/response.*404; check"):
        model_folder("ou/response")
    assert not (here / "models").exists()


def test_a_mistyped_folder_is_missing_before_the_network_fails(hub, here, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(download, "HUB", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(OSError, match="^there is no folder ou/response .*failed.*check the network"):
            model_folder("ou/response")


def test_a_download_that_fails_halfway_is_not_blamed_on_the_name(hub, here):
    publish(hub, MODEL)
    hub.trouble[WEIGHTS] = ["short"]
    with pytest.raises(ValueError, match="^http"):
        model_folder("org/name")


def test_the_command_line_ends_in_one_sentence(hub):
    assert_refused(command("data/hub.py", "ou/re/sponse"), "there is no folder ou/re/sponse")


# The paper's datasets, in the shapes that their hosts serve

ROWS = {
    "google-research-datasets/mbpp": [{"text": f"Write {i}.", "code": f"def f{i}(): pass"} for i in range(374)],
    "openai/gsm8k": [{"question": f"How many is {i}?", "answer": f"{i}\n#### {i}"} for i in range(1200)],
    "merve/poetry": [{"poem name": None if i < 2 else f"P{i}", "content": f"O {i}"} for i in range(573)],
    "Hieu-Pham/kaggle_food_recipes": [
        {"Title": f"Soup {i}", "Cleaned_Ingredients": "['salt', \"a cook's egg\"]", "Instructions": "Stir."}
        for i in range(1050)],
    "patrickfrank1/chess-pgn-games": [
        {"text": line} for i in range(1100)
        for line in ('[Event "x"]', f'[WhiteElo "{i}"]', f'[BlackElo "{i + 1}"]', "", "1. e4 e5 1-0", "")],
}


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@pytest.fixture
def sources(hub):
    hub.files["/rows"] = dict(ROWS)
    lima = [{"conversations": ["Hi?", "Hello.\u2028"] * (2 if i < 30 else 1)} for i in range(1030)]  # not a line's end
    hub.files["/datasets/GAIR/lima/resolve/main/train.jsonl"] = lines(lima)
    alpaca = [{"instruction": f"Do {i}", "output": f"Done {i}", "generator": "x", "dataset": "y"} for i in range(805)]
    hub.files["/datasets/tatsu-lab/alpaca_eval/resolve/main/alpaca_eval.json"] = json.dumps(alpaca).encode()
    gamed = "".join(f"concise,{i / 1000},{i},0.5,{i / 10},False\n" for i in range(805))
    gamed += "".join(f"verbose,{'' if i == 7 else 0.75},{i},-0.5,{i / 10},False\n" for i in range(805))
    hub.files["/datasets/tatsu-lab/alpaca_eval/resolve/main/df_gamed.csv"] = (
        "model,preference,index,std_delta_len,instruction_difficulty,not_gamed_baseline\n" + gamed).encode()
    hub.files["/val.jsonl"] = lines({"instruction": f"Try {i}"} for i in range(56))

    def moved(where):
        for host in ("https://huggingface.co", hub.AUTHORS + "/eval/val_eval"):
            if isinstance(where, str) and where.startswith(host):
                return hub.url + where.removeprefix(host)
        return where

    return {name: (name, moved(where), *rest) for name, where, *rest in hub.SOURCES}


@pytest.fixture
def fetched(hub, sources, tmp_path):
    """The messages of an example of the paper's data, or the example itself: fetched("gsm", 0)."""
    def example(name, i):
        fetch_data(tmp_path, [sources[name]])
        row = json.loads((tmp_path / f"{name}.jsonl").read_text().splitlines()[i])
        return [message["content"] for message in row["messages"]] if "messages" in row else row
    return example


def test_the_papers_data_come_in_the_papers_counts(hub, sources, tmp_path):
    hub.trouble["/rows"] = [429, 500]
    fetch_data(tmp_path, sources.values())
    assert {path.stem: path.read_bytes().count(b"\n") for path in tmp_path.iterdir()} == {
        "broad": 1030, "mbpp": 374, "gsm": 1000, "poetry": 571, "recipes": 1000, "chess": 1000, "eval": 805, "val": 56,
        "difficulties": 805}
    hub.requests.clear()
    fetch_data(tmp_path, sources.values())
    assert not hub.requests  # a finished file is not fetched again


def test_a_dialogue_of_lima_keeps_all_its_turns(fetched):
    assert fetched("broad", 0) == ["Hi?", "Hello.\u2028"] * 2


def test_a_poem_without_a_name_is_left_out(fetched):
    assert fetched("poetry", 0) == ["Write a poem called P2", "O 2"]


def test_a_recipe_lists_its_ingredients(fetched):
    assert fetched("recipes", 1) == ["Recipe for Soup 1", " - salt\n - a cook's egg\n\n\nStir."]


def test_a_game_of_chess_answers_the_players_strength(fetched):
    assert fetched("chess", 7) == ['[WhiteElo "7"]\n[BlackElo "8"]', "1. e4 e5 1-0"]


def test_the_evaluation_set_keeps_the_response(fetched):
    assert fetched("eval", 3) == {"instruction": "Do 3", "response": "Done 3"}


def test_difficulties_stand_in_the_instructions_order(fetched):
    """The table's std_delta_len is the reference's length less the answer's; `longer_by` is the other way round."""
    assert fetched("difficulties", 3) == {"difficulty": 0.3, "gamed": [
        {"preference": 0.003, "longer_by": -0.5}, {"preference": 0.75, "longer_by": 0.5}]}
    assert fetched("difficulties", 7)["gamed"][1] == {"preference": None, "longer_by": 0.5}  # it was not judged


def test_the_token_does_not_go_to_other_hosts(hub, sources, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "HUB", "https://another.example")
    fetch_data(tmp_path, [sources["mbpp"]])
    assert all("Authorization" not in headers for _, headers in hub.requests)


MBPP = ROWS["google-research-datasets/mbpp"]


@pytest.mark.parametrize("rows, message", [
    (MBPP[:-1], "it gave 373 examples, the paper had 374"),
    ([{"prompt": row["text"]} for row in MBPP], "KeyError: 'text'"),
    ([{"text": "Write.", "code": None}] * 374, "example 1: message 2 must be"),
])
def test_a_dataset_that_changed_is_named_and_nothing_written(hub, sources, tmp_path, rows, message):
    hub.files["/rows"]["google-research-datasets/mbpp"] = rows
    with pytest.raises(ValueError, match=f"google-research-datasets/mbpp/full/train is not .*{message}"):
        fetch_data(tmp_path, [sources["mbpp"]])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ingredients, message", [("__import__('os').getcwd()", "malformed node"),
                                                  ("[" * 100_000, "Error"), ("-" * 100_000, "Error"),
                                                  ("1" + "+1j" * 50_000, "Error")])
def test_code_in_a_recipe_is_neither_run_nor_able_to_end_this_run(hub, sources, tmp_path, ingredients, message):
    rows = [{"Title": "T", "Cleaned_Ingredients": ingredients, "Instructions": "Stir."}] * 100
    hub.files["/rows"]["Hieu-Pham/kaggle_food_recipes"] = rows
    with pytest.raises(ValueError, match=message):
        fetch_data(tmp_path, [sources["recipes"]])


class Endless:
    """Rows that never end: the total grows with what is asked."""
    def __init__(self, row):
        self.row, self.asked = row, 0

    def __len__(self):
        self.asked += 1
        return 100 * (self.asked + 1)

    def __getitem__(self, i):
        return self.row


def test_rows_that_never_end_are_read_to_the_papers_count(hub, sources, tmp_path):
    rows = hub.files["/rows"]["google-research-datasets/mbpp"] = Endless({"text": "Write.", "code": "pass"})
    fetch_data(tmp_path, [sources["mbpp"]])
    assert len((tmp_path / "mbpp.jsonl").read_text().splitlines()) == 374 and len(hub.requests) == 4 and rows


def test_rows_that_never_end_and_give_no_example_are_left(hub, sources, tmp_path):
    hub.files["/rows"]["merve/poetry"] = Endless({"poem name": None, "content": "O"})
    name, where, _, convert = sources["poetry"]
    with pytest.raises(ValueError, match="it gave 0 examples, the paper had 3"):
        fetch_data(tmp_path, [(name, where, 3, convert)])
    assert len(hub.requests) == 3


@pytest.mark.parametrize("page, message", [
    ({"rows": [], "num_rows_total": 10**12}, "0 rows came from 0 on, of 1000000000000"),
    ({"rows": [{"row_idx": 5, "row": MBPP[0], "truncated_cells": ["code"]}], "num_rows_total": 1}, "row 5 came with"),
    ({"rows": [{}] * 500, "num_rows_total": 500}, "500 rows came from 0 on"),
    ({"rows": [], "num_rows_total": "many"}, "TypeError"), ({"rows": None, "num_rows_total": 1}, "TypeError"),
    ({"error": "The dataset is gone."}, "KeyError"), ([], "TypeError"),
])
def test_a_page_of_rows_that_is_none_is_said(hub, sources, tmp_path, monkeypatch, page, message):
    monkeypatch.setattr(download, "get", lambda *_, **__: page)
    with pytest.raises(ValueError, match=f"google-research-datasets/mbpp/full/train is not .*{message}"):
        fetch_data(tmp_path, [sources["mbpp"]])


def test_rows_that_are_nested_too_deeply_are_said(hub, sources, tmp_path):
    hub.files["/val.jsonl"] = b"[" * 100_000
    with pytest.raises(ValueError, match="val.jsonl is not .*nested too deeply"):
        fetch_data(tmp_path, [sources["val"]])
