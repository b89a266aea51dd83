"""Finetuning and pretraining: a masked loss, AdamW, and nothing else.

    python train.py --method response --model data/tiny --data data/world --out out/response

A method is a file of dialogues and whether their instructions are blanked (sections 3 to 5 of the
paper). `pretrain` is the same loop over documents, from random weights, with every token scored.
"""
import argparse
import hashlib
import json
import math
import shutil
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch.nn.utils.rnn import pad_sequence

from data.download import model_folder
from data.format import (IGNORE, Tokenizer, check_dialogue, check_fields, encode, encode_document, read_jsonl,
                         train_tokenizer)
from model import Config, Llama, default_device, device_name, load_tensors, replacing, save_tensors, weight_files

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
        print(f"{path}: left out {len(examples) - len(scored)} of {len(examples)} examples, "
              f"whose instruction alone fills {max_length} tokens")
    return scored


def n_scored(example) -> int:
    """How many tokens of an example the loss falls on: the first has nothing before it to predict it from."""
    return sum(label != IGNORE for label in example[1][1:])


def micro_batches(examples: list, token_budget: int):
    """Cut a step's examples, sorted by length, into runs of at most `token_budget` tokens, padding included."""
    batch = []
    for example in sorted(examples, key=lambda example: len(example[0])):
        if batch and (len(batch) + 1) * len(example[0]) > token_budget:
            yield batch
            batch = []
        batch.append(example)
    yield batch


def collate(batch: list, device):
    """(ids, labels), both (B, T) int64, padded on the right. What the padding holds is never seen or scored."""
    ids, labels = zip(*batch)
    return (pad_sequence([torch.tensor(row) for row in ids], batch_first=True).to(device),
            pad_sequence([torch.tensor(row) for row in labels], batch_first=True, padding_value=IGNORE).to(device))


def summed_loss(model: Llama, ids, labels):
    """The cross-entropy of every scored token, summed: a scalar. ids, labels: (B, T) int64.

    Position t predicts token t + 1. The vocabulary matrix is applied at scored positions only.
    """
    targets = labels[:, 1:]  # (B, T-1)
    scored = targets != IGNORE
    h = model.hidden(ids[:, :-1])[scored]  # (N, C)
    return F.cross_entropy(model.logits(h).float(), targets[scored], reduction="sum")


def accumulate_gradient(model: Llama, examples: list, token_budget: int, autocast: bool = False):
    """Add the gradient of one step's mean loss per scored token. Returns that loss, a scalar tensor.

    The sum is divided by the count of the whole step, so the gradient does not depend on how the
    step is cut. (A mean of the micro-batches' means would weight tokens by their neighbours' lengths.)
    """
    count = sum(n_scored(example) for example in examples)
    total = torch.zeros((), device=model.device)
    for batch in micro_batches(examples, token_budget):
        with torch.autocast(model.device.type, torch.bfloat16, enabled=autocast):
            loss = summed_loss(model, *collate(batch, model.device)) / count
        loss.backward()
        total += loss.detach()
    return total


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


def save_checkpoint(path: Path, model: Llama, optimizer, settings: dict, step: int):
    """Weights and AdamW's moments in one safetensors file, so that they cannot come apart. The data order
    needs no saving: it follows from the seed and the epoch."""
    tensors = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        tensors |= {name: parameter.detach(), f"{name}.exp_avg": state["exp_avg"], f"{name}.exp_avg_sq": state["exp_avg_sq"]}
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
        parameter.data.copy_(tensors[name])
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
    if model.device.type == "cuda":
        model.hidden = torch.compile(model.hidden, dynamic=True)
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
        print(f"step {step + 1}/{n_steps}  epoch {epoch + 1}  loss {losses[-1]:.4f}  lr {lr:.2e}  "
              f"{rate:,.0f} tokens/s  {left // 60:.0f}:{left % 60:02.0f} left", flush=True)
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
                        help="tokens in a micro-batch, padding included: speed and memory, not results (but their last bits)")
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
    args.token_budget = args.token_budget or (16384 if args.device.startswith("cuda") else 2048)
    if args.lr is None:  # the paper's for OLMo-7B and Llama-2-7B; a narrow model takes, and needs, larger steps
        paper = 3e-6 if config.model_type == "olmo" else 1e-5
        args.lr = 3e-3 if args.method == "pretrain" else paper if config.hidden_size >= 2048 else 1e-4
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()
                if key not in ("out", "device", "resume", "overwrite", "token_budget")}
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
        print(f"{args.out} is finished; --overwrite (make: OVERWRITE=1) trains it again")
        return False
    if args.resume and checkpoint.exists():
        return True
    if record.exists() or weights.exists() or checkpoint.exists():
        raise ValueError(f"{args.out} holds another run; add --resume to continue it, --overwrite to discard it, "
                         "or choose another --out")
    return True


def load(args, config: Config) -> tuple[Tokenizer, Llama]:
    """The base model; for pretrain, a tokenizer trained on the corpus and random weights."""
    if args.method != "pretrain":
        return Tokenizer(args.model), Llama.from_pretrained(args.model, device=args.device)
    texts = [row["text"] for row in read_jsonl(args.data / "corpus.jsonl", check_fields("text"))]
    if (config.bos_token_id, config.eos_token_id) != (0, 1):
        raise ValueError(f"{args.model / 'config.json'}: set bos_token_id to 0 and eos_token_id to 1, "
                         "as the tokenizer trained here has them")
    args.out.mkdir(parents=True, exist_ok=True)
    bpe = train_tokenizer(texts, config.vocab_size)
    for name, text in (("tokenizer.json", bpe.to_str(pretty=True)), ("config.json", config.to_json())):
        with replacing(args.out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return Tokenizer(args.out), Llama(config).init_weights(torch.Generator().manual_seed(args.seed)).to(args.device)


def save(args, model: Llama, record: dict):
    """Write the finished run in the hub's layout, in the dtype of its base, and drop the checkpoint."""
    model.to(getattr(torch, model.config.dtype)).save_pretrained(args.out)
    if args.method != "pretrain":
        for name in ("tokenizer.json", "tokenizer_config.json"):  # the second is for other readers of the folder
            if (args.model / name).exists():
                shutil.copyfile(args.model / name, args.out / name)
    with replacing(args.out / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (args.out / CHECKPOINT).unlink(missing_ok=True)


def main():
    args = parse_arguments()
    args.model = model_folder(args.model)
    config = Config.from_json(args.model / "config.json")
    settings = settle_defaults(args, config)
    if not claim(args, settings):
        return
    tokenizer, model = load(args, config)
    examples = load_examples(args.method, args.data, tokenizer, args.max_length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.0, fused=True)
    if args.overwrite:  # only now that the input is known to be good
        for name in (CHECKPOINT, RECORD, "model.safetensors"):
            (args.out / name).unlink(missing_ok=True)
    checkpoint = args.out / CHECKPOINT
    first_step = load_checkpoint(checkpoint, model, optimizer, settings) if checkpoint.exists() else 0
    print(f"{args.method}: {len(examples):,} examples, {sum(map(n_scored, examples)):,} scored tokens, "
          f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters on {args.device}"
          f"{', bf16 autocast' if fast_bf16(args.device) else ''}{f', from step {first_step}' if first_step else ''}", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
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
    print(f"wrote {args.out}: mean loss of the last epoch {loss:.4f}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
