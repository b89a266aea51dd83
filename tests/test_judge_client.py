"""judge.py's client against a server that answers as OpenAI's do and misbehaves on command."""
import json
import math
import re
import resource
import signal
import sys
import threading
import time
from collections import Counter
from subprocess import PIPE, Popen

import pytest
from conftest import ROOT, assert_refused, command
from server import Server

import judge
from data import hub
from data.common import Journal
from judge import completions_url, model_judge, preference_for_second

KEY = "sk-a-key-that-must-not-be-written"
PAIRS = [(f"Instruction {i}", "ours " * (1 + i % 7), "theirs " * (1 + i % 5)) for i in range(60)]


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


class Judge(Server):
    """answer(instruction, first, second) is a completion. trouble(instruction) is None, or how a call goes wrong: a
    status, (status, headers), other bytes, or a word that `reply` knows. `finished` counts answers by question."""

    def __init__(self, answer, trouble=lambda instruction: None):
        self.answer, self.trouble, self.lock = answer, trouble, threading.Lock()
        self.calls, self.bodies, self.headers, self.finished = 0, [], [], Counter()
        super().__init__()

    def reply(self, path, headers, body):
        body = json.loads(body)
        question = body["messages"][0]["content"]
        with self.lock:
            self.calls += 1
            self.bodies.append(body)
            self.headers.append((path, headers))
            wrong = self.trouble(shown(question)[0])
        good = json.dumps(self.answer(*shown(question))).encode()
        if isinstance(wrong, int | tuple):
            status, more = wrong if isinstance(wrong, tuple) else (wrong, {})
            return status, more, f'{{"error": "no,\n{headers["Authorization"]}"}}'.encode()
        if isinstance(wrong, bytes):
            return 200, {}, wrong
        if wrong == "cut":
            return 200, {"Content-Length": len(good)}, good[: len(good) // 2]
        if wrong == "hang":
            self.over.wait()
        if wrong in ("drop", "hang"):
            return None
        self.finished[question] += 1
        return 200, {}, good


@pytest.fixture
def serve(start, monkeypatch):
    monkeypatch.setattr(hub, "BACKOFF", 0.001)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return lambda *arguments: start(Judge, *arguments)


def prefers_longer(instruction, first, second):
    return completion(p=0.9 if len(second) > len(first) else 0.2)


def judged(server, cache, pairs=PAIRS, model="gpt-test", key=KEY, **options):
    with Journal(cache, wait=True) as journal:
        return model_judge(pairs, model, server.url, journal, key, **options)[0]


def kept(cache):
    return len(cache.read_bytes().splitlines()) if cache.exists() else 0


@pytest.mark.parametrize("completed, expected", [
    (completion(p=0.25), 0.25),
    (completion(top={"M": math.log(0.6), "m": math.log(0.2)}), 0.75),
    (completion(top={' M"': math.log(0.4), "'m": math.log(0.1), " m": math.log(0.1)}), 2 / 3),
    (completion(top={"M": -0.01, "The": -5.0}), 1.0), (completion(top={"M": 1e-3, "m": -9999.0}), 1.0),
    (completion(top={"M": -0.01, "m": -math.inf, "The": -math.inf, "A": None}), 1.0),  # llama.cpp; some proxies
    (completion(top={"m": -0.01, "M": None, "The": math.nan}), 0.0),
    (completion(text=" m\n"), 0.0), (completion(text="**M**, since it\nis right"), 1.0), (completion(text='"M"'), 1.0),
    (completion(text="Model"), None), (completion(text=""), None), (completion(top={"The": -0.1, "A": -3.0}), None),
])
def test_preference_from_log_probabilities_or_text(completed, expected):
    assert preference_for_second(completed["choices"][0]) == (expected if expected is None else pytest.approx(expected))


def test_the_request_is_alpacaevals_comparison_and_the_choice_is_kept_as_json_that_every_reader_takes(serve, tmp_path):
    server = serve(lambda *_: completion(top={"M": -0.1, "m": -math.inf}))
    assert set(judged(server, tmp_path / "cache", PAIRS[:1])) <= {0.0, 1.0}
    assert '"logprob": null' in (tmp_path / "cache").read_text()
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


@pytest.mark.parametrize("given, reached", [
    ("", "/v1/chat/completions"), ("/v1/", "/v1/chat/completions"), ("/v1beta/ai/", "/v1beta/ai/chat/completions"),
    ("/a/chat/completions/?v=1", "/a/chat/completions?v=1"), (":80/?v=1", ":80/v1/chat/completions?v=1"),
])
def test_every_form_of_an_address_reaches_the_right_place(given, reached):
    hub.check_url(f"https://host{given}", "--base-url")
    assert completions_url(f"https://host{given}") == f"https://host{reached}"


def test_the_side_is_a_coin_of_seed_and_instruction_and_does_not_change_the_preference(serve, tmp_path):
    server = serve(lambda instruction, first, second: completion(p=0.9 if second.startswith("ours") else 0.1))

    def sides(name, seed):  # which side is shown first, by instruction
        server.bodies.clear()
        assert judged(server, tmp_path / name, seed=seed) == pytest.approx([0.9] * 60)
        questions = [body["messages"][0]["content"] for body in server.bodies]
        return {instruction: first[:4] for instruction, first, _ in map(shown, questions)}

    first = sides("a", 1)
    assert first == sides("b", 1) != sides("c", 2) and 15 < list(first.values()).count("ours") < 45


def test_both_orders_average_out_a_taste_for_the_second_and_one_that_fails_leaves_the_pair_out(serve, tmp_path):
    """And equal answers are a tie without a call: AlpacaEval's `preference` is 1.5 in 130 of 130 published cases."""
    server = serve(lambda *_: completion(p=0.7), lambda instruction: 400 if server.calls == 3 else None)
    pairs = [("Do.", "same", "same"), ("Go.", "", ""), *PAIRS[:5]]
    preferences = judged(server, tmp_path / "cache", pairs, both_orders=True, workers=1)
    assert preferences == [0.5, 0.5, pytest.approx(0.5), None, *[pytest.approx(0.5)] * 3] and server.calls == 10


def test_the_cache_knows_everything_that_determines_the_answer(serve, tmp_path):
    server, cache = serve(prefers_longer), tmp_path / "cache"
    for _ in range(2):
        judged(server, cache, PAIRS[:5])
        judged(server, cache, [(i, a + "!", b) for i, a, b in PAIRS[:5]])
        judged(server, cache, PAIRS[:5], model="another-model")
        judged(server, cache, PAIRS[:5], logprobs=False)
        assert server.calls == 20 and KEY not in cache.read_text()


def test_an_answer_is_written_down_before_its_worker_asks_again_and_asked_again_if_torn(serve, tmp_path):
    """So a run that is killed repeats at most one call a worker."""
    cache, waiting = tmp_path / "cache", []
    server = serve(prefers_longer, lambda instruction: waiting.append(server.calls - kept(cache)))
    whole = judged(server, cache, workers=4)
    assert len(waiting) == 60 and 1 < max(waiting) <= 4
    cache.write_bytes(b"[]\n" + cache.read_bytes()[:-40])
    for _ in range(2):  # the repair is whole
        assert judged(server, cache) == whole and server.calls == 61


def test_failures_that_pass_are_outlasted_and_each_pair_is_judged_once(serve, tmp_path):
    kinds = [408, 409, 425, 429, 500, 502, 503, 504, 529, "drop"]
    left = {instruction: [kind] * 2 for (instruction, _, _), kind in zip(PAIRS, kinds)}
    server = serve(prefers_longer, lambda instruction: left[instruction].pop() if left.get(instruction) else None)
    assert judged(server, tmp_path / "cache") == judged(serve(prefers_longer), tmp_path / "other")
    assert server.calls == 80 and len(server.finished) == 60 and set(server.finished.values()) == {1}


WRONG = {  # what comes in place of a judgement, and what is said of it
    400: '400 {"error": "no, Bearer ***"}', 500: '500 {"error": "no, Bearer ***"}'}
for body in ('<html>Bad gateway</html>', '{"choices": []}', 'null', '{"choices": [{"message": {"content": 5}}]}',
             '{"choices": [{"message": {"content": null, "refusal": "I would rather not."}}]}',
             json.dumps(completion(top={"M": 0.1, "m": -1.0}))):
    WRONG[body.encode()] = f"200 {body[:90]}"


def test_pairs_that_fail_are_named_left_out_and_asked_again_by_the_next_run(serve, tmp_path, capsys):
    trouble = {f"Instruction {6 * i}": wrong for i, wrong in enumerate(WRONG)}
    server, cache = serve(prefers_longer, trouble.get), tmp_path / "cache"
    preferences = judged(server, cache)
    assert [i for i, p in enumerate(preferences) if p is None] == list(range(0, 48, 6)) and kept(cache) == 52
    said = capsys.readouterr().err
    for instruction, wrong in trouble.items():
        assert f"no judgement of {instruction!r}: {WRONG[wrong]}" in said and KEY not in said
    trouble.clear()
    assert judged(server, cache) == judged(serve(prefers_longer), tmp_path / "other")
    assert sum(server.finished.values()) == 60


@pytest.mark.parametrize("trouble, sentence", [
    (401, "answered 401 .*no, Bearer \\*\\*\\*"), ("drop", "no connection .*; check the address and the server"),
    ((307, {"Location": "http://elsewhere"}), "answered 307 http://elsewhere; check .* the address"),
])
def test_what_every_call_would_meet_stops_the_run_in_a_sentence_without_the_key(serve, tmp_path, trouble, sentence):
    server = serve(prefers_longer, lambda instruction: trouble if server.calls > 20 else None)
    with pytest.raises(OSError, match=sentence) as error:
        judged(server, tmp_path / "cache", workers=2)
    assert KEY not in str(error.value) and server.calls <= 26 and kept(tmp_path / "cache") >= 18


def test_a_server_that_is_not_there_is_said_at_once(start, tmp_path):
    server = start(Judge, prefers_longer)
    server.stop()
    began = time.monotonic()
    with pytest.raises(OSError, match="//.*/v1/chat/completions: no connection .*; check the address"):
        judged(server, tmp_path / "cache")
    assert time.monotonic() - began < 5


def test_a_server_that_hangs_is_asked_again_and_a_busy_one_after_its_pause_or_a_minute(serve, tmp_path, monkeypatch):
    assert judge.TIMEOUT[1] == 600  # eight workers at a server that takes 30 s and one question at a time wait for 240
    monkeypatch.setattr(judge, "TIMEOUT", (10, 0.5))
    trouble, pauses = iter(["hang", (429, {"Retry-After": "7"}), (429, {"Retry-After": "86400"})]), []
    server = serve(prefers_longer, lambda instruction: next(trouble, None))
    monkeypatch.setattr(time, "sleep", lambda pause: pauses.append(pause) if pause > 0.1 else None)
    assert judged(server, tmp_path / "cache", PAIRS[:1]) == [0.2] and server.calls == 4 and pauses == [7, 60]


def test_a_key_that_the_server_repeats_is_not_kept_but_one_as_short_as_local_servers_take_is_no_secret(serve, tmp_path):
    judged(serve(lambda *_: completion(text=f"M, said {KEY}")), tmp_path / "cache", PAIRS[:1])
    assert "M, said ***" in (tmp_path / "cache").read_text() and KEY not in (tmp_path / "cache").read_text()
    assert judged(serve(prefers_longer), tmp_path / "a", key="1") == judged(serve(prefers_longer), tmp_path / "b")


def arguments(server, folder, *more):
    for name, side in (("ours", 1), ("theirs", 2)):
        rows = [{"instruction": row[0], "output": row[side], "generator": name} for row in PAIRS]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    line = ("judge.py", "--outputs", folder / "ours.json", "--reference", folder / "theirs.json", "--judge", "gpt-test",
            "--base-url", server.url, "--cache", folder / "cache.json", *more)
    return list(map(str, line))


def test_an_interrupt_ends_within_two_seconds_and_keeps_what_is_finished(serve, tmp_path):
    server, cache = serve(prefers_longer, lambda _: "hang" if server.calls >= 20 else None), tmp_path / "cache.json"
    process = Popen([sys.executable, *arguments(server, tmp_path)], cwd=ROOT, stdout=PIPE, stderr=PIPE)
    deadline = time.monotonic() + 60
    while (server.calls < 20 + 7 or kept(cache) < 19) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=2)[1].endswith(b"judgements are kept, and the same command goes on\n")
    assert process.returncode == 130 and kept(cache) == sum(server.finished.values()) == 19


def test_the_report_and_alpacaevals_annotations_without_the_key(serve, tmp_path):
    save, trouble = tmp_path / "annotations.json", {PAIRS[7][0]: json.dumps(completion(text="Hm")).encode()}
    server = serve(lambda _, first, second: completion(p=0.8 if "ours" in second else 0.2), trouble.get)
    result = command(*arguments(server, tmp_path, "--save", save))
    for said in ("60 calls to gpt-test", "1 judgements invalid"):
        assert said in result.stdout
    assert "60/60 calls" in result.stderr and "of 'Instruction 7': named neither answer but 'Hm'" in result.stderr
    last = json.loads(result.stdout.splitlines()[-1])
    assert last["win_rate"] == pytest.approx(80) and last["n_total"] == 59 and last["n_invalid"] == 1
    rows = json.loads(save.read_text())
    assert [row["preference"] for row in rows] == [None if i == 7 else pytest.approx(1.8) for i in range(60)]
    assert rows[0].keys() == {"instruction", "output_1", "output_2", "generator_1", "generator_2", "annotator",
                              "preference", "raw_completion"}
    assert rows[0]["output_2"] == PAIRS[0][1] and rows[0]["generator_2"] == "ours"
    assert all(KEY not in path.read_text() for path in tmp_path.iterdir()) and KEY not in result.stdout + result.stderr
    result = command(*arguments(serve(lambda *_: completion(text="I")), tmp_path))  # a judge that never names an answer
    assert result.returncode == 2 and "judged none of 60 pairs" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("option, value, said", [
    ("--judge", "caf\udce9", "not valid UTF-8"), ("--workers", "0", "above 0"),
    ("--save", "ours.json", "would overwrite"), ("--save", "cache.json", "would overwrite"),
    ("--cache", "theirs.json", "would overwrite"), ("--base-url", "http://host:port", "not an address"),
    ("--base-url", "localhost:8080", "not an address"), ("--base-url", "http://me:secret@host", "not an address"),
    ("OPENAI_API_KEY", "sk-sécret", "OPENAI_API_KEY holds"),
])
def test_what_cannot_work_is_refused_before_the_first_call(serve, tmp_path, monkeypatch, option, value, said):
    server, changed = serve(prefers_longer), [option, tmp_path / value if value.endswith("json") else value]
    if option == "OPENAI_API_KEY":
        monkeypatch.setenv(*changed)
        changed = []
    line = arguments(server, tmp_path, *changed)
    inputs = {path: path.read_bytes() for path in tmp_path.iterdir()}
    result = command(*line)
    assert_refused(result, said)
    assert "secret" not in result.stderr and "sécret" not in result.stderr
    assert server.calls == 0 and inputs == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_full_disk_names_the_file_and_loses_nothing_that_was_written(serve, tmp_path):
    server, cache, limit = serve(prefers_longer), tmp_path / "cache", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, limit[1]))  # no file can grow beyond that, as on a full disk
    try:
        with pytest.raises(OSError, match=f"could not write {cache} .*; make room and run this again"):
            judged(server, cache, workers=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert judged(server, cache) == judged(serve(prefers_longer), tmp_path / "other") and server.calls <= 62
