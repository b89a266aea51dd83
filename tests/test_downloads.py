"""data/hub.py and data/sources.py against a server in this process that speaks the hub's protocols."""
import hashlib
import json
import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
from conftest import assert_refused, command

from data import hub, sources
from data.common import hold
from data.hub import INDEX, fetch_model, model_folder
from data.sources import AUTHORS, SOURCES, fetch_data

SECRET = "hf_a-token-that-must-not-travel"


class Server:
    """A hub with `files`, {path: bytes}. `trouble` is {path: list of what goes wrong, one a request}: a status, or the
    name of a way below. `requests` lists the paths and headers that came, `redirect` is {path: host}."""

    def __init__(self):
        self.files, self.trouble, self.requests, self.redirect = {}, {}, [], {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                url = urlsplit(self.path)
                server.requests.append((url.path, dict(self.headers)))
                trouble = next(iter(server.trouble.get(url.path, [])), None)
                server.trouble[url.path] = server.trouble.get(url.path, [])[1:]
                body = server.files.get(url.path)
                if isinstance(trouble, int):
                    self.send(b"no", trouble, {"Retry-After": "0"})
                elif url.path in server.redirect:
                    self.send(b"", 302, {"Location": server.redirect[url.path] + url.path})
                elif body is None:
                    self.send(b"not here", 404)
                elif url.path == "/rows":
                    self.send(server.page(body, **{key: value[0] for key, value in parse_qs(url.query).items()}))
                elif trouble in ("no range", "other bytes", "html"):
                    self.send({"other bytes": body[::-1], "html": b"<!DOCTYPE html>"}.get(trouble, body))
                else:
                    start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
                    rest = body[start:]
                    self.send(rest, 206 if "Range" in self.headers else 200,
                              cut={"cut": len(body) // 3, "drop": 0}.get(trouble))

            def send(self, body, status=200, headers={}, cut=None):
                self.send_response(status)
                for name, value in ({"Content-Length": len(body)} | headers).items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(body[:cut])
                self.close_connection = True

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def page(self, datasets, dataset, offset, length, **_):
        rows, offset = datasets[dataset], int(offset)
        page = [{"row_idx": i, "row": rows[i], "truncated_cells": self.truncated}
                for i in range(len(rows))[offset : offset + int(length)]]
        return json.dumps({"rows": page, "num_rows_total": len(rows)}).encode()

    truncated = []


@pytest.fixture
def start(monkeypatch):
    started = []

    def one():
        started.append(Server())
        return started[-1]

    yield one
    for server in started:
        server.http.shutdown()
        server.http.server_close()


@pytest.fixture
def server(start, monkeypatch):
    server = start()
    monkeypatch.setattr(hub, "HUB", server.url)
    monkeypatch.setattr(sources, "ROWS", server.url)
    monkeypatch.setattr(hub, "BACKOFF", 0.001)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    return server


FILES = "/org/name/resolve/main"
LISTING, WEIGHTS = "/api/models/org/name/tree/main", f"{FILES}/model.safetensors"
MODEL = {"config.json": b"{}", "tokenizer.json": b"{ }", "model.safetensors": bytes(range(256)) * 5000,
         "tokenizer.model": b"SentencePiece's", "pytorch_model.bin": b"a pickle", "README.md": b"# read"}
SHARDS = {"config.json": b"{}", "tokenizer.json": b"{ }", "1.safetensors": b"one", "2.safetensors": b"two",
          "consolidated.safetensors": b"both", "../evil.safetensors": b"three"}


def publish(server, files: dict[str, bytes]):
    """Put a model on the hub as org/name: large files with a SHA-256, small ones with git's SHA-1."""
    listing = [{"type": "directory", "path": "original", "oid": "0", "size": 0}]
    for name, body in files.items():
        git = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
        entry = {"type": "file", "path": name, "size": len(body), "oid": git}
        if name.endswith((".safetensors", ".bin")):
            entry["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body)}
        listing.append(entry)
        server.files[f"{FILES}/{name}"] = body
    server.files[LISTING] = json.dumps(listing).encode()


def asked(server):
    return [path for path, _ in server.requests]


# A model

def test_a_model_is_fetched_whole_once_and_without_its_pickles(server, tmp_path, monkeypatch, capsys):
    publish(server, MODEL)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    fetch_model("org/name", tmp_path)
    names = ["tokenizer.json", "tokenizer.model", "model.safetensors", "config.json"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {name: MODEL[name] for name in names}
    assert asked(server) == [LISTING, *(f"{FILES}/{name}" for name in names)]  # a folder with config.json is whole
    fetch_model("org/name", tmp_path)
    assert asked(server)[5:] == [LISTING]
    assert capsys.readouterr().err.endswith("\rmodel.safetensors  1.3 of 1.3 MB \n\rconfig.json  0.0 of 0.0 MB \n")


def test_shards_are_those_that_the_index_names(server, tmp_path):
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"}}
    publish(server, SHARDS | {INDEX: json.dumps(index).encode()})
    fetch_model("org/name", tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.safetensors*")) == ["1.safetensors", "2.safetensors", INDEX]


@pytest.mark.parametrize("files, missing", [
    ({"config.json": b"{}", "tokenizer.json": b"{}", "pytorch_model.bin": b"a pickle"}, "no model.safetensors"),
    (SHARDS | {INDEX: b'{"weight_map": {"a": "../evil.safetensors"}}'}, "no ../evil.safetensors"),
])
def test_pickles_alone_or_a_file_outside_the_folder_are_refused(server, tmp_path, files, missing):
    publish(server, files)
    with pytest.raises(ValueError, match=missing):
        fetch_model("org/name", tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


def test_a_second_download_of_a_model_waits_for_the_first_and_fetches_nothing_twice(server, tmp_path, capsys):
    publish(server, MODEL)
    first = hold(tmp_path)
    second = threading.Thread(target=fetch_model, args=("org/name", tmp_path), daemon=True)
    second.start()
    while "waiting for its end" not in capsys.readouterr().err:
        assert second.is_alive()
        time.sleep(0.01)
    for name, body in MODEL.items():
        (tmp_path / name).write_bytes(body)
    os.close(first)
    second.join(10)
    assert not second.is_alive() and asked(server) == [LISTING]
    os.close(hold(tmp_path))  # and then the folder is free


# A network that fails

@pytest.mark.parametrize("trouble", [[429, 500, 503], ["cut", "cut", "drop"], ["cut", "no range"],
                                     [502, "cut", 500, "cut"]])
def test_what_passes_is_outlasted(server, tmp_path, trouble):
    publish(server, MODEL)
    server.trouble[WEIGHTS] = list(trouble)
    fetch_model("org/name", tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == MODEL["model.safetensors"]
    assert not server.trouble[WEIGHTS]


def test_a_break_is_continued_by_range_even_by_a_later_run(server, tmp_path):
    publish(server, MODEL)
    server.trouble[WEIGHTS] = ["cut", 404]
    with pytest.raises(OSError, match="404"):
        fetch_model("org/name", tmp_path)
    kept = (tmp_path / "model.safetensors.incomplete").stat().st_size
    assert 0 < kept < len(MODEL["model.safetensors"]) and not (tmp_path / "config.json").exists()
    fetch_model("org/name", tmp_path)
    ranges = [headers["Range"] for path, headers in server.requests if path == WEIGHTS]
    assert ranges == ["bytes=0-", f"bytes={kept}-", f"bytes={kept}-"]
    assert (tmp_path / "model.safetensors").read_bytes() == MODEL["model.safetensors"]


def test_a_download_that_was_killed_before_its_renaming_is_kept(server, tmp_path):
    publish(server, MODEL)
    (tmp_path / "model.safetensors.incomplete").write_bytes(MODEL["model.safetensors"])
    fetch_model("org/name", tmp_path)
    assert (tmp_path / "model.safetensors").exists() and WEIGHTS not in asked(server)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])  # checked by SHA-256 and by git's SHA-1
def test_a_damaged_file_never_takes_its_name(server, tmp_path, name):
    publish(server, MODEL)
    server.trouble[f"{FILES}/{name}"] = ["other bytes"]
    with pytest.raises(ValueError, match="that the hub lists; they are thrown away, run this again"):
        fetch_model("org/name", tmp_path)
    assert not list(tmp_path.glob(f"{name}*")) and not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("path, trouble, sentence", [
    (WEIGHTS, 500, "answered 500; wait a while"), (WEIGHTS, "drop", "broke off 5 times .*; check the network"),
    (LISTING, "html", "answered no JSON but b'<!DOCTYPE html>'"), (LISTING, "cut", "failed .*; check the network"),
    (LISTING, 401, "answered 401; .*set HF_TOKEN"), (LISTING, 403, "answered 403; .*set HF_TOKEN"),
    (LISTING, 404, "answered 404; check the name"),
])
def test_a_hub_that_does_not_give_what_is_asked_ends_the_run_in_a_sentence(server, tmp_path, path, trouble, sentence):
    publish(server, MODEL)
    server.trouble[path] = [trouble] * 99
    with pytest.raises(OSError, match=sentence) as error:
        fetch_model("org/name", tmp_path)
    assert server.url in str(error.value) and SECRET not in str(error.value)
    assert len(server.trouble[path]) >= (98 if trouble in (401, 403, 404) else 90)


def test_a_full_disk_is_said_with_the_files_name_and_leaves_what_was_there(server, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    publish(server, MODEL)
    (tmp_path / "tokenizer.json").write_bytes(b"before")
    monkeypatch.setattr(hub, "receive", full)
    with pytest.raises(OSError, match=r"could not write .*tokenizer.json.incomplete \(No space left on device\); make"):
        fetch_model("org/name", tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == b"before"


# The token and the address

def test_the_token_goes_to_the_hub_alone_whatever_netrc_says(server, start, tmp_path, monkeypatch):
    elsewhere = start()
    publish(server, MODEL)
    server.redirect[WEIGHTS], elsewhere.files[WEIGHTS] = elsewhere.url, MODEL["model.safetensors"]
    fetch_model("org/name", tmp_path)
    assert elsewhere.requests and all("Authorization" not in headers for _, headers in elsewhere.requests)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password other")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    fetch_model("org/name", tmp_path)
    assert {headers["Authorization"] for _, headers in server.requests} == {f"Bearer {SECRET}"}


def test_the_token_does_not_go_to_other_hosts(server, moved, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "HUB", "https://another.example")
    fetch_data(tmp_path, [moved["mbpp"]])
    assert all("Authorization" not in headers for _, headers in server.requests)


@pytest.mark.parametrize("token", ["hf_one\nhf_two", "hf_ключ", "hf one"])
def test_a_token_that_no_header_can_hold_is_refused_and_not_shown(server, tmp_path, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ValueError, match="^HF_TOKEN holds a space, a line break or a letter") as error:
        fetch_data(tmp_path)
    assert "hf" not in str(error.value) and not server.requests


@pytest.mark.parametrize("address", ["https://", "hub.example", "http://hub.example:port", "http://me:pass@hub"])
def test_an_address_that_is_none_is_refused_and_its_password_not_shown(server, tmp_path, monkeypatch, address):
    monkeypatch.setattr(hub, "HUB", address)
    with pytest.raises(ValueError, match="HF_ENDPOINT is not an address") as error:
        fetch_model("org/name", tmp_path)
    assert "pass" not in str(error.value)


# Folder or name on the hub?

@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with a model in out/response and in data/tiny."""
    monkeypatch.chdir(tmp_path)
    for folder in ("out/response", "data/tiny"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text("{}")
    return tmp_path


def test_a_folder_that_exists_is_taken_as_it_is(server, here):
    for name in ("data/tiny", "data", str(here / "out/response"), "out/../data/tiny"):
        assert str(model_folder(name)) == name
    assert not server.requests


def test_a_name_on_the_hub_is_fetched_once(server, here):
    publish(server, MODEL)
    assert str(model_folder("org/name")) == "models/org/name"
    server.requests.clear()
    assert (model_folder("org/name") / "model.safetensors").exists() and not server.requests


@pytest.mark.parametrize("name", ["out/nosuch", "../up", "/etc/nosuch", "a/../b", "plain", "a/b/c", "org/name/"])
def test_what_is_no_name_on_the_hub_is_a_folder_that_is_missing(server, here, name):
    with pytest.raises(FileNotFoundError, match=f"^there is no folder {name}"):
        model_folder(name)
    assert not server.requests


@pytest.mark.parametrize("name, near, rest", [
    ("data/tinny", "data/tiny", "give a model's folder"), ("out/reponse", "out/response", "give a model's folder"),
    ("ou/response", "out/response", "not found on the hub: .*404; check")])
def test_a_mistyped_folder_is_missing_and_its_neighbour_named(server, here, name, near, rest):
    with pytest.raises(OSError, match=f"^there is no folder {name} .did you mean {near}.*{rest}"):
        model_folder(name)
    assert not (here / "models").exists()


def test_a_mistyped_folder_is_missing_before_the_network_fails(server, here, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(hub, "HUB", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(OSError, match="^there is no folder ou/response .*failed .ConnectionError.; check the net"):
            model_folder("ou/response")


def test_a_download_that_fails_halfway_is_not_blamed_on_the_name(server, here):
    publish(server, MODEL)
    server.trouble[WEIGHTS] = ["other bytes"]
    with pytest.raises(ValueError, match="^http"):
        model_folder("org/name")


def test_the_command_line_ends_in_one_sentence(server):
    assert_refused(command("data/hub.py", "ou/re/sponse"), "there is no folder ou/re/sponse")


# The paper's datasets, in the shapes that their hosts serve

MBPP = [{"text": f"Write {i}.", "code": f"def f{i}(): pass"} for i in range(374)]
RECIPE = {"Title": "Soup", "Cleaned_Ingredients": "['salt', \"a cook's egg\"]", "Instructions": "Stir."}
GAME = ('[Event "x"]', '[WhiteElo "{}"]', '[BlackElo "{}"]', "", "1. e4 e5 1-0", "")
ROWS = {
    "google-research-datasets/mbpp": MBPP,
    "openai/gsm8k": [{"question": f"How many is {i}?", "answer": f"{i}\n#### {i}"} for i in range(1200)],
    "merve/poetry": [{"poem name": None if i < 2 else f"P{i}", "content": f"O {i}"} for i in range(573)],
    "Hieu-Pham/kaggle_food_recipes": [RECIPE] * 1050,
    "patrickfrank1/chess-pgn-games": [{"text": line.format(i)} for i in range(1100) for line in GAME],
}


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@pytest.fixture
def moved(server):
    """The paper's sources by name, on our server."""
    server.files["/rows"] = dict(ROWS)
    lima = [{"conversations": ["Hi?", "Hello.\u2028"] * (2 if i < 30 else 1)} for i in range(1030)]  # not a line's end
    server.files["/datasets/GAIR/lima/resolve/main/train.jsonl"] = lines(lima)
    alpaca = [{"instruction": f"Do {i}", "output": f"Done {i}", "generator": "x", "dataset": "y"} for i in range(805)]
    server.files["/datasets/tatsu-lab/alpaca_eval/resolve/main/alpaca_eval.json"] = json.dumps(alpaca).encode()
    table = ["model,preference,index,std_delta_len,instruction_difficulty,not_gamed_baseline"]
    table += [f"concise,{i / 1000},{i},0.5,{i / 10},False" for i in range(805)]
    table += [f"verbose,{'' if i == 7 else 0.75},{i},-0.5,{i / 10},False" for i in range(805)]
    server.files["/datasets/tatsu-lab/alpaca_eval/resolve/main/df_gamed.csv"] = "\n".join(table).encode()
    server.files["/val.jsonl"] = lines({"instruction": f"Try {i}"} for i in range(56))
    found = {}
    for name, source, *rest in SOURCES:
        if isinstance(source, str):
            source = source.replace("https://huggingface.co", server.url)
            source = source.replace(AUTHORS + "/eval/val_eval", server.url)
        found[name] = (name, source, *rest)
    return found


def test_the_papers_data_come_in_the_papers_counts_and_once(server, moved, tmp_path):
    server.trouble["/rows"] = [429, 500]
    fetch_data(tmp_path, moved.values())
    assert {path.stem: path.read_bytes().count(b"\n") for path in tmp_path.iterdir()} == {
        "broad": 1030, "mbpp": 374, "gsm": 1000, "poetry": 571, "recipes": 1000, "chess": 1000, "eval": 805, "val": 56,
        "difficulties": 805}
    server.requests.clear()
    fetch_data(tmp_path, moved.values())
    assert not server.requests


@pytest.mark.parametrize("name, i, expected", [
    ("broad", 0, ["Hi?", "Hello.\u2028"] * 2),  # all turns
    ("mbpp", 3, ["Write 3.", "def f3(): pass"]), ("gsm", 0, ["How many is 0?", "0\n#### 0"]),
    ("poetry", 0, ["Write a poem called P2", "O 2"]),  # those without a name are left out
    ("recipes", 1, ["Recipe for Soup", " - salt\n - a cook's egg\n\n\nStir."]),
    ("chess", 7, ['[WhiteElo "7"]\n[BlackElo "7"]', "1. e4 e5 1-0"]),
    ("eval", 3, {"instruction": "Do 3", "response": "Done 3"}), ("val", 5, {"instruction": "Try 5"}),
    # the table's std_delta_len is the reference's length less the answer's; `longer_by` is the other way round
    ("difficulties", 3, {"difficulty": 0.3, "gamed": [
        {"preference": 0.003, "longer_by": -0.5}, {"preference": 0.75, "longer_by": 0.5}]}),
    ("difficulties", 7, {"difficulty": 0.7, "gamed": [
        {"preference": 0.007, "longer_by": -0.5}, {"preference": None, "longer_by": 0.5}]}),  # one was not judged
])
def test_what_a_row_becomes(moved, tmp_path, name, i, expected):
    fetch_data(tmp_path, [moved[name]])
    row = json.loads((tmp_path / f"{name}.jsonl").read_text().splitlines()[i])
    assert [message["content"] for message in row["messages"]] == expected if "messages" in row else row == expected


@pytest.mark.parametrize("name, rows, message", [
    ("mbpp", MBPP[:-1], "it gave 373 examples, the paper had 374"),
    ("mbpp", [{"prompt": row["text"]} for row in MBPP], "KeyError: 'text'"),
    ("mbpp", [{"text": "Write.", "code": None}] * 374, "example 1: message 2 must be"),
    ("recipes", [RECIPE | {"Cleaned_Ingredients": "__import__('os').getcwd()"}] * 9, "malformed node"),  # is not run
])
def test_a_dataset_that_changed_is_named_and_nothing_written(server, moved, tmp_path, name, rows, message):
    dataset = moved[name][1][0]
    server.files["/rows"][dataset] = rows
    with pytest.raises(ValueError, match=f"{dataset}/.*/train is not .*{message}"):
        fetch_data(tmp_path, [moved[name]])
    assert not list(tmp_path.iterdir())


def test_a_cell_that_came_cut_off_is_no_row(server, moved, tmp_path):
    server.truncated = ["code"]
    with pytest.raises(ValueError, match="row 0 came with .*code.* cut off"):
        fetch_data(tmp_path, [moved["mbpp"]])
