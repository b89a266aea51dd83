"""judge.py's client against a server in this process that answers like an OpenAI-compatible one, and misbehaves on command."""
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT, command

import judge
from judge import Cache, model_judge, preference_for_second

KEY = "sk-a-key-that-must-not-be-written"


def completion(p=None, text=None, top=None):
    """A chat completion whose one token is M with probability p; or a text without log-probabilities."""
    if text is not None:
        return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "length"}]}
    top = top or {"M": math.log(p), "m": math.log(1 - p), "The": -15.0}
    token = max(top, key=top.get)
    tops = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in top.items()]
    return {"choices": [{"message": {"role": "assistant", "content": token}, "finish_reason": "length",
                         "logprobs": {"content": [{"token": token, "logprob": top[token], "top_logprobs": tops}]}}]}


def shown(question):
    """(instruction, first answer, second answer) of what the server was asked."""
    return re.search(r"# Instruction\n\n(.*)\n\n# Answer of m\n\n(.*)\n\n# Answer of M\n\n(.*)\n\n# Your", question, re.S).groups()


class Server:
    """answer(instruction, first, second) returns a completion; trouble() returns None or what goes wrong with a call.
    `finished` counts the answers that went out whole, by question."""

    def __init__(self, answer, trouble=lambda: None):
        self.finished, self.calls, self.bodies, self.headers = Counter(), 0, [], []
        server, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.calls += 1
                    server.bodies.append(body)
                    server.headers.append((self.path, dict(self.headers)))
                    wrong = trouble()
                if wrong == "drop":
                    self.close_connection = True
                    return
                if isinstance(wrong, int):
                    extra = {"Retry-After": "0.01"} if wrong == 429 else {}
                    return self.send(wrong, json.dumps({"error": {"message": f"no, {self.headers['Authorization']}"}}).encode(), extra)
                question = body["messages"][0]["content"]
                data = json.dumps(answer(*shown(question))).encode()
                if wrong == "slow":
                    time.sleep(0.05)
                if wrong == "html":
                    return self.send(200, b"<html>Bad gateway</html>")
                if wrong == "malformed":
                    return self.send(200, data[: len(data) // 2])
                if wrong == "empty":
                    return self.send(200, b'{"choices": []}')
                if wrong == "cut":
                    return self.send(200, data, cut=len(data) // 2)
                with lock:
                    server.finished[question] += 1
                self.send(200, data)

            def send(self, status, data, extra=(), cut=None):
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                for name, value in dict(extra).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data[:cut])
                self.wfile.flush()
                self.close_connection = cut is not None

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setattr(judge, "BACKOFF", 0.001)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    started = []

    def start(*arguments):
        started.append(Server(*arguments))
        return started[-1]

    yield start
    for server in started:
        server.http.shutdown()
        server.http.server_close()


def prefers_longer(instruction, first, second):
    return completion(p=0.9 if len(second) > len(first) else 0.2)


PAIRS = [(f"Instruction {i}", "ours " * (1 + i % 7), "theirs " * (1 + i % 5)) for i in range(60)]


def run(server, cache, pairs=PAIRS, **options):
    return model_judge(pairs, "gpt-test", server.url, Cache(cache), **options)[0]


@pytest.mark.parametrize("choice, expected", [
    (completion(p=0.25), 0.25),
    (completion(top={"M": math.log(0.6), "m": math.log(0.2)}), 0.75),
    (completion(top={' M"': math.log(0.4), "'m": math.log(0.1), " m": math.log(0.1)}), 2 / 3),
    (completion(top={"M": -0.01, "The": -5.0}), 1.0),
    (completion(text=" m\n"), 0.0), (completion(text='"M"'), 1.0),
    (completion(text="Model"), None), (completion(text=""), None), (completion(top={"The": -0.1, "Based": -3.0}), None),
])
def test_preference_from_log_probabilities_or_text(choice, expected):
    assert preference_for_second(choice["choices"][0]) == (expected if expected is None else pytest.approx(expected))


def test_the_request_is_alpacaevals_comparison(serve, tmp_path):
    server = serve(prefers_longer)
    run(server, tmp_path / "cache", PAIRS[:1])
    body, (path, headers) = server.bodies[0], server.headers[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert {name: body[name] for name in ("model", "max_tokens", "temperature", "logprobs", "top_logprobs")} == {
        "model": "gpt-test", "max_tokens": 1, "temperature": 1.0, "logprobs": True, "top_logprobs": 5}
    assert sorted(shown(body["messages"][0]["content"])[1:]) == sorted(PAIRS[0][1:])


def test_sides_are_a_coin_of_seed_and_instruction_and_do_not_change_the_preference(serve, tmp_path):
    server = serve(lambda instruction, first, second: completion(p=0.9 if second.startswith("ours") else 0.1))
    assert run(server, tmp_path / "a") == pytest.approx([0.9] * 60)  # ours is preferred wherever it is shown
    first = Counter(shown(body["messages"][0]["content"])[1][:4] for body in server.bodies)
    assert 15 < first["ours"] < 45
    asked = {body["messages"][0]["content"] for body in server.bodies}
    run(server, tmp_path / "b")
    assert {body["messages"][0]["content"] for body in server.bodies} == asked  # a second run asks the same
    run(server, tmp_path / "c", seed=2)
    assert {body["messages"][0]["content"] for body in server.bodies} != asked


def test_both_orders_average_out_a_taste_for_the_second(serve, tmp_path):
    server = serve(lambda instruction, first, second: completion(p=0.7))
    assert run(server, tmp_path / "cache", both_orders=True) == pytest.approx([0.5] * 60)
    assert server.calls == 120


def test_failures_of_every_kind_are_outlasted_and_each_pair_is_judged_once(serve, tmp_path):
    rng = random.Random(0)
    kinds = [408, 409, 425, 429, 500, 502, 503, 529, "drop", "cut", "html", "malformed", "empty", "slow"]
    server = serve(prefers_longer, lambda: rng.choice(kinds) if rng.random() < 0.3 else None)
    quiet = serve(prefers_longer)
    assert run(server, tmp_path / "cache") == run(quiet, tmp_path / "other")
    assert len(server.finished) == 60 and set(server.finished.values()) == {1}
    calls = server.calls
    run(server, tmp_path / "cache")
    assert server.calls == calls  # all of it is in the cache


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refusal_stops_the_run_with_the_servers_message_and_without_the_key(serve, tmp_path, status):
    server = serve(prefers_longer, lambda: status)
    with pytest.raises(OSError, match=f"{status} .*no, Bearer \\*\\*\\*") as error:
        run(server, tmp_path / "cache", workers=2)
    assert KEY not in str(error.value) and server.calls <= 6


def test_a_server_that_never_recovers_is_given_up(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "ATTEMPTS", 3)
    server = serve(prefers_longer, lambda: 503)
    with pytest.raises(OSError, match="no answer after 3 tries, the last was 503"):
        run(server, tmp_path / "cache", PAIRS[:1])
    assert server.calls == 3


def test_the_cache_knows_everything_that_determines_the_answer(serve, tmp_path):
    server, cache = serve(prefers_longer), tmp_path / "cache"
    run(server, cache, PAIRS[:5])
    run(server, cache, [(i, a + "!", b) for i, a, b in PAIRS[:5]])
    model_judge(PAIRS[:5], "another-model", server.url, Cache(cache))
    assert server.calls == 15
    assert KEY not in cache.read_text()


def test_a_torn_line_is_asked_again_and_nothing_else(serve, tmp_path):
    server, cache = serve(prefers_longer), tmp_path / "cache"
    before = run(server, cache, PAIRS[:10])
    torn = cache.read_bytes()[:-40]
    cache.write_bytes(b'{"key": "k", "choice": {}}\n[]\n' + torn)  # nor is what is no judgement taken for one
    assert run(server, cache, PAIRS[:10]) == before and server.calls == 11
    assert run(server, cache, PAIRS[:10]) == before and server.calls == 11  # and its repair is whole


def test_two_runs_at_once_do_not_corrupt_the_cache(serve, tmp_path):
    server, cache = serve(prefers_longer, lambda: "slow"), tmp_path / "cache"
    threads = [threading.Thread(target=run, args=(server, cache, pairs)) for pairs in (PAIRS, PAIRS[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(json.loads(line) for line in cache.read_text().splitlines())
    calls = server.calls
    run(server, cache)
    assert server.calls == calls


def outputs(path, side):
    path.write_text(json.dumps([{"instruction": row[0], "output": row[side], "generator": path.stem} for row in PAIRS]))
    return path


def arguments(server, folder, *more):
    a, b = outputs(folder / "ours.json", 1), outputs(folder / "theirs.json", 2)
    return ("judge.py", "--outputs", a, "--reference", b, "--judge", "gpt-test", "--base-url", server.url,
            "--cache", folder / "cache.jsonl", *more)


def test_after_a_kill_no_finished_judgement_is_asked_again(serve, tmp_path):
    server = serve(prefers_longer, lambda: "slow")
    process = subprocess.Popen([sys.executable, *map(str, arguments(server, tmp_path, "--workers", 2))], cwd=ROOT,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while sum(server.finished.values()) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = len(Cache(tmp_path / "cache.jsonl").choices)
    before = server.calls
    result = command(*arguments(server, tmp_path, "--workers", 2))
    assert result.returncode == 0 and 16 <= kept < 60
    assert server.calls - before == 60 - kept


def test_the_report_and_alpacaevals_annotations(serve, tmp_path):
    def answer(instruction, first, second):
        return completion(text="Hm") if instruction.endswith(" 7") else completion(p=0.8 if second.startswith("ours") else 0.2)

    server = serve(answer)
    result = command(*arguments(server, tmp_path, "--save", tmp_path / "annotations.json", "--price-per-million", 10))
    assert result.returncode == 0, result.stderr
    assert "60 calls to gpt-test" in result.stdout and "at 10 per million" in result.stdout and "1 judgements invalid" in result.stdout
    last = json.loads(result.stdout.splitlines()[-1])
    assert last["win_rate"] == pytest.approx(80) and last["n_total"] == 59 and last["n_invalid"] == 1
    rows = json.loads((tmp_path / "annotations.json").read_text())
    assert [row["preference"] for row in rows] == [None if i == 7 else pytest.approx(1.8) for i in range(60)]
    assert rows[0].keys() >= {"instruction", "output_1", "output_2", "generator_1", "generator_2", "annotator", "raw_completion"}
    assert rows[0]["output_2"] == PAIRS[0][1] and rows[0]["generator_2"] == "ours"
    assert all(KEY not in path.read_text() for path in tmp_path.iterdir()) and KEY not in result.stdout + result.stderr


def test_a_judge_that_names_neither_answer_ever_is_an_error(serve, tmp_path):
    server = serve(lambda *_: completion(text="I"))
    result = command(*arguments(server, tmp_path))
    assert result.returncode == 2 and "named neither answer in any of 60 judgements" in result.stderr.splitlines()[-1]
