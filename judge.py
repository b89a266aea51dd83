"""Judging: how often a model's answers are preferred to a reference model's, and response ranking.

    python judge.py --outputs A.json --reference B.json --judge world
    python judge.py --rank data/tiny out/instruction out/response

A judge gives each pair of answers a preference in [0, 1] for the first; the win rate is its mean
(section 3). `world` grades both answers by the in-vitro world's answer key. Ranking asks no judge:
does a model find an instruction's own response likelier than another's (section 4.2, equation 3)?
"""
import argparse
import json
import random
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from data.download import model_folder
from data.format import IGNORE, Tokenizer, check_fields, encode, read_jsonl
from data.world import World, grade
from model import Llama, default_device, device_name


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
    what.add_argument("--rank", nargs="+", metavar="MODEL", help="folders, or names on the hub, of models whose ranking of responses to measure")
    parser.add_argument("--reference", type=Path, help="the answers to compare --outputs with")
    parser.add_argument("--judge", choices=["world"], default="world")
    parser.add_argument("--pairs", type=Path, default=Path("data/world/eval.jsonl"),
                        help='what --rank ranks: lines of {"instruction": ..., "response": ...}')
    parser.add_argument("--device", type=device_name, default=default_device())
    args = parser.parse_args()
    if (args.outputs is None) != (args.reference is None):
        parser.error("--outputs and --reference go together")
    return args


def main():
    args = parse_arguments()
    if args.rank:
        rows = read_jsonl(args.pairs, check_fields("instruction", "response"))
        pairs = [(row["instruction"], row["response"]) for row in rows]
        for path in map(model_folder, args.rank):
            model, tokenizer = Llama.from_pretrained(path, device=args.device), Tokenizer(path)
            print(json.dumps({"model": str(path), "n_total": len(pairs)} | rank_responses(model, tokenizer, pairs)), flush=True)
        return
    pairs = pair(args.outputs, args.reference)
    preferences = world_judge(pairs)
    rate, error = win_rate(preferences)
    controlled = length_controlled_win_rate(preferences, [len(a) for _, a, _ in pairs], [len(b) for _, _, b in pairs])
    wins, ties = sum(p > 0.5 for p in preferences), sum(p == 0.5 for p in preferences)
    print(f"{wins} wins, {ties} ties, {len(pairs) - wins - ties} losses against {args.reference}")
    print(json.dumps({"win_rate": rate, "standard_error": error, "length_controlled_win_rate": controlled, "n_total": len(pairs)}))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"judge.py: {error}", file=sys.stderr)
        sys.exit(2)
