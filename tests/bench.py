"""Speed and memory on this machine, and what share of the hardware's limits is reached.

    make bench [MODEL=folder]
    python tests/bench.py --model DIR --data FILE.jsonl --dtype bfloat16 --rounds 3

Every piece of work runs in a process of its own, so that its peak memory is its own. The works take turns, so that a
shared machine's slow minutes fall on all alike; figures are medians over the rounds. If transformers can be imported,
it does the same work in turn; so does llama.cpp, for one sequence, if llama_cpp and gguf can be imported.
"""
import argparse
import os
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
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

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

OURS, BATCHES = "nanofollow", (1, 16, 64)
PROMPT = "What is the capital of France?"
LONGEST = 1024  # tokens at which a training example is cut, or at the model's context
COLUMNS = ("tokens/s", "GFLOP/s", "GB/s", "% of the limit", "seconds", "peak memory, MiB")


def seconds(work) -> float:
    """The median time of a call of `work`, over a second of calls after a first one that is a warm-up.
    Work that takes ten seconds is done once."""
    times = []
    while not times or sum(times[1:]) < 1 and times[0] < 10:
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:] or times)


def alone(work, args, *options) -> dict:
    """The figures of work(args, *options) in a new process, which Ctrl-C ends at once, and the peak of its memory.
    Raises OSError if it is killed."""
    environment = {"OMP_NUM_THREADS": "1"} if work is worker else {}
    with patch.dict(os.environ, environment), ProcessPoolExecutor(
            1, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_DFL)) as pool:
        try:
            figures = pool.submit(work, args, *options).result()
            return figures | {"peak memory, MiB": pool.submit(peak_memory, args.device).result() / 2**20}
        except BrokenExecutor:
            raise OSError(f"{work.__name__} was killed, often because memory ran out; try fewer --examples") from None


def peak_memory(device: str) -> int:
    """The most bytes that this process, or one that it started, has held: of the GPU's memory or of the machine's."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    most = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return most if sys.platform == "darwin" else 1024 * most


def machine(args) -> dict:
    """The limits: of training a matrix product, in bf16 if that is fast, and of decoding how fast memory is read."""
    n = 8192 if args.device.startswith("cuda") else 2048
    a = torch.randn(n, n, device=args.device, dtype=torch.bfloat16 if fast_bf16(args.device) else torch.float32)
    big = torch.ones(2**27, device=args.device)
    return {"GFLOP/s": 2 * n**3 / seconds(lambda: a @ a) / 1e9, "GB/s": big.nbytes / seconds(big.sum) / 1e9}


def training_examples(args) -> list:
    """(ids, labels) of the first exchanges of args.examples dialogues, from --data or else from the world.

    Tokens that are cut off are neither computed nor counted. Raises ValueError if nothing is left to score.
    """
    tokenizer, longest = Tokenizer(args.model), min(LONGEST, Config.from_json(args.model / "config.json").context)
    rows = read_jsonl(args.data, check_dialogue) if args.data else World().training_set("broad", 1000)
    random.Random(0).shuffle(rows)
    examples = [encode(tokenizer, row["messages"][:2], longest) for row in rows[: args.examples]]
    if scored := list(filter(n_scored, examples)):
        return scored
    raise ValueError(f"no response begins within {longest} tokens; choose other dialogues with --data")


def load(args, who: str, dtype):
    """The model in our code, in that of transformers, where parts and settings have the same names, or in llama.cpp."""
    if who == "transformers":
        from transformers import AutoModelForCausalLM
        return AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).to(args.device).eval()
    if who == "llama.cpp":
        from llama_cpp import Llama as LlamaCpp
        threads = torch.get_num_threads()
        return LlamaCpp(str(args.gguf), n_ctx=1024, n_threads=threads, n_threads_batch=threads, use_mmap=False,
                        verbose=False)
    return Llama.from_pretrained(args.model, dtype, args.device).eval()


def train(args, who: str) -> dict:
    """A forward and backward pass over all examples. Transformers does it as its trainer: in random order, in
    micro-batches of 4, each padded to its longest."""
    prepare(args.device)
    model, examples, bf16 = load(args, who, torch.float32).train(), training_examples(args), fast_bf16(args.device)
    if args.compile and who == OURS:
        compile_layers(model)

    def padded(rows, value):
        return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value).to(args.device)

    def work():
        if who == OURS:
            return accumulate_gradient(model, examples, args.token_budget, bf16)
        for i in range(0, len(examples), 4):
            ids, labels = zip(*examples[i : i + 4])
            mask = padded([[1] * len(row) for row in ids], 0)
            with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
                loss = model(padded(ids, 0), attention_mask=mask, labels=padded(labels, IGNORE)).loss
            loss.backward()

    # Forward and backward take 6 operations for each weight that a token meets, and 12 T^2 for each of attention's
    # channels, of which causality leaves half.
    lengths, config = [len(ids) for ids, _ in examples], model.config
    weights = sum(p.numel() for p in model.model.layers.parameters() if p.ndim == 2)
    flops = 6 * weights * sum(lengths) + 6 * config.vocab_size * config.hidden_size * sum(map(n_scored, examples))
    channels = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    flops += 6 * channels * sum(n * n for n in lengths)
    taken = seconds(work)
    return {"tokens/s": sum(lengths) / taken, "GFLOP/s": flops / taken / 1e9}


@torch.inference_mode()
def decode(args, who: str, batch: int, ruled: bool) -> dict:
    """args.tokens tokens for each row of a batch, with all rules or without."""
    dtype, tokenizer = getattr(torch, args.dtype), Tokenizer(args.model)
    model, prompt = load(args, who, dtype), encode_prompt(tokenizer, PROMPT)
    ids = torch.tensor([prompt] * batch, device=args.device)
    with torch.device("meta"):
        shape = Llama(Config.from_json(args.model / "config.json"))
    adapter = Adapter(tokenizer, shape.config.vocab_size, device=args.device) if ruled else None
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
            list(islice(model.generate(prompt, temp=0), args.tokens))
        else:
            as_the_papers_code(model, prompt, args.tokens, adapter)

    # A step reads all weights once, but of the embedding a few rows, unless it is the vocabulary matrix, too.
    n_read = sum(p.numel() for p in shape.parameters())
    if not shape.config.tie_word_embeddings:
        n_read -= shape.model.embed_tokens.weight.numel()
    step = seconds(work) / args.tokens
    return {"tokens/s": batch / step, "GB/s": n_read * dtype.itemsize / step / 1e9}


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
        scores[adapter.eos_id] = -torch.inf
        ids.append(int(scores.argmax()))


def write_gguf(args) -> dict:
    """Write the model in llama.cpp's format, without its tokenizer, since only ids go in."""
    import gguf

    model = Llama.from_pretrained(args.model)
    config, writer = model.config, gguf.GGUFWriter(args.gguf, "llama")
    for name, value in {
            "context_length": config.context, "embedding_length": config.hidden_size, "vocab_size": config.vocab_size,
            "block_count": config.num_hidden_layers, "feed_forward_length": config.intermediate_size,
            "head_count": config.num_attention_heads, "head_count_kv": config.num_key_value_heads,
            "key_length": config.head_dim, "value_length": config.head_dim, "rope_dimension_count": config.head_dim,
            "rope_freq_base": config.rope_theta, "layer_norm_rms_eps": config.rms_norm_eps,
            "tokenizer_model": "none"}.items():
        getattr(writer, f"add_{name}")(value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # it turns neighbours, where the hub's layout has halves
            weight = weight.view(-1, 2, config.head_dim // 2, config.hidden_size).transpose(1, 2).reshape(weight.shape)
        kind = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[args.dtype] if weight.ndim == 2 else "F32"
        kind = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(names.get_name(name, (".weight",)), gguf.quants.quantize(weight.numpy(), kind), raw_dtype=kind)
    for part in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{part}_to_file")()
    writer.close()
    return {}


def main_job(args) -> dict:
    """The training of `make train METHOD=response`, of the bundled model whatever --model is."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "data/world.py", "--out", folder], cwd=ROOT, check=True)
        began = time.perf_counter()
        subprocess.run([sys.executable, "train.py", "--method", "response", "--data", folder, "--out", folder + "/out"],
                       cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
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
    """{(what, by whom): (function, *options)}"""
    found = {("the limits", "the machine"): (machine,)}
    for who in [OURS] + ["transformers"] * (find_spec("transformers") is not None):
        found["training", who] = train, who
        for batch in BATCHES:
            found[f"decoding, batch {batch}", who] = decode, who, batch, False
    if find_spec("llama_cpp") and find_spec("gguf"):
        found["decoding, batch 1", "llama.cpp"] = decode, "llama.cpp", 1, False
    for batch in BATCHES:
        found[f"decoding, batch {batch}, all rules", OURS] = decode, OURS, batch, True
    found["decoding, batch 1, all rules", "the paper's code"] = decode, "the paper's code", 1, True
    found["make train METHOD=response (wanted: 700 MiB)", OURS] = (main_job,)
    found["a worker of make table (wanted: 600 MiB)", OURS] = (worker,)
    return found


def table(runs: dict) -> str:
    """Markdown: the medians of all rounds, and what share of the machine's limit they are."""
    rows, limits = [], {}
    for (what, who), rounds in runs.items():
        figures = {unit: statistics.median(figures[unit] for figures in rounds) for unit in rounds[0]}
        limits = limits or figures
        for unit in limits.keys() & figures.keys() & {"GFLOP/s", "GB/s"}:
            figures["% of the limit"] = 100 * figures[unit] / limits[unit]
        cells = {column: f"{figures[column]:,.1f}" if column in figures else "–" for column in COLUMNS}
        rows.append({"work": what, "by": who} | cells)
    return markdown(rows)


def parse_arguments():
    parser = common.parser(__doc__)
    add = parser.add_argument
    add("--model", default="data/tiny", help="folder, or ORG/NAME on the hub")
    add("--data", type=Path, help='lines of {"messages": [...]} to train on (default: the world\'s)')
    add("--examples", type=common.positive(int), default=32, help="how many of them")
    add("--token-budget", type=common.positive(int), help="tokens in a micro-batch (default: train.py's)")
    add("--compile", action=argparse.BooleanOptionalAction, help="the layers in training (default: on a GPU)")
    add("--device", type=device_name, default=default_device())
    add("--dtype", choices=["float32", "bfloat16", "float16"],
        help="to decode in (default: bfloat16 on a GPU, else float32)")
    add("--tokens", type=common.positive(int), default=128, help="to decode")
    add("--rounds", type=common.positive(int), default=1, help="how often to repeat it all")
    args = parser.parse_args()
    cuda = args.device.startswith("cuda")
    args.dtype = args.dtype or ("bfloat16" if cuda else "float32")
    args.token_budget = args.token_budget or (GPU_TOKEN_BUDGET if cuda else CPU_TOKEN_BUDGET)
    args.compile = cuda if args.compile is None else args.compile
    return args


def main():
    args, runs = parse_arguments(), {}
    args.model = model_folder(args.model)
    room = Config.from_json(args.model / "config.json").context - len(encode_prompt(Tokenizer(args.model), PROMPT))
    args.tokens, n_examples = min(args.tokens, room), len(training_examples(args))
    with tempfile.TemporaryDirectory() as folder:
        args.gguf = Path(folder) / "model.gguf"
        if ("decoding, batch 1", "llama.cpp") in works():
            alone(write_gguf, args)
        for i in range(args.rounds):
            for name, (work, *options) in works().items():
                runs.setdefault(name, []).append(alone(work, args, *options))
                print(f"round {i + 1} of {args.rounds}: {', '.join(name)}", file=sys.stderr)
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else f"CPU, {torch.get_num_threads()} threads"
    print(f"{device}, torch {torch.__version__}. {args.model}, {n_examples} dialogues, "
          f"{args.tokens} tokens decoded in {args.dtype}\n\n{table(runs)}")


if __name__ == "__main__":
    common.run(main, out_of_memory="--examples or --token-budget makes the work smaller")
