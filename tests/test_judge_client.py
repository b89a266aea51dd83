"""judge.py's client against a server that answers as OpenAI's do and misbehaves on command."""
import json
import math
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT, assert_refused, command

import judge
from data import hub
from data.common import Journal
from judge import QUESTION, ask_all, completions_url, model_judge, preference_for_second

KEY = "sk-a-key-that-must-not-be-written"


def completion(p=None, text=None, top=None):
    """A chat completion whose one token is M with probability p; or a text without log-probabilities."""
    if top is None and p is None:
        return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "length"}]}
    top = top or {"M": math.log(p), "m": math.log(1 - p), "The": -15.0}
    tops = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in top.items()]
    return {"choices": [{"message": {"role": "assistant", "content": next(iter(top))}, "finish_reason": "length",
                         "logprobs": {"content": [tops[0] | {"top_logprobs": tops}]}}]}


def shown(question):
    """(instruction, first answer, second answer) of what the server was asked."""
    form = r"# Instruction\n\n(.*)\n\n# Answer of m\n\n(.*)\n\n# Answer of M\n\n(.*)\n\n# Your"
    return re.search(form, question, re.S).groups()


REFUSAL = {"choices": [{"message": {"content": None, "refusal": "I would rather not."}, "finish_reason": "stop"}]}
MALFORMED = {  # bodies of answers with status 200 that are no judgement
    "html": b"<html>Bad gateway</html>", "no choices": b'{"choices": []}', "list": b"[[1]]", "null": b"null",
    "no message": b'{"choices": [{}]}', "content 5": b'{"choices": [{"message": {"content": 5}}]}',
    "refusal": json.dumps(REFUSAL).encode(), "filtered": b'{"choices": [{"message": {"content": ""}}]}',
    "logprob 1000": json.dumps(completion(top={"M": 1000.0})).encode()}


class Server:
    """answer(instruction, first, second) returns a completion; trouble(instruction) says how a call goes wrong, or
    None: a status, (status, headers), or a word that do_POST knows. `finished` counts the answers that went out whole,
    by question."""

    def __init__(self, answer, trouble=lambda instruction: None):
        self.finished, self.calls, self.bodies, self.headers, self.over = Counter(), 0, [], [], threading.Event()
        server, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # a body waits for no acknowledgement of its headers

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                question = body["messages"][0]["content"]
                with lock:
                    server.calls += 1
                    server.bodies.append(body)
                    server.headers.append((self.path, dict(self.headers)))
                    wrong = trouble(shown(question)[0])
                self.close_connection = wrong in ("cut", "drop", "hang")
                good = json.dumps(answer(*shown(question))).encode()
                if isinstance(wrong, int | tuple):
                    status, headers = wrong if isinstance(wrong, tuple) else (wrong, {})
                    self.send(status, f'{{"error": "no,\n{self.headers["Authorization"]}"}}'.encode(), headers)
                elif wrong in MALFORMED:
                    self.send(200, MALFORMED[wrong])
                elif wrong == "cut":
                    self.send(200, good[: len(good) // 2], {"Content-Length": len(good)})
                elif wrong == "hang":
                    server.over.wait()
                elif wrong != "drop":
                    time.sleep(0.05 if wrong == "slow" else 0)
                    with lock:
                        server.finished[question] += 1
                    self.send(200, good)

            def send(self, status, data, headers=()):
                self.send_response(status)
                for name, value in ({"Content-Length": len(data)} | dict(headers)).items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(data)
                self.wfile.flush()

            def log_message(self, *_):
                pass

        class Quiet(ThreadingHTTPServer):
            request_queue_size = 100  # a connection beyond these would wait for a second

            def handle_error(self, *_):  # the client has gone
                pass

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setattr(hub, "BACKOFF", 0.001)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    started = []

    def start(*arguments):
        started.append(Server(*arguments))
        return started[-1]

    yield start
    for server in started:
        server.over.set()
        server.http.shutdown()
        server.http.server_close()


def prefers_longer(instruction, first, second):
    return completion(p=0.9 if len(second) > len(first) else 0.2)


PAIRS = [(f"Instruction {i}", "ours " * (1 + i % 7), "theirs " * (1 + i % 5)) for i in range(60)]


def judged(server, cache, pairs=PAIRS, model="gpt-test", **options):
    with Journal(cache, wait=True) as journal:
        return model_judge(pairs, model, server.url, journal, KEY, **options)[0]


def kept(cache):
    """How many judgements a cache holds."""
    return len(cache.read_bytes().splitlines()) if cache.exists() else 0


# What a completion says

@pytest.mark.parametrize("completed, expected", [
    (completion(p=0.25), 0.25),
    (completion(top={"M": math.log(0.6), "m": math.log(0.2)}), 0.75),
    (completion(top={' M"': math.log(0.4), "'m": math.log(0.1), " m": math.log(0.1)}), 2 / 3),
    (completion(top={"M": -0.01, "The": -5.0}), 1.0), (completion(top={"M": 1e-3, "m": -9999.0}), 1.0),
    (completion(top={"M": -0.01, "m": -math.inf, "The": -math.inf, "A": None}), 1.0),  # llama.cpp; some proxies
    (completion(top={"m": -0.01, "M": None, "The": math.nan}), 0.0),
    (completion(text=" m\n"), 0.0), (completion(text='"M"'), 1.0), (completion(text="**M**, since it\nis right"), 1.0),
    
    (completion(text="Model"), None), (completion(text=""), None), (completion(text=None), None),
    (completion(top={"The": -0.1, "Based": -3.0}), None),
])
def test_preference_from_log_probabilities_or_text(completed, expected):
    assert preference_for_second(completed["choices"][0]) == (expected if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("logprob", [1000.0, math.nan, math.inf, 0.1])
def test_what_is_no_log_probability_is_no_judgement(logprob):
    with pytest.raises(ValueError, match="not the logarithm of a probability"):
        preference_for_second(completion(top={"M": logprob, "m": -1.0})["choices"][0])


def test_a_choice_is_kept_as_JSON_that_every_reader_takes(serve, tmp_path):
    server = serve(lambda *_: completion(top={"M": -0.1, "m": -math.inf}))
    assert set(judged(server, tmp_path / "cache", PAIRS[:1])) <= {0.0, 1.0}
    assert '"logprob": null' in (tmp_path / "cache").read_text()


# What is asked, and how often

def test_the_request_is_alpacaevals_comparison(serve, tmp_path):
    server = serve(prefers_longer)
    judged(server, tmp_path / "cache", PAIRS[:1])
    body, (path, headers) = server.bodies[0], server.headers[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert {name: body[name] for name in ("model", "max_tokens", "temperature", "logprobs", "top_logprobs")} == {
        "model": "gpt-test", "max_tokens": 1, "temperature": 1.0, "logprobs": True, "top_logprobs": 5}
    assert sorted(shown(body["messages"][0]["content"])[1:]) == sorted(PAIRS[0][1:])


def test_without_log_probabilities_only_model_and_question_are_sent_and_the_first_word_is_read(serve, tmp_path):
    server = serve(lambda instruction, first, second: completion(
        text="m, which is longer" if len(first) > len(second) else "M is better."))
    assert judged(server, tmp_path / "cache", [("Do.", "long", "no")], logprobs=False) == [1.0]
    assert server.bodies[0].keys() == {"model", "messages"}
    judged(server, tmp_path / "cache", [("Do.", "long", "no")])
    assert server.calls == 2  # the other question is not taken for this one


@pytest.mark.parametrize("both_orders", [False, True])
def test_equal_answers_are_a_tie_without_a_call(serve, tmp_path, both_orders):
    """AlpacaEval's rule: `preference` is 1.5 in 130 of 130 published cases."""
    server = serve(lambda *_: completion(p=0.9))
    pairs = [("Do.", "same", "same"), ("Do.", "ours", "theirs"), ("Go.", "", "")]
    assert judged(server, tmp_path / "cache", pairs, both_orders=both_orders)[::2] == [0.5, 0.5]
    assert server.calls == 1 + both_orders


@pytest.mark.parametrize("given, reached", [
    ("https://host", "https://host/v1/chat/completions"), ("https://host/", "https://host/v1/chat/completions"),
    ("https://host/v1", "https://host/v1/chat/completions"), ("https://host/v1/", "https://host/v1/chat/completions"),
    ("https://host/v1beta/openai/", "https://host/v1beta/openai/chat/completions"),
    ("https://host/v1/chat/completions", "https://host/v1/chat/completions"),
    ("https://host/a/chat/completions/?api-version=1", "https://host/a/chat/completions?api-version=1"),
    ("http://host:80/openai/v1?api-version=1", "http://host:80/openai/v1/chat/completions?api-version=1"),
    ("http://host?api-version=1", "http://host/v1/chat/completions?api-version=1"),
])
def test_every_form_of_an_address_reaches_the_right_place(given, reached):
    hub.check_url(given, "--base-url")
    assert completions_url(given) == reached


def test_the_side_is_a_coin_of_seed_and_instruction_and_does_not_change_the_preference(serve, tmp_path):
    server = serve(lambda instruction, first, second: completion(p=0.9 if second.startswith("ours") else 0.1))

    def asked(name, seed):  # which side is shown first, by instruction
        server.bodies.clear()
        assert judged(server, tmp_path / name, seed=seed) == pytest.approx([0.9] * 60)
        return {instruction: first[:4] for instruction, first, _ in
                (shown(body["messages"][0]["content"]) for body in server.bodies)}

    assert asked("a", 1) == asked("b", 1) != asked("c", 2)
    assert 15 < list(asked("d", 1).values()).count("ours") < 45


def test_both_orders_average_out_a_taste_for_the_second(serve, tmp_path):
    server = serve(lambda instruction, first, second: completion(p=0.7))
    assert judged(server, tmp_path / "cache", PAIRS[:20], both_orders=True) == pytest.approx([0.5] * 20)
    assert server.calls == 40


# What is bought is kept

def test_the_cache_knows_everything_that_determines_the_answer(serve, tmp_path):
    server, cache = serve(prefers_longer), tmp_path / "cache"
    judged(server, cache, PAIRS[:5])
    judged(server, cache, [(i, a + "!", b) for i, a, b in PAIRS[:5]])
    judged(server, cache, PAIRS[:5], model="another-model")
    assert server.calls == 15
    judged(server, cache, PAIRS[:5])
    assert server.calls == 15 and KEY not in cache.read_text()


def test_a_torn_line_is_asked_again_and_nothing_else(serve, tmp_path):
    server, cache = serve(prefers_longer), tmp_path / "cache"
    whole = judged(server, cache)
    cache.write_bytes(b"[]\n" + cache.read_bytes()[:-40])
    for _ in range(2):  # the repair is whole
        assert judged(server, cache) == whole and server.calls == 61


def in_a_process(server, cache):
    """60 questions that a process of its own asks with ask_all, and that process, which can be killed."""
    code = ("import json, sys; from data.common import Journal; from judge import ask_all\n"
            "url, cache, bodies = json.load(sys.stdin); ask_all(url, bodies, Journal(cache))")
    questions = [QUESTION.format(instruction=i, first="a", second="b") for i in range(60)]
    bodies = {question: {"messages": [{"content": question}]} for question in questions}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True)
    process.stdin.write(json.dumps([server.url, str(cache), bodies]))
    process.stdin.close()
    return process, bodies


def wait_for(happened):
    deadline = time.monotonic() + 60
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.005)


def test_after_a_kill_at_most_one_call_a_worker_is_repeated(serve, tmp_path):
    server, cache = serve(prefers_longer, lambda instruction: "slow"), tmp_path / "cache"
    process, bodies = in_a_process(server, cache)
    wait_for(lambda: sum(server.finished.values()) >= 20)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with Journal(cache) as journal:
        assert 12 <= len(journal.values) < 60
        assert ask_all(server.url, bodies, journal) == {}
    assert len(server.finished) == 60 and sum(server.finished.values()) <= 68


def test_an_interrupt_ends_within_two_seconds_and_keeps_what_is_finished(serve, tmp_path):
    server, cache = serve(prefers_longer, lambda instruction: None if server.calls < 20 else "hang"), tmp_path / "cache"
    process, _ = in_a_process(server, cache)
    wait_for(lambda: server.calls >= 20 + 7 and kept(cache) == 19)
    process.send_signal(signal.SIGINT)
    process.wait(2)
    assert process.returncode and kept(cache) == sum(server.finished.values()) == 19


# Servers that misbehave

def test_failures_that_pass_are_outlasted_and_each_pair_is_judged_once(serve, tmp_path):
    rng = random.Random(0)
    kinds = [408, 409, 425, 429, 500, 502, 503, 504, 529, "drop", "slow", (429, {"Retry-After": "0.01"})]
    server = serve(prefers_longer, lambda instruction: rng.choice(kinds) if rng.random() < 0.3 else None)
    assert judged(server, tmp_path / "cache") == judged(serve(prefers_longer), tmp_path / "other")
    assert len(server.finished) == 60 and set(server.finished.values()) == {1}


@pytest.mark.parametrize("wrong", [400, 413, 500, "cut", *MALFORMED])
def test_a_pair_that_fails_is_named_left_out_and_asked_again_by_the_next_run(serve, tmp_path, capsys, wrong):
    server = serve(prefers_longer, lambda instruction: wrong if instruction == PAIRS[17][0] else None)
    preferences = judged(server, tmp_path / "cache")
    assert [i for i, p in enumerate(preferences) if p is None] == [17] and kept(tmp_path / "cache") == 59
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("no judgement of 'Instruction 17': ") and KEY not in said
    assert (str(wrong) in said and '"error": "no, Bearer ***"' in said) if isinstance(wrong, int) else True
    assert "I would rather not." in said if wrong == "refusal" else True
    wrong = None
    assert judged(server, tmp_path / "cache") == judged(serve(prefers_longer), tmp_path / "other")
    assert sum(server.finished.values()) == 60


def test_one_of_two_orders_that_fails_leaves_the_pair_out(serve, tmp_path):
    server = serve(prefers_longer, lambda instruction: 400 if server.calls == 3 else None)
    assert judged(server, tmp_path / "cache", PAIRS[:4], both_orders=True, workers=1).count(None) == 1


def test_ten_failures_before_any_answer_end_the_run(serve, tmp_path):
    server = serve(prefers_longer, lambda instruction: 400)
    with pytest.raises(OSError, match="the first ten calls all failed, the last with 400 .*no, Bearer \\*\\*\\*"):
        judged(server, tmp_path / "cache", workers=2)
    assert server.calls < 60  # some are made while that is found out


def test_many_pairs_that_always_fail_do_not_end_a_later_run(serve, tmp_path):
    server = serve(prefers_longer, lambda instruction: 400 if int(instruction.split()[1]) >= 20 else None)
    assert judged(server, tmp_path / "cache").count(None) == judged(server, tmp_path / "cache").count(None) == 40


@pytest.mark.parametrize("trouble, sentence", [
    (401, "answered 401 .*no, Bearer \\*\\*\\*"), (402, "answered 402"), (404, "answered 404"),
    ((307, {"Location": "http://elsewhere"}), "answered 307 http://elsewhere; check .* the address"),
    ("drop", "no connection .*; check the address and the server"),
])
def test_what_every_call_would_meet_stops_the_run_in_a_sentence_without_the_key(serve, tmp_path, trouble, sentence):
    server = serve(prefers_longer, lambda instruction: trouble if server.calls > 20 else None)
    with pytest.raises(OSError, match=sentence) as error:
        judged(server, tmp_path / "cache", workers=2)
    assert KEY not in str(error.value) and server.calls <= 26 and kept(tmp_path / "cache") >= 18


@pytest.mark.parametrize("base_url", ["http://127.0.0.1:{}", "https://127.0.0.1:{}", "http://no-such-host.invalid"])
def test_a_server_that_is_not_there_is_said_at_once(tmp_path, base_url):
    with socket.socket() as unused, Journal(tmp_path / "cache") as journal:
        unused.bind(("127.0.0.1", 0))
        began = time.monotonic()
        with pytest.raises(OSError, match="//.*/v1/chat/completions: no connection .*; check the address"):
            model_judge(PAIRS, "m", base_url.format(unused.getsockname()[1]), journal)
        assert time.monotonic() - began < 5


def test_a_server_that_hangs_is_asked_again(serve, tmp_path, monkeypatch):
    assert judge.TIMEOUT[1] == 600  # eight workers at a server that takes 30 s and one question at a time wait for 240
    monkeypatch.setattr(judge, "TIMEOUT", (10, 0.2))
    server = serve(prefers_longer, lambda instruction: "hang" if server.calls == 1 else None)
    assert judged(server, tmp_path / "cache", PAIRS[:1]) == [0.2] and server.calls == 2


@pytest.mark.parametrize("key", ["1", "m", "ollama"])
def test_a_key_as_short_as_local_servers_take_changes_no_answer(serve, tmp_path, key):
    with Journal(tmp_path / "cache") as journal:
        assert model_judge(PAIRS, "m", serve(prefers_longer).url, journal, key)[0] == judged(
            serve(prefers_longer), tmp_path / "other")


def test_a_key_that_the_server_repeats_in_its_answer_is_not_kept(serve, tmp_path):
    judged(serve(lambda *_: completion(text=f"M, said {KEY}")), tmp_path / "cache", PAIRS[:1])
    assert "M, said ***" in (tmp_path / "cache").read_text() and KEY not in (tmp_path / "cache").read_text()


@pytest.mark.parametrize("asked, waited", [("7", 7), ("100000", 60)])
def test_a_busy_server_is_left_alone_for_as_long_as_it_asks(serve, tmp_path, monkeypatch, asked, waited):
    pauses = []
    server = serve(prefers_longer, lambda instruction: (429, {"Retry-After": asked}) if server.calls <= 3 else None)
    monkeypatch.setattr(time, "sleep", lambda pause: pauses.append(pause) if pause > 0.1 else None)
    judged(server, tmp_path / "cache", PAIRS[:1])
    assert pauses == [waited] * 3


# The command line

def arguments(server, folder, *more):
    files = {"ours": 1, "theirs": 2}
    for name, side in files.items():
        rows = [{"instruction": row[0], "output": row[side], "generator": name} for row in PAIRS]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return ("judge.py", "--outputs", folder / "ours.json", "--reference", folder / "theirs.json", "--judge", "gpt-test",
            "--base-url", server.url, "--cache", folder / "cache.jsonl", *more)


def sometimes_nothing(instruction, first, second):
    if instruction.endswith(" 7"):
        return completion(text="Hm")
    return completion(p=0.8 if second.startswith("ours") else 0.2)


def test_the_report_and_alpacaevals_annotations_without_the_key(serve, tmp_path):
    save = tmp_path / "annotations.json"
    result = command(*arguments(serve(sometimes_nothing), tmp_path, "--price-per-million", 10, "--save", save))
    assert result.returncode == 0, result.stderr
    assert "calls to gpt-test" in result.stdout and "at 10 per million" in result.stdout
    assert "1 judgements invalid" in result.stdout and "60/60 calls" in result.stderr
    assert "no judgement of 'Instruction 7': named neither answer but 'Hm'" in result.stderr
    last = json.loads(result.stdout.splitlines()[-1])
    assert last["win_rate"] == pytest.approx(80) and last["n_total"] == 59 and last["n_invalid"] == 1
    rows = json.loads(save.read_text())
    assert [row["preference"] for row in rows] == [None if i == 7 else pytest.approx(1.8) for i in range(60)]
    assert rows[0].keys() == {"instruction", "output_1", "output_2", "generator_1", "generator_2", "annotator",
                              "preference", "raw_completion"}
    assert rows[0]["output_2"] == PAIRS[0][1] and rows[0]["generator_2"] == "ours"
    assert all(KEY not in path.read_text() for path in tmp_path.iterdir()) and KEY not in result.stdout + result.stderr


def test_a_judge_that_names_neither_answer_ever_is_an_error(serve, tmp_path):
    result = command(*arguments(serve(lambda *_: completion(text="I")), tmp_path))
    assert result.returncode == 2 and "judged none of 60 pairs" in result.stderr.splitlines()[-1]
    assert "no judgement of 'Instruction 3': named neither answer but 'I'" in result.stderr


@pytest.mark.parametrize("option, value, said", [
    ("--judge", "caf\udce9", "not valid UTF-8"), ("--workers", "0", "above 0"),
    ("--price-per-million", "nan", "above 0"),
    ("--save", "ours.json", "would overwrite"), ("--save", "theirs.json", "would overwrite"),
    ("--save", "cache.jsonl", "would overwrite"), ("--cache", "ours.json", "would overwrite"),
    ("--base-url", "http://", "not an address"), ("--base-url", "http://host:port", "not an address"),
    ("--base-url", "localhost:8080", "not an address"), ("--base-url", "http://a b", "not an address"),
    ("--base-url", "http://me:secret@host", "not an address"),
    ("OPENAI_API_KEY", "sk-secret\nX-Other: 1", "OPENAI_API_KEY holds"),
    ("OPENAI_API_KEY", "sk-sécret", "OPENAI_API_KEY holds"),
])
def test_what_cannot_work_is_refused_before_the_first_call(serve, tmp_path, monkeypatch, option, value, said):
    server, changed = serve(prefers_longer), [option, value]
    if option in ("--save", "--cache"):
        changed[1] = tmp_path / value
    if option == "OPENAI_API_KEY":
        monkeypatch.setenv(*changed)
        changed = []
    line = list(map(str, arguments(server, tmp_path)))
    inputs = {path: path.read_bytes() for path in tmp_path.iterdir()}
    result = command(*line, *changed)
    assert_refused(result, said)
    assert "secret" not in result.stderr and "sécret" not in result.stderr
    assert server.calls == 0 and inputs == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_full_disk_names_the_file_and_loses_nothing_that_was_written(serve, tmp_path):
    server, save = serve(prefers_longer), tmp_path / "annotations.json"
    line = arguments(server, tmp_path, "--workers", 2, "--save", save)
    save.write_text("before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_a_full_disk():  # no file can grow beyond 8,000 bytes, which ends a write as a full disk does
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, before[1]))
        try:
            result = command(*line)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert result.returncode == 2 and save.read_text() == "before"
        return result.stderr.splitlines()[-1]

    assert f"could not write {tmp_path / 'cache.jsonl'}" in on_a_full_disk()
    whole = kept(tmp_path / "cache.jsonl") - 1  # the last line is torn
    result = command(*line)
    assert f"{60 - whole} calls to gpt-test" in result.stdout and server.calls <= 62
    save.write_text("before")
    assert f"could not write {save}" in on_a_full_disk()
