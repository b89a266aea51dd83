"""Decoding: greedy or sampled, batched, with a key/value cache, with or without the three rules.

    python generate.py --model out/response --prompt "What is the capital of Nastekor?"
    python generate.py --model data/tiny out/response --input data/world/eval.jsonl --limit 3
    python generate.py --model out/response --input data/world/eval.jsonl --output out/response/eval.json
    torchrun --nproc_per_node=8 generate.py ...     # the same, the instructions split over eight GPUs

The second shows several models' answers side by side; the third writes AlpacaEval's format.
"""
import argparse
import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from tokenizers.decoders import DecodeStream
from torch.nn.utils.rnn import pad_sequence

from adapter import RULES, Adapter
from data.download import model_folder
from data.format import Tokenizer, check_fields, encode_prompt, read_jsonl
from model import Llama, default_device, device_name, replacing, weight_files

CACHE_BLOCK = 128  # the cache grows by this many tokens


@torch.inference_mode()
def generate(model: Llama, prompts: list[list[int]], eos_id: int, max_new_tokens: int, temperature: float = 0.0,
             top_p: float = 1.0, generator=None, adapter=None, on_token=None) -> list[list[int]]:
    """Continue each prompt until EOS (not included in the result) or max_new_tokens, or the end of the model's context.

    Prompts of any lengths, padded on the right: each row writes its keys and values at its own
    length, so a row's answer does not depend on its neighbours. Finished rows leave the batch when they
    are a quarter of it, since leaving copies the cache and, on a GPU, records the step anew.
    temperature 0 is greedy. on_token(row, token) is called with every token as it comes.
    """
    context = model.config.context
    if (longest := max(map(len, prompts))) >= context:
        raise ValueError(f"an instruction of {longest} tokens leaves no room to answer in a context of {context}; shorten it")
    most = [min(max_new_tokens, context - len(prompt)) for prompt in prompts]
    device = model.device
    answers = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # which prompt each row of the batch continues; None: it is finished
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)  # (B,) tokens in the cache
    ids = pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True).to(device)  # (B, T)
    cache = model.new_cache(len(rows), longest + CACHE_BLOCK)
    seen = torch.zeros(len(rows), model.config.vocab_size, dtype=torch.bool, device=device)  # (B, V) tokens of each response
    h = model.hidden(ids, cache)[torch.arange(len(rows)), lengths - 1]  # (B, C)
    graph = None
    for n in range(max_new_tokens):
        logits = model.logits(h).float()  # (B, V)
        if adapter:
            logits += adapter.scores(seen, n)
        token = choose(logits, temperature, top_p, generator)  # (B,)
        for i, (row, t) in enumerate(zip(rows, token.tolist())):
            if row is None or t == eos_id:
                rows[i] = None
                continue
            answers[row].append(t)
            if on_token:
                on_token(row, t)
            if len(answers[row]) == most[row]:
                rows[i] = None
        alive = [i for i, row in enumerate(rows) if row is not None]
        if not alive:
            break
        if len(alive) <= 0.75 * len(rows):
            rows = [rows[i] for i in alive]
            keep = torch.tensor(alive, device=device)
            token, lengths, seen = token[keep], lengths[keep], seen[keep]
            for i, (keys, values) in enumerate(cache):  # layer by layer: two copies of one, not of all
                cache[i] = keys[keep], values[keep]
            graph = None
        if adapter:
            seen.scatter_(1, token[:, None], True)
        if longest + n == cache[0][0].shape[2]:  # the longest row has filled the cache
            for i, (keys, values) in enumerate(cache):
                cache[i] = tuple(F.pad(t, (0, 0, 0, CACHE_BLOCK)) for t in (keys, values))  # (B, n_kv_heads, S + block, D)
            graph = None
        if device.type == "cuda":
            graph = graph or StepGraph(model, token, cache, lengths)
            h = graph.replay(token, lengths)  # (B, C)
        else:
            h = model.hidden(token[:, None], cache, lengths)[:, 0]  # (B, C)
        lengths = lengths + 1
    return answers


class StepGraph:
    """A step of decoding, recorded: its hundreds of small kernels are launched by one call instead of one by one,
    which takes longer than they do. It reads and writes the tensors that it was recorded with, so a cache
    that has grown or a batch that has shrunk needs a new one.
    """

    def __init__(self, model: Llama, token, cache, lengths):
        self.token, self.lengths = token.clone(), lengths.clone()  # (B,) each
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # what kernels set up the first time must not be recorded
            model.hidden(self.token[:, None], cache, self.lengths)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.h = model.hidden(self.token[:, None], cache, self.lengths)[:, 0]

    def replay(self, token, lengths):
        """The hidden states after one more token a row. token, lengths: (B,). Returns (B, C), overwritten by the next call."""
        self.token.copy_(token)
        self.lengths.copy_(lengths)
        self.graph.replay()
        return self.h


def choose(logits, temperature: float, top_p: float, generator=None):
    """The next token of each row. logits: (B, V) float. Returns (B,) int64.

    top_p keeps the fewest tokens whose probabilities reach it (Holtzman et al., 2020).
    """
    if temperature == 0:
        return logits.argmax(-1)
    p, order = (logits / temperature).softmax(-1).sort(-1, descending=True)  # (B, V)
    p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0)
    return order.gather(-1, torch.multinomial(p, 1, generator=generator))[:, 0]


def answer(model: Llama, tokenizer: Tokenizer, instructions: list[str], **options) -> list[str]:
    """The responses to a batch of instructions as text; options as for `generate`."""
    prompts = [encode_prompt(tokenizer, instruction) for instruction in instructions]
    return [tokenizer.decode(ids).strip() for ids in generate(model, prompts, tokenizer.eos_id, **options)]


def stream(model: Llama, tokenizer: Tokenizer, instruction: str, **options):
    """Print the response as it is decoded, holding back bytes that do not make a character yet."""
    decoder = DecodeStream(skip_special_tokens=True)

    def show(_, token):
        print(decoder.step(tokenizer.bpe, token) or "", end="", flush=True)

    generate(model, [encode_prompt(tokenizer, instruction)], tokenizer.eos_id, on_token=show, **options)
    print()


def write_answers(path: Path, instructions: list[str], settings: dict, decode):
    """Answer `instructions` batch by batch and write them to `path` in AlpacaEval's format.

    What is done is kept in `path`.partial: a line of settings, then a line for each answer. A run with
    the same settings goes on from there, one with others starts afresh. settings holds at least
    `generator` and `batch_size`. decode(instructions, start) returns the answers to a batch that
    begins at row `start`.
    """
    batch_size = settings["batch_size"]
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = resume(partial, settings, instructions)
    if rows:
        print(f"{partial}: continuing after {len(rows)} of {len(instructions)} answers", file=sys.stderr)
    with replacing(partial) as temporary:  # rewritten without a torn last line, then appended to
        temporary.write_text("".join(json.dumps(row) + "\n" for row in [settings] + rows), encoding="utf-8")
    began, first = time.perf_counter(), len(rows)
    with open(partial, "a", encoding="utf-8") as file:
        for start in range(first, len(instructions), batch_size):
            batch = instructions[start : start + batch_size]
            for instruction, output in zip(batch, decode(batch, start)):
                rows.append({"instruction": instruction, "output": output, "generator": settings["generator"]})
                file.write(json.dumps(rows[-1]) + "\n")
            file.flush()
            rate = (len(rows) - first) / (time.perf_counter() - began)
            left = (len(instructions) - len(rows)) / rate
            print(f"{path}: {len(rows)}/{len(instructions)} answers  {rate:.1f}/s  {left // 60:.0f}:{left % 60:02.0f} left",
                  file=sys.stderr)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    partial.unlink(missing_ok=True)


def write_share(path: Path, instructions: list[str], settings: dict, decode):
    """write_answers under torchrun: each rank answers a run of the instructions, and rank 0 joins the files."""
    rank, world = dist.get_rank(), dist.get_world_size()
    bounds = [len(instructions) * r // world for r in range(world + 1)]
    parts = [path.with_name(f"{path.name}.{r}-of-{world}") for r in range(world)]
    first, last = bounds[rank : rank + 2]
    write_answers(parts[rank], instructions[first:last], settings, lambda batch, start: decode(batch, first + start))
    dist.barrier()
    if rank == 0:
        rows = [row for part in parts for row in json.loads(part.read_bytes())]
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        for part in parts:
            part.unlink()


def resume(partial: Path, settings: dict, instructions: list[str]) -> list[dict]:
    """The answers that an interrupted run with these settings left behind."""
    if not partial.exists():
        return []
    rows = []
    for line in partial.read_bytes().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break  # the line that was being written
    if not rows or rows[0] != settings or [row["instruction"] for row in rows[1:]] != instructions[: len(rows) - 1]:
        print(f"{partial} is of another model or other settings; starting afresh", file=sys.stderr)
        return []
    return rows[1 : 1 + (len(rows) - 1) // settings["batch_size"] * settings["batch_size"]]  # whole batches


def parse_rules(text: str) -> tuple[str, ...]:
    """"all", "none", or names of rules with commas between, which Adapter checks."""
    return RULES if text == "all" else () if text == "none" else tuple(text.split(","))


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", required=True,
                        help="folder in the hub's layout, or ORG/NAME on the hub; several to compare")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="one instruction, whose response streams to the terminal")
    what.add_argument("--input", type=Path, help='file of {"instruction": ...} lines')
    parser.add_argument("--output", type=Path, help="where the answers to --input go; without it they are printed")
    parser.add_argument("--limit", type=int, help="answer only so many lines of --input, evenly spaced")
    parser.add_argument("--rules", type=parse_rules, default=(), metavar="all|none|eos,tokens,repeats", help="see adapter.py")
    parser.add_argument("--max-new-tokens", type=int, default=2048, help="the model's context ends a response too")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1, help="of sampling")
    parser.add_argument("--device", type=device_name, default=default_device())
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: bfloat16 on cuda, else float32")
    args = parser.parse_args()
    if args.output and (not args.input or len(args.model) > 1):
        parser.error("--output goes with --input and one --model")
    if args.output and (args.output.is_dir() or args.output.resolve() == args.input.resolve()):
        parser.error(f"--output {args.output} must be a file of its own")
    for name in ("max_new_tokens", "batch_size", "limit"):
        if getattr(args, name) is not None and getattr(args, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0")
    if not (args.temperature == 0 or 0.01 <= args.temperature <= 100) or not 0 < args.top_p <= 1:
        parser.error("--temperature is 0 or from 0.01 to 100, --top-p above 0 and at most 1")
    return args


def main():
    args = parse_arguments()
    if "RANK" in os.environ:  # set by torchrun
        if not args.output:
            raise ValueError("under torchrun, --input and --output say what is split over the ranks; add them")
        if args.device == "cuda":
            args.device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(args.device)
        dist.init_process_group("gloo", timeout=timedelta(days=7))  # one rank may be done long before another
    dtype = getattr(torch, args.dtype or ("bfloat16" if args.device.startswith("cuda") else "float32"))
    instructions = [args.prompt]
    if args.input:
        instructions = [row["instruction"] for row in read_jsonl(args.input, check_fields("instruction"))]
        if args.limit and args.limit < len(instructions):
            instructions = [instructions[i * len(instructions) // args.limit] for i in range(args.limit)]
    options = dict(max_new_tokens=args.max_new_tokens, temperature=args.temperature, top_p=args.top_p)
    shown = {}
    for path in map(model_folder, args.model):
        model, tokenizer = Llama.from_pretrained(path, dtype, args.device).eval().pack(), Tokenizer(path)
        options["adapter"] = Adapter(tokenizer, model.config.vocab_size, args.rules, args.device) if args.rules else None

        def decode(batch, start):  # seeded by its place, so that a run that was interrupted samples the same answers
            generator = torch.Generator(args.device).manual_seed(args.seed + start)
            return answer(model, tokenizer, batch, generator=generator, **options)

        if args.output:
            weights = [file.stat() for file in weight_files(path)]
            name = str(path) + (f" rules {','.join(args.rules)}" if args.rules else "")
            settings = {"generator": name, "weights": [[file.st_size, file.st_mtime_ns] for file in weights], "dtype": str(dtype),
                        "batch_size": args.batch_size, "max_new_tokens": args.max_new_tokens,
                        "temperature": args.temperature, "top_p": args.top_p, "seed": args.seed}
            (write_share if dist.is_initialized() else write_answers)(args.output, instructions, settings, decode)
        elif args.input:
            starts = range(0, len(instructions), args.batch_size)
            shown[path] = [text for i in starts for text in decode(instructions[i : i + args.batch_size], i)]
        else:
            if len(args.model) > 1:
                print(f"[{path}]")
            stream(model, tokenizer, args.prompt, generator=torch.Generator(args.device).manual_seed(args.seed), **options)
    for i, instruction in enumerate(instructions if shown else []):
        print(f"\n{instruction}")
        for path, answers in shown.items():
            print(f"  [{path}]\n" + "".join(f"    {line}\n" for line in answers[i].split("\n")), end="")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"generate.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted; with --output, the same command continues after the last whole batch", file=sys.stderr)
        sys.exit(130)
