"""Judging: how often a model's answers are preferred to a reference model's, and response ranking.

    python judge.py --outputs A.json --reference B.json --judge world
    python judge.py --outputs A.json --reference B.json --judge gpt-4-turbo [--base-url http://localhost:8080]
    python judge.py --rank data/tiny out/instruction out/response

A judge gives a pair of answers a preference in [0, 1]: 1 if the first is better, 0.5 for a tie; the win rate is its
mean (section 3). `world` grades by the in-vitro world's answer key. Any other name is a model on an OpenAI-compatible
server, with the key in OPENAI_API_KEY. Ranking needs no judge (section 4.2).
"""
import json
import math
import random
import sys
import threading
from multiprocessing.pool import ThreadPool
from pathlib import Path

from data import common  # first: Ctrl-C is quiet from here on

import numpy as np
import requests
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from data import answer_key
from data.common import Journal, check_fields, digest, read_json, read_jsonl, write_json
from data.device import default_device, device_name
from data.format import IGNORE, Tokenizer, dialogue, encode
from data.hub import bearer, check_url, model_folder, open_session, secret
from data.sources import difficulties_of
from data.world import World, load_world
from model import Llama

STRENGTHS = np.logspace(-4, 4, 10)  # of length control's fit, against its penalty
TIMEOUT = (10, 600)  # seconds to connect, and to wait: a local server may have other questions to answer first
FATAL = {*range(300, 400), 401, 402, 403, 404}  # statuses that every other call would get, too


def win_rate(preferences) -> tuple[float, float]:
    """The mean of N >= 1 preferences and its standard error, both in percent (section 3).

    The standard error is the sample's standard deviation (with N - 1) over sqrt(N); 0 if N is 1.
    """
    p = np.asarray(preferences, dtype=float)  # (N,)
    error = p.std(ddof=1) / len(p) ** 0.5 if len(p) > 1 else 0.0
    return 100 * p.mean(), 100 * error


def length_controlled(preferences, lengths, reference_lengths, difficulties=0.0, gamed=()) -> float:
    """The win rate at equal lengths, in percent: AlpacaEval's length-controlled win rate (Dubois et al., 2024).

    A logistic regression without intercept predicts each of N preferences (NaN or None: not judged) from tanh(d / s),
    the instruction's difficulty and a 1. d is the length in characters less the reference's, s the standard deviation
    of d (with N - 1; the feature is 0 if s is 0 or N is 1). The penalty is |w|_1 / C. C is one of 10 values between
    1e-4 and 1e4, by 5-fold cross-validation of the mean log-loss (the largest for fewer than 5 rows). The result is the
    mean prediction at d = 0 over all N instructions, judged or not.

    With difficulties (N,) and gamed (M, 3) this is `length_controlled_v1`, which the paper reports. gamed: preferences
    of GPT-4's own answers made longer or shorter, their d / s and difficulties; each weighs 0.1, with a 0 for the 1.
    Without the two it is AlpacaEval's `length_controlled_minimal`.
    """
    # what predicts: how much longer the answer is, how difficult the instruction is, and which model answers
    p = np.asarray(preferences, dtype=float)  # (N,)
    d = np.asarray(lengths, dtype=float) - np.asarray(reference_lengths, dtype=float)
    spread = d.std(ddof=1) if len(d) > 1 else 0.0
    own = np.stack(np.broadcast_arrays(np.tanh(d / (spread or np.inf)), difficulties, 1.0), axis=1)  # (N, 3)
    gamed = np.reshape(gamed, (-1, 3))
    other = np.stack([np.tanh(gamed[:, 1]), gamed[:, 2], np.zeros(len(gamed))], axis=1)  # (M, 3)

    # the rows that are judged: GPT-4's, then the model's
    x = np.concatenate([other, own[~np.isnan(p)]])
    p = np.concatenate([gamed[:, 0], p[~np.isnan(p)]])
    weight = np.where(x[:, 2] == 0, 0.1, 1.0)

    # the strength whose fits to four fifths of the rows predict the other fifth best
    c = STRENGTHS[-1]
    if len(x) >= 5:
        losses = np.zeros((len(STRENGTHS), 5))
        for i, k in np.ndindex(losses.shape):
            held = np.arange(len(x)) % 5 == k
            w = fit_l1(x[~held], p[~held], weight[~held], STRENGTHS[i])
            losses[i, k] = weighted_log_losses(x[held], p[held], weight[held], w).mean()
        c = STRENGTHS[losses.mean(1).argmin()]

    # the prediction at equal lengths: without the first weight, which is the length's
    w = fit_l1(x, p, weight, c)
    return 100 * np.mean(1 / (1 + np.exp(-own[:, 1:] @ w[1:])))


def weighted_log_losses(x, p, weight, w):
    """weight_i times the cross-entropy of p_i under sigmoid(x_i . w), (N,)."""
    z = x @ w
    return weight * (np.logaddexp(0, z) - p * z)


def fit_l1(x, p, weight, c: float):
    """The w (K,) that minimises |w|_1 + c sum_i weighted_log_losses_i, to about 8 digits. x: (N, K); p, weight: (N,).

    Accelerated proximal gradient descent (Beck and Teboulle, 2009), whose momentum ends if it leads uphill.
    """
    step = 4 / (c * np.linalg.eigvalsh(x.T @ (x * weight[:, None]))[-1] + 1e-12)  # a curvature of at most 1/4 a row
    w, last, t = np.zeros(x.shape[1]), 0, 0
    for _ in range(5000):
        ahead = w + t / (t + 3) * (w - last)
        moved = ahead - step * c * x.T @ (weight * (1 / (1 + np.exp(-(x @ ahead))) - p))
        last, w = w, np.sign(moved) * np.maximum(np.abs(moved) - step, 0)  # the penalty pulls each weight to 0
        t = 0 if (ahead - w) @ (w - last) > 0 else t + 1
        if np.abs(w - last).max() < 1e-9:
            break
    return w


def world_judge(pairs: list[tuple[str, str, str]], world: World) -> list[float]:
    """The in-vitro world's preference for each (instruction, output, reference output): 0.5 + 0.5 (g - g').

    g and g' are the two answers' grades, from 0 to 1. Raises ValueError for an instruction that is not the world's.
    """
    tasks, preferences = {task.instruction: task for tasks in world.evaluation_sets().values() for task in tasks}, []
    for instruction, output, other in pairs:
        if instruction not in tasks:
            raise ValueError(f"the world has no answer to {instruction[:200]!r}; it knows only its evaluation sets")
        ours, theirs = (answer_key.grade(world, tasks[instruction], answer)[1] for answer in (output, other))
        preferences.append(0.5 + 0.5 * (ours - theirs))
    return preferences


# What a model is asked: AlpacaEval 2's weighted_alpaca_eval_gpt4_turbo (Dubois et al., 2024), in our own words.
QUESTION = (
    'Two language models, "m" and "M", were given the same instruction. Say whose answer most people would prefer.\n\n'
    "# Instruction\n\n{instruction}\n\n# Answer of m\n\n{first}\n\n# Answer of M\n\n{second}\n\n"
    "# Your judgement\n\nReply with the name of the better model and nothing else: m or M.")


def preference_for_second(choice: dict) -> float | None:
    """How much a model prefers the answer that it was shown second: in [0, 1], or None if it names neither.

    choice: the first of a completion's choices in OpenAI's format, with or without log-probabilities:

        {"message": {"content": "M"},
         "logprobs": {"content": [{"top_logprobs": [{"token": "M", "logprob": -0.2}, ...]}, ...]}}

    A token or word names an answer if it is m (shown first) or M (second) once quotation marks and the like are
    stripped. p(m) and p(M) are sums of exp(logprob) over the top tokens of the first position that name it, and the
    preference is p(M) / (p(m) + p(M)) (Dubois et al., 2024). A logprob of null counts as -inf. If there are none, or
    both sums are 0, the first word of the message (a text, or null) decides: 1 if it names M, 0 if m, else None. Raises
    ValueError if a logprob that counts is NaN or above 0.01 (rounding can lift it a little above 0), and LookupError,
    TypeError or AttributeError if a part is missing.
    """
    def name(token):
        return token.strip(" \n\"'`*_.,:;()[]Ġ▁")

    # from the log-probabilities of the first token
    p = {"m": 0.0, "M": 0.0}
    content = (choice.get("logprobs") or {}).get("content") or [{}]
    for top in content[0].get("top_logprobs") or []:
        if (named := name(top["token"])) in p and top["logprob"] is not None:
            if not top["logprob"] <= 0.01:
                raise ValueError(f"{top['logprob']} is not the logarithm of a probability")
            p[named] += math.exp(top["logprob"])
    if total := sum(p.values()):
        return p["M"] / total

    # or from the first word
    words = (choice["message"]["content"] or "").split() or [""]
    return {"m": 0.0, "M": 1.0}.get(name(words[0]))


def model_judge(pairs, model: str, base_url: str, journal: Journal, key: str | None = None, seed: int = 1,
                both_orders: bool = False, workers: int = 8, logprobs: bool = True):
    """(preferences, choices) of a model on a server for each (instruction, output, reference output).

    A preference is None if the model names neither answer or the call failed. A coin, tossed by seed and instruction,
    says which answer is shown first; both_orders takes the mean of both ways. Equal answers are a tie, without a call.
    """
    # 1. The calls: (pair, whether its output is shown second, name of the call), and what is sent, by name.
    url, calls, bodies = completions_url(base_url), [], {}
    for i, (instruction, output, other) in enumerate(pairs):
        coin = random.Random(f"{seed} {instruction}").random() < 0.5
        for second in [coin, not coin] if both_orders else [coin]:
            first, last = (other, output) if second else (output, other)
            question = QUESTION.format(instruction=instruction, first=first, second=last)
            body = {"model": model, "messages": [{"role": "user", "content": question}]}
            if logprobs:
                body |= {"max_tokens": 1, "temperature": 1.0, "logprobs": True, "top_logprobs": 5}
            if output != other:
                calls.append((i, second, digest([url, body])))
                bodies[calls[-1][2]] = body

    # 2. The asking, of what the journal does not have.
    n_left = len(bodies.keys() - journal.values.keys())
    print(f"{n_left} calls to {model}; {len(bodies) - n_left} are in {journal.path}", flush=True)
    problems = ask_all(url, bodies, journal, key, workers)

    # 3. Each pair's preference: the mean over its calls, or None if one of them has brought none.
    votes, choices = [[0.5] if output == other else [] for _, output, other in pairs], [None] * len(pairs)
    for i, second, name in calls:
        choice = choices[i] = journal.values.get(name)
        p = preference_for_second(choice) if choice else None
        if p is None:
            problem = problems.get(name) or f"named neither answer but {choice['message']['content']!r:.60}"
            print(f"no judgement of {pairs[i][0][:60]!r}: {problem}", file=sys.stderr)
        votes[i].append(p if second or p is None else 1 - p)
    return [None if None in p else sum(p) / len(p) for p in votes], choices


def completions_url(base_url: str) -> str:
    """Where a server takes questions: below its address, or below /v1 if that has no path."""
    address, mark, query = base_url.partition("?")
    address = address.rstrip("/").removesuffix("/chat/completions")
    if address.count("/") == 2:
        address += "/v1"
    return f"{address}/chat/completions{mark}{query}"


def ask_all(url: str, bodies: dict[str, dict], journal: Journal, key: str | None = None, workers: int = 8) -> dict:
    """POST each of {name: body} that the journal does not have, and keep the server's choices there.

    Returns {name: what went wrong}. A run that is killed repeats at most `workers` calls. Raises OSError as `ask` does.
    """
    left, problems = [name for name in bodies if name not in journal.values], {}
    session = open_session(connect=0)  # urllib3 asks again if the server is busy, but not if it is not there
    over = threading.Event()  # when one worker meets the end of the run, the others ask nothing more

    def work(name):
        try:
            if not over.is_set():
                journal.add(name, ask(session, url, bodies[name], key))
        except ValueError as error:
            problems[name] = str(error)
        except OSError:
            over.set()
            raise

    with ThreadPool(workers) as pool:  # its threads are daemons: an interrupt waits for none of them
        for n, _ in enumerate(pool.imap_unordered(work, left), 1):
            if n % 20 == 0 or n == len(left):
                print(f"{n}/{len(left)} calls, {len(problems)} without a judgement", file=sys.stderr, flush=True)
    return problems


def ask(session: requests.Session, url: str, body: dict, key: str | None) -> dict:
    """The first choice of the completion that a server answers to a POST.

    Raises OSError for what every other call would meet, too, and ValueError for all else that is not a judgement.
    """
    place = url.partition("?")[0]  # a query may hold a key
    try:
        response = session.post(url, json=body, auth=bearer(key), timeout=TIMEOUT, allow_redirects=False)
    except requests.RequestException as error:
        raise OSError(f"{place}: no connection ({type(error).__name__}); check the address and the server") from None

    # what came, without the key, which some servers repeat; a key as short as "1" would be in every number
    text = response.headers.get("Location") or response.content.decode(errors="replace")
    if key and len(key) > 7:
        text = text.replace(key, "***")
    found = f"{response.status_code} {' '.join(text.split())[:200]}"
    if response.status_code in FATAL:
        raise OSError(f"{place} answered {found}; check the key, the model's name and the address")

    # the first choice, with null for -Infinity, which some servers send and JSON does not have
    try:
        choice = json.loads(text, parse_constant=lambda name: None)["choices"][0]
        if preference_for_second(choice) is not None or choice["message"]["content"]:  # else a refusal, a filter
            return choice
    except (ValueError, LookupError, TypeError, AttributeError):
        pass
    raise ValueError(found)


@torch.inference_mode()
def log_likelihoods(model: Llama, examples: list, batch_size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """log p of the scored tokens of each (ids, labels): the total and the mean per token, float32 (N,) each."""
    totals, counts = torch.zeros(len(examples)), torch.zeros(len(examples))
    order = sorted(range(len(examples)), key=lambda i: len(examples[i][0]))
    for start in range(0, len(order), batch_size):
        # a batch of similar lengths, padded on the right
        batch = order[start : start + batch_size]
        ids, labels = zip(*(map(torch.tensor, examples[i]) for i in batch))
        ids = pad_sequence(ids, batch_first=True).to(model.device)  # (B, T)
        targets = pad_sequence(labels, batch_first=True, padding_value=IGNORE).to(model.device)[:, 1:]
        scored = targets != IGNORE  # (B, T-1)

        # log p of its scored tokens, and their sum in each row
        logits = model.logits(model.hidden(ids[:, :-1])[scored]).float()  # (N scored, V)
        log_p = -F.cross_entropy(logits, targets[scored], reduction="none")  # (N scored,)
        rows = scored.nonzero()[:, 0]  # which row each scored token is of
        totals[batch] = torch.zeros(len(batch), device=model.device).index_add_(0, rows, log_p).cpu()
        counts[batch] = scored.sum(1).cpu().float()
    return totals, totals / counts


def others_of(pairs: list[tuple[str, str]], n: int = 5, seed: int = 1) -> list[list[str]]:
    """For each (instruction, response), n different responses, or as many as there are, none like its own."""
    rng, result = random.Random(seed), []
    responses = list(dict.fromkeys(response for _, response in pairs))
    for _, own in pairs:
        rivals = [response for response in responses if response != own]
        result.append(rng.sample(rivals, min(n, len(rivals))))
    return result


def rank_responses(model: Llama, tokenizer: Tokenizer, rows: list[tuple[str, str, list[str]]]) -> dict:
    """How often p(own response | instruction) exceeds p(rival | instruction), in percent (equation 3).

    rows: (instruction, own response, rivals). Each rival is one comparison, and a tie does not count. The result is
    {"n_total", "total", "mean"}: "n_total" counts the comparisons, "total" compares log p of the whole response and its
    EOS in the chat format, "mean" the same per token, as the paper's code does. A text that does not fit the model's
    context is not cut but left out, and so is an instruction whose own response does not fit. Raises ValueError if
    nothing is left, or if a likelihood is not finite.
    """
    # the sequences, and which are compared: (index of an own response, index of a rival)
    examples, compared = [], []
    for instruction, *own, rivals in rows:
        dialogues = [dialogue(instruction, text) for text in own + rivals]
        sequences = [encode(tokenizer, messages, model.config.context + 1) for messages in dialogues]
        fits = [sequence for sequence in sequences if len(sequence[0]) <= model.config.context]
        if sequences[0] in fits:
            compared += [(len(examples), len(examples) + i) for i in range(1, len(fits))]
            examples += fits
    if not compared:
        raise ValueError(f"nothing to rank: no response and rival fit a context of {model.config.context} tokens")

    # how often the own response is the likelier one
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
    """(instruction, output, reference output) of two files, in the first's order; the n-th answer to an instruction
    goes with the n-th. Raises ValueError if their instructions differ."""
    pairs, theirs = [], {}
    for row in read_outputs(reference):
        theirs.setdefault(row["instruction"], []).append(row["output"])
    for row in read_outputs(outputs):
        if not theirs.get(row["instruction"]):
            raise ValueError(f"{reference} lacks an answer to {row['instruction'][:200]!r}, which {outputs} has")
        pairs.append((row["instruction"], row["output"], theirs[row["instruction"]].pop(0)))
    if any(theirs.values()):
        raise ValueError(f"{reference} has answers that {outputs} lacks; give both files the same instructions")
    return pairs


def judge(args):
    """Judge --outputs against --reference; the last line is the JSON object that other programs read."""
    pairs = pair(args.outputs, args.reference)
    if args.judge == "world":
        preferences, choices = world_judge(pairs, load_world(args.data)), [None] * len(pairs)
    else:
        key = secret("OPENAI_API_KEY")
        with Journal(args.cache, wait=True) as journal:
            preferences, choices = model_judge(pairs, args.judge, args.base_url, journal, key, args.seed,
                                               args.both_orders, args.workers, args.logprobs)

    # AlpacaEval's annotations, whose preference runs from 1 (the reference's answer) to 2 (the other)
    if args.save:
        rows = []
        for (instruction, output, other), p, choice in zip(pairs, preferences, choices):
            rows.append({"instruction": instruction, "output_1": other, "generator_1": args.reference.stem,
                         "output_2": output, "generator_2": args.outputs.stem, "annotator": args.judge,
                         "preference": None if p is None else 1 + p, "raw_completion": choice})
        write_json(args.save, rows)

    # the two win rates
    judged = [p for p in preferences if p is not None]
    if not judged:
        raise ValueError(f"{args.judge} judged none of {len(pairs)} pairs, for the reasons above; is it a chat model?")
    rate, error = win_rate(judged)
    instructions, outputs, others = zip(*pairs)
    known = difficulties_of(instructions, args.data) or ()
    controlled = length_controlled(preferences, list(map(len, outputs)), list(map(len, others)), *known)
    form, invalid = "v1" if known else "minimal", len(pairs) - len(judged)
    wins, ties = sum(p > 0.5 for p in judged), judged.count(0.5)
    print(f"{wins} wins, {ties} ties, {len(judged) - wins - ties} losses against {args.reference}")
    print(f"win rate {rate:.2f} ± {error:.2f} %, length-controlled ({form}) {controlled:.2f} %; {invalid} judgements "
          "invalid and left out")
    print(json.dumps({"win_rate": rate, "standard_error": error, "length_controlled_win_rate": controlled,
                      "n_total": len(judged), "n_invalid": invalid}))


def rank(args):
    """Print for each model how often the own response is likelier: than other instructions', than what pages show."""
    rows = read_jsonl(args.pairs, check_fields("instruction", "response"))
    pairs = [(row["instruction"], row["response"]) for row in rows]
    rivals = {"others": others_of(pairs)}
    if all("silences" in row for row in rows):  # in vitro, what stands after a question that nobody answers
        rivals["silences"] = [row["silences"] for row in rows]
    for path in map(model_folder, args.rank):
        model, tokenizer = Llama.from_pretrained(path, device=args.device), Tokenizer(path)
        for name, texts in rivals.items():
            result = rank_responses(model, tokenizer, [(*pair, others) for pair, others in zip(pairs, texts)])
            print(json.dumps({"model": str(path), "against": name} | result), flush=True)


def main():
    parser = common.parser(__doc__)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--outputs", type=common.path, help="the answers to judge, in AlpacaEval's format")
    task.add_argument("--rank", nargs="+", metavar="MODEL", help="models to rank with: folders, or names on the hub")
    parser.add_argument("--reference", type=common.path, help="the answers to compare --outputs with")
    parser.add_argument("--judge", type=common.text, default="world", metavar="world|MODEL", help="who decides")
    parser.add_argument("--data", type=common.path, default="data/world", help="the world, or AlpacaEval's questions")
    parser.add_argument("--base-url", default="https://api.openai.com", help="of the server that has MODEL")
    parser.add_argument("--cache", type=common.path, default="out/judge-cache.jsonl", help="keeps MODEL's judgements")
    parser.add_argument("--both-orders", action="store_true", help="ask MODEL with either answer first, and average")
    parser.add_argument("--seed", type=common.seed, default=1, help="of which answer is shown first")
    parser.add_argument("--workers", type=common.positive(int), default=8, help="calls at a time; 1 for a slow server")
    parser.add_argument("--no-logprobs", dest="logprobs", action="store_false", help="read the answer's first word")
    parser.add_argument("--save", type=common.path, help="write AlpacaEval's annotations here")
    parser.add_argument("--pairs", type=common.path, default="data/world/eval.jsonl", help="what --rank ranks")
    parser.add_argument("--device", type=device_name, default=default_device(), help="for --rank")
    args = parser.parse_args()
    if (args.outputs is None) != (args.reference is None):
        parser.error("--outputs and --reference go together")
    check_url(args.base_url, "--base-url")
    if args.rank:
        return rank(args)
    read = {args.outputs.resolve(), args.reference.resolve()}
    written = [path.resolve() for path in (args.cache, args.save) if path]
    if read & set(written) or len(set(written)) < len(written):
        parser.error("--cache or --save would overwrite another of the files; choose another name")
    judge(args)


if __name__ == "__main__":
    common.run(main, interrupted="the model's judgements are kept, and the same command goes on",
                out_of_memory="rank a smaller model, or on another --device")
