"""Speed and memory on this machine: training, decoding, what the rules cost, and the limits of the hardware.

    make bench [MODEL=folder]
    python tests/bench.py --model DIR --data FILE.jsonl --dtype bfloat16 --rounds 3
    python tests/bench.py --model DIR --profile  # where the time goes
    python tests/bench.py --growth               # how time grows with length, batch and model size
    python tests/bench.py --sample               # a sample of the laboratory: tune a model, ask it, grade it
    python tests/bench.py --memory CONFIG        # an estimate of what training takes on 1, 2, 4 and 8 GPUs

Every piece of work runs in a process of its own, so that its peak memory is its own. The works take turns, so that
a shared machine's slow minutes fall on all alike; figures are medians over the rounds. Where transformers can
be imported, it does the same work in turn; and so does llama.cpp, for one sequence, where llama_cpp and gguf can.
"""
import importlib.util
import json
import multiprocessing
import random
import resource
import signal
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from data import common  # first: Ctrl-C is quiet from here on

import numpy
import torch

from adapter import RULES, Adapter
from data import answer_key
from data.hub import model_folder
from data.common import read_jsonl
from data.format import Tokenizer, check_dialogue, encode, encode_prompt
from data.device import (compile_decoding, compile_layers, default_device, device_name, fast_bf16, has_compiler,
                          prepare, reorder_weights_for_cpu)
from data.world import World
from generate import generate
from lab import lab
from model import Config, Llama
from train import CPU_TOKEN_BUDGET, GPU_TOKEN_BUDGET, LinearCrossEntropy, accumulate_gradient, n_scored

PROMPT = "What is the capital of France?"
LONGEST = 1024  # tokens at which a training example is cut, or at the model's context
BATCHES = (1, 16, 64)
POINTS = ((1, 256), (1, 512), (1, 1024), (1, 2048), (4, 256), (16, 256))  # batch, length: of --growth


def seconds(work, least: float = 1.0) -> float:
    """The median time of a call of `work`, over `least` seconds of calls behind a first one that is a warm-up.
    Work that takes ten times as long is done once."""
    times = []
    while not times or sum(times[1:]) < least and times[0] < 10 * least:
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


def training_examples(args, tokenizer: Tokenizer) -> list:
    """(ids, labels) of the first exchanges of args.examples dialogues, from --data or else from the world.

    Tokens that are cut off are neither computed nor counted. Raises ValueError where nothing is left to score.
    """
    rows = read_jsonl(args.data, check_dialogue) if args.data else World().training_set("broad", 1000)
    random.Random(0).shuffle(rows)
    examples = [encode(tokenizer, row["messages"][:2], args.max_length) for row in rows[: args.examples]]
    if scored := [example for example in examples if n_scored(example)]:
        return scored
    raise ValueError(f"no response begins within {args.max_length} tokens; choose other dialogues with --data")


def token_budget(args) -> int:
    return args.token_budget or (GPU_TOKEN_BUDGET if args.device.startswith("cuda") else CPU_TOKEN_BUDGET)


def peaks(args) -> dict:
    """The hardware's limits: FLOP/s of a matrix product, in bf16 where that is fast, and bytes/s of reading memory."""
    n = 8192 if args.device.startswith("cuda") else 2048
    a = torch.randn(n, n, device=args.device, dtype=torch.bfloat16 if fast_bf16(args.device) else torch.float32)
    big = torch.ones(2**27, device=args.device)
    return {"matmul": 2 * n**3 / seconds(lambda: a @ a),
            "read": big.numel() * 4 / seconds(big.sum)}


def train_ours(args) -> dict:
    prepare(args.device)
    began = time.perf_counter()
    tokenizer, model = Tokenizer(args.model), Llama.from_pretrained(args.model, device=args.device)
    load = time.perf_counter() - began
    examples = training_examples(args, tokenizer)
    if args.compile:
        compile_layers(model)

    def work(n):
        accumulate_gradient(model, examples[:n], token_budget(args), fast_bf16(args.device))

    began = time.perf_counter()
    work(2)
    first = time.perf_counter() - began
    if args.compile:
        work(None)  # other shapes may be compiled anew
    taken = seconds(lambda: work(None))
    lengths, config = [len(ids) for ids, _ in examples], model.config
    per_layer = sum(p.numel() for p in model.model.layers.parameters() if p.ndim == 2)
    vocabulary = config.vocab_size * config.hidden_size
    attention = config.num_hidden_layers * config.num_attention_heads * config.head_dim * sum(n * n for n in lengths)
    # forward and backward take 6 a weight and 12 T^2 an attention channel, of which causality leaves half
    flops = 6 * (per_layer * sum(lengths) + vocabulary * sum(map(n_scored, examples)) + attention)
    return {"tokens_per_s": sum(lengths) / taken, "flops_per_s": flops / taken, "first_s": first, "load_s": load,
            "peak_memory": peak_memory(args)}


def train_transformers(args) -> dict:
    """As a trainer runs it: random order, micro-batches of 4, each padded to its longest."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).to(args.device).train()
    examples = training_examples(args, Tokenizer(args.model))

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
    tokenizer, result = Tokenizer(args.model), {}
    for batch in BATCHES[:1] if args.compile and args.device == "cpu" else BATCHES:
        model = Llama.from_pretrained(args.model, getattr(torch, args.dtype), args.device).eval()
        weights = sum(p.nbytes for p in model.parameters() if p is not model.model.embed_tokens.weight)
        weights += model.head.weight.nbytes if model.config.tie_word_embeddings else 0
        (compile_decoding if args.compile else reorder_weights_for_cpu)(model, batch)
        adapter = Adapter(tokenizer, model.config.vocab_size, device=args.device)
        prompts = [encode_prompt(tokenizer, PROMPT)] * batch
        generate(model, prompts, -1, 8)  # -1: an EOS that no row can emit keeps every row to the end
        taken = seconds(lambda: generate(model, prompts, -1, args.tokens))
        ruled = seconds(lambda: generate(model, prompts, -1, args.tokens, adapter=adapter))
        result |= {f"decode_{batch}": batch * args.tokens / taken, f"ruled_{batch}": batch * args.tokens / ruled,
                   f"rules_share_{batch}": rules_seconds(adapter, batch, model) / (taken / args.tokens),
                   f"weights_per_s_{batch}": weights / (taken / args.tokens)}
        del model  # before the next one is loaded
    return result | {"peak_memory": peak_memory(args)}


def rules_seconds(adapter, batch: int, model: Llama) -> float:
    """The rules' part of a step of decoding, timed alone: it is a few percent, which the noise of whole runs hides."""
    logits = torch.zeros(batch, model.config.vocab_size, device=model.device)
    seen = torch.zeros_like(logits, dtype=torch.bool)
    token = torch.zeros(batch, 1, dtype=torch.int64, device=model.device)

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
            model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
                           max_new_tokens=n, min_new_tokens=n)

        work(8)
        result[f"decode_{batch}"] = batch * args.tokens / seconds(lambda: work(args.tokens))
    return result | {"peak_memory": peak_memory(args)}


def decode_llama_cpp(args) -> dict:
    """One sequence, with the same weights in the same type."""
    import llama_cpp

    prompt = encode_prompt(Tokenizer(args.model), PROMPT)
    vocab_size = Config.from_json(args.model / "config.json").vocab_size
    quiet = llama_cpp.llama_log_callback(lambda *_: None)  # named, since C keeps no reference to it
    llama_cpp.llama_log_set(quiet, None)
    with tempfile.TemporaryDirectory() as folder:
        write_gguf(args.model, Path(folder) / "model.gguf", args.dtype)
        loading = llama_cpp.llama_model_default_params()
        loading.use_mmap = False
        model = llama_cpp.llama_model_load_from_file(f"{folder}/model.gguf".encode(), loading)
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_batch = len(prompt) + args.tokens, len(prompt)
    settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
    context = llama_cpp.llama_init_from_model(model, settings)

    def work(n):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        new, answer = prompt, []
        while len(answer) < n:
            tokens = (llama_cpp.llama_token * len(new))(*new)
            if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, len(new))):
                raise ValueError("llama.cpp could not decode")
            logits = numpy.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), (vocab_size,))
            new = [int(logits.argmax())]
            answer += new
        return answer

    work(8)  # no peak memory, which would be that of writing the file
    return {"decode_1": args.tokens / seconds(lambda: work(args.tokens))}


def write_gguf(folder: Path, path: Path, dtype: str):
    """A model in llama.cpp's format, without its tokenizer, since only ids go in."""
    import gguf

    model = Llama.from_pretrained(folder)
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    kind = gguf.GGMLQuantizationType[{"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[dtype]]
    for add, value in {
            writer.add_context_length: config.context, writer.add_embedding_length: config.hidden_size,
            writer.add_block_count: config.num_hidden_layers, writer.add_feed_forward_length: config.intermediate_size,
            writer.add_head_count: config.num_attention_heads, writer.add_head_count_kv: config.num_key_value_heads,
            writer.add_key_length: config.head_dim, writer.add_value_length: config.head_dim,
            writer.add_rope_dimension_count: config.head_dim, writer.add_rope_freq_base: config.rope_theta,
            writer.add_layer_norm_rms_eps: config.rms_norm_eps, writer.add_vocab_size: config.vocab_size,
            writer.add_tokenizer_model: "none"}.items():
        add(value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # it turns neighbours, where the hub's layout has halves
            weight = weight.view(-1, 2, config.head_dim // 2, config.hidden_size).transpose(1, 2).reshape(weight.shape)
        its_kind = gguf.GGMLQuantizationType.F32 if weight.ndim == 1 else kind
        writer.add_tensor(names.get_name(name, (".weight",)), gguf.quants.quantize(weight.numpy(), its_kind),
                          raw_dtype=its_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


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
    """Seconds of a forward and backward pass and of a step of decoding, for random models of several sizes."""
    prepare(args.device)
    sizes = {  # hidden_size, intermediate_size, layers, heads, key/value heads, vocabulary
        "2M": (192, 512, 4, 4, 2, 1536), "15M": (384, 1024, 6, 6, 2, 8192), "135M": (576, 1536, 30, 9, 3, 49152)}
    result = {}
    for name, (hidden, inner, layers, heads, kv_heads, vocabulary) in sizes.items():
        config = Config(vocabulary, hidden, inner, layers, heads, 4096, eos_token_id=1, num_key_value_heads=kv_heads,
                        tie_word_embeddings=True)
        model = Llama(config).init_weights().to(args.device)
        training, decoding = result[f"training, {name}"], result[f"decoding, {name}"] = {}, {}
        for batch, length in POINTS[-1:] + POINTS:  # the largest first, as a warm-up: new memory is slow
            step = [(ids, ids) for ids in torch.randint(vocabulary, (batch, length)).tolist()]
            training[f"{batch} x {length}"] = seconds(
                lambda: accumulate_gradient(model, step, batch * length, fast_bf16(args.device)))
        for batch, length in POINTS:
            model = Llama(config).init_weights().to(args.device, getattr(torch, args.dtype)).eval()
            reorder_weights_for_cpu(model, batch)
            cache, start = model.new_cache(batch, length), torch.full((batch,), length - 1, device=args.device)
            token = torch.zeros(batch, 1, dtype=torch.int64, device=args.device)
            with torch.inference_mode():
                decoding[f"{batch} x {length}"] = seconds(lambda: model.logits(model.hidden(token, cache, start)))
    return result


def sample(args) -> dict:
    """Seconds that one of the laboratory's workers takes to tune a base on 1,000 responses for 5 epochs, and to ask it
    240 instructions and grade the answers; and the mean grade."""
    lab.begin()
    world = World()
    dialogues, tasks = [row["messages"] for row in world.training_set("broad")], world.evaluation_sets()["eval"][:240]
    with tempfile.TemporaryDirectory() as folder:
        lab.KEPT, began = Path(folder), time.perf_counter()
        model = lab.tune(args.model, dialogues, epochs=5, blank=True)
        tuned = time.perf_counter()
        answers = lab.ask(model, [task.instruction for task in tasks])
        grade = statistics.mean(answer_key.grade(world, task, output)[1] for task, output in zip(tasks, answers))
    return {"tune": tuned - began, "ask and grade": time.perf_counter() - tuned, "grade": grade}


def where_the_time_goes(args) -> dict:
    """Print PyTorch's profile of a forward and backward pass, and of 32 steps of decoding one sequence."""
    prepare(args.device)
    tokenizer, model = Tokenizer(args.model), Llama.from_pretrained(args.model, device=args.device)
    examples = training_examples(args, tokenizer)
    decoder = Llama.from_pretrained(args.model, getattr(torch, args.dtype), args.device).eval()
    reorder_weights_for_cpu(decoder, 1)
    for work in (lambda: accumulate_gradient(model, examples, token_budget(args), fast_bf16(args.device)),
                 lambda: generate(decoder, [encode_prompt(tokenizer, PROMPT)], -1, min(32, args.tokens))):
        work()
        with torch.profiler.profile() as profile:
            work()
        by = "self_cuda_time_total" if args.device.startswith("cuda") else "self_cpu_time_total"
        print(profile.key_averages().table(sort_by=by, row_limit=15, max_name_column_width=50))
    return {}


def memory(config: Config, token_budget: int, n_ranks: int = 1, gradient_checkpointing: bool = False) -> dict[str, int]:
    """Bytes that training takes on each of n_ranks GPUs, part by part: an estimate for layers that are not compiled.

    Weights, gradients and AdamW's moments are fp32 and sharded over the GPUs; activations are bf16 (autocast).
    token_budget: tokens in a micro-batch of one GPU.
    """
    with torch.device("meta"):
        model = Llama(config)
    n = sum(p.numel() for p in model.parameters())
    n_layer = sum(p.numel() for p in model.model.layers[0].parameters())
    C, V, L = config.hidden_size, config.vocab_size, config.num_hidden_layers
    n_q, n_kv = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    # backward needs of a token in a layer: two norms' inputs in fp32, five projections' inputs, q, k, v, the
    # attention's output, and of the MLP the gate before and after SiLU, the other half and their product
    layer = 2 * 4 * C + 5 * 2 * C + 2 * (2 * n_q + 2 * n_kv) + 4 * 2 * config.intermediate_size
    kept = L * 4 * C + layer if gradient_checkpointing else L * layer
    # alone: autocast's copy of every weight. Sharded: two layers' weights in bf16, one's gradient in bf16 and fp32,
    # and the embedding and vocabulary matrix with their gradients in fp32
    copies = 2 * n if n_ranks == 1 else (2 * 2 + 2 + 4) * n_layer + 8 * (n - L * n_layer)
    return {
        "weights": 4 * n // n_ranks, "gradients": 4 * n // n_ranks, "moments": 8 * n // n_ranks, "copies": copies,
        "logits": LinearCrossEntropy.ROWS * V * 8 + 6 * V * C, "activations": token_budget * (kept + 12 * C),
    }


def memory_table(config: Config, token_budget: int) -> str:
    """`memory` on 1, 2, 4 and 8 GPUs, with and without gradient checkpointing, as Markdown, in GB (1e9 bytes)."""
    lines = []
    for n_ranks in (1, 2, 4, 8):
        for checkpointing in (False, True):
            parts = memory(config, token_budget, n_ranks, checkpointing)
            if not lines:
                lines.append("| GPUs | checkpointing | " + " | ".join(parts) + " | each GPU, GB |")
                lines.append("|---" * (len(parts) + 3) + "|")
            cells = [f"{x / 1e9:.1f}" for x in [*parts.values(), sum(parts.values())]]
            lines.append(f"| {n_ranks} | {'yes' if checkpointing else 'no'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def alone(work, args) -> dict:
    """The result of work(args) in a new process, which Ctrl-C ends at once. Raises OSError where it is killed."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), signal.signal,
                             (signal.SIGINT, signal.SIG_DFL)) as pool:
        try:
            return pool.submit(work, args).result()
        except BrokenProcessPool:
            raise OSError(f"{work.__name__} was killed, often because memory ran out; try fewer --examples") from None


def parse_arguments():
    parser = common.parser(__doc__)
    parser.add_argument("--model", default="data/tiny", help="folder, or ORG/NAME on the hub")
    parser.add_argument("--data", type=Path, help='lines of {"messages": [...]} to train on (default: the world\'s)')
    parser.add_argument("--examples", type=common.positive(int), default=32, help="how many of them")
    parser.add_argument("--token-budget", type=common.positive(int), metavar="N",
                        help="tokens in a micro-batch of one device (default: train.py's; for --memory a GPU's)")
    parser.add_argument("--device", type=device_name, default=default_device(), help="default: the fastest there is")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"],
                        help="to decode in (default: bfloat16 on cuda, else float32)")
    parser.add_argument("--tokens", type=common.positive(int), default=128, help="to decode")
    parser.add_argument("--rounds", type=common.positive(int), default=1, help="how often to repeat it all")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--growth", action="store_true", help="time random models over length, batch and size instead")
    what.add_argument("--sample", action="store_true", help="time a sample of the laboratory instead, on one thread")
    what.add_argument("--profile", action="store_true", help="show where the time goes instead")
    what.add_argument("--memory", type=Path, metavar="CONFIG", help="estimate the memory of training this config.json")
    args = parser.parse_args()
    args.dtype = args.dtype or ("bfloat16" if args.device.startswith("cuda") else "float32")
    return args


def fit_context(args):
    """Keep the work within the model's context, and say where that makes it less than was asked for."""
    config, tokenizer = Config.from_json(args.model / "config.json"), Tokenizer(args.model)
    room = config.context - len(encode_prompt(tokenizer, PROMPT))
    if room < 1:
        raise ValueError(f"{args.model}: a context of {config.context} tokens leaves no room to answer the prompt")
    if args.tokens > room:
        print(f"--tokens {args.tokens} becomes {room}: there the model's context ends", file=sys.stderr)
        args.tokens = room
    args.max_length = min(LONGEST, config.context)
    lengths = [len(ids) for ids, _ in training_examples(args, tokenizer)]
    if full := lengths.count(args.max_length):
        print(f"{full} of {len(lengths)} training examples fill {args.max_length} tokens, where longer ones are cut",
              file=sys.stderr)


def main():
    args = parse_arguments()
    if args.memory:
        path = args.memory / "config.json" if args.memory.is_dir() else args.memory
        print(memory_table(Config.from_json(path), args.token_budget or GPU_TOKEN_BUDGET))
        return
    cuda = args.device.startswith("cuda")
    name = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    if args.growth:
        result = alone(growth, args)
        print("| ms, batch x length | " + " | ".join(f"{batch} x {length}" for batch, length in POINTS) + " |")
        print("|---" * (len(POINTS) + 1) + "|")
        for work, taken in result.items():
            cells = [f"{1000 * taken[f'{batch} x {length}']:,.1f}" for batch, length in POINTS]
            print(f"| {work} | " + " | ".join(cells) + " |")
        print(json.dumps({"device": name, "torch": torch.__version__} | result))
        return
    args.model = model_folder(args.model)
    if args.sample:
        for i in range(args.rounds):
            print(json.dumps({"device": "CPU, 1 thread", "torch": torch.__version__}
                             | {what: round(value, 2) for what, value in alone(sample, args).items()}))
        return
    fit_context(args)
    if args.profile:
        alone(where_the_time_goes, args)
        return
    works = {"nanofollow": [peaks, train_ours, decode_ours], "as the paper's code": [decode_rules_as_the_papers_code]}
    if cuda or has_compiler():
        works["nanofollow, compiled"] = [train_ours, decode_ours]
    else:
        print("there is no C++ compiler, so the compiled column is missing", file=sys.stderr)
    if importlib.util.find_spec("transformers"):
        works["transformers"] = [train_transformers, decode_transformers]
    else:
        print("transformers cannot be imported, so its column is missing", file=sys.stderr)
    if importlib.util.find_spec("llama_cpp") and importlib.util.find_spec("gguf"):
        works["llama.cpp"] = [decode_llama_cpp]
    else:
        print("llama_cpp and gguf cannot be imported, so the column of llama.cpp is missing", file=sys.stderr)
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
                      "tokens": args.tokens, "rounds": args.rounds, "figures": figures}))


def table(figures: dict) -> str:
    """Markdown: a row for each piece of work, a column for whoever did it."""
    ours = figures["nanofollow"]
    rows = {"training, tokens/s": ("tokens_per_s", 1), "training, GFLOP/s": ("flops_per_s", 1e-9),
            "training, peak memory, MiB": ("peak_memory_train", 2**-20),
            "first micro-batch (with compiling), s": ("first_s", 1), "loading, s": ("load_s", 1)}
    for batch in BATCHES:
        rows |= {
            f"decoding, batch {batch}, tokens/s": (f"decode_{batch}", 1),
            f"decoding, batch {batch}, all rules, tokens/s": (f"ruled_{batch}", 1),
            f"the rules' own work, batch {batch}, % of a step": (f"rules_share_{batch}", 100),
            f"weights read, batch {batch}, GB/s": (f"weights_per_s_{batch}", 1e-9)}
    rows |= {"decoding, peak memory, MiB": ("peak_memory_decode", 2**-20)}
    lines = ["| | " + " | ".join(figures) + " |", "|---" * (len(figures) + 1) + "|"]
    for label, (key, scale) in rows.items():
        values = [mine[key] * scale if key in mine else None for mine in figures.values()]
        cells = ["–" if x is None else f"{x:,.{0 if x >= 100 else 1}f}" for x in values]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines.append(f"\nin the same run: {ours['matmul'] / 1e9:,.0f} GFLOP/s in a matrix product alone, of which training "
                 f"reached {100 * ours['flops_per_s'] / ours['matmul']:.0f} %; "
                 f"{ours['read'] / 1e9:.1f} GB/s of reading memory")
    return "\n".join(lines)


if __name__ == "__main__":
    common.run(main, out_of_memory="--examples or --token-budget makes the work smaller")
