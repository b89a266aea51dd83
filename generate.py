"""Decoding: greedy or sampled, batched, with a key/value cache, with or without the three rules.

    python generate.py --model out/response --prompt "What is the capital of Brabrol?"
    python generate.py --model data/tiny out/response --input data/world/eval.jsonl --limit 3
    python generate.py --model out/response --input data/world/eval.jsonl --output out/response/eval.json
    torchrun --nproc_per_node=8 generate.py ...     # the same, the instructions split over eight GPUs

The second shows several models' answers side by side; the third writes AlpacaEval's format.
"""
import argparse
import re
import sys
import time
from datetime import timedelta
from pathlib import Path

from data import common  # first: Ctrl-C is quiet from here on

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from adapter import RULES, Adapter
from data import device as machine
from data import distributed
from data.common import Journal, check_fields, clock, digest, fingerprint, read_json, read_jsonl, write_json
from data.format import Tokenizer, encode_prompt, listed
from data.checkpoint import weight_files
from data.hub import model_folder
from model import Llama

CACHE_BLOCK = 128  # the cache grows by this many tokens


@torch.inference_mode()
def generate_slowly(model: Llama, prompt: list[int], eos_id: int | list[int], max_new_tokens: int,
                    adapter=None) -> list[int]:
    """Greedy decoding as it is defined: the likeliest next token, again and again. `generate` must equal this."""
    response = []
    while len(response) < max_new_tokens:
        logits = model(torch.tensor([prompt + response], device=model.device))[:, -1].float()  # (1, V)
        if adapter:
            seen = adapter.seen_at_first([prompt])  # (1, V)
            seen[0, response] = True
            logits += adapter.scores(seen, len(response))
        token = logits.argmax().item()
        if token in listed(eos_id):
            break
        response.append(token)
    return response


@torch.inference_mode()
def generate(model: Llama, prompts: list[list[int]], eos_id: int | list[int], max_new_tokens: int, temperature=0.0,
             top_p: float = 1.0, generator=None, adapter=None, on_token=None) -> list[list[int]]:
    """Continue each prompt until EOS (not included in the result) or max_new_tokens, or the end of the model's context.

    Prompts of any lengths, padded on the right: each row writes its keys and values at its own
    length, so a row's answer does not depend on its neighbours. Finished rows leave the batch when they
    are a quarter of it, since leaving copies the cache. On a GPU leaving also records the step anew, so there
    they leave when they are half of it.
    eos_id: one EOS or several. temperature 0 is greedy. on_token(row, token) is called with every token as it comes.
    Raises ValueError where a prompt fills the context, or where the logits are not finite.
    """
    context = model.config.context
    if (longest := max(map(len, prompts))) >= context:
        raise ValueError(f"an instruction of {longest} tokens leaves no room to answer in a context of {context}; "
                         "shorten it")
    most = [min(max_new_tokens, context - len(prompt)) for prompt in prompts]
    device, ends = model.device, listed(eos_id)
    answers = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # which prompt each row of the batch continues; None: it is finished
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)  # (B,) tokens in the cache
    ids = pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True).to(device)  # (B, T)
    cache = model.new_cache(len(rows), longest + CACHE_BLOCK)
    seen = adapter.seen_at_first(prompts) if adapter else None  # (B, V), what rule 3 penalises
    h = model.hidden(ids, cache)[torch.arange(len(rows)), lengths - 1]  # (B, C)
    step = Step(model)
    for n in range(max_new_tokens):
        logits = model.logits(h).float()  # (B, V)
        if not logits.amax(1).isfinite().all():  # NaN is the largest
            raise ValueError(f"the model's activations are not finite in {h.dtype}; " + (
                "add --dtype bfloat16" if h.dtype == torch.float16 else "its weights are damaged"))
        if adapter:
            logits += adapter.scores(seen, n)
        token = choose(logits, temperature, top_p, generator)  # (B,)
        for i, (row, t) in enumerate(zip(rows, token.tolist())):
            if row is None or t in ends:
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
        if len(alive) <= (0.5 if step.record else 0.75) * len(rows):
            rows = [rows[i] for i in alive]
            keep = torch.tensor(alive, device=device)
            token, lengths, seen = token[keep], lengths[keep], seen[keep] if adapter else None
            for i, (keys, values) in enumerate(cache):  # layer by layer: two copies of one, not of all
                cache[i] = keys[keep], values[keep]
        if adapter:
            seen.scatter_(1, token[:, None], True)
        if longest + n == cache[0][0].shape[2]:  # the longest row has filled the cache
            for i, (keys, values) in enumerate(cache):
                cache[i] = tuple(F.pad(t, (0, 0, 0, CACHE_BLOCK)) for t in (keys, values))  # (B, n_kv_heads, S', D)
        h = step(token, cache, lengths)  # (B, C)
        lengths = lengths + 1
    return answers


def choose(logits, temperature: float, top_p: float, generator=None):
    """The next token of each row. logits: (B, V) float. Returns (B,) int64.

    temperature 0 takes the likeliest token (of equals the first). Else a token is drawn from
    p = softmax(logits / temperature), of which top_p keeps the fewest likeliest tokens whose probabilities
    reach top_p together, the likeliest always (Holtzman et al., 2020); the others get 0 and the rest is renormalised.
    """
    if temperature == 0:
        return logits.argmax(-1)
    p, order = (logits / temperature).softmax(-1).sort(-1, descending=True)  # (B, V)
    beyond = p.cumsum(-1) - p >= top_p  # those before it reach top_p already
    beyond[:, 0] = False
    return order.gather(-1, torch.multinomial(p.masked_fill(beyond, 0), 1, generator=generator))[:, 0]


class Step:
    """One more token a row: the hidden states after it. On a GPU the step is recorded as a CUDA graph.

    A step is hundreds of small kernels, and launching them one by one takes longer than they do; a graph launches
    them by one call. It reads and writes the tensors that it was recorded with, so a cache that has grown or a
    batch that has shrunk is recorded anew. Where recording fails, decoding goes on without.
    """

    def __init__(self, model: Llama):
        self.model, self.recorded_keys, self.record = model, None, model.device.type == "cuda"

    def __call__(self, token, cache, lengths):
        """token: (B,) int64, the newest of each row; lengths: (B,), tokens in the cache. Returns (B, C), good until the
        next call."""
        if self.record and self.recorded_keys is not cache[0][0]:
            try:
                self.start(token, cache, lengths)
            except RuntimeError as error:
                if common.ran_out_of_memory(error):
                    raise
                print(f"recording a CUDA graph failed ({str(error).splitlines()[0][:200]}); decoding goes on without, "
                      "more slowly", file=sys.stderr, flush=True)
                self.record = False
        if not self.record:
            return self.model.hidden(token[:, None], cache, lengths)[:, 0]
        self.token.copy_(token)
        self.lengths.copy_(lengths)
        self.graph.replay()
        return self.h

    def start(self, token, cache, lengths):
        self.token, self.lengths, self.graph = token.clone(), lengths.clone(), torch.cuda.CUDAGraph()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # what kernels set up the first time must not be recorded
            self.model.hidden(self.token[:, None], cache, self.lengths)
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(self.graph):
            self.h = self.model.hidden(self.token[:, None], cache, self.lengths)[:, 0]
        self.recorded_keys = cache[0][0]


def answer(model: Llama, tokenizer: Tokenizer, instructions: list[str], **options) -> list[str]:
    """The responses to a batch of instructions as text; options as for `generate`."""
    prompts = [encode_prompt(tokenizer, instruction) for instruction in instructions]
    return [tokenizer.decode(ids).strip() for ids in generate(model, prompts, tokenizer.eos_ids, **options)]


def stream(model: Llama, tokenizer: Tokenizer, instruction: str, **options):
    """Print the response as it is decoded, holding back bytes that do not make a character yet.

    SentencePiece's byte tokens, <0x00> to <0xFF>, are held back to the end of their run: if the run is not UTF-8 in
    the end, each of them is decoded as U+FFFD.
    """
    ids, shown = [], ""

    def show(_, token):
        nonlocal shown
        ids.append(token)
        text = tokenizer.decode(ids)
        if not text.endswith("\ufffd") and not re.fullmatch("<0x..>", tokenizer.bpe.id_to_token(token) or ""):
            print(text[len(shown):], end="", flush=True)
            shown = text

    generate(model, [encode_prompt(tokenizer, instruction)], tokenizer.eos_ids, on_token=show, **options)
    print(tokenizer.decode(ids)[len(shown):])


def write_answers(path: Path, instructions: list[str], settings: dict, decode):
    """Answer `instructions` batch by batch and write them to `path`. Several ranks share the batches.

    settings: all that determines the answers, with at least `generator` and `batch_size`; they are written beside
    `path`. decode(instructions, start) returns the answers to a batch that begins at row `start`. Finished batches
    are kept in a journal until all are, so the same command goes on where it was stopped.
    """
    size, began = settings["batch_size"], time.perf_counter()
    keys = [digest([settings, i, instruction]) for i, instruction in enumerate(instructions)]
    partial = path.with_name(f"{path.name}.partial{distributed.rank() or ''}")
    with Journal(partial) as journal:
        starts = range(0, len(keys), size)[distributed.rank() :: distributed.n_ranks()]
        left = [start for start in starts if not journal.values.keys() >= set(keys[start : start + size])]
        if len(left) < len(starts):
            print(f"{path}: continuing after {len(starts) - len(left)} of {len(starts)} batches", file=sys.stderr)
        for done, start in enumerate(left, 1):
            for key, output in zip(keys[start:], decode(instructions[start : start + size], start)):
                journal.add(key, output)
            rate = done / (time.perf_counter() - began)
            print(f"{path}: {done}/{len(left)} batches  {rate * size:.1f} answers/s  "
                  f"{clock((len(left) - done) / rate)} left", file=sys.stderr)
        outputs = {key: output for values in distributed.from_all(journal.values) for key, output in values.items()}
        if distributed.is_main():
            settings_file(path).unlink(missing_ok=True)  # until the new answers are whole, nothing vouches for them
            write_json(path, [{"instruction": instruction, "output": outputs[key], "generator": settings["generator"]}
                              for instruction, key in zip(instructions, keys)])
            write_json(settings_file(path), settings)
        distributed.wait_for_all()
        partial.unlink()


def settings_file(path: Path) -> Path:
    return path.with_suffix(".settings.json")


def is_finished(path: Path, settings: dict) -> bool:
    """Whether `path` holds the answers that these settings give."""
    try:
        return path.exists() and read_json(settings_file(path), "") == settings
    except (OSError, ValueError):
        return False


def parse_rules(text: str) -> tuple[str, ...]:
    """"all", "none", or names of rules with commas between."""
    rules = RULES if text == "all" else () if text == "none" else tuple(text.split(","))
    if unknown := set(rules) - set(RULES):
        raise argparse.ArgumentTypeError(
            f"unknown rule {sorted(unknown)[0]!r}; the rules are {', '.join(RULES)}, all, none")
    return rules


def parse_arguments():
    parser = common.parser(__doc__)
    parser.add_argument("--model", nargs="+", required=True,
                        help="folder in the hub's layout, or ORG/NAME on the hub; several to compare")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", type=common.text, help="one instruction, whose response streams to the terminal")
    what.add_argument("--input", type=common.path, help='file of {"instruction": ...} lines')
    parser.add_argument("--output", type=common.path,
                        help="where the answers to --input go; without it they are printed")
    parser.add_argument("--limit", type=common.positive(int),
                        help="answer only so many lines of --input, evenly spaced")
    parser.add_argument("--rules", type=parse_rules, default="none", metavar="all|none|eos,tokens,repeats",
                        help="of the adapter; several with commas between")
    parser.add_argument("--penalise-prompt", action="store_true",
                        help="rule 3 penalises the prompt's tokens, too, as in the authors' code")
    parser.add_argument("--max-new-tokens", type=common.positive(int), default=2048,
                        help="the model's context ends a response too")
    parser.add_argument("--batch-size", type=common.positive(int), default=64,
                        help="instructions answered side by side")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy; else from 0.01 to 100")
    parser.add_argument("--top-p", type=float, default=1.0, help="sample from the likeliest tokens of this probability")
    parser.add_argument("--seed", type=common.seed, default=1, help="of sampling")
    parser.add_argument("--device", type=machine.device_name, default=machine.default_device())
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"],
                        help="to compute in; default: bfloat16 on a GPU, else float32")
    parser.add_argument("--compile", action="store_true",
                        help="torch.compile the steps of decoding, on a CPU of one sequence alone: on two cores of an "
                             "AMD EPYC they take 0.6 of the time, after 22 s (5 s if they were compiled before)")
    args = parser.parse_args()
    if args.output and (not args.input or len(args.model) > 1):
        parser.error("--output goes with --input and one --model")
    taken = args.output and args.output.exists() and not args.output.is_file()
    if taken or args.output and args.output.resolve() == args.input.resolve():
        parser.error(f"--output {args.output} must be a file of its own")
    if args.penalise_prompt and "repeats" not in args.rules:
        parser.error("--penalise-prompt is a reading of rule 3; add --rules all, or rules with repeats among them")
    if not (args.temperature == 0 or 0.01 <= args.temperature <= 100) or not 0 < args.top_p <= 1:
        parser.error("--temperature is 0 or from 0.01 to 100, --top-p above 0 and at most 1")
    return args


def record_of(args, path: Path, dtype: torch.dtype, instructions: list[str]) -> dict:
    """All that determines a file of answers."""
    files = [path / "config.json", path / "tokenizer.json", *weight_files(path)]
    return {"generator": str(path) + (f" rules {','.join(args.rules)}" if args.rules else "")
            + " and the prompt penalised" * args.penalise_prompt,
            "model_sha256": fingerprint(*files), "instructions_sha256": digest(instructions), "rules": list(args.rules),
            "dtype": str(dtype)} | {name: getattr(args, name) for name in
                                    ("penalise_prompt", "batch_size", "max_new_tokens", "temperature", "top_p", "seed")}


def main():
    args = parse_arguments()
    args.device = distributed.start_ranks(args.device, "gloo", timeout=timedelta(days=7))  # one may end long before another
    if distributed.n_ranks() > 1 and not args.output:
        raise ValueError("under torchrun, --input and --output say what is split over the ranks; add them")
    dtype = getattr(torch, args.dtype or ("bfloat16" if args.device.startswith("cuda") else "float32"))
    instructions = [args.prompt]
    if args.input:
        rows = read_jsonl(args.input, check_fields("instruction"))
        limit = min(args.limit or len(rows), len(rows))
        lines = [i * len(rows) // limit for i in range(limit)]
        instructions = [rows[line]["instruction"] for line in lines]
    batch = min(args.batch_size, len(instructions))
    if args.compile:
        machine.check_compiler(args.device)
        if batch > 1 and args.device == "cpu":
            raise ValueError("--compile is for one sequence on a CPU; leave it out, or add --batch-size 1")
    if dtype == torch.bfloat16 and args.device == "cpu" and batch > 4 and not machine.fast_bf16("cpu"):
        print("this processor does not multiply bf16, so decoding is done in float32, which is faster for a batch "
              "(and takes twice the memory: a --batch-size of 4 or less stays in bf16)", file=sys.stderr)
        dtype = torch.float32
    options = dict(max_new_tokens=args.max_new_tokens, temperature=args.temperature, top_p=args.top_p)
    shown = {}
    for path in map(model_folder, args.model):
        record = distributed.from_main(lambda: record_of(args, path, dtype, instructions)) if args.output else None
        if record and distributed.from_main(lambda: is_finished(args.output, record)):
            distributed.say(f"{args.output} is finished; remove it to decode it again")
            continue
        model, tokenizer = Llama.from_pretrained(path, dtype, args.device).eval(), Tokenizer(path)
        (machine.compile_decoding if args.compile else machine.reorder_weights_for_cpu)(model, batch)
        for line, instruction in zip(lines, instructions) if args.input else ():  # all, before the first is answered
            if len(encode_prompt(tokenizer, instruction)) >= model.config.context:
                raise ValueError(f"{args.input} line {line + 1}: the instruction fills the context of "
                                 f"{model.config.context} tokens and leaves no room to answer; shorten it")
        if args.rules:
            options["adapter"] = Adapter(tokenizer, model.config.vocab_size, args.rules, args.device,
                                         args.penalise_prompt)

        # Seeded by its place, so that a run that was interrupted samples the same answers. Places are fewer than
        # 1,000,003, so no two batches share a stream (where a generator keeps 32 bits: of the seeds below 4,294).
        def sampling(start):
            return {"generator": torch.Generator(args.device).manual_seed(args.seed * 1_000_003 + start)} | options

        def decode(batch, start):
            return answer(model, tokenizer, batch, **sampling(start))

        if args.output:
            write_answers(args.output, instructions, record, decode)
        elif args.input:
            starts = range(0, len(instructions), args.batch_size)
            shown[path] = [text for i in starts for text in decode(instructions[i : i + args.batch_size], i)]
        else:
            if len(args.model) > 1:
                print(f"[{path}]")
            stream(model, tokenizer, args.prompt, **sampling(0))
    for i, instruction in enumerate(instructions if shown else []):
        print(f"\n{instruction}")
        for path, answers in shown.items():
            print(f"  [{path}]\n" + "".join(f"    {line}\n" for line in answers[i].split("\n")), end="")
    distributed.end_ranks()


if __name__ == "__main__":
    common.run(main, interrupted="with --output, the same command continues after the last whole batch",
                out_of_memory="lower --batch-size")
