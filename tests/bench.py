"""Speed and memory on this machine: training, decoding, and what the rules cost.

    make bench [MODEL=folder]

Figures are medians of alternating runs; on a shared machine trust the ratios within one run.
"""
import argparse
import resource
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from adapter import Adapter
from data.format import Tokenizer, encode, encode_prompt
from data.world import World
from generate import generate
from model import Llama, default_device
from train import accumulate_gradient, fast_bf16


def seconds(*works, runs=5):
    """The median time of each piece of work, run in turn after one warm-up."""
    times = [[] for _ in works]
    for _ in range(runs + 1):
        for work, taken in zip(works, times):
            began = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
    return [statistics.median(taken[1:]) for taken in times]


def rules_seconds(adapter, batch: int, model: Llama) -> float:
    """What the rules do in one step of decoding, timed alone: a few percent of a step, which the noise of whole runs hides."""
    logits = torch.zeros(batch, model.config.vocab_size, device=model.device)
    seen, token = torch.zeros_like(logits, dtype=torch.bool), torch.zeros(batch, 1, dtype=torch.int64, device=model.device)

    def work():
        for n in range(100):
            logits.add_(adapter.scores(seen, n))
            seen.scatter_(1, token, True)

    return seconds(work)[0] / 100


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, default=Path("data/tiny"))
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--tokens", type=int, default=128, help="to decode")
    args = parser.parse_args()
    tokenizer, model = Tokenizer(args.model), Llama.from_pretrained(args.model, device=args.device)
    cuda = args.device.startswith("cuda")
    name = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    print(f"{args.model}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters; {name}; torch {torch.__version__}")

    step = [encode(tokenizer, row["messages"], 2048) for row in World().training_set("broad", 64)]
    n = sum(len(ids) for ids, _ in step)
    if cuda:
        model.hidden = torch.compile(model.hidden, dynamic=True)
    budget = 16384 if cuda else 2048
    half, full = seconds(lambda: accumulate_gradient(model, step, budget, True), lambda: accumulate_gradient(model, step, budget))
    print(f"train   bf16 autocast {n / half:8,.0f} tokens/s   fp32 {n / full:8,.0f} tokens/s   "
          f"default {'bf16' if fast_bf16(args.device) else 'fp32'}")

    model = Llama.from_pretrained(args.model, torch.bfloat16 if cuda else torch.float32, args.device).eval()
    adapter = Adapter(tokenizer, model.config.vocab_size, device=args.device)
    prompt = encode_prompt(tokenizer, "What is the capital of Nastekor?")
    for batch in (1, 16, 64):
        prompts = [prompt] * batch
        # an EOS that no row can emit keeps every row to the end
        plain, ruled = seconds(lambda: generate(model, prompts, -1, args.tokens),
                               lambda: generate(model, prompts, -1, args.tokens, adapter=adapter))
        n = batch * args.tokens
        cost = rules_seconds(adapter, batch, model) / (plain / args.tokens)
        print(f"decode  batch {batch:3} {n / plain:10,.0f} tokens/s   all rules {n / ruled:10,.0f} tokens/s   "
              f"the rules' own work {100 * cost:.1f} % of a step")

    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(f"peak memory {peak / 2**20:,.0f} MiB")


if __name__ == "__main__":
    main()
