"""Speed and memory on this machine, and how near they come to the limits of its hardware.

    make bench [MODEL=folder]
    python tests/bench.py --model DIR --data FILE.jsonl --dtype bfloat16 --rounds 3

Every piece of work runs in a process of its own, so that its peak memory is its own. The works take turns, so that a
shared machine's slow minutes fall on all alike; figures are medians over the rounds. If transformers can be imported,
it does the same work in turn; so does llama.cpp, for one sequence, if llama_cpp and gguf can be imported.
"""
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from data import common  # first: Ctrl-C is quiet from here on

import torch
from torch.nn.utils.rnn import pad_sequence

from adapter import Adapter
from data.common import markdown, read_jsonl
from data.device import compile_layers, default_device, device_name, fast_bf16, prepare, reorder_weights_for_cpu
from data.format import IGNORE, Tokenizer, check_dialogue, encode, encode_prompt
from data.hub import model_folder
from data.world import World
from generate import generate
from lab import lab
from model import Config, Llama
from paper import answers
from train import CPU_TOKEN_BUDGET, GPU_TOKEN_BUDGET, accumulate_gradient, n_scored

OURS = "nanofollow"
KINDS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # types by their names in torch and in llama.cpp
COLUMNS = ("tokens/s", "GFLOP/s", "GB/s", "% of the limit", "seconds", "peak memory, MiB")


def seconds(work) -> float:
    """The median time of a call of `work`, over a second of calls after a warm-up; of work that takes long, once."""
    times = []
    while not times or sum(times[1:]) < 1 and times[0] < 10:
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:] or times)


def alone(work, args, *options) -> dict:
    """The figures of work(args, *options) in a new process, and its peak memory. Raises OSError if it is killed."""
    spawn, quiet = torch.multiprocessing.get_context("spawn"), (signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it
    with ProcessPoolExecutor(1, spawn, signal.signal, quiet) as pool:
        try:
            figures = pool.submit(work, args, *options).result() or {}
            return figures | {"peak memory, MiB": pool.submit(peak_memory).result() / 2**20}
        except BrokenExecutor:
            raise OSError(f"{work.__name__} was killed, often because memory ran out; try fewer --examples") from None


def peak_memory() -> int:
    """The most bytes that this process has held of a GPU's memory; if none, that it or a child has of the machine's."""
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return torch.cuda.max_memory_allocated() or peak * (1 if sys.platform == "darwin" else 1024)


def limits(args) -> dict:
    """Of the machine: for training a matrix product, in bf16 if that is fast; for decoding how fast memory is read."""
    n = 8192 if args.cuda else 2048
    a = torch.randn(n, n, device=args.device, dtype=torch.bfloat16 if fast_bf16(args.device) else torch.float32)
    big = torch.ones(2**27, device=args.device)
    return {"GFLOP/s": 2 * n**3 / seconds(lambda: a @ a) / 1e9, "GB/s": big.nbytes / seconds(big.sum) / 1e9}


def training_examples(args) -> list:
    """(ids, labels) of the first exchanges of some dialogues, from --data or else from the world. Tokens that are cut
    off are neither computed nor counted. Raises ValueError if nothing is left to score."""
    tokenizer, longest = Tokenizer(args.model), min(1024, args.config.context)
    rows = read_jsonl(args.data, check_dialogue) if args.data else World().training_set("broad", 1000)
    rows = random.Random(0).sample(rows, min(args.examples, len(rows)))
    examples = [encode(tokenizer, row["messages"][:2], longest) for row in rows]
    if scored := list(filter(n_scored, examples)):
        return scored
    raise ValueError(f"no response begins within {longest} tokens; choose other dialogues with --data")


def load(args, who: str, dtype):
    """The model in our code, in transformers', where parts and settings have the same names, or in llama.cpp."""
    if who == "transformers":
        from transformers import AutoModelForCausalLM
        return AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).to(args.device).eval()
    if who == "llama.cpp":
        from llama_cpp import Llama as LlamaCpp
        return LlamaCpp(str(args.gguf), n_ctx=len(args.prompt) + args.tokens, n_threads=torch.get_num_threads(),
                        verbose=False)
    return Llama.from_pretrained(args.model, dtype, args.device).eval()


def train(args, who: str) -> dict:
    """A forward and backward pass over all examples; by transformers as its trainer does it, four by four, padded."""
    prepare(args.device)
    model, examples, bf16 = load(args, who, torch.float32).train(), training_examples(args), fast_bf16(args.device)
    if args.cuda and who == OURS:
        compile_layers(model)
    tensors = [(torch.tensor(ids, device=args.device), torch.tensor(y, device=args.device)) for ids, y in examples]

    def work():
        if who == OURS:
            return accumulate_gradient(model, examples, GPU_TOKEN_BUDGET if args.cuda else CPU_TOKEN_BUDGET, bf16)
        for i in range(0, len(examples), 4):
            ids, labels = (pad_sequence(rows, True, IGNORE) for rows in zip(*tensors[i : i + 4]))
            with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
                loss = model(ids.clamp(min=0), (ids != IGNORE).long(), labels=labels).loss
            loss.backward()

    # Both passes take 6 operations for a weight that a token meets, and for a channel of attention half of 12 T^2.
    lengths, config = [len(ids) for ids, _ in examples], args.config
    channels = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    flops = 6 * (args.n_in_layers * sum(lengths) + args.n_in_head * sum(map(n_scored, examples)))
    flops += 6 * channels * sum(n * n for n in lengths)
    taken = seconds(work)
    return {"tokens/s": sum(lengths) / taken, "GFLOP/s": flops / taken / 1e9}


@torch.inference_mode()
def decode(args, who: str, batch: int, ruled: bool = False) -> dict:
    """args.tokens tokens for each row of a batch, with all three rules or without. A step reads the weights once."""
    dtype, ids = getattr(torch, args.dtype), torch.tensor([args.prompt] * batch, device=args.device)
    model = load(args, who, dtype)
    adapter = Adapter(Tokenizer(args.model), args.config.vocab_size, device=args.device) if ruled else None
    if who == OURS:
        reorder_weights_for_cpu(model, batch)

    def work():
        if who == OURS:
            generate(model, ids.tolist(), -1, args.tokens, adapter=adapter)  # -1: no token ends a row early
        elif who == "transformers":
            model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=args.tokens,
                           max_new_tokens=args.tokens)
        elif who == "llama.cpp":
            model.reset()
            list(islice(model.generate(args.prompt, temp=0), args.tokens))
        else:
            as_the_papers_code(model, args.prompt, args.tokens, adapter)

    step = seconds(work) / args.tokens
    return {"tokens/s": batch / step, "GB/s": (args.n_in_layers + args.n_in_head) * dtype.itemsize / step / 1e9}


def as_the_papers_code(model: Llama, prompt: list[int], n_tokens: int, adapter: Adapter):
    """One sequence at a time, the whole prefix again for every token, the rules in Python, token by token."""
    ids, shifts = list(prompt), adapter.token_shift.tolist()
    for n in range(n_tokens):
        scores = model(torch.tensor([ids], device=model.device))[0, -1].float()
        for i in adapter.token_shift.nonzero()[:, 0].tolist():
            scores[i] += shifts[i]
        scores[adapter.eos_id] += adapter.eos_slope * n
        for i in set(ids[len(prompt) :]):
            scores[i] -= adapter.repeat_penalty
        ids.append(int(scores.argmax()))


def write_gguf(args):
    """Write the model in llama.cpp's format, without a tokenizer, and with the rows of q and k in the hub's order: that
    is enough to measure its speed, and not for good answers."""
    import gguf
    config, writer = args.config, gguf.GGUFWriter(args.gguf, "llama")
    for name, value in {
            "tokenizer_model": "none", "vocab_size": config.vocab_size, "context_length": config.context,
            "embedding_length": config.hidden_size, "feed_forward_length": config.intermediate_size,
            "block_count": config.num_hidden_layers, "head_count": config.num_attention_heads,
            "head_count_kv": config.num_key_value_heads, "key_length": config.head_dim, "value_length": config.head_dim,
            "rope_freq_base": config.rope_theta, "layer_norm_rms_eps": config.rms_norm_eps}.items():
        getattr(writer, f"add_{name}")(value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in Llama.from_pretrained(args.model).state_dict().items():
        kind = gguf.GGMLQuantizationType[KINDS[args.dtype] if weight.ndim == 2 else "F32"]
        weight = gguf.quants.quantize(weight.numpy(), kind)
        writer.add_tensor(names.get_name(name, (".weight",)), weight, raw_dtype=kind)
    for part in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{part}_to_file")()
    writer.close()


def main_job(args) -> dict:
    """What `make train METHOD=response` trains: the bundled model, whatever --model is."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "data/world.py", "--out", folder], cwd=ROOT, check=True)
        began, line = time.perf_counter(), f"train.py --method response --data {folder} --out {folder}/out".split()
        subprocess.run([sys.executable, *line], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return {"seconds": time.perf_counter() - began}


def worker(args) -> dict:
    """Work of `make table`: tune the bundled model on 1,000 responses, two epochs, and ask it a batch and one more."""
    lab.begin()
    began, world = time.perf_counter(), World()
    instructions = [task.instruction for task in world.evaluation_sets()["eval"][:65]]
    with tempfile.TemporaryDirectory() as folder:
        lab.KEPT = Path(folder)
        answers(ROOT / "data/tiny", world, "response", 2, 1, instructions)
    return {"seconds": time.perf_counter() - began}


def works() -> dict:
    """What is measured: {(what, by whom): (function, *options)}."""
    engines = [OURS, "transformers"] if find_spec("transformers") else [OURS]
    found = {("limits", "the machine"): (limits,)} | {("training", who): (train, who) for who in engines}
    for batch in (1, 16, 64):
        found |= {(f"decoding, batch {batch}", who): (decode, who, batch) for who in engines}
        found[f"decoding, batch {batch}, all rules", OURS] = decode, OURS, batch, True
    found["decoding, batch 1, all rules", "the paper's code"] = decode, "the paper's code", 1, True
    if find_spec("llama_cpp") and find_spec("gguf"):
        found["decoding, batch 1", "llama.cpp"] = decode, "llama.cpp", 1
    found["a worker of make table (wanted: 600 MB)", OURS] = (worker,)
    found["make train METHOD=response (wanted: 700 MB)", OURS] = (main_job,)
    return found


def table(runs: dict) -> str:
    """Markdown: the medians of all rounds, and their share of the machine's limit."""
    medians, rows = {}, []
    for name, rounds in runs.items():
        medians[name] = {unit: statistics.median(figures[unit] for figures in rounds) for unit in rounds[0]}
    for (what, who), figures in medians.items():
        for unit in figures.keys() & {"GFLOP/s", "GB/s"}:
            figures["% of the limit"] = 100 * figures[unit] / medians["limits", "the machine"][unit]
        rows.append({"work": what, "by": who} | {
            column: f"{figures[column]:,.1f}" if column in figures else "–" for column in COLUMNS})
    return markdown(rows)


def main():
    parser, count = common.parser(__doc__), common.positive(int)
    parser.add_argument("--model", default="data/tiny", help="folder, or ORG/NAME on the hub")
    parser.add_argument("--data", type=Path, help='lines of {"messages": [...]} to train on (default: the world\'s)')
    parser.add_argument("--examples", type=count, default=32, help="how many of them")
    parser.add_argument("--device", type=device_name, default=default_device())
    parser.add_argument("--dtype", choices=KINDS, help="to decode in (default: bfloat16 on a GPU, else float32)")
    parser.add_argument("--tokens", type=count, default=128, help="to decode")
    parser.add_argument("--rounds", type=count, default=1, help="how often to repeat it all")
    args, runs = parser.parse_args(), {}
    args.cuda = args.device.startswith("cuda")
    args.dtype = args.dtype or ("bfloat16" if args.cuda else "float32")

    # The model, how many weights a token meets in it, how many tokens it can decode, and the examples to train it on.
    args.model = model_folder(args.model)
    args.config = Config.from_json(args.model / "config.json")
    with torch.device("meta"):
        args.n_in_layers = sum(p.numel() for p in Llama(args.config).model.layers.parameters())
    args.n_in_head = args.config.vocab_size * args.config.hidden_size
    args.prompt = encode_prompt(Tokenizer(args.model), "What is the capital of France?")
    args.tokens = min(args.tokens, args.config.context - len(args.prompt))
    examples = training_examples(args)

    # The works, in turn; and a table of all.
    with tempfile.TemporaryDirectory() as folder:
        args.gguf = Path(folder) / "model.gguf"
        if ("decoding, batch 1", "llama.cpp") in works():
            alone(write_gguf, args)
        for i in range(args.rounds):
            for name, (work, *options) in works().items():
                runs.setdefault(name, []).append(alone(work, args, *options))
                print(f"round {i + 1} of {args.rounds}: {', '.join(name)}", file=sys.stderr)
    device = torch.cuda.get_device_name() if args.cuda else f"CPU, {torch.get_num_threads()} threads"
    print(f"{args.model} on {device}, torch {torch.__version__}. Training: {len(examples)} dialogues. "
          f"Decoding: {args.tokens} tokens, {args.dtype}.\n\n{table(runs)}")


if __name__ == "__main__":
    common.run(main, out_of_memory="--examples makes the work smaller")
