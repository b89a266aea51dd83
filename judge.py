"""Judging: how often a model's answers are preferred to a reference model's, and response ranking.

    python judge.py --outputs A.json --reference B.json --judge world
    python judge.py --outputs A.json --reference B.json --judge gpt-4-turbo [--base-url http://localhost:8080]
    python judge.py --rank data/tiny out/instruction out/response

A judge gives a pair of answers a preference in [0, 1]: 1 where the first is better, 0.5 for a tie; the win rate is its
mean (section 3). `world` grades by the in-vitro world's answer key. Any other name is a model on an OpenAI-compatible
server, with the key in OPENAI_API_KEY. Ranking needs no judge (section 4.2).
"""
import json
import math
import os
import random
import sys
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from data import common  # first: Ctrl-C is quiet from here on

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from data import answer_key
from data import device as machine
from data.common import Journal, check_fields, digest, read_json, read_jsonl, write_json
from data.format import IGNORE, Tokenizer, encode
from data.hub import model_folder
from data.web import ask_all, check_url, secret
from data.world import World, load_world
from model import Llama


def win_rate(preferences) -> tuple[float, float]:
    """The mean of N >= 1 preferences and its standard error, both in percent (section 3).

    The standard error is the sample's standard deviation (with N - 1) over sqrt(N); 0 where N is 1.
    """
    p = np.asarray(preferences, dtype=float)  # (N,)
    error = p.std(ddof=1) / len(p) ** 0.5 if len(p) > 1 else 0.0
    return 100 * p.mean(), 100 * error


def length_controlled(preferences, lengths, reference_lengths, difficulties=0.0, gamed=()) -> float:
    """The win rate at equal lengths, in percent: AlpacaEval's length-controlled win rate (Dubois et al., 2024).

    A logistic regression without intercept predicts each of N preferences (NaN or None: not judged) from tanh(d / s),
    the instruction's difficulty and a 1. d is the length in characters less the reference's, s the standard deviation
    of d (with N - 1; the feature is 0 where s is 0 or N is 1). The penalty is |w|_1 / C. C is one of 10 values between
    1e-4 and 1e4, by 5-fold cross-validation of the mean log-loss (the largest for fewer than 5 rows). The result is the
    mean prediction at d = 0 over all N instructions, judged or not.

    With difficulties (N,) and gamed (M, 3) this is `length_controlled_v1`, which the paper reports. gamed: preferences
    of GPT-4's own answers made longer or shorter, their d / s and difficulties; each weighs 0.1, with a 0 for the 1.
    Without the two it is AlpacaEval's `length_controlled_minimal`.
    """
    p = np.asarray(preferences, dtype=float)  # (N,)
    d = np.asarray(lengths, dtype=float) - np.asarray(reference_lengths, dtype=float)
    spread = d.std(ddof=1) if len(d) > 1 else 0.0
    own = np.stack(np.broadcast_arrays(np.tanh(d / (spread or np.inf)), difficulties, 1.0), axis=1)  # (N, 3)
    gamed = np.reshape(gamed, (-1, 3))
    other = np.stack([np.tanh(gamed[:, 1]), gamed[:, 2], np.zeros(len(gamed))], axis=1)  # (M, 3)

    # the rows that are judged: GPT-4's own, then the model's
    x = np.concatenate([other, own[~np.isnan(p)]])
    p = np.concatenate([gamed[:, 0], p[~np.isnan(p)]])
    weight = np.where(x[:, 2] == 0, 0.1, 1.0)

    # the strength whose fit to four fifths predicts the last fifth best
    fold = np.arange(len(x)) % 5

    def held_out_loss(c):
        fits = [fit_l1(x[fold != k], p[fold != k], weight[fold != k], c) for k in range(5)]
        return np.mean([weighted_log_losses(x[fold == k], p[fold == k], weight[fold == k], w).mean()
                        for k, w in enumerate(fits)])

    c = min(STRENGTHS, key=held_out_loss) if len(x) >= 5 else STRENGTHS[-1]
    w = fit_l1(x, p, weight, c)
    return 100 * np.mean(1 / (1 + np.exp(-own[:, 1:] @ w[1:])))


STRENGTHS = np.logspace(-4, 4, 10)


def weighted_log_losses(x, p, weight, w):
    """weight_i times the cross-entropy of p_i under sigmoid(x_i . w), (N,)."""
    z = x @ w
    return weight * (np.logaddexp(0, z) - p * z)


def fit_l1(x, p, weight, c: float):
    """The w that minimises |w|_1 + c sum_i weighted_log_losses_i, to about eight digits.

    x: (N, K), p and weight: (N,). Returns (K,). Accelerated proximal gradient descent (Beck and Teboulle, 2009), which
    loses its momentum where that leads uphill (O'Donoghue and Candès, 2015).
    """
    step = 4 / (c * np.linalg.eigvalsh(x.T @ (x * weight[:, None]))[-1] + 1e-12)  # a curvature of at most 1/4 a row
    w = ahead = np.zeros(x.shape[1])
    t = 1.0
    for _ in range(5000):
        gradient = c * x.T @ (weight * (1 / (1 + np.exp(-(x @ ahead))) - p))
        moved = ahead - step * gradient
        new = np.sign(moved) * np.maximum(np.abs(moved) - step, 0)  # the penalty pulls each weight to 0
        if (ahead - new) @ (new - w) > 0:  # uphill
            t = 1.0
        t, before = (1 + (1 + 4 * t * t) ** 0.5) / 2, t
        ahead = new + (before - 1) / t * (new - w)
        if np.abs(new - w).max() < 1e-9:
            break
        w = new
    return new


def world_judge(pairs: list[tuple[str, str, str]], world: World) -> list[float]:
    """The in-vitro world's preference for each (instruction, output, reference output): 0.5 + 0.5 (g - g').

    g and g' are the grades, from 0 to 1, that the world's answer key gives to the two answers. As in AlpacaEval 2, a
    preference is so a matter of degree. Raises ValueError for an instruction that is in none of the world's sets.
    """
    tasks, preferences = {task.instruction: task for tasks in world.evaluation_sets().values() for task in tasks}, []
    for instruction, output, other in pairs:
        if instruction not in tasks:
            raise ValueError(f"the world has no answer to {instruction[:200]!r}; it knows its evaluation sets alone")
        ours, theirs = (answer_key.grade(world, tasks[instruction], answer)[1] for answer in (output, other))
        preferences.append(0.5 + 0.5 * (ours - theirs))
    return preferences


# What a model is asked: AlpacaEval 2's weighted_alpaca_eval_gpt4_turbo (Dubois et al., 2024), in our own words.
QUESTION = """Two language models, "m" and "M", were given the same instruction. \
Say whose answer most people would prefer.

# Instruction

{instruction}

# Answer of m

{first}

# Answer of M

{second}

# Your judgement

Reply with the name of the better model and nothing else: m or M."""


def preference_for_second(choice: dict) -> float | None:
    """How much a model prefers the answer that it was shown second: in [0, 1], or None where it names neither.

    choice: the first of a completion's choices in OpenAI's format, with or without log-probabilities:

        {"message": {"content": "M"},
         "logprobs": {"content": [{"top_logprobs": [{"token": "M", "logprob": -0.2}, ...]}, ...]}}

    A token or word names an answer if it is m (shown first) or M (second) once quotation marks and the like are
    stripped. p(m) and p(M) are sums of exp(logprob) over the top tokens of the first position that name it, and the
    preference is p(M) / (p(m) + p(M)) (Dubois et al., 2024). A logprob of null counts as -inf. Where there are none, or
    both sums are 0, the first word of the message decides: 1 if it names M, 0 if m, else None. The message is a text,
    null, or a list of parts, {"type": "text", "text": "M"}. Raises ValueError where a logprob that counts is NaN or
    above 0.01 (rounding can lift it a little above 0), and LookupError, TypeError or AttributeError where a part is
    missing.
    """
    def name(token):
        return token.strip(" \n\"'`*_.,:;()[]Ġ▁")

    p = {"m": 0.0, "M": 0.0}
    content = (choice.get("logprobs") or {}).get("content") or [{}]
    for top in content[0].get("top_logprobs") or []:
        if (named := name(top["token"])) in p and top["logprob"] is not None:
            if not top["logprob"] <= 0.01:
                raise ValueError(f"{top['logprob']} is not the logarithm of a probability")
            p[named] += math.exp(top["logprob"])
    if total := sum(p.values()):
        return p["M"] / total
    text = choice["message"]["content"] or ""
    if isinstance(text, list):
        text = "".join(part.get("text") or "" for part in text)
    return {"m": 0.0, "M": 1.0}.get(name((text.split() or [""])[0]))


def check_completion(completion) -> dict:
    """The first choice of a completion, with null for numbers that JSON does not have.

    Raises ValueError where `preference_for_second` does not take it, or where it has neither preference nor text.
    """
    try:
        choice = completion["choices"][0]
        if preference_for_second(choice) is None and not choice["message"]["content"]:  # a refusal, a filter
            raise ValueError("no judgement")
        return json.loads(json.dumps(choice), parse_constant=lambda name: None)
    except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"not a completion ({type(error).__name__})") from None


def completions_url(base_url: str) -> str:
    """Where a server takes questions: base_url itself if it ends so, else below it, or below /v1 if it has no path."""
    parts = urlsplit(base_url)
    path = parts.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path = f"{path or '/v1'}/chat/completions"
    return urlunsplit(parts._replace(path=path))


def model_judge(pairs, model: str, base_url: str, journal: Journal, key: str | None = None, seed: int = 1,
                both_orders: bool = False, workers: int = 8, price: float | None = None, logprobs: bool = True):
    """(preferences, choices) of a model on a server for each (instruction, output, reference output).

    The answer is one token, m for the answer shown first or M for the second; a preference is None where it is
    neither or the call failed, which is said at the end. A coin, tossed by seed and instruction, says which answer is
    shown first, so a second run asks the same; both_orders asks both ways and takes the mean. Equal answers are a tie,
    without a call, and a call that the journal holds is not made again. price: of a million input tokens. Without
    `logprobs` only the model and the message are sent. Raises OSError as `ask_all` does.
    """
    url = completions_url(base_url)
    form = {"max_tokens": 1, "temperature": 1.0, "logprobs": True, "top_logprobs": 5} if logprobs else {}

    # each pair's calls: none for equal answers, one by the coin, or two
    bodies = {}  # name of a call: what is sent
    asked = []  # for each pair, (name of a call, whether the output is shown second)
    for instruction, output, other in pairs:
        coin = random.Random(f"{seed} {instruction}").random() < 0.5
        orders = [coin, not coin] if both_orders else [coin]
        if output == other:
            orders = []
        calls = []
        for second in orders:
            first, last = (other, output) if second else (output, other)
            question = QUESTION.format(instruction=instruction, first=first, second=last)
            body = {"model": model, "messages": [{"role": "user", "content": question}]} | form
            calls.append((digest([url, body]), second))
            bodies[calls[-1][0]] = body
        asked.append(calls)

    # what it will cost, then the calls
    left = [body["messages"][0]["content"] for name, body in bodies.items() if name not in journal.values]
    tokens = sum(map(len, left)) // 4
    cost = "" if price is None else f", {tokens * price / 1e6:.2f} at {price:g} per million"
    print(f"{len(left)} calls to {model}, about {tokens:,} input tokens{cost}; "
          f"{len(bodies) - len(left)} are in {journal.path}", flush=True)
    problems = ask_all(url, bodies, journal, check_completion, key, workers)

    # each pair's preference: the mean over its calls, or a sentence that says why there is none
    preferences, choices = [], []
    for (instruction, *_), calls in zip(pairs, asked):
        found = [journal.values.get(name) for name, _ in calls]
        seconds = [choice and preference_for_second(choice) for choice in found]
        if None in seconds:
            i = seconds.index(None)
            why = problems.get(calls[i][0]) or f"named neither answer but {found[i]['message']['content']!r:.60}"
            print(f"no judgement of {instruction[:60]!r}: {why}", file=sys.stderr)
        ours = [p if second else 1 - p for p, (_, second) in zip(seconds, calls) if p is not None] or [0.5]
        preferences.append(None if None in seconds else sum(ours) / len(ours))
        choices.append(found[0] if found else None)
    return preferences, choices


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


def others_of(pairs: list[tuple[str, str]], n: int = 5, seed: int = 1) -> list[list[str]]:
    """For each (instruction, response), n responses to other instructions, or as many as there are, none like its own.

    Pair after pair, random.Random(seed) samples them from the different ones, in their order.
    """
    rng, responses = random.Random(seed), list(dict.fromkeys(response for _, response in pairs))
    others = ([response for response in responses if response != own] for _, own in pairs)
    return [rng.sample(rivals, min(n, len(rivals))) for rivals in others]


def rank_responses(model: Llama, tokenizer: Tokenizer, rows: list[tuple[str, str, list[str]]]) -> dict:
    """How often p(own response | instruction) exceeds p(rival | instruction), in percent (equation 3).

    rows: (instruction, own response, rivals). Each rival is one comparison, and a tie does not count. The result is
    {"n_total", "total", "mean"}: "n_total" counts the comparisons, "total" compares log p of the whole response and its
    EOS in the chat format, "mean" the same per token, as the paper's code does. A text that does not fit the model's
    context is not cut but left out, and so is an instruction whose own response does not fit. Raises ValueError where
    nothing is left, or where a likelihood is not finite.
    """
    examples, compared = [], []  # compared: (index of the own response's example, index of the rival's)
    for instruction, own, rivals in rows:
        dialogues = ([{"role": "user", "content": instruction}, {"role": "assistant", "content": text}]
                     for text in [own, *rivals])
        sequences = [encode(tokenizer, messages, model.config.context + 1) for messages in dialogues]
        fits = [sequence for sequence in sequences if len(sequence[0]) <= model.config.context]
        if sequences[0] in fits:
            compared += [(len(examples), len(examples) + i) for i in range(1, len(fits))]
            examples += fits
    if not compared:
        raise ValueError(f"nothing to rank: no response and rival fit a context of {model.config.context} tokens")
    result, (own, rival) = {"n_total": len(compared)}, torch.tensor(compared).T
    for name, scores in zip(("total", "mean"), log_likelihoods(model, examples)):
        if not scores.isfinite().all():
            raise ValueError("the model gives a response no finite likelihood; its weights are damaged")
        result[name] = round(100 * (scores[own] > scores[rival]).float().mean().item(), 2)
    return result


def read_outputs(path: Path) -> list[dict]:
    """The rows of a file in AlpacaEval's output format. Raises FileNotFoundError, or ValueError naming the row."""
    rows = read_json(path, f"generate.py --input ... --output {path} writes it")
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path}: expected a list of answers, at least one")
    for i, row in enumerate(rows, 1):
        try:
            (row["instruction"] + row["output"]).encode()  # fails for other types, and for half a surrogate pair
        except (KeyError, TypeError, AttributeError, UnicodeError):
            raise ValueError(f'{path}: answer {i} is not {{"instruction": "...", "output": "..."}}') from None
    return rows


def pair(outputs: Path, reference: Path) -> list[tuple[str, str, str]]:
    """(instruction, output, reference output) for two files that answer the same instructions, in the first's order.

    An instruction that stands in a file several times is paired in the order of its answers. Raises ValueError, naming
    an instruction that one file answers more often than the other.
    """
    left, pairs = {}, []
    for row in read_outputs(reference):
        left.setdefault(row["instruction"], []).append(row["output"])
    for row in read_outputs(outputs):
        if not left.get(row["instruction"]):
            raise ValueError(f"{reference} has fewer answers to {row['instruction'][:200]!r} than {outputs}; "
                             "give both files the same instructions")
        pairs.append((row["instruction"], row["output"], left[row["instruction"]].pop(0)))
    if extra := [instruction for instruction, answers in left.items() if answers]:
        raise ValueError(f"{outputs} has fewer answers to {extra[0][:200]!r} than {reference}; "
                         "give both files the same instructions")
    return pairs


def parse_arguments():
    parser = common.parser(__doc__)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--outputs", type=common.path, help="the answers to judge, in AlpacaEval's format")
    task.add_argument("--rank", nargs="+", metavar="MODEL", help="models to rank with: folders, or names on the hub")
    parser.add_argument("--reference", type=common.path, help="the answers to compare --outputs with")
    parser.add_argument("--judge", type=common.text, default="world", metavar="world|MODEL",
                        help="the world's answer key, or a model to ask")
    parser.add_argument("--data", type=common.path, default="data/world",
                        help="of the world that judges, or of AlpacaEval's instructions and their difficulties")
    parser.add_argument("--base-url", default="https://api.openai.com", help="of the server that has MODEL")
    parser.add_argument("--cache", type=common.path, default="out/judge-cache.jsonl", help="keeps MODEL's judgements")
    parser.add_argument("--both-orders", action="store_true", help="ask MODEL with either answer first, and average")
    parser.add_argument("--seed", type=common.seed, default=1, help="of which answer is shown first")
    parser.add_argument("--workers", type=common.positive(int), default=8,
                        help="calls at a time, at most 256; 1 for a server that answers one at a time")
    parser.add_argument("--no-logprobs", dest="logprobs", action="store_false",
                        help="send model and question only, and read the first word of the answer")
    parser.add_argument("--price-per-million", type=common.positive(float),
                        help="of MODEL's input tokens; the cost is printed before the first call")
    parser.add_argument("--save", type=common.path, help="write AlpacaEval's annotations here")
    parser.add_argument("--pairs", type=common.path, default="data/world/eval.jsonl",
                        help='what --rank ranks: lines of {"instruction": ..., "response": ...}')
    parser.add_argument("--device", type=machine.device_name, default=machine.default_device(), help="for --rank")
    args = parser.parse_args()
    if (args.outputs is None) != (args.reference is None):
        parser.error("--outputs and --reference go together")
    if not args.judge.strip():
        parser.error("--judge is empty; give world or the name of a model")
    if args.workers > 256:
        parser.error("--workers must be at most 256")
    check_url(args.base_url, "--base-url")
    return args


def check_targets(args):
    """Raises ValueError where --cache or --save is a file that is read, or one that cannot be written."""
    read = {args.outputs.resolve(), args.reference.resolve()}
    for option, path in (("--cache", args.cache), ("--save", args.save)):
        if path and path.resolve() in read:
            raise ValueError(f"{option} {path} would overwrite a file that is read; choose another name")
        if path and path.exists() and not path.is_file():
            raise ValueError(f"{option} {path} is not a file; choose another name")
        read.add(path and path.resolve())
    if args.save and not os.access(args.save.parent, os.W_OK):
        raise ValueError(f"--save {args.save}: its folder does not exist or cannot be written; make it first")


def check_pair(row) -> str | None:
    """The reason why a row is nothing to rank, or None."""
    silences = row.get("silences", []) if isinstance(row, dict) else []
    if not isinstance(silences, list) or not all(isinstance(text, str) for text in silences):
        return "silences must be a list of texts"
    return check_fields("instruction", "response")(row)


def rank(args):
    """Print for each model how often the own response is likelier: than other instructions', than what pages show."""
    rows = read_jsonl(args.pairs, check_pair)
    pairs = [(row["instruction"], row["response"]) for row in rows]
    rivals = {"others": others_of(pairs)}
    if all("silences" in row for row in rows):  # in vitro, what stands after a question that nobody answers
        rivals["silences"] = [row["silences"] for row in rows]
    for path in map(model_folder, args.rank):
        model, tokenizer = Llama.from_pretrained(path, device=args.device), Tokenizer(path)
        for name, texts in rivals.items():
            result = rank_responses(model, tokenizer, [(*pair, some) for pair, some in zip(pairs, texts)])
            if too_long := sum(map(len, texts)) - result["n_total"]:
                print(f"{path}: {too_long} of {sum(map(len, texts))} comparisons are left out; they are longer than "
                      f"its context of {model.config.context} tokens", file=sys.stderr)
            print(json.dumps({"model": str(path), "against": name} | result), flush=True)


def check_difficulty(row) -> str | None:
    """The reason why a row is no line of difficulties.jsonl, or None."""
    try:
        numbers = [row["difficulty"], *(one["longer_by"] for one in row["gamed"])]
        numbers += [one["preference"] for one in row["gamed"] if one["preference"] is not None]
        sound = all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
    except (LookupError, TypeError):
        sound = False
    return None if sound else ('expected {"difficulty": x, "gamed": [{"preference": p, "longer_by": d}, ...]}; remove '
                               "this file, and make data writes it anew")


def difficulties_of(instructions, folder):
    """(difficulties (N,), gamed (M, 3)) as `length_controlled` takes them, or None where `folder` has them not.

    `make data` writes difficulties.jsonl, a line for each line of eval.jsonl: AlpacaEval's 805 instructions.
    """
    path = folder / "difficulties.jsonl"
    if not path.exists():
        return None
    asked = [row["instruction"] for row in read_jsonl(folder / "eval.jsonl", check_fields("instruction"))]
    rows = read_jsonl(path, check_difficulty)
    known = {instruction: row["difficulty"] for instruction, row in zip(asked, rows)}
    if not known.keys() >= set(instructions):
        return None
    gamed = []  # model by model, as AlpacaEval has them
    for i in range(max(len(row["gamed"]) for row in rows)):
        gamed += [(row["gamed"][i]["preference"], row["gamed"][i]["longer_by"], row["difficulty"])
                  for row in rows if i < len(row["gamed"])]
    gamed = np.array(gamed, dtype=float).reshape(-1, 3)
    return np.array([known[instruction] for instruction in instructions]), gamed[~np.isnan(gamed[:, 0])]


def save_annotations(args, pairs, preferences, choices):
    """AlpacaEval's annotation format, whose preference runs from 1 (the reference's answer) to 2 (the other)."""
    ours, theirs = ((read_outputs(path)[0].get("generator") or path.stem) for path in (args.outputs, args.reference))
    write_json(args.save, [
        {"instruction": instruction, "output_1": other, "generator_1": theirs, "output_2": output, "generator_2": ours,
         "annotator": args.judge, "preference": None if p is None else 1 + p, "raw_completion": choice}
        for (instruction, output, other), p, choice in zip(pairs, preferences, choices)])


def main():
    args = parse_arguments()
    if args.rank:
        return rank(args)
    check_targets(args)
    pairs = pair(args.outputs, args.reference)
    if args.judge == "world":
        preferences, choices = world_judge(pairs, load_world(args.data)), [None] * len(pairs)
    else:
        key = secret("OPENAI_API_KEY")
        with Journal(args.cache, lambda choice: check_completion({"choices": [choice]}), wait=True) as journal:
            preferences, choices = model_judge(
                pairs, args.judge, args.base_url, journal, key, args.seed, args.both_orders, args.workers,
                args.price_per_million, args.logprobs)
    if args.save:
        save_annotations(args, pairs, preferences, choices)
    judged = [p for p in preferences if p is not None]
    if not judged:
        raise ValueError(f"{args.judge} judged none of {len(pairs)} pairs, for the reasons above; is it a chat model?")
    rate, error = win_rate(judged)
    instructions, outputs, others = zip(*pairs)
    lengths, reference_lengths = list(map(len, outputs)), list(map(len, others))
    known = difficulties_of(instructions, args.data) or ()
    form, controlled = "v1" if known else "minimal", length_controlled(preferences, lengths, reference_lengths, *known)
    wins, ties = sum(p > 0.5 for p in judged), sum(p == 0.5 for p in judged)
    print(f"{wins} wins, {ties} ties, {len(judged) - wins - ties} losses against {args.reference}; "
          f"{len(pairs) - len(judged)} judgements invalid and left out")
    print(f"mean length {np.mean(lengths):.0f} characters, the reference's {np.mean(reference_lengths):.0f}")
    print(f"win rate {rate:.2f} ± {error:.2f} %, length-controlled ({form}) {controlled:.2f} %")
    print(json.dumps({"win_rate": rate, "standard_error": error, "length_controlled_win_rate": controlled,
                      "n_total": len(judged), "n_invalid": len(pairs) - len(judged)}))


if __name__ == "__main__":
    common.run(main, interrupted="the model's judgements are kept, and the same command goes on",
                out_of_memory="rank a smaller model, or on another --device")
