"""Finetuning and pretraining: a masked loss, AdamW, and nothing else.

    python train.py --method response --model data/tiny --data data/world --out out/response
    torchrun --nproc_per_node=8 train.py ...        # the same run, sharded over eight GPUs

A method is a file of dialogues and whether their instructions are blanked (sections 3 to 5 of the
paper). `pretrain` is the same loop over documents, from random weights, with every token scored.
"""
import argparse
import ctypes
import hashlib
import json
import math
import os
import shutil
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch.nn.utils.rnn import pad_sequence

from data.download import model_folder
from data.format import (IGNORE, Tokenizer, check_dialogue, check_fields, encode, encode_document, read_jsonl,
                         train_tokenizer)
from model import (Config, Llama, default_device, device_name, is_main, load_tensors, replacing, save_tensors,
                   weight_files)

METHODS = {  # file, instructions blanked, default epochs: the paper's scripts for Llama-2-7B; other tasks take GSM's
    "instruction": ("broad", False, 15),
    "response": ("broad", True, 5),
    "mbpp": ("mbpp", False, 7),
    "gsm": ("gsm", False, 7),
    "poetry": ("poetry", False, 7),
    "recipes": ("recipes", False, 7),
    "chess": ("chess", False, 7),
    "pretrain": ("corpus", False, 1),
}
# Options that change how fast a run goes or where it goes, not what comes out.
NOT_SETTINGS = {"out", "device", "resume", "overwrite", "token_budget", "compile", "gradient_checkpointing", "dry_run"}
CPU_TOKEN_BUDGET, GPU_TOKEN_BUDGET = 2048, 16384
CHECKPOINT, RECORD = "checkpoint.safetensors", "run.json"  # of a run under way; of a finished one


def load_examples(method: str, folder: Path, tokenizer: Tokenizer, max_length: int):
    """A method's training set as (ids, labels) pairs; those with nothing to score are left out, and counted aloud."""
    name, blank, _ = METHODS[method]
    path = folder / f"{name}.jsonl"
    if method == "pretrain":
        examples = [encode_document(tokenizer, row["text"], max_length) for row in read_jsonl(path, check_fields("text"))]
    else:
        examples = [encode(tokenizer, row["messages"], max_length, blank) for row in read_jsonl(path, check_dialogue)]
    scored = [example for example in examples if n_scored(example)]
    if not scored:
        raise ValueError(f"{path}: no response begins within --max-length {max_length} tokens")
    if len(scored) < len(examples):
        say(f"{path}: left out {len(examples) - len(scored)} of {len(examples)} examples, "
            f"whose instruction alone fills {max_length} tokens")
    return scored


def n_scored(example) -> int:
    """How many tokens of an example the loss falls on: the first has nothing before it to predict it from."""
    return sum(label != IGNORE for label in example[1][1:])


def micro_batches(examples: list, token_budget: int, world: int = 1):
    """Cut a step's examples, sorted by length, into runs of at most `token_budget` tokens a rank, padding included."""
    batch = []
    for example in sorted(examples, key=lambda example: len(example[0])):
        if batch and math.ceil((len(batch) + 1) / world) * len(example[0]) > token_budget:
            yield batch
            batch = []
        batch.append(example)
    yield batch


def collate(batch: list, device):
    """(ids, labels), both (B, T) int64, padded on the right. What the padding holds is never seen or scored."""
    ids, labels = zip(*batch)
    tensors = (pad_sequence([torch.tensor(row) for row in ids], batch_first=True),
               pad_sequence([torch.tensor(row) for row in labels], batch_first=True, padding_value=IGNORE))
    if device.type == "cuda":  # from pinned memory, so that the copy does not wait for the last micro-batch's kernels
        return tuple(tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors)
    return tuple(tensor.to(device) for tensor in tensors)


class LinearCrossEntropy(torch.autograd.Function):
    """The summed cross-entropy of logits h W^T, without ever holding them all.

    h: (N, C); weight W: (V, C); targets: (N,) int64. Returns a float32 scalar. The gradient of a logit is
    softmax - onehot, so it is taken while the logits of a few rows are at hand. With SmolLM2's 49,152 words
    this halves the time of the loss and takes away a fifth of a step's memory, on a CPU.
    (torch 2.13 has an F.linear_cross_entropy, but with bf16 inputs it sums in bf16, and the loss is 5 % off.)
    """

    ROWS = 512

    @staticmethod
    def forward(ctx, h, weight, targets):
        loss = torch.zeros((), device=h.device)
        dh, dw = torch.zeros_like(h), torch.zeros_like(weight)
        for i in range(0, len(h), LinearCrossEntropy.ROWS):
            rows, answers = h[i : i + LinearCrossEntropy.ROWS], targets[i : i + LinearCrossEntropy.ROWS, None]
            logits = F.linear(rows, weight)  # (ROWS, V)
            log_p = F.log_softmax(logits, -1, dtype=torch.float32)
            loss -= log_p.gather(1, answers).sum()
            dlogits = log_p.exp_().scatter_add_(1, answers, -torch.ones_like(answers, dtype=torch.float32)).to(logits.dtype)
            dh[i : i + len(rows)] = dlogits @ weight
            dw += dlogits.T @ rows
        ctx.save_for_backward(dh, dw)
        return loss

    @staticmethod
    def backward(ctx, dloss):
        dh, dw = ctx.saved_tensors
        return dh * dloss, dw.mul_(dloss), None  # in place: backward runs once


def summed_loss(model: Llama, ids, labels):
    """The cross-entropy of every scored token, summed: a scalar. ids, labels: (B, T) int64.

    Position t predicts token t + 1. The vocabulary matrix is applied at scored positions only.
    """
    targets = labels[:, 1:]  # (B, T-1)
    scored = targets != IGNORE
    h = model.hidden(ids[:, :-1])[scored]  # (N, C)
    return LinearCrossEntropy.apply(h, model.head.weight, targets[scored])


def accumulate_gradient(model: Llama, examples: list, token_budget: int, autocast: bool = False):
    """Add the gradient of one step's mean loss per scored token. Returns that loss, a scalar tensor.

    The sum is divided by the count of the whole step, so the gradient does not depend on how the
    step is cut, nor over how many ranks. (A mean of the micro-batches' means would weight tokens by
    their neighbours' lengths.)
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    count = sum(n_scored(example) for example in examples)
    total = torch.zeros((), device=model.device)
    for batch in micro_batches(examples, token_budget, world):
        # neighbours in length; a rank that gets none runs an unscored one, since all must gather the same weights
        mine = batch[rank::world] or [(batch[0][0], [IGNORE] * len(batch[0][0]))]
        with torch.autocast(model.device.type, torch.bfloat16, enabled=autocast):
            loss = summed_loss(model, *collate(mine, model.device)) / count
        (loss * world).backward()  # sharded gradients are averaged over ranks, and this is to be a sum
        total += loss.detach()
    if world > 1:
        dist.all_reduce(total)
    return total


def shard(model: Llama, autocast: bool):
    """Split every layer's weights, gradients and moments over torchrun's ranks (FSDP2; Zhao et al., 2023).

    A layer is gathered when its turn comes, in bf16 under autocast (its norms' weights too, which autocast
    on one device leaves in fp32), and dropped after; gradients are summed in fp32. The embedding, needed at
    both ends, stays gathered in fp32 through a micro-batch.
    """
    from torch.distributed.device_mesh import init_device_mesh  # slow to import, and needed by none but torchrun
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh("cuda" if dist.get_backend() == "nccl" else "cpu", (dist.get_world_size(),))
    # without cast_forward_inputs the residual stream and the rotary angles stay in fp32, as on one device
    policy = MixedPrecisionPolicy(torch.bfloat16 if autocast else None, torch.float32, cast_forward_inputs=False)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(model, "hidden")


def learning_rate(step: int, n_steps: int, peak: float, schedule: str, warmup: float) -> float:
    """The rate of step 0 <= step < n_steps: a linear rise over the first `warmup` share, then down to 0.

    The paper's text has a cosine with 10 % of warm-up, its scripts a line with 3 %.
    """
    n_warmup = math.ceil(warmup * n_steps)
    if step < n_warmup:
        return peak * (step + 1) / n_warmup
    progress = (step - n_warmup) / (n_steps - n_warmup)
    return peak * (1 - progress if schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2)


def fast_bf16(device: str) -> bool:
    """Whether the processor multiplies bf16 matrices faster than fp32 ones."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device == "cpu" else {}
    return capabilities.get("amx_bf16", False) or capabilities.get("avx512_bf16", False)


def compile_layers(model: Llama):
    """torch.compile each layer: they are alike, so the code is made once, where the whole model's would repeat it."""
    for layer in model.model.layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)


def has_compiler() -> bool:
    """Whether torch.compile finds what it needs on a CPU."""
    return any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++")))


def memory(config: Config, token_budget: int, world: int = 1, gradient_checkpointing: bool = False) -> dict[str, int]:
    """Bytes that training takes on each of `world` GPUs: bf16 autocast over fp32 weights, AdamW, layers not compiled."""
    with torch.device("meta"):
        model = Llama(config)
    n = sum(p.numel() for p in model.parameters())
    n_layer = sum(p.numel() for p in model.model.layers[0].parameters())
    C, V = config.hidden_size, config.vocab_size
    n_q, n_kv = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    # what backward needs of a token in a layer: two norms' inputs in fp32, five projections' inputs, q, k, v, the
    # attention's output, and of the MLP the gate before and after SiLU, the other half and their product
    layer = 2 * 4 * C + 5 * 2 * C + 2 * (2 * n_q + 2 * n_kv) + 4 * 2 * config.intermediate_size
    kept = config.num_hidden_layers * 4 * C + layer if gradient_checkpointing else config.num_hidden_layers * layer
    # alone: autocast's copy of every weight. Sharded: two layers' weights in bf16, one's gradient in bf16 and fp32,
    # and the embedding and vocabulary matrix with their gradients in fp32
    gathered = 2 * n if world == 1 else (2 * 2 + 2 + 4) * n_layer + 8 * (n - config.num_hidden_layers * n_layer)
    return {
        "weights": 4 * n // world, "gradients": 4 * n // world, "moments": 8 * n // world, "copies": gathered,
        "logits": LinearCrossEntropy.ROWS * V * 8 + 6 * V * C, "activations": token_budget * (kept + 12 * C),
    }


def memory_table(config: Config, token_budget: int) -> str:
    """`memory` on 1, 2, 4 and 8 GPUs, with and without gradient checkpointing, as Markdown, in GB (1e9 bytes)."""
    lines = []
    for world in (1, 2, 4, 8):
        for checkpointing in (False, True):
            parts = memory(config, token_budget, world, checkpointing)
            if not lines:
                lines += ["| GPUs | checkpointing | " + " | ".join(parts) + " | each GPU, GB |", "|---" * (len(parts) + 3) + "|"]
            cells = [f"{x / 1e9:.1f}" for x in [*parts.values(), sum(parts.values())]]
            lines.append(f"| {world} | {'yes' if checkpointing else 'no'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def warn_without_flash(model: Llama):
    """Say why, where SDPA will not use the flash kernel (Dao, 2023) for what this model trains on a GPU."""
    config = model.config
    q, k = (torch.empty(1, heads, 128, config.head_dim, dtype=torch.bfloat16, device=model.device)
            for heads in (config.num_attention_heads, config.num_key_value_heads))
    grouped = config.num_key_value_heads < config.num_attention_heads
    parameters = torch.backends.cuda.SDPAParams(q, k, k, None, 0.0, True, grouped)
    if not torch.backends.cuda.can_use_flash_attention(parameters, debug=True):  # debug: warns with the reason
        print("attention will not use the flash kernel, for the reason given above; training is slower", file=sys.stderr)


def save_checkpoint(path: Path, model: Llama, optimizer, settings: dict, step: int):
    """Weights and AdamW's moments in one safetensors file, so that they cannot come apart. The data order
    needs no saving: it follows from the seed and the epoch."""
    tensors = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        tensors |= {name: parameter, f"{name}.exp_avg": state["exp_avg"], f"{name}.exp_avg_sq": state["exp_avg_sq"]}
    save_tensors(path, tensors, {"settings": json.dumps(settings), "step": str(step)})


def load_checkpoint(path: Path, model: Llama, optimizer, settings: dict) -> int:
    """Restore what save_checkpoint wrote; returns the number of steps done."""
    expected = {}
    for name, parameter in model.named_parameters():
        expected |= {name: parameter, f"{name}.exp_avg": parameter, f"{name}.exp_avg_sq": parameter}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); --overwrite starts afresh") from None
    check_settings(path, json.loads(metadata["settings"]), settings)
    tensors, step = load_tensors(path, expected, torch.float32, model.device), int(metadata["step"])
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            parameter.copy_(tensors[name])
        optimizer.state[parameter] = {
            "step": torch.tensor(float(step), device=model.device),
            "exp_avg": tensors[f"{name}.exp_avg"], "exp_avg_sq": tensors[f"{name}.exp_avg_sq"],
        }
    return step


def check_settings(path: Path, found: dict, wanted: dict):
    """Raise ValueError, naming the first difference, where the run that `path` is of is not the one asked for."""
    for key, value in wanted.items():
        if found.get(key) != value:
            raise ValueError(f"{path} is of a run with {key} = {found.get(key)}, not {value}; choose another --out "
                             "(make: OUT=...), or --overwrite to start afresh (make: OVERWRITE=1)")


def train(model: Llama, optimizer, examples: list, args, settings: dict, first_step: int) -> float:
    """Run the steps from `first_step` on. Returns the mean loss of the last epoch's steps."""
    if args.gradient_checkpointing is None:
        world = dist.get_world_size() if dist.is_initialized() else 1
        args.gradient_checkpointing = (model.device.type == "cuda" and sum(memory(model.config, args.token_budget, world).values())
                                       > 0.9 * torch.cuda.get_device_properties(model.device).total_memory)
    model.gradient_checkpointing = args.gradient_checkpointing
    if args.compile:
        compile_layers(model)
    autocast = fast_bf16(args.device)
    per_epoch = math.ceil(len(examples) / args.batch_size)
    n_steps, losses, start = per_epoch * args.epochs, [], time.perf_counter()
    for step in range(first_step, n_steps):
        began = time.perf_counter()
        epoch, i = divmod(step, per_epoch)
        if i == 0:  # resuming begins at an epoch too, so this always runs first
            order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(args.seed * 1000003 + epoch)).tolist()
            losses = []
        batch = [examples[j] for j in order[i * args.batch_size : (i + 1) * args.batch_size]]
        lr = learning_rate(step, n_steps, args.lr, args.schedule, args.warmup)
        for group in optimizer.param_groups:
            group["lr"] = lr
        losses.append(accumulate_gradient(model, batch, args.token_budget, autocast).item())
        if not math.isfinite(losses[-1]):
            raise ValueError(f"the loss of step {step + 1} is {losses[-1]}; a lower --lr may help")
        optimizer.step()
        optimizer.zero_grad()
        now = time.perf_counter()
        rate = sum(len(ids) for ids, _ in batch) / (now - began)
        left = (now - start) / (step + 1 - first_step) * (n_steps - step - 1)
        say(f"step {step + 1}/{n_steps}  epoch {epoch + 1}  loss {losses[-1]:.4f}  lr {lr:.2e}  "
            f"{rate:,.0f} tokens/s  {left // 60:.0f}:{left % 60:02.0f} left")
        if i == per_epoch - 1 and step + 1 < n_steps:
            save_checkpoint(args.out / CHECKPOINT, model, optimizer, settings, step + 1)
    return sum(losses) / len(losses)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", required=True, choices=METHODS, help="what to train on")
    parser.add_argument("--model", default="data/tiny",
                        help="the base model's folder, or its ORG/NAME on the hub; for pretrain, the folder of its config.json")
    parser.add_argument("--data", type=Path, default=Path("data/world"), help="folder of the .jsonl training sets")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, in the hub's layout")
    parser.add_argument("--epochs", type=int, help="default: the method's own, see METHODS")
    parser.add_argument("--lr", type=float,
                        help="peak learning rate; default: from width 2,048 the paper's 1e-5 (OLMo: 3e-6), below 1e-4; "
                             "for pretrain 3e-3")
    parser.add_argument("--schedule", choices=["cosine", "linear"], default="cosine", help="the way down to 0 after warm-up")
    parser.add_argument("--warmup", type=float, default=0.1, help="share of steps over which the rate rises")
    parser.add_argument("--batch-size", type=int, default=64, help="sequences in a step (the paper's)")
    parser.add_argument("--max-length", type=int, default=2048, help="tokens at which an example is cut (the paper's)")
    parser.add_argument("--token-budget", type=int,
                        help="tokens in a micro-batch of one device, padding included: speed and memory, not results "
                             "(but their last bits); default 2,048 on a CPU, 16,384 on a GPU")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction,
                        help="torch.compile the layers; default: on a GPU. On a CPU it takes 10 to 20 s, and saves memory more than time")
    parser.add_argument("--gradient-checkpointing", action=argparse.BooleanOptionalAction,
                        help="compute the activations twice rather than keep them; default: on a GPU where they would not fit")
    parser.add_argument("--dry-run", action="store_true", help="print what memory training would take, and stop")
    parser.add_argument("--seed", type=int, default=1, help="of the data order, and of pretraining's first weights")
    parser.add_argument("--device", type=device_name, default=default_device())
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--resume", action="store_true",
                      help="continue an interrupted run from its last epoch; start if there is none")
    what.add_argument("--overwrite", action="store_true", help="discard the run that --out holds")
    args = parser.parse_args()
    for name in ("epochs", "lr", "batch_size", "max_length", "token_budget"):
        if getattr(args, name) is not None and not 0 < getattr(args, name) < float("inf"):
            parser.error(f"--{name.replace('_', '-')} must be above 0")
    if not 0 <= args.seed < 2**32:
        parser.error("--seed is a number from 0 to 4294967295")
    if not 0 <= args.warmup <= 1:
        parser.error("--warmup is a share of the steps, from 0 to 1")
    return args


def settle_defaults(args, config: Config) -> dict:
    """Fill in what depends on the method, the model and the device. Returns the settings that make a run what it is."""
    name, _, epochs = METHODS[args.method]
    args.epochs = args.epochs or epochs
    args.max_length = min(args.max_length, config.context)
    cuda = args.device.startswith("cuda")
    args.token_budget = args.token_budget or (GPU_TOKEN_BUDGET if cuda else CPU_TOKEN_BUDGET)
    if args.compile is None:
        args.compile = cuda
    if args.compile and not cuda and not has_compiler():
        raise ValueError("--compile on a CPU needs a C++ compiler, and neither g++ nor clang++ is on the path; leave it out")
    if args.lr is None:  # the paper's for OLMo-7B and Llama-2-7B; a narrow model takes, and needs, larger steps
        paper = 3e-6 if config.model_type == "olmo" else 1e-5
        args.lr = 3e-3 if args.method == "pretrain" else paper if config.hidden_size >= 2048 else 1e-4
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()
                if key not in NOT_SETTINGS}
    settings["data_sha256"] = fingerprint(args.data / f"{name}.jsonl")
    if args.method != "pretrain":
        settings["model_sha256"] = fingerprint(*weight_files(args.model))
    return settings


def fingerprint(*paths: Path) -> str | None:
    """The first 16 hexadecimal digits of the files' SHA-256; None where one is absent, which its reader will say."""
    digest = hashlib.sha256()
    for path in paths:
        if not path.is_file():
            return None
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def claim(args, settings: dict) -> bool:
    """Whether --out is free to train into: False where --resume finds the run finished. ValueError where another is there."""
    if args.out.resolve() == args.model.resolve():
        raise ValueError(f"--out {args.out} is the folder of --model, whose weights it would replace; choose another")
    checkpoint, record, weights = (args.out / name for name in (CHECKPOINT, RECORD, "model.safetensors"))
    if args.overwrite:
        return True
    if args.resume and record.exists():
        try:
            check_settings(record, dict(json.loads(record.read_bytes())), settings)
        except TypeError:
            raise ValueError(f"{record} is damaged; --overwrite starts afresh") from None
        say(f"{args.out} is finished; --overwrite (make: OVERWRITE=1) trains it again")
        return False
    if args.resume and checkpoint.exists():
        return True
    if record.exists() or weights.exists() or checkpoint.exists():
        raise ValueError(f"{args.out} holds another run; add --resume to continue it, --overwrite to discard it, "
                         "or choose another --out")
    return True


def load(args, config: Config) -> tuple[Tokenizer, Llama]:
    """The base model; for pretrain, a tokenizer trained on the corpus and random weights."""
    split = (lambda model: shard(model, fast_bf16(args.device))) if dist.is_initialized() else None
    if args.method != "pretrain":
        return Tokenizer(args.model), Llama.from_pretrained(args.model, device=args.device, shard=split)
    texts = [row["text"] for row in read_jsonl(args.data / "corpus.jsonl", check_fields("text"))]
    if (config.bos_token_id, config.eos_token_id) != (0, 1):
        raise ValueError(f"{args.model / 'config.json'}: set bos_token_id to 0 and eos_token_id to 1, "
                         "as the tokenizer trained here has them")
    if is_main():
        args.out.mkdir(parents=True, exist_ok=True)
        bpe = train_tokenizer(texts, config.vocab_size)
        for name, text in (("tokenizer.json", bpe.to_str(pretty=True)), ("config.json", config.to_json())):
            with replacing(args.out / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
    wait_for_all()
    model = Llama(config).init_weights(torch.Generator().manual_seed(args.seed)).to(args.device)
    if split:
        split(model)
    return Tokenizer(args.out), model


def save(args, model: Llama, record: dict):
    """Write the finished run in the hub's layout, in the dtype of its base, and drop the checkpoint."""
    model.save_pretrained(args.out, getattr(torch, model.config.dtype))
    if not is_main():
        return
    if args.method != "pretrain":
        for name in ("tokenizer.json", "tokenizer_config.json"):  # the second is for other readers of the folder
            if (args.model / name).exists():
                shutil.copyfile(args.model / name, args.out / name)
    with replacing(args.out / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (args.out / CHECKPOINT).unlink(missing_ok=True)


def prepare_machine(args):
    """Settings of the process: memory, precision, and torchrun's process group."""
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        # glibc hands large blocks back when they are freed, and the next tensor is new pages that the system
        # must zero: a fifth of a training step on a CPU. M_MMAP_MAX = -4, M_TRIM_THRESHOLD = -1.
        ctypes.CDLL(None).mallopt(-4, 0)
        ctypes.CDLL(None).mallopt(-1, -1)
    if "RANK" in os.environ:  # set by torchrun
        if args.device == "cuda":
            args.device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(args.device)
        dist.init_process_group("nccl" if args.device.startswith("cuda") else "gloo")
    if args.device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")  # TF32 for what is left in fp32


def say(text: str):
    """Print, once for all ranks."""
    if is_main():
        print(text, flush=True)


def wait_for_all():
    """Let the ranks of torchrun, if there are several, come together."""
    if dist.is_initialized():
        dist.barrier()


def main():
    args = parse_arguments()
    args.model = model_folder(args.model)
    config = Config.from_json(args.model / "config.json")
    if args.dry_run:
        print(memory_table(config, args.token_budget or GPU_TOKEN_BUDGET))
        return
    prepare_machine(args)
    settings = settle_defaults(args, config)
    free = claim(args, settings)
    wait_for_all()  # until all have looked, none may write
    if not free:
        return
    tokenizer, model = load(args, config)
    examples = load_examples(args.method, args.data, tokenizer, args.max_length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.0, fused=True)
    if args.overwrite and is_main():  # only now that the input is known to be good
        for name in (CHECKPOINT, RECORD, "model.safetensors"):
            (args.out / name).unlink(missing_ok=True)
    wait_for_all()
    checkpoint = args.out / CHECKPOINT
    first_step = load_checkpoint(checkpoint, model, optimizer, settings) if checkpoint.exists() else 0
    say(f"{args.method}: {len(examples):,} examples, {sum(map(n_scored, examples)):,} scored tokens, "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters on {args.device}"
        f"{f' and {dist.get_world_size() - 1} more' if dist.is_initialized() else ''}"
        f"{', bf16 autocast' if fast_bf16(args.device) else ''}{f', from step {first_step}' if first_step else ''}")
    if is_main():
        args.out.mkdir(parents=True, exist_ok=True)
    if model.device.type == "cuda":
        warn_without_flash(model)
    began = time.perf_counter()
    try:
        loss = train(model, optimizer, examples, args, settings, first_step)
    except KeyboardInterrupt:
        kept = "no epoch was finished, so nothing is kept"
        if checkpoint.exists():
            kept = (f"{checkpoint} holds the last whole epoch; "
                    "the same command with --resume (and no --overwrite) goes on from there")
        print(f"\ninterrupted: {kept}", file=sys.stderr)
        sys.exit(130)
    save(args, model, settings | {"loss": loss, "seconds": round(time.perf_counter() - began, 1)})
    say(f"wrote {args.out}: mean loss of the last epoch {loss:.4f}")
    wait_for_all()  # a rank that left now could cut off one that still gathers
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
