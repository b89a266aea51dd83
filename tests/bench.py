"""Speed and memory on this machine: training, decoding, what the rules cost, and the limits of the hardware.

    make bench [MODEL=folder]
    python tests/bench.py --model DIR --data FILE.jsonl --dtype bfloat16 --rounds 3
    python tests/bench.py --model DIR --profile  # where the time goes
    python tests/bench.py --growth               # how time grows with length, batch and model size

Every piece of work runs in a process of its own, so that its peak memory is its own, and in turn with the
others, so that a shared machine's moods fall on all alike; figures are medians over the rounds. Where
transformers can be imported, it does the same work in turn.
"""
import argparse
import importlib.util
import json
import multiprocessing
import random
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from adapter import RULES, Adapter
from data.format import Tokenizer, check_dialogue, encode, encode_prompt, read_jsonl
from data.world import World
from generate import generate
from model import Config, Llama, default_device
from train import (CPU_TOKEN_BUDGET, GPU_TOKEN_BUDGET, accumulate_gradient, compile_layers, fast_bf16, has_compiler,
                   n_scored, prepare_machine)

PROMPT = "What is the capital of France?"
BATCHES = (1, 16, 64)
POINTS = ((1, 256), (1, 512), (1, 1024), (1, 2048), (4, 256), (16, 256))  # batch, length: of --growth


def seconds(work, least: float = 1.0) -> float:
    """The median time of `work` on an idle device, over `least` seconds of it; the first is a warm-up, if there are more."""
    times = []
    while sum(times) < least:
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:] or times)


def peak_memory(args) -> int:
    """The most bytes that this process has held: of the GPU's memory, or of the machine's."""
    if args.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def dialogues(args) -> list[list[dict]]:
    """The first exchange of each of args.examples dialogues, from --data or, without it, from the world."""
    rows = list(read_jsonl(args.data, check_dialogue)) if args.data else World().training_set("broad", 1000)
    random.Random(0).shuffle(rows)
    return [row["messages"][:2] for row in rows[: args.examples]]


def peaks(args) -> dict:
    """What the hardware does: FLOP/s of a bf16 (where it is fast) matrix product, bytes/s of reading memory."""
    n = 8192 if args.device.startswith("cuda") else 2048
    a = torch.randn(n, n, device=args.device, dtype=torch.bfloat16 if fast_bf16(args.device) else torch.float32)
    big = torch.ones(2**27, device=args.device)
    return {"matmul": 2 * n**3 / seconds(lambda: a @ a),
            "read": big.numel() * 4 / seconds(big.sum)}


def train_ours(args) -> dict:
    prepare_machine(args)
    began = time.perf_counter()
    tokenizer, model = Tokenizer(args.model), Llama.from_pretrained(args.model, device=args.device)
    load = time.perf_counter() - began
    examples = [encode(tokenizer, messages, 1024) for messages in dialogues(args)]
    if args.compile:
        compile_layers(model)
    budget = GPU_TOKEN_BUDGET if args.device.startswith("cuda") else CPU_TOKEN_BUDGET

    def work():
        accumulate_gradient(model, examples, budget, fast_bf16(args.device))

    first = seconds(lambda: accumulate_gradient(model, examples[:2], budget, fast_bf16(args.device)), 0.0001)
    taken = seconds(work)
    lengths, config = [len(ids) for ids, _ in examples], model.config
    per_layer = sum(p.numel() for p in model.model.layers.parameters() if p.ndim == 2)
    vocabulary = config.vocab_size * config.hidden_size
    attention = config.num_hidden_layers * config.num_attention_heads * config.head_dim * sum(n * n for n in lengths)
    flops = 6 * (per_layer * sum(lengths) + vocabulary * sum(map(n_scored, examples)) + attention)  # causal: half of T^2
    return {"tokens_per_s": sum(lengths) / taken, "flops_per_s": flops / taken, "first_s": first, "load_s": load,
            "peak_memory": peak_memory(args)}


def train_transformers(args) -> dict:
    """As a trainer runs it: random order, micro-batches of 4, each padded to its longest."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).to(args.device).train()
    tokenizer = Tokenizer(args.model)
    examples = [encode(tokenizer, messages, 1024) for messages in dialogues(args)]

    def work():
        for i in range(0, len(examples), 4):
            batch = examples[i : i + 4]
            width = max(len(ids) for ids, _ in batch)
            ids, labels = torch.zeros(len(batch), width, dtype=torch.int64), torch.full((len(batch), width), -100)
            mask = torch.zeros_like(ids)
            for row, (x, y) in enumerate(batch):
                ids[row, : len(x)], labels[row, : len(y)], mask[row, : len(x)] = torch.tensor(x), torch.tensor(y), 1
            ids, labels, mask = (t.to(args.device) for t in (ids, labels, mask))
            with torch.autocast(model.device.type, torch.bfloat16, enabled=fast_bf16(args.device)):
                loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            loss.backward()

    return {"tokens_per_s": sum(len(ids) for ids, _ in examples) / seconds(work), "peak_memory": peak_memory(args)}


def decode_ours(args) -> dict:
    tokenizer = Tokenizer(args.model)
    model = Llama.from_pretrained(args.model, getattr(torch, args.dtype), args.device).eval()
    weights = sum(p.numel() * p.element_size() for p in model.parameters() if p is not model.model.embed_tokens.weight)
    weights += model.head.weight.nbytes if model.config.tie_word_embeddings else 0
    model.pack()
    adapter = Adapter(tokenizer, model.config.vocab_size, device=args.device)
    prompt, result = encode_prompt(tokenizer, PROMPT), {}
    for batch in BATCHES:
        prompts = [prompt] * batch
        generate(model, prompts, -1, 8)  # -1: an EOS that no row can emit keeps every row to the end
        taken = seconds(lambda: generate(model, prompts, -1, args.tokens))
        ruled = seconds(lambda: generate(model, prompts, -1, args.tokens, adapter=adapter))
        result |= {f"decode_{batch}": batch * args.tokens / taken, f"ruled_{batch}": batch * args.tokens / ruled,
                   f"rules_share_{batch}": rules_seconds(adapter, batch, model) / (taken / args.tokens),
                   f"weights_per_s_{batch}": weights / (taken / args.tokens)}
    return result | {"peak_memory": peak_memory(args)}


def rules_seconds(adapter, batch: int, model: Llama) -> float:
    """What the rules do in one step of decoding, timed alone: a few percent of a step, which the noise of whole runs hides."""
    logits = torch.zeros(batch, model.config.vocab_size, device=model.device)
    seen, token = torch.zeros_like(logits, dtype=torch.bool), torch.zeros(batch, 1, dtype=torch.int64, device=model.device)

    def work():
        for n in range(50):
            logits.add_(adapter.scores(seen, n))
            seen.scatter_(1, token, True)

    return seconds(work) / 50


def decode_transformers(args) -> dict:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype)).to(args.device).eval()
    prompt, result = encode_prompt(Tokenizer(args.model), PROMPT), {}
    for batch in BATCHES:
        ids = torch.tensor([prompt] * batch, device=args.device)

        def work(n):
            model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, min_new_tokens=n, do_sample=False)

        work(8)
        result[f"decode_{batch}"] = batch * args.tokens / seconds(lambda: work(args.tokens))
    return result | {"peak_memory": peak_memory(args)}


@torch.inference_mode()
def decode_rules_as_the_papers_code(args) -> dict:
    """One sequence at a time, the whole prefix again for every token, the rules in Python, token by token."""
    tokenizer = Tokenizer(args.model)
    model = Llama.from_pretrained(args.model, getattr(torch, args.dtype), args.device).eval()
    adapter = Adapter(tokenizer, model.config.vocab_size, RULES, args.device)
    shifts = [(i, x) for i, x in enumerate(adapter.token_shift.tolist()) if x]
    prompt = encode_prompt(tokenizer, PROMPT)

    def work():
        ids = list(prompt)
        for n in range(args.tokens):
            scores = model(torch.tensor([ids], device=args.device))[0, -1].float()
            for i, shift in shifts:
                scores[i] += shift
            scores[adapter.eos_id] += adapter.eos_slope * n
            for i in set(ids[len(prompt) :]):
                scores[i] -= adapter.repeat_penalty
            scores[adapter.eos_id] = -torch.inf
            ids.append(int(scores.argmax()))

    return {"ruled_1": args.tokens / seconds(work)}


def growth(args) -> dict:
    """Seconds of a forward and backward pass and of a step of decoding: random models over (batch, length) and size."""
    prepare_machine(args)
    sizes = {  # hidden_size, intermediate_size, layers, heads, key/value heads, vocabulary
        "2M": (192, 512, 4, 4, 2, 1536), "15M": (384, 1024, 6, 6, 2, 8192), "135M": (576, 1536, 30, 9, 3, 49152)}
    result = {}
    for name, (hidden, inner, layers, heads, kv_heads, vocabulary) in sizes.items():
        config = Config(vocabulary, hidden, inner, layers, heads, 4096, eos_token_id=1, num_key_value_heads=kv_heads,
                        tie_word_embeddings=True)
        model = Llama(config).init_weights().to(args.device)
        training, decoding = result[f"training, {name}"], result[f"decoding, {name}"] = {}, {}
        for batch, length in POINTS[-1:] + POINTS:  # the largest first, as a warm-up: new memory is slow
            step = [((torch.arange(length) % vocabulary).tolist(),) * 2] * batch
            training[f"{batch} x {length}"] = seconds(lambda: accumulate_gradient(model, step, batch * length, fast_bf16(args.device)))
        model = Llama(config).init_weights().to(args.device, getattr(torch, args.dtype)).eval().pack()
        for batch, length in POINTS:
            cache, start = model.new_cache(batch, length), torch.full((batch,), length - 1, device=args.device)
            token = torch.zeros(batch, 1, dtype=torch.int64, device=args.device)
            with torch.inference_mode():
                decoding[f"{batch} x {length}"] = seconds(lambda: model.logits(model.hidden(token, cache, start)))
    return result


def where_the_time_goes(args) -> dict:
    """Print PyTorch's profile of a forward and backward pass, and of 32 steps of decoding one sequence."""
    prepare_machine(args)
    tokenizer, model = Tokenizer(args.model), Llama.from_pretrained(args.model, device=args.device)
    examples = [encode(tokenizer, messages, 1024) for messages in dialogues(args)]
    budget = GPU_TOKEN_BUDGET if args.device.startswith("cuda") else CPU_TOKEN_BUDGET
    decoder = Llama.from_pretrained(args.model, getattr(torch, args.dtype), args.device).eval().pack()
    for work in (lambda: accumulate_gradient(model, examples, budget, fast_bf16(args.device)),
                 lambda: generate(decoder, [encode_prompt(tokenizer, PROMPT)], -1, 32)):
        work()
        with torch.profiler.profile() as profile:
            work()
        by = "self_cuda_time_total" if args.device.startswith("cuda") else "self_cpu_time_total"
        print(profile.key_averages().table(sort_by=by, row_limit=15, max_name_column_width=50))
    return {}


def alone(work, args) -> dict:
    """The result of work(args) in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, args).result()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("data/tiny"))
    parser.add_argument("--data", type=Path, help='dialogues to train on, lines of {"messages": [...]}; default: the world\'s')
    parser.add_argument("--examples", type=int, default=32, help="how many of them")
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--dtype", help="to decode in; default: bfloat16 on cuda, else float32")
    parser.add_argument("--tokens", type=int, default=128, help="to decode")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--growth", action="store_true", help="time random models over length, batch and size instead")
    parser.add_argument("--profile", action="store_true", help="show where the time goes instead")
    args = SimpleNamespace(**vars(parser.parse_args()))
    cuda = args.device.startswith("cuda")
    args.dtype = args.dtype or ("bfloat16" if cuda else "float32")
    name = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    if args.profile:
        alone(where_the_time_goes, args)
        return
    if args.growth:
        result = alone(growth, args)
        print("| ms, batch x length | " + " | ".join(f"{batch} x {length}" for batch, length in POINTS) + " |")
        print("|---" * (len(POINTS) + 1) + "|")
        for work, taken in result.items():
            print(f"| {work} | " + " | ".join(f"{1000 * taken[f'{batch} x {length}']:,.1f}" for batch, length in POINTS) + " |")
        print(json.dumps({"device": name, "torch": torch.__version__} | result))
        return
    works = {"nanofollow": [peaks, train_ours, decode_ours], "as the paper's code": [decode_rules_as_the_papers_code]}
    if cuda or has_compiler():
        works["nanofollow, compiled"] = [train_ours]
    else:
        print("there is no C++ compiler, so the column of compiled training is missing", file=sys.stderr)
    if importlib.util.find_spec("transformers"):
        works["transformers"] = [train_transformers, decode_transformers]
    else:
        print("transformers cannot be imported, so its column is missing", file=sys.stderr)
    runs = {who: [] for who in works}
    for i in range(args.rounds):
        for who, parts in works.items():
            args.compile = who.endswith("compiled")
            results = {work.__name__: alone(work, args) for work in parts}
            runs[who].append({f"{k}_{which.split('_')[0]}" if k == "peak_memory" else k: v
                              for which, result in results.items() for k, v in result.items()})
            print(f"round {i + 1} of {args.rounds}: {who} done", file=sys.stderr)
    figures = {who: {k: statistics.median(run[k] for run in rounds) for k in rounds[0]} for who, rounds in runs.items()}
    print(table(figures))
    print(json.dumps({"model": str(args.model), "device": name, "torch": torch.__version__, "dtype": args.dtype,
                      "rounds": args.rounds, "figures": figures}))


def table(figures: dict) -> str:
    """Markdown: a row for each piece of work, a column for whoever did it."""
    ours = figures["nanofollow"]
    rows = {"training, tokens/s": ("tokens_per_s", 1), "training, GFLOP/s": ("flops_per_s", 1e-9),
            "training, peak memory, MiB": ("peak_memory_train", 2**-20), "first micro-batch (with compiling), s": ("first_s", 1),
            "loading, s": ("load_s", 1)}
    for batch in BATCHES:
        rows |= {
            f"decoding, batch {batch}, tokens/s": (f"decode_{batch}", 1),
            f"decoding, batch {batch}, all rules, tokens/s": (f"ruled_{batch}", 1),
            f"the rules' own work, batch {batch}, % of a step": (f"rules_share_{batch}", 100),
            f"weights read, batch {batch}, GB/s": (f"weights_per_s_{batch}", 1e-9)}
    rows |= {"decoding, peak memory, MiB": ("peak_memory_decode", 2**-20)}
    lines = ["| | " + " | ".join(figures) + " |", "|---" * (len(figures) + 1) + "|"]
    for label, (key, scale) in rows.items():
        cells = [f"{mine[key] * scale:,.{0 if mine[key] * scale >= 100 else 1}f}" if key in mine else "–" for mine in figures.values()]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines.append(f"\nin the same run: {ours['matmul'] / 1e9:,.0f} GFLOP/s in a matrix product alone, of which training reached "
                 f"{100 * ours['flops_per_s'] / ours['matmul']:.0f} %; {ours['read'] / 1e9:.1f} GB/s of reading memory")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"bench.py: {error}", file=sys.stderr)
        sys.exit(2)
