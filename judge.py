"""Judging: how often a model's answers are preferred to a reference model's, and response ranking.

    python judge.py --outputs A.json --reference B.json --judge world
    python judge.py --outputs A.json --reference B.json --judge gpt-4-turbo [--base-url http://localhost:8080]
    python judge.py --rank data/tiny out/instruction out/response

A judge gives each pair of answers a preference in [0, 1] for the first; the win rate is its mean
(section 3). `world` grades both answers by the in-vitro world's answer key; any other name is a model
behind an OpenAI-compatible server, asked as AlpacaEval 2 asks (OPENAI_API_KEY from the environment).
Ranking asks no judge: does a model find an instruction's own response likelier than another's
(section 4.2, equation 3)?
"""
import argparse
import hashlib
import json
import math
import os
import random
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import requests
import torch
import torch.nn.functional as F
from requests.adapters import HTTPAdapter
from torch.nn.utils.rnn import pad_sequence

from data.download import bearer, model_folder
from data.format import IGNORE, Tokenizer, check_fields, encode, read_jsonl
from data.world import World, grade
from model import Llama, default_device, device_name, replacing


def read_outputs(path: Path) -> list[dict]:
    """The rows of a file in AlpacaEval's output format. Raises FileNotFoundError, or ValueError naming the row."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; generate.py --input ... --output {path} writes it")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path}: expected a list of answers, at least one")
    for i, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("instruction", "output")):
            raise ValueError(f'{path}: answer {i} is not {{"instruction": "...", "output": "..."}}')
    return rows


def pair(outputs: Path, reference: Path) -> list[tuple[str, str, str]]:
    """(instruction, output, reference output) for two files that answer the same instructions in the same order."""
    rows, others = read_outputs(outputs), read_outputs(reference)
    for i, (a, b) in enumerate(zip(rows, others), 1):
        if a["instruction"] != b["instruction"]:
            raise ValueError(f"{outputs} and {reference} answer different instructions: number {i} is "
                             f"{a['instruction']!r} in one, {b['instruction']!r} in the other")
    if len(rows) != len(others):
        raise ValueError(f"{outputs} has {len(rows)} answers, {reference} has {len(others)}; finish the shorter one")
    return [(a["instruction"], a["output"], b["output"]) for a, b in zip(rows, others)]


def world_judge(pairs: list[tuple[str, str, str]]) -> list[float]:
    """1 where the first answer has the better grade, 0 where the second has, 0.5 where they tie."""
    tasks = {task.instruction: task for tasks in World().evaluation_sets() for task in tasks}
    preferences = []
    for instruction, output, other in pairs:
        if instruction not in tasks:
            raise ValueError(f"the world has no answer to {instruction!r}; --judge world is for its own val and eval sets")
        ours, theirs = grade(tasks[instruction], output), grade(tasks[instruction], other)
        preferences.append(0.5 + 0.5 * np.sign(ours - theirs).item())
    return preferences


# A model as the judge: AlpacaEval 2's weighted_alpaca_eval_gpt4_turbo (Dubois et al., 2024), in our own words

QUESTION = """Two language models, "m" and "M", were given the same instruction. Say whose answer most people would prefer.

# Instruction

{instruction}

# Answer of m

{first}

# Answer of M

{second}

# Your judgement

Reply with the name of the better model and nothing else: m or M."""
ATTEMPTS, BACKOFF, TIMEOUT = 8, 1.0, (10, 120)  # tries of a call, seconds before the second (then doubling), connect and read
BUSY = {408, 409, 425, 429}  # worth another try, as all of 5xx are


def request_body(model: str, instruction: str, first: str, second: str) -> dict:
    """One comparison, to be answered by one token: m for the answer shown first, M for the second."""
    question = QUESTION.format(instruction=instruction, first=first, second=second)
    return {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": 1, "temperature": 1.0,
            "logprobs": True, "top_logprobs": 5}


def preference_for_second(choice: dict) -> float | None:
    """p(M) / (p(m) + p(M)) from a completion's log-probabilities, else 0 or 1 from its text; None where it says neither."""
    def name(token):
        return token.strip(" \n\"'`*_.Ġ▁")

    content = (choice.get("logprobs") or {}).get("content")
    if content:
        p = {"m": 0.0, "M": 0.0}
        for top in content[0].get("top_logprobs") or []:
            if name(top["token"]) in p:
                p[name(top["token"])] += math.exp(top["logprob"])
        if total := sum(p.values()):
            return p["M"] / total
    return {"m": 0.0, "M": 1.0}.get(name(choice["message"]["content"] or ""))


class Refused(OSError):
    """The server does not answer, or will not, however often it is asked."""

    def __init__(self, message: str):
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        super().__init__(message.replace(key, "***") if key else message)  # some servers repeat it


def ask(session: requests.Session, url: str, body: dict, stop: threading.Event) -> dict:
    """The first choice of a completion. Waits and asks again while the server is busy or broken, until `stop` is set.

    Raises Refused at once on 400, 401, 403 and their like, and after ATTEMPTS tries.
    """
    for attempt in range(ATTEMPTS):
        wait = BACKOFF * 2**attempt * random.uniform(1, 1.5)
        try:
            response = session.post(url, json=body, timeout=TIMEOUT)
            if response.status_code < 400:
                choice = response.json()["choices"][0]
                preference_for_second(choice)  # raises where it is no completion
                return choice
            problem = f"{response.status_code} {response.text[:300].strip()}"
            if response.status_code < 500 and response.status_code not in BUSY:
                raise Refused(f"{url} answered {problem}")
            if re.fullmatch(r"[\d.]+", after := response.headers.get("Retry-After", "")):
                wait = max(wait, float(after))
        except Refused:
            raise
        except (requests.RequestException, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            problem = type(error).__name__
        if attempt == 2:
            print(f"{url}: {problem}; still trying", file=sys.stderr, flush=True)
        if attempt + 1 == ATTEMPTS or stop.wait(wait):
            break
    raise Refused(f"{url}: no answer after {ATTEMPTS} tries, the last was {problem}; what is judged is kept, run this again later")


class Cache:
    """Judgements on disk, a JSON line each, by a hash of all that determines the answer.

    Lines are appended whole, so two runs can share a file. A line that was torn by a kill is no JSON and is skipped.
    """

    def __init__(self, path: Path):
        self.path, self.choices = path, {}
        if path.exists():
            for line in path.read_bytes().splitlines():
                try:
                    row = json.loads(line)
                    preference_for_second(row["choice"])  # raises where it is no completion
                    self.choices[row["key"]] = row["choice"]
                except (ValueError, KeyError, TypeError, AttributeError, IndexError):
                    pass
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(path, "ab", buffering=0)
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            self.file.write(b"\n")

    @staticmethod
    def key(url: str, body: dict) -> str:
        return hashlib.sha256(json.dumps([url, body], sort_keys=True).encode()).hexdigest()

    def add(self, key: str, choice: dict):
        self.choices[key] = choice
        self.file.write(json.dumps({"key": key, "choice": choice}).encode() + b"\n")


def model_judge(pairs, model: str, base_url: str, cache: Cache, seed: int = 1, both_orders: bool = False, workers: int = 8,
                price_per_million: float | None = None) -> tuple[list[float | None], list[dict]]:
    """(preferences, completions) of a model behind `base_url`; a preference is None where the model named neither answer.

    Which answer is shown first is a coin tossed by seed and instruction, so that a second run asks the
    same; both_orders asks both ways and averages. Raises OSError when the server refuses.
    """
    url = base_url.rstrip("/").removesuffix("/v1") + "/v1/chat/completions"
    asked = []  # for each pair, (key, whether its first answer is shown second) of each call
    bodies = {}
    for instruction, output, other in pairs:
        second = random.Random(f"{seed} {instruction}").random() < 0.5
        calls = []
        for ours_second in (second, not second) if both_orders else (second,):
            body = request_body(model, instruction, *((other, output) if ours_second else (output, other)))
            calls.append((Cache.key(url, body), ours_second))
            bodies[calls[-1][0]] = body
        asked.append(calls)
    left = {key: body for key, body in bodies.items() if key not in cache.choices}
    tokens = sum(len(body["messages"][0]["content"]) for body in left.values()) // 4
    cost = "" if price_per_million is None else f", {tokens * price_per_million / 1e6:.2f} at {price_per_million:g} per million"
    print(f"{len(left)} calls to {model}, about {tokens:,} input tokens{cost}; {len(bodies) - len(left)} are in {cache.path}",
          flush=True)

    session = requests.Session()
    session.mount(url, HTTPAdapter(pool_maxsize=workers))
    if key := os.environ.get("OPENAI_API_KEY", "").strip():
        session.auth = bearer(key)
    began, shown, stop = time.perf_counter(), 0.0, threading.Event()
    with ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(ask, session, url, body, stop): key for key, body in left.items()}
        try:
            for done, future in enumerate(as_completed(futures), 1):
                cache.add(futures[future], future.result())
                now = time.perf_counter()
                if now > shown + 5 or done == len(left):
                    shown, rate = now, done / (now - began)
                    seconds = (len(left) - done) / rate
                    print(f"{done}/{len(left)} calls  {rate:.1f}/s  {seconds // 60:.0f}:{seconds % 60:02.0f} left",
                          file=sys.stderr, flush=True)
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    preferences = []
    for calls in asked:
        ps = [(preference_for_second(cache.choices[key]), ours_second) for key, ours_second in calls]
        named = [p if ours_second else 1 - p for p, ours_second in ps if p is not None]
        preferences.append(sum(named) / len(named) if len(named) == len(ps) else None)
    return preferences, [cache.choices[calls[0][0]] for calls in asked]


def win_rate(preferences) -> tuple[float, float]:
    """The mean preference and its standard error, in percent."""
    p = np.asarray(preferences, dtype=float)
    error = p.std(ddof=1) / len(p) ** 0.5 if len(p) > 1 else 0.0
    return 100 * p.mean(), 100 * error


def length_controlled_win_rate(preferences, lengths, reference_lengths) -> float:
    """The win rate that a logistic regression predicts for answers of equal length, in percent (Dubois et al., 2024).

    p(preferred) = sigmoid(a + b * tanh(d / sd(d))), d the difference in characters: AlpacaEval's
    `length_controlled_minimal`. Fitted by Newton's method; a ridge of 1e-6 on (a, b) keeps them
    finite where one side always wins.
    """
    p = np.asarray(preferences, dtype=float)
    d = np.asarray(lengths, dtype=float) - np.asarray(reference_lengths, dtype=float)
    spread = d.std(ddof=1) if len(d) > 1 else 0.0
    x = np.stack([np.ones(len(d)), np.tanh(d / spread) if spread else 0 * d], axis=1)  # (N, 2)
    ab = np.zeros(2)
    for _ in range(100):
        q = 1 / (1 + np.exp(-x @ ab))  # (N,)
        gradient = x.T @ (p - q) - 1e-6 * ab
        step = np.linalg.solve(x.T @ (x * (q * (1 - q))[:, None]) + 1e-6 * np.eye(2), gradient)
        ab += np.clip(step, -1, 1)  # a whole Newton step can overshoot far from the optimum
        if np.abs(step).max() < 1e-10:
            break
    return 100 / (1 + np.exp(-ab[0]))


@torch.inference_mode()
def log_likelihoods(model: Llama, examples: list, batch_size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """log p of the scored tokens of each (ids, labels): the total and the mean per token, float32 (N,) each."""
    totals, counts = torch.zeros(len(examples)), torch.zeros(len(examples))
    order = sorted(range(len(examples)), key=lambda i: len(examples[i][0]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        ids, labels = zip(*(map(torch.tensor, examples[i]) for i in batch))
        ids = pad_sequence(ids, batch_first=True).to(model.device)  # (B, T)
        targets = pad_sequence(labels, batch_first=True, padding_value=IGNORE).to(model.device)[:, 1:]
        scored = targets != IGNORE  # (B, T-1)
        logits = model.logits(model.hidden(ids[:, :-1])[scored]).float()  # (N scored, V)
        rows = scored.nonzero()[:, 0]  # which row each scored token is of
        log_p = -F.cross_entropy(logits, targets[scored], reduction="none")  # (N scored,)
        totals[batch] = torch.zeros(len(batch), device=model.device).index_add_(0, rows, log_p).cpu()
        counts[batch] = scored.sum(1).cpu().float()
    return totals, totals / counts


def rank_responses(model: Llama, tokenizer: Tokenizer, pairs: list[tuple[str, str]], n_others: int = 5, seed: int = 1) -> dict:
    """How often p(own response | instruction) exceeds p(another instruction's response | instruction), in percent.

    Each instruction's own response against those of n_others others, drawn by seed. "total" is
    equation 3, the log-likelihood of the whole response; "mean" is per token, as the paper's code has it.
    """
    if len(pairs) <= n_others:
        raise ValueError(f"ranking needs more than {n_others} pairs of instruction and response, found {len(pairs)}")
    rng, examples = random.Random(seed), []
    for i, (instruction, own) in enumerate(pairs):
        others = rng.sample([response for j, (_, response) in enumerate(pairs) if j != i], n_others)
        examples += [encode(tokenizer, [{"role": "user", "content": instruction}, {"role": "assistant", "content": response}],
                            model.config.context) for response in [own, *others]]
    result = {}
    for name, scores in zip(("total", "mean"), log_likelihoods(model, examples)):
        own, others = scores.view(len(pairs), -1).split([1, n_others], dim=1)  # (N, 1), (N, n_others)
        result[name] = round(100 * (own > others).float().mean().item(), 2)
    return result


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--outputs", type=Path, help="the answers to judge, in AlpacaEval's format")
    what.add_argument("--rank", nargs="+", metavar="MODEL", help="models, as folders or names on the hub, whose ranking to measure")
    parser.add_argument("--reference", type=Path, help="the answers to compare --outputs with")
    parser.add_argument("--judge", default="world", metavar="world|MODEL", help="the world's answer key, or a model to ask")
    parser.add_argument("--base-url", default="https://api.openai.com", help="of the server that has MODEL")
    parser.add_argument("--cache", type=Path, default=Path("out/judge-cache.jsonl"), help="where MODEL's judgements are kept")
    parser.add_argument("--both-orders", action="store_true", help="ask MODEL twice, each answer shown first once, and average")
    parser.add_argument("--seed", type=int, default=1, help="of which answer is shown first")
    parser.add_argument("--workers", type=int, default=8, help="calls at a time")
    parser.add_argument("--price-per-million", type=float, help="of MODEL's input tokens, to foretell the cost")
    parser.add_argument("--save", type=Path, help="write the judgements in AlpacaEval's annotation format")
    parser.add_argument("--pairs", type=Path, default=Path("data/world/eval.jsonl"),
                        help='what --rank ranks: lines of {"instruction": ..., "response": ...}')
    parser.add_argument("--device", type=device_name, default=default_device())
    args = parser.parse_args()
    if (args.outputs is None) != (args.reference is None):
        parser.error("--outputs and --reference go together")
    if args.workers < 1:
        parser.error("--workers must be above 0")
    if not re.match(r"https?://", args.base_url):
        parser.error("--base-url begins with http:// or https://")
    return args


def rank(args):
    rows = read_jsonl(args.pairs, check_fields("instruction", "response"))
    pairs = [(row["instruction"], row["response"]) for row in rows]
    for path in map(model_folder, args.rank):
        model, tokenizer = Llama.from_pretrained(path, device=args.device), Tokenizer(path)
        print(json.dumps({"model": str(path), "n_total": len(pairs)} | rank_responses(model, tokenizer, pairs)), flush=True)


def save_annotations(args, pairs, preferences, choices):
    """AlpacaEval's annotation format, whose preference runs from 1 (the reference's answer) to 2 (the other)."""
    ours, theirs = ((read_outputs(path)[0].get("generator") or path.stem) for path in (args.outputs, args.reference))
    with replacing(args.save) as temporary:
        temporary.write_text(json.dumps([
            {"instruction": instruction, "output_1": other, "generator_1": theirs, "output_2": output, "generator_2": ours,
             "annotator": args.judge, "preference": None if p is None else 1 + p, "raw_completion": choice}
            for (instruction, output, other), p, choice in zip(pairs, preferences, choices)], indent=1) + "\n", encoding="utf-8")


def main():
    args = parse_arguments()
    if args.rank:
        return rank(args)
    pairs = pair(args.outputs, args.reference)
    if args.judge == "world":
        preferences, choices = world_judge(pairs), [None] * len(pairs)
    else:
        preferences, choices = model_judge(pairs, args.judge, args.base_url, Cache(args.cache), args.seed, args.both_orders,
                                           args.workers, args.price_per_million)
    if args.save:
        save_annotations(args, pairs, preferences, choices)
    judged = [(p, len(output), len(other)) for p, (_, output, other) in zip(preferences, pairs) if p is not None]
    if not judged:
        raise ValueError(f"{args.judge} named neither answer in any of {len(pairs)} judgements; is it a chat model?")
    preferences, lengths, reference_lengths = map(list, zip(*judged))
    rate, error = win_rate(preferences)
    controlled = length_controlled_win_rate(preferences, lengths, reference_lengths)
    wins, ties = sum(p > 0.5 for p in preferences), sum(p == 0.5 for p in preferences)
    print(f"{wins} wins, {ties} ties, {len(judged) - wins - ties} losses against {args.reference}; "
          f"{len(pairs) - len(judged)} judgements invalid and left out")
    print(f"mean length {np.mean(lengths):.0f} characters, the reference's {np.mean(reference_lengths):.0f}")
    print(f"win rate {rate:.2f} ± {error:.2f} %, length-controlled {controlled:.2f} %")
    print(json.dumps({"win_rate": rate, "standard_error": error, "length_controlled_win_rate": controlled,
                      "n_total": len(judged), "n_invalid": len(pairs) - len(judged)}))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"judge.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted; what a model has judged is kept, and the same command goes on", file=sys.stderr)
        sys.exit(130)
