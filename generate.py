"""Decoding: greedy or sampled, batched, with a key/value cache, with or without the three rules.

    python generate.py --model out/response --prompt "What is the capital of Brabrol?"
    python generate.py --model data/tiny out/response --input data/world/eval.jsonl --limit 3
    python generate.py --model out/response --input data/world/eval.jsonl --output out/response/eval.json
    torchrun --nproc_per_node=8 generate.py ...     # the same, the instructions split over eight GPUs

The second shows several models' answers side by side; the third writes AlpacaEval's format.
"""
import argparse
import sys
import time
from datetime import timedelta
from pathlib import Path

from data import common  # first: Ctrl-C is quiet from here on

import torch
from torch.nn.utils.rnn import pad_sequence

from adapter import RULES, Adapter
from data import distributed
from data.checkpoint import weight_files
from data.common import Journal, check_fields, clock, digest, fingerprint, read_json, read_jsonl, write_json
from data.device import decoding_step, default_device, device_name, reorder_weights_for_cpu
from data.format import Tokenizer, encode_prompt, listed
from data.hub import model_folder
from model import KVCache, Llama


@torch.inference_mode()
def generate_slowly(model: Llama, prompt: list[int], eos_id: int | list[int], max_new_tokens: int,
                    adapter=None) -> list[int]:
    """Greedy decoding as it is defined: the likeliest next token, again and again. `generate` must equal this,
    up to the end of the context."""
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
             top_p: float = 1.0, generator=None, adapter=None, on_token=lambda i, token: None) -> list[list[int]]:
    """Continue each prompt until EOS (not included in the result) or max_new_tokens, or the end of the model's context.

    Prompts may have any lengths. eos_id: one EOS or several. temperature 0 is greedy; then a row's answer does not
    depend on its neighbours. (Rows that are sampled share the generator.) on_token(i, token) is called with every
    token of prompt i as it comes. Raises ValueError if a prompt fills the context, or if the logits are not finite.
    """
    h, cache = read_prompts(model, prompts)
    step, drop_share = decoding_step(model)  # dropping finished rows pays if they are this share of the batch
    seen = adapter.seen_at_first(prompts) if adapter else None  # (B, V), what rule 3 penalises
    ends, answers = listed(eos_id), [[] for _ in prompts]
    limits = [min(max_new_tokens, model.config.context - len(prompt)) for prompt in prompts]
    rows = list(range(len(prompts)))  # the number i of the prompt that each row of the batch continues
    unfinished = set(rows)
    for n in range(max_new_tokens):
        # 1. Choose each row's next token, from the base model's logits and the rules' scores (equation 4).
        logits = model.logits(h).float()  # (B, V)
        check_finite(logits, h.dtype)
        if adapter:
            logits += adapter.scores(seen, n)
        token = choose(logits, temperature, top_p, generator)  # (B,)

        # 2. Note it, unless it ends the answer.
        for i, t in zip(rows, token.tolist()):
            if i in unfinished and t not in ends:
                answers[i].append(t)
                on_token(i, t)
            if t in ends or len(answers[i]) == limits[i]:
                unfinished.discard(i)
        if not unfinished:
            break

        # 3. Drop the finished rows, if they are many: dropping copies the cache.
        if len(unfinished) <= (1 - drop_share) * len(rows):
            kept = [row for row, i in enumerate(rows) if i in unfinished]
            rows = [rows[row] for row in kept]
            kept = torch.tensor(kept, device=model.device)  # (B',)
            token = token[kept]
            cache.keep(kept)
            if adapter:
                seen = seen[kept]

        # 4. One more step of the model: the output for the tokens just chosen.
        if adapter:
            seen.scatter_(1, token[:, None], True)
        if cache.longest == cache.n_slots:
            cache.grow()
        h = step(token, cache)  # (B, C)
        cache.advance(1)
    return answers


def read_prompts(model: Llama, prompts: list[list[int]]):
    """(h, cache): the prompts go through the model at once, padded on the right. h: (B, C), the output of each one's
    last token. Raises ValueError if a prompt fills the context."""
    longest = max(map(len, prompts))
    if longest >= model.config.context:
        raise ValueError(f"an instruction of {longest} tokens leaves no room to answer in a context of "
                         f"{model.config.context}; shorten it")
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)  # (B,)
    ids = pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True).to(model.device)  # (B, T)
    last = torch.arange(len(prompts), device=model.device) * longest + lengths - 1  # (B,), places in ids.flatten()
    cache = KVCache(model, len(prompts), longest + KVCache.BLOCK)
    h = model.hidden(ids, cache, wanted=last)  # (B, C)
    cache.advance(lengths)
    return h, cache


def check_finite(logits, dtype):
    """Raise ValueError if a row of (B, V) logits has NaN or infinity. dtype: of the model's computation."""
    if not logits.amax(1).isfinite().all():  # NaN is the largest
        remedy = "add --dtype bfloat16" if dtype == torch.float16 else "its weights are damaged"
        raise ValueError(f"the model's activations are not finite in {dtype}; {remedy}")


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


def answer(model: Llama, tokenizer: Tokenizer, instructions: list[str], **options) -> list[str]:
    """The responses to a batch of instructions as text; options as for `generate`."""
    prompts = [encode_prompt(tokenizer, instruction) for instruction in instructions]
    return [tokenizer.decode(ids).strip() for ids in generate(model, prompts, tokenizer.eos_ids, **options)]


def stream(model: Llama, tokenizer: Tokenizer, instruction: str, **options):
    """Print the response as it is decoded, holding back bytes that are not a character yet."""
    ids, shown = [], ""

    def show(_, token):
        nonlocal shown
        ids.append(token)
        text = tokenizer.decode(ids)
        if not text.endswith("\ufffd"):
            print(text[len(shown):], end="", flush=True)
            shown = text

    generate(model, [encode_prompt(tokenizer, instruction)], tokenizer.eos_ids, on_token=show, **options)
    print(tokenizer.decode(ids)[len(shown):])


# Files of answers in AlpacaEval's format. What made a file comes beside it: a.json has a.json.settings.json.

def write_answers(path: Path, instructions: list[str], settings: dict, decode):
    """Answer `instructions` batch by batch and write them to `path`. Several ranks share the batches.

    settings: all that determines the answers, with at least `generator` and `batch_size`. decode(instructions, start)
    returns the answers to a batch that begins at row `start`. Finished batches are kept in a journal until all are, so
    the same command goes on if it was stopped.
    """
    size, began = settings["batch_size"], time.perf_counter()
    keys = [digest([settings, i, instruction]) for i, instruction in enumerate(instructions)]
    partial = path.with_name(f"{path.name}.partial{distributed.rank() or ''}")
    with Journal(partial) as journal:
        # Which of this rank's batches are left?
        starts = range(0, len(keys), size)[distributed.rank() :: distributed.n_ranks()]
        left = [start for start in starts if not journal.values.keys() >= set(keys[start : start + size])]
        if len(left) < len(starts):
            print(f"{path}: continuing after {len(starts) - len(left)} of {len(starts)} batches", file=sys.stderr)

        # Each batch's answers are in the journal before the next one is decoded.
        for done, start in enumerate(left, 1):
            for key, output in zip(keys[start:], decode(instructions[start : start + size], start)):
                journal.add(key, output)
            rate = done / (time.perf_counter() - began)
            print(f"{path}: {done}/{len(left)} batches  {rate * size:.1f} answers/s  "
                  f"{clock((len(left) - done) / rate)} left", file=sys.stderr)

        # The first rank writes all ranks' answers. Until the new ones are whole, no settings vouch for the old file.
        outputs = {}
        for values in distributed.from_all(journal.values):
            outputs |= values
        if distributed.is_main():
            settings_file(path).unlink(missing_ok=True)
            write_json(path, [{"instruction": instruction, "output": outputs[key], "generator": settings["generator"]}
                              for instruction, key in zip(instructions, keys)])
            write_json(settings_file(path), settings)
        distributed.wait_for_all()
        partial.unlink()


def settings_file(path: Path) -> Path:
    return path.with_name(path.name + ".settings.json")  # a.txt and model-1.5 have others


def is_finished(path: Path, settings: dict) -> bool:
    """Whether `path` holds the answers that these settings give."""
    try:
        return path.exists() and read_json(settings_file(path), "") == settings
    except (OSError, ValueError):
        return False


def settings_of(args, path: Path, dtype: torch.dtype, instructions: list[str]) -> dict:
    """All that determines a file of answers, the code that a reader may change among it."""
    generator = str(path)
    if args.rules:
        generator += f" rules {','.join(args.rules)}"
    if args.penalise_prompt:
        generator += " and the prompt penalised"
    files = [path / "config.json", path / "tokenizer.json", *weight_files(path)]
    code = [Path(__file__).parent / name for name in ("generate.py", "adapter.py", "model.py", "data/format.py")]
    names = ("penalise_prompt", "batch_size", "max_new_tokens", "temperature", "top_p", "seed")
    settings = {name: getattr(args, name) for name in names}
    return settings | {"generator": generator, "model_sha256": fingerprint(*files), "code_sha256": fingerprint(*code),
                       "instructions_sha256": digest(instructions), "rules": list(args.rules), "dtype": str(dtype)}


def parse_rules(text: str) -> tuple[str, ...]:
    """"all", "none", or names of rules with commas between."""
    rules = {"all": RULES, "none": ()}.get(text, tuple(text.split(",")))
    if unknown := set(rules) - set(RULES):
        raise argparse.ArgumentTypeError(
            f"unknown rule {sorted(unknown)[0]!r}; the rules are {', '.join(RULES)}, all, none")
    return rules


def parse_arguments():
    parser = common.parser(__doc__)
    add = parser.add_argument
    add("--model", nargs="+", required=True,
        help="folder in the hub's layout, or ORG/NAME on the hub; several to compare")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--prompt", type=common.text, help="one instruction, whose response streams to the terminal")
    asked.add_argument("--input", type=common.path, help='file of {"instruction": ...} lines')
    add("--output", type=common.path, help="where the answers to --input go; without it they are printed")
    add("--limit", type=common.positive(int), help="answer only so many lines of --input, evenly spaced")
    add("--rules", type=parse_rules, default="none", metavar="all|none|eos,tokens,repeats",
        help="of the adapter; several with commas between")
    add("--penalise-prompt", action="store_true",
        help="rule 3 penalises the prompt's tokens, too, as in the authors' code")
    add("--max-new-tokens", type=common.positive(int), default=2048, help="the model's context ends a response too")
    add("--batch-size", type=common.positive(int), default=64, help="instructions answered side by side")
    add("--temperature", type=float, default=0.0, help="0 is greedy; else from 0.01 to 100")
    add("--top-p", type=float, default=1.0, help="sample from the likeliest tokens of this probability")
    add("--seed", type=common.seed, default=1, help="of sampling")
    add("--device", type=device_name, default=default_device())
    add("--dtype", choices=["float32", "bfloat16", "float16"],
        help="to compute in; default: bfloat16 on a GPU, else float32")
    args = parser.parse_args()
    if args.output and (not args.input or len(args.model) > 1):
        parser.error("--output goes with --input and one --model")
    if args.output and (args.output.resolve() == args.input.resolve()
                        or args.output.exists() and not args.output.is_file()):
        parser.error(f"--output {args.output} must be a file of its own")
    if args.penalise_prompt and "repeats" not in args.rules:
        parser.error("--penalise-prompt is a reading of rule 3; add --rules all, or rules with repeats among them")
    if not (args.temperature == 0 or 0.01 <= args.temperature <= 100) or not 0 < args.top_p <= 1:
        parser.error("--temperature is 0 or from 0.01 to 100, --top-p above 0 and at most 1")
    return args


def read_instructions(args) -> tuple[list[int], list[str]]:
    """(line numbers of --input, instructions there), or ([], [--prompt])."""
    if not args.input:
        return [], [args.prompt]
    rows = read_jsonl(args.input, check_fields("instruction"))
    limit = min(args.limit or len(rows), len(rows))
    lines = [i * len(rows) // limit + 1 for i in range(limit)]
    return lines, [rows[line - 1]["instruction"] for line in lines]


def load(args, path: Path, dtype: torch.dtype, lines: list[int], instructions: list[str]):
    """(model, tokenizer, options for `generate`) of one model. Raises ValueError if an instruction is too long."""
    model, tokenizer = Llama.from_pretrained(path, dtype, args.device).eval(), Tokenizer(path)
    reorder_weights_for_cpu(model, min(args.batch_size, len(instructions)))
    for line, instruction in zip(lines, instructions):  # all, before the first is answered
        if len(encode_prompt(tokenizer, instruction)) >= model.config.context:
            raise ValueError(f"{args.input} line {line}: the instruction fills the context of "
                             f"{model.config.context} tokens and leaves no room to answer; shorten it")
    options = {"max_new_tokens": args.max_new_tokens, "temperature": args.temperature, "top_p": args.top_p}
    if args.rules:
        options["adapter"] = Adapter(tokenizer, model.config.vocab_size, args.rules, args.device, args.penalise_prompt)
    return model, tokenizer, options


def respond(args, path: Path, dtype: torch.dtype, lines: list[int], instructions: list[str]) -> list[str]:
    """Answer with one model: into --output, to the terminal, or as the answers that are returned."""
    # Are the answers there already? The first rank looks, for all.
    if args.output:
        settings = distributed.from_main(lambda: settings_of(args, path, dtype, instructions))
        if distributed.from_main(lambda: is_finished(args.output, settings)):
            distributed.say(f"{args.output} is finished; remove it to decode it again")
            return []
    model, tokenizer, options = load(args, path, dtype, lines, instructions)

    # Each batch is seeded by its place, so that a run that was interrupted samples the same answers.
    def seeded(start):
        return options | {"generator": torch.Generator(args.device).manual_seed(args.seed * 1_000_003 + start)}

    def decode(batch, start):
        return answer(model, tokenizer, batch, **seeded(start))

    answers = []
    if args.output:
        write_answers(args.output, instructions, settings, decode)
    elif args.input:
        for start in range(0, len(instructions), args.batch_size):
            answers += decode(instructions[start : start + args.batch_size], start)
    else:
        if len(args.model) > 1:
            print(f"[{path}]")
        stream(model, tokenizer, args.prompt, **seeded(0))
    return answers


def main():
    args = parse_arguments()
    # The ranks meet only at the end, and one may wait long for the others there.
    args.device = distributed.start_ranks(args.device, "gloo", timeout=timedelta(days=7))
    if distributed.n_ranks() > 1 and not args.output:
        raise ValueError("under torchrun, --input and --output say what is split over the ranks; add them")
    lines, instructions = read_instructions(args)
    dtype = getattr(torch, args.dtype or ("bfloat16" if args.device.startswith("cuda") else "float32"))
    shown = {path: respond(args, path, dtype, lines, instructions) for path in map(model_folder, args.model)}
    if args.input and not args.output:
        for i, instruction in enumerate(instructions):
            print(f"\n{instruction}")
            for path, answers in shown.items():
                indented = answers[i].replace("\n", "\n    ")
                print(f"  [{path}]\n    {indented}")
    distributed.end_ranks()


if __name__ == "__main__":
    common.run(main, interrupted="with --output, the same command continues after the last whole batch",
               out_of_memory="lower --batch-size")
