"""data/hub.py and data/sources.py against a server in this process that speaks the hub's protocols."""
import hashlib
import json
import os
import threading
from urllib.parse import parse_qs, urlsplit

import pytest
from conftest import ROOT, assert_refused, command
from server import Server

from data import hub, sources
from data.common import hold
from data.format import dialogue
from data.hub import INDEX, fetch_model, model_folder
from data.sources import SOURCES, fetch_data

SECRET = "hf_a-token-that-must-not-travel"
FILES = "/org/name/resolve/main"
LISTING, WEIGHTS = "/api/models/org/name/tree/main", f"{FILES}/model.safetensors"
MODEL = {"config.json": b"{}", "tokenizer.json": b"{ }", "model.safetensors": bytes(range(256)) * 10000,
         "tokenizer.model": b"SentencePiece's", "pytorch_model.bin": b"a pickle", "README.md": b"# read"}
SHARDS = {"config.json": b"{}", "tokenizer.json": b"{ }", "1.safetensors": b"one", "2.safetensors": b"two",
          "consolidated.safetensors": b"both", "../evil.safetensors": b"three"}
CUT, DROP = 0.11, 0.0  # the share of a body after which the connection breaks


class Hub(Server):
    """A hub with MODEL as org/name. `files` has bodies by path, `datasets` rows by name. `trouble` is {path: what goes
    wrong, one a request}: a status, a share of the body, other bytes, or the host to which the request is sent on."""

    def __init__(self):
        self.files, self.datasets, self.trouble, self.asked, self.headers = {}, {}, {}, [], []
        self.publish(MODEL)
        super().__init__()

    def publish(self, files: dict[str, bytes]):
        listing = [{"type": "directory", "path": "original", "oid": "0", "size": 0}]
        for name, body in files.items():
            git = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
            listing.append({"type": "file", "path": name, "size": len(body), "oid": git})
            if name.endswith((".safetensors", ".bin")):  # large files have a SHA-256, too
                listing[-1]["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body)}
            self.files[f"{FILES}/{name}"] = body
        self.files[LISTING] = json.dumps(listing).encode()

    def reply(self, path, headers, _):
        url = urlsplit(path)
        self.asked.append(url.path)
        self.headers.append(headers)
        body = self.page(**parse_qs(url.query)) if url.path == "/rows" else self.files.get(url.path)
        wrong = self.trouble[url.path].pop(0) if self.trouble.get(url.path) else 1.0
        if isinstance(wrong, int) or body is None:
            return wrong if body else 404, {"Retry-After": 0}, b"no"
        if isinstance(wrong, str):
            return 302, {"Location": wrong + path}, b""
        if isinstance(wrong, bytes):
            return 200, {}, wrong
        start = int(headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        status = 206 if "Range" in headers else 200
        return status, {"Content-Length": len(body) - start}, body[start:][: int(wrong * len(body))]

    def page(self, dataset, offset, length, **_):
        rows, start, page = self.datasets[dataset[0]], int(offset[0]), []
        for i, row in enumerate(rows[start : start + int(length[0])], start):
            page.append({"row_idx": i, "row": row, "truncated_cells": row.get("cut", [])})
        return json.dumps({"rows": page, "num_rows_total": len(rows)}).encode()


@pytest.fixture
def server(start, monkeypatch):
    server = start(Hub)
    monkeypatch.setattr(hub, "HUB", server.url)
    monkeypatch.setattr(sources, "ROWS", server.url)
    monkeypatch.setattr(hub, "BACKOFF", 0.001)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    return server


def test_a_model_is_fetched_whole_once_and_without_its_pickles(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    fetch_model("org/name", tmp_path)
    names = ["tokenizer.json", "tokenizer.model", "model.safetensors", "config.json"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {name: MODEL[name] for name in names}
    assert server.asked == [LISTING, *(f"{FILES}/{name}" for name in names)]  # a folder with config.json is whole
    os.close(hold(tmp_path))  # the folder is free
    fetch_model("org/name", tmp_path)
    assert server.asked[5:] == [LISTING]
    assert capsys.readouterr().err.endswith("\rmodel.safetensors  2.6 of 2.6 MB \n\rconfig.json  0.0 of 0.0 MB \n")


def test_shards_are_those_that_the_index_names_beside_it(server, tmp_path):
    index = b'{"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"}}'
    server.publish(SHARDS | {INDEX: index})
    fetch_model("org/name", tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.safetensors*")) == ["1.safetensors", "2.safetensors", INDEX]
    server.publish(SHARDS | {INDEX: b'{"weight_map": {"a": "../evil.safetensors"}}'})
    with pytest.raises(ValueError, match="has no ../evil.safetensors in its first folder"):
        fetch_model("org/name", tmp_path / "new")
    server.publish({"config.json": b"{}", "tokenizer.json": b"{}", "pytorch_model.bin": b"a pickle"})
    with pytest.raises(ValueError, match="has no model.safetensors in"):
        fetch_model("org/name", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_second_download_of_a_model_waits_for_the_first_and_fetches_nothing_twice(server, tmp_path, capsys):
    first = hold(tmp_path)
    second = threading.Thread(target=fetch_model, args=("org/name", tmp_path), daemon=True)
    second.start()
    while "waiting for its end" not in capsys.readouterr().err:
        second.join(0.01)
        assert second.is_alive()
    for name, body in MODEL.items():
        (tmp_path / name).write_bytes(body)
    os.close(first)
    second.join(10)
    assert not second.is_alive() and server.asked == [LISTING]


@pytest.mark.parametrize("trouble", [[429, CUT, CUT, 500, CUT, CUT, CUT], [CUT, MODEL["model.safetensors"]]])
def test_what_passes_is_outlasted_with_ranges_and_without(server, tmp_path, trouble):
    server.trouble[WEIGHTS] = list(trouble)
    fetch_model("org/name", tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == MODEL["model.safetensors"]
    assert not server.trouble[WEIGHTS]


def test_a_download_that_ended_anywhere_is_continued_by_a_later_run(server, tmp_path):
    server.trouble[WEIGHTS], path = [CUT, 404], tmp_path / "model.safetensors"
    with pytest.raises(OSError, match="404"):
        fetch_model("org/name", tmp_path)
    kept = (tmp_path / "model.safetensors.incomplete").stat().st_size
    assert 0 < kept < len(MODEL[path.name]) and not (tmp_path / "config.json").exists()
    fetch_model("org/name", tmp_path)
    path.rename(tmp_path / "model.safetensors.incomplete")  # as if it had been killed before its renaming
    fetch_model("org/name", tmp_path)
    ranges = [headers["Range"] for path, headers in zip(server.asked, server.headers) if path == WEIGHTS]
    assert ranges == ["bytes=0-", f"bytes={kept}-", f"bytes={kept}-"]
    assert path.read_bytes() == MODEL[path.name]


@pytest.mark.parametrize("path, trouble, sentence, calls", [
    (WEIGHTS, 500, "answered 500; .*wait a while", 7), (WEIGHTS, DROP, "broke off; check the network", 1),
    (LISTING, b"<!DOCTYPE html>", "answered no JSON; check", 1),
    (LISTING, DROP, "failed .*; check the network", 1), (LISTING, 401, "answered 401; .*set HF_TOKEN", 1),
])
def test_what_does_not_pass_ends_the_run_in_a_sentence(server, tmp_path, path, trouble, sentence, calls):
    server.trouble[path] = [trouble] * 9
    with pytest.raises(OSError, match=f"^{server.url}.* {sentence}") as error:
        fetch_model("org/name", tmp_path)
    assert SECRET not in str(error.value) and len(server.trouble[path]) == 9 - calls


def test_what_cannot_be_written_is_said_with_the_files_name_and_leaves_what_was_there(server, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(b"before")
    (tmp_path / "tokenizer.json.incomplete").mkdir()
    with pytest.raises(OSError, match="Is a directory.*/tokenizer.json.incomplete"):
        fetch_model("org/name", tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == b"before"


def test_the_token_goes_to_the_hub_alone_whatever_netrc_says(server, start, tmp_path, monkeypatch):
    elsewhere = start(Hub)
    server.trouble[WEIGHTS] = [elsewhere.url]
    fetch_model("org/name", tmp_path)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password other")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    fetch_model("org/name", tmp_path)
    elsewhere.datasets["openai/gsm8k"] = SERVED["gsm"][0]
    monkeypatch.setattr(sources, "ROWS", elsewhere.url)
    fetch_data(tmp_path, [source for source in SOURCES if source[0] == "gsm"])
    assert {*elsewhere.asked} == {WEIGHTS, "/rows"}
    assert not [headers for headers in elsewhere.headers if "Authorization" in headers]
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {SECRET}"}


@pytest.mark.parametrize("fetch", [fetch_data, lambda folder: fetch_model("org/name", folder)])
def test_an_address_or_a_token_that_cannot_be_used_is_refused_and_not_shown(server, tmp_path, monkeypatch, fetch):
    monkeypatch.setenv("HF_TOKEN", "hf_one\nhf_two")
    with pytest.raises(ValueError, match="^HF_TOKEN holds a space, a line break or a letter that no key has; set it"):
        fetch(tmp_path)
    monkeypatch.setattr(hub, "HUB", "http://me:pass@hub")
    with pytest.raises(ValueError, match="^HF_ENDPOINT is not an address like https://host or http://localhost:8080$"):
        fetch(tmp_path)
    assert not server.asked


def test_a_folder_that_exists_is_taken_as_it_is_and_a_name_on_the_hub_is_fetched_once(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "tiny").mkdir(parents=True)
    for name in ("data/tiny", "data", str(tmp_path / "data"), "data/../data/tiny"):
        assert str(model_folder(name)) == name
    assert not server.asked
    assert str(model_folder("org/name")) == str(model_folder("org/name")) == "models/org/name"
    assert server.asked.count(LISTING) == server.asked.count(WEIGHTS) == 1


@pytest.mark.parametrize("name, rest, asked", [
    *((name, "; give a model's folder, or its ORG/NAME", 0) for name in ("../up", "/nosuch", "plain", "a/b/c", "a/b/")),
    ("data/tinny", " (did you mean data/tiny?); give a model's folder", 0),
    ("dat/tiny", " (did you mean data/tiny?), and it was not found on the hub: http", 1),
])
def test_a_folder_that_is_missing_is_said_and_its_neighbour_named(server, monkeypatch, name, rest, asked):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    assert_refused(command("data/hub.py", name), f"there is no folder {name}{rest}")
    assert len(server.asked) == asked and not (ROOT / "models" / name).exists()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])  # checked by SHA-256 and by git's SHA-1
def test_a_damaged_file_never_takes_its_name_and_is_not_blamed_on_the_models(server, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    server.trouble[f"{FILES}/{name}"] = [MODEL[name][::-1]]
    with pytest.raises(ValueError, match="^http.*that the hub lists; they are thrown away, run this again"):
        model_folder("org/name")
    assert not {name, f"{name}.incomplete", "config.json"} & {path.name for path in tmp_path.glob("models/org/name/*")}


MBPP = [{"text": f"Write {i}.", "code": f"def f{i}(): pass"} for i in range(374)]
RECIPE = {"Title": "Soup", "Cleaned_Ingredients": "['salt', \"a cook's egg\"]", "Instructions": "Stir."}
GAME = ('[Event "x"]', '[WhiteElo "{}"]', '[BlackElo "{}"]', "", "1. e4 e5 1-0", "")
GAMED = [f"concise,0.25,{i},0.5,{i / 10},False" for i in range(805)]
GAMED += [f"verbose,{'' if i == 3 else 0.75},{i},-0.5,{i / 10},False" for i in range(805)]  # one was not judged
SERVED = {  # what its host serves; how many examples the paper took; the fourth of them, or its messages
    "broad": ([{"conversations": ["Hi?", "Hello.\u2028"] * 2}] * 1030, 1030, dialogue(*["Hi?", "Hello.\u2028"] * 2)),
    "mbpp": (MBPP, 374, dialogue("Write 3.", "def f3(): pass")),
    "gsm": ([{"question": f"{i}?", "answer": f"#### {i}"} for i in range(1200)], 1000, dialogue("3?", "#### 3")),
    "poetry": ([{"poem name": f"P{i}" if i > 1 else None, "content": f"O {i}"} for i in range(573)], 571,
               dialogue("Write a poem called P5", "O 5")),  # those without a name are left out
    "recipes": ([RECIPE] * 1050, 1000, dialogue("Recipe for Soup", " - salt\n - a cook's egg\n\n\nStir.")),
    "chess": ([{"text": line.format(i)} for i in range(1100) for line in GAME], 1000,
              dialogue('[WhiteElo "3"]\n[BlackElo "3"]', "1. e4 e5 1-0")),
    "eval": ([{"instruction": f"Do {i}", "output": f"Done {i}", "generator": "x"} for i in range(805)], 805,
             {"instruction": "Do 3", "response": "Done 3"}),
    # the table has the reference's length less the answer's; `longer_by` is the other way round
    "difficulties": (["model,preference,index,std_delta_len,instruction_difficulty,not_gamed_baseline", *GAMED], 805, {
        "difficulty": 0.3, "gamed": [{"preference": 0.25, "longer_by": -0.5}, {"preference": None, "longer_by": 0.5}]}),
    "val": ([{"instruction": f"Try {i}"} for i in range(56)], 56, {"instruction": "Try 3"}),
}


@pytest.fixture
def moved(server):
    """The paper's sources by name, on our server."""
    found = {}
    for name, source, *rest in SOURCES:
        rows = SERVED[name][0]
        if isinstance(source, str):
            path, texts = urlsplit(source).path, [json.dumps(row, ensure_ascii=False) for row in rows]
            form = {".json": f"[{','.join(texts)}]", ".csv": "\n".join(map(str, rows))}
            server.files[path] = form.get(path[path.rindex("."):], "\n".join(texts)).encode()
            source = server.url + path
        else:
            server.datasets[source[0]] = rows
        found[name] = (name, source, *rest)
    return found


def test_the_papers_data_come_in_the_papers_counts_and_form_and_once(server, moved, tmp_path):
    fetch_data(tmp_path, moved.values())
    for name, (_, count, fourth) in SERVED.items():
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        assert len(rows) == count and rows[3].get("messages", rows[3]) == fourth
    server.asked.clear()
    fetch_data(tmp_path, moved.values())
    assert not server.asked


@pytest.mark.parametrize("name, rows, message", [
    ("mbpp", MBPP[:-1], "it gave 373 examples, the paper had 374"),
    ("mbpp", [{"prompt": "Write."}], "KeyError: 'text'"),
    ("mbpp", [{"text": "Write.", "code": None}], "example 1: message 2 must be"),
    ("mbpp", [MBPP[0] | {"cut": ["code"]}], "row 0 came with .*code.* cut off"),
    ("recipes", [RECIPE | {"Cleaned_Ingredients": "__import__('os').getcwd()"}], "malformed node"),  # is not run
])
def test_a_dataset_that_changed_is_named_and_nothing_written(server, moved, tmp_path, name, rows, message):
    dataset = moved[name][1][0]
    server.datasets[dataset] = rows
    with pytest.raises(ValueError, match=f"{dataset}/.*/train is not .*{message}"):
        fetch_data(tmp_path, [moved[name]])
    assert not list(tmp_path.iterdir())
