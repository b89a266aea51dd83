"""Finetuning and pretraining: a masked loss, AdamW, and nothing else.

    python train.py --method response --model data/tiny --data data/world --out out/response
    torchrun --nproc_per_node=8 train.py ...        # the same run, sharded over eight GPUs

A method is a file of dialogues and whether their instructions are blanked (sections 3 to 5 of the
paper). `pretrain` is the same loop over documents, from random weights, with every token scored.
"""
import argparse
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from data import common  # first: Ctrl-C is quiet from here on

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from data import checkpoint as runs
from data import device as machine
from data import distributed
from data.common import check_fields, clock, fingerprint, read_jsonl, write_json, write_text
from data.format import (IGNORE, Tokenizer, check_dialogue, check_template, encode, encode_document,
                         train_tokenizer)
from data.checkpoint import weight_files, write_companions
from data.distributed import say
from data.hub import model_folder
from model import Config, Llama


@dataclass(frozen=True)
class Method:
    file: str  # the training set is FILE.jsonl in the folder of --data
    epochs: int  # the paper's scripts for Llama-2-7B; the single tasks take GSM's
    blank: bool = False  # whether every instruction is replaced by the empty string: response tuning


METHODS = {
    "instruction": Method("broad", epochs=15),
    "response": Method("broad", epochs=5, blank=True),
    "mbpp": Method("mbpp", epochs=7),
    "gsm": Method("gsm", epochs=7),
    "poetry": Method("poetry", epochs=7),
    "recipes": Method("recipes", epochs=7),
    "chess": Method("chess", epochs=7),
    "pretrain": Method("corpus", epochs=1),
}


def load_examples(method: Method, folder: Path, tokenizer: Tokenizer, max_length: int) -> list:
    """A method's training set as (ids, labels) pairs. Examples without a scored token are left out, and counted.

    Empty responses are counted, too: they teach a model to say nothing.
    """
    path = folder / f"{method.file}.jsonl"
    if method.file == "corpus":
        rows = read_jsonl(path, check_fields("text"))
        examples = [encode_document(tokenizer, row["text"], max_length) for row in rows]
    else:
        check_template(tokenizer)
        rows = read_jsonl(path, check_dialogue)
        examples = [encode(tokenizer, row["messages"], max_length, method.blank) for row in rows]
        responses = [message["content"] for row in rows for message in row["messages"][1::2]]
        if n_empty := sum(not response.strip() for response in responses):
            say(f"{path}: {n_empty} of {len(responses)} responses are empty, so only their EOS is trained")
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


def summed_loss(model: Llama, ids, labels):
    """The cross-entropy of every scored token, summed: -sum of log p(ids[t + 1] | ids[: t + 1]), a float32 scalar.

    ids, labels: (B, T) int64, T at least 2, padded on the right. Position t predicts token t + 1, so labels are read
    from 1 on, and ids up to T - 1; a label of IGNORE is not scored. The vocabulary matrix is applied at scored
    positions only.
    """
    targets = labels[:, 1:]  # (B, T-1)
    scored = targets != IGNORE
    h = model.hidden(ids[:, :-1], wanted=scored)  # (N, C)
    return LinearCrossEntropy.apply(h, model.head.weight, targets[scored])


def accumulate_gradient(model: Llama, examples: list, token_budget: int, autocast: bool = False):
    """Add to every .grad the gradient of one step's mean loss per scored token. Returns that loss, a detached scalar.

    examples: (ids, labels) pairs, the whole step's, with a scored token among them. They are cut into micro-batches
    of at most token_budget tokens; the loss of each is summed and divided by the count of scored tokens in the *whole*
    step, over all ranks. So the gradient does not depend on how the step is cut. (A mean of the micro-batches' means
    would weigh a token by its neighbours' lengths.) autocast: multiply in bf16.
    """
    rank, n_ranks = distributed.rank(), distributed.n_ranks()
    count = sum(n_scored(example) for example in examples)
    total = torch.zeros((), device=model.device)
    for batch in micro_batches(examples, token_budget, n_ranks):
        # neighbours in length; a rank that gets none runs an unscored one, since all must gather the same weights
        mine = batch[rank::n_ranks] or [(batch[0][0], [IGNORE] * len(batch[0][0]))]
        with torch.autocast(model.device.type, torch.bfloat16, enabled=autocast):
            loss = summed_loss(model, *collate(mine, model.device)) / count
        (loss * n_ranks).backward()  # sharded gradients are averaged over ranks, and this is to be a sum
        total += loss.detach()
    return distributed.summed(total)


def micro_batches(examples: list, token_budget: int, n_ranks: int = 1):
    """Cut a step's examples, sorted by length, into runs of at most `token_budget` tokens a rank.

    With the padding, which only attention computes, they are at most twice as many.
    """
    batch = []
    for example in sorted(examples, key=lambda example: len(example[0])):
        longer = [*batch, example]
        tokens = sum(len(ids) for ids, _ in longer[::-n_ranks])  # of the rank that gets the longest
        padded = math.ceil(len(longer) / n_ranks) * len(example[0])
        if batch and (tokens > token_budget or padded > 2 * token_budget):
            yield batch
            longer = [example]
        batch = longer
    yield batch


def collate(batch: list, device):
    """(ids, labels), both (B, T) int64, padded on the right. The padding is never seen or scored."""
    ids, labels = zip(*batch)
    tensors = (pad_sequence([torch.tensor(row) for row in ids], batch_first=True),
               pad_sequence([torch.tensor(row) for row in labels], batch_first=True, padding_value=IGNORE))
    if device.type == "cuda":  # from pinned memory, so that the copy does not wait for the last micro-batch's kernels
        return tuple(tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors)
    return tuple(tensor.to(device) for tensor in tensors)


def learning_rate(step: int, n_steps: int, peak: float, schedule: str = "cosine", warmup: float = 0.1) -> float:
    """The rate of step 0 <= step < n_steps: a linear rise over ceil(warmup * n_steps) steps, then down towards 0.

    The rise ends at `peak` in its last step: step s < w has peak * (s + 1) / w. After it, with the progress
    x = (s - w) / (n_steps - w), "cosine" has peak * (1 + cos(pi x)) / 2 and "linear" has peak * (1 - x).
    The paper's text has a cosine with 10 % of warm-up, its scripts a line with 3 %.
    """
    n_warmup = math.ceil(warmup * n_steps)
    if step < n_warmup:
        return peak * (step + 1) / n_warmup
    progress = (step - n_warmup) / (n_steps - n_warmup)
    return peak * (1 - progress if schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2)


def adamw(model: Llama, beta2: float = 0.999):
    """AdamW without weight decay, as in the paper. `train` sets the learning rate anew in every step.

    beta2: how long the squared gradients are remembered. Pretraining takes 0.95, as Llama's did: its gradients shrink
    fast at first, and a long memory of the large ones would keep the steps small.
    """
    return torch.optim.AdamW(model.parameters(), betas=(0.9, beta2), weight_decay=0.0, fused=True)


CPU_TOKEN_BUDGET, GPU_TOKEN_BUDGET = 1024, 16384  # tokens of a micro-batch: more take memory and bring no speed


def train(model: Llama, examples: list, *, epochs: int, lr: float, batch_size: int = 64, seed: int = 1,
          schedule: str = "cosine", warmup: float = 0.1, token_budget: int = CPU_TOKEN_BUDGET, optimizer=None,
          first_step: int = 0, after_epoch=None, report=say, gradient=None) -> float:
    """Train on (ids, labels) pairs, all parameters. Returns the mean loss of the last epoch's steps.

    seed: of the data order. token_budget: tokens of a micro-batch, which changes speed and memory, not results.
    after_epoch(steps_done) is called at the end of each epoch; first_step, with the optimizer of then, goes on from
    there. report(line) is called after every step. gradient: a function to take the place of
    `accumulate_gradient`, for another loss. Raises ValueError where the loss is not finite.
    """
    optimizer, autocast = optimizer or adamw(model), machine.fast_bf16(model.device.type)
    add_gradient = gradient or accumulate_gradient
    per_epoch = math.ceil(len(examples) / batch_size)
    n_steps, losses, start = per_epoch * epochs, [], time.perf_counter()
    for step in range(first_step, n_steps):
        began = time.perf_counter()
        epoch, i = divmod(step, per_epoch)
        if i == 0:  # resuming begins at an epoch too, so this always runs first
            generator, losses = torch.Generator().manual_seed(seed * 1000003 + epoch), []
            order = torch.randperm(len(examples), generator=generator).tolist()
        batch = [examples[j] for j in order[i * batch_size : (i + 1) * batch_size]]
        rate = learning_rate(step, n_steps, lr, schedule, warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss = machine.or_eagerly(model, lambda: add_gradient(model, batch, token_budget, autocast))
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise ValueError(f"the loss of step {step + 1} is {losses[-1]}; a lower --lr may help")
        optimizer.step()
        now = time.perf_counter()
        speed = sum(len(ids) for ids, _ in batch) / (now - began)
        left = (now - start) / (step + 1 - first_step) * (n_steps - step - 1)
        report(f"step {step + 1}/{n_steps}  epoch {epoch + 1}  loss {losses[-1]:.4f}  lr {rate:.2e}  "
               f"{speed:,.0f} tokens/s  {clock(left)} left")
        if i == per_epoch - 1 and after_epoch:
            after_epoch(step + 1)
    return sum(losses) / len(losses)


class LinearCrossEntropy(torch.autograd.Function):
    """F.cross_entropy(h @ W.T, targets, reduction="sum"), without ever holding all of the logits.

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
            dlogits = log_p.exp_().scatter_add_(1, answers, -torch.ones_like(answers, dtype=torch.float32))
            dlogits = dlogits.to(logits.dtype)
            dh[i : i + len(rows)] = dlogits @ weight
            dw += dlogits.T @ rows
        ctx.save_for_backward(dh, dw)
        return loss

    @staticmethod
    def backward(ctx, dloss):
        dh, dw = ctx.saved_tensors
        return dh * dloss, dw.mul_(dloss), None  # in place: backward runs once


# The command line. Options that change how fast a run goes or where it goes, not its result, and the paths of what it
# reads, which is known by its hash:
NOT_SETTINGS = {"out", "device", "resume", "overwrite", "token_budget", "compile", "gradient_checkpointing", "model",
                "data"}


def parse_arguments():
    parser = common.parser(__doc__)
    parser.add_argument("--method", required=True, choices=METHODS, help="what to train on")
    parser.add_argument("--model", default="data/tiny",
                        help="the base model's folder, or its ORG/NAME on the hub; for pretrain, its config.json alone")
    parser.add_argument("--data", type=Path, default=Path("data/world"), help="folder of the .jsonl training sets")
    parser.add_argument("--out", type=common.path, required=True, help="folder to write, in the hub's layout")
    parser.add_argument("--epochs", type=common.positive(int), help="default: " + ", ".join(
        f"{name} {method.epochs}" for name, method in METHODS.items()))
    parser.add_argument("--lr", type=common.positive(float),
                        help="peak learning rate; default: from width 2,048 the paper's 1e-5 (OLMo: 3e-6), below 5e-5; "
                             "for pretrain 3e-3")
    parser.add_argument("--schedule", choices=["cosine", "linear"], default="cosine",
                        help="the way down to 0 after warm-up")
    parser.add_argument("--warmup", type=float, default=0.1,
                        help="share of steps over which the rate rises, from 0 to 1")
    parser.add_argument("--batch-size", type=common.positive(int), default=64,
                        help="sequences in a step (the paper's)")
    parser.add_argument("--max-length", type=common.positive(int), default=2048,
                        help="tokens at which an example is cut (the paper's); the model's context cuts too")
    parser.add_argument("--token-budget", type=common.positive(int),
                        help="tokens in a micro-batch of one device: speed and memory, not results "
                             "(but their last bits); default: 1,024 on a CPU, 16,384 on a GPU")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction,
                        help="torch.compile the layers; default: on a GPU. On a CPU it takes 10 to 20 s, "
                             "and saves memory more than time")
    parser.add_argument("--gradient-checkpointing", action="store_true",
                        help="compute the activations twice rather than keep them: less memory, a third more time")
    parser.add_argument("--seed", type=common.seed, default=1,
                        help="of the data order, and of pretraining's first weights")
    parser.add_argument("--device", type=machine.device_name, default=machine.default_device())
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--resume", action="store_true",
                      help="continue an interrupted run from its last epoch; start if there is none")
    what.add_argument("--overwrite", action="store_true", help="discard the run that --out holds")
    args = parser.parse_args()
    if not 0 <= args.warmup <= 1:
        parser.error("argument --warmup: must be from 0 to 1")
    return args


def settle_defaults(args, config: Config):
    """Fill in the options that depend on the method, the model and the device."""
    cuda = args.device.startswith("cuda")
    args.epochs = args.epochs or METHODS[args.method].epochs
    if args.max_length > config.context:
        say(f"--max-length {args.max_length} becomes {config.context}, the model's context")
    args.max_length = min(args.max_length, config.context)
    args.token_budget = args.token_budget or (GPU_TOKEN_BUDGET if cuda else CPU_TOKEN_BUDGET)
    args.compile = cuda if args.compile is None else args.compile
    if args.compile:
        machine.check_compiler(args.device)
    if args.lr is None:  # the paper's for OLMo-7B and Llama-2-7B; a narrow model takes, and needs, larger steps
        paper = 3e-6 if config.model_type == "olmo" else 1e-5
        args.lr = 3e-3 if args.method == "pretrain" else paper if config.hidden_size >= 2048 else 5e-5


def settings_of(args) -> dict:
    """The options and inputs that make a run what it is, for run.json and for --resume to compare."""
    settings = {key: value for key, value in vars(args).items() if key not in NOT_SETTINGS}
    settings["data_sha256"] = fingerprint(args.data / f"{METHODS[args.method].file}.jsonl")
    files = [args.model / "config.json"]
    if args.method != "pretrain":
        files += [args.model / "tokenizer.json", *weight_files(args.model)]
    return settings | {"model_sha256": fingerprint(*files)}


def new_model(args, config: Config, folder: Path):
    """The start of pretraining: a tokenizer trained on the corpus, written to `folder`, and random weights."""
    if (config.bos_token_id, config.eos_token_id) != (0, 1):
        raise ValueError(f"{args.model / 'config.json'}: set bos_token_id to 0 and eos_token_id to 1, "
                         "as the tokenizer trained here has them")
    texts = [row["text"] for row in read_jsonl(args.data / "corpus.jsonl", check_fields("text"))]
    write_text(folder / "tokenizer.json", train_tokenizer(texts, config.vocab_size).to_str(pretty=True))
    write_text(folder / "config.json", config.to_json())
    return Llama(config).init_weights(torch.Generator().manual_seed(args.seed)).to(args.device)


def main():
    args = parse_arguments()
    args.model = model_folder(args.model)
    config = Config.from_json(args.model / "config.json")
    machine.prepare(args.device)
    args.device = distributed.start_ranks(args.device)
    settle_defaults(args, config)
    with runs.claimed(args.out, args.model), tempfile.TemporaryDirectory() as scratch:
        run(args, config, Path(scratch))
        distributed.end_ranks()


def run(args, config: Config, scratch: Path):
    """Load, train, save. scratch: a folder for the tokenizer that pretraining makes, since --out is not to be touched
    before the input is known to be good."""
    settings = distributed.from_main(lambda: settings_of(args))
    found = distributed.from_main(lambda: runs.state(args.out, settings, args.resume, args.overwrite))
    if found == "all":
        return say(f"{args.out} is finished; --overwrite (make: OVERWRITE=1) trains it again")
    base, bf16 = args.model, machine.fast_bf16(args.device)
    split = (lambda model: distributed.shard(model, bf16)) if distributed.n_ranks() > 1 else None
    if args.method == "pretrain":
        base, model = scratch, new_model(args, config, scratch)
        if split:
            split(model)
    else:
        model = Llama.from_pretrained(base, device=args.device, shard=split)
    examples = load_examples(METHODS[args.method], args.data, Tokenizer(base), args.max_length)
    optimizer = adamw(model, beta2=0.95 if args.method == "pretrain" else 0.999)
    checkpoint = args.out / runs.CHECKPOINT
    steps_per_epoch = math.ceil(len(examples) / args.batch_size)
    epochs_done = runs.load_checkpoint(checkpoint, model, optimizer)[0] if found == "half" else 0
    first_step = epochs_done * steps_per_epoch
    model.gradient_checkpointing = args.gradient_checkpointing
    if args.compile:
        machine.compile_layers(model)
    if model.device.type == "cuda":
        machine.warn_without_flash(model)
    say(f"{args.method}: {len(examples):,} examples, {sum(map(n_scored, examples)):,} scored tokens, "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters on {args.device}"
        f"{f' and {distributed.n_ranks() - 1} more' if split else ''}"
        f"{', bf16 autocast' if bf16 else ''}{f', from step {first_step}' if first_step else ''}")
    if args.overwrite and distributed.is_main():  # only now that the input is known to be good
        for name in (runs.CHECKPOINT, runs.RECORD, "model.safetensors"):
            (args.out / name).unlink(missing_ok=True)
    began, n_steps = time.perf_counter(), args.epochs * steps_per_epoch

    def keep(steps_done):
        if steps_done < n_steps:
            runs.save_checkpoint(checkpoint, model, optimizer, settings, steps_done // steps_per_epoch, {})

    loss = train(model, examples, epochs=args.epochs, lr=args.lr, batch_size=args.batch_size, seed=args.seed,
                 schedule=args.schedule, warmup=args.warmup, token_budget=args.token_budget, optimizer=optimizer,
                 first_step=first_step, after_epoch=keep)
    tensors = distributed.gathered(model.state_dict())
    if distributed.is_main():
        record = settings | {"model": str(args.model), "data": str(args.data), "loss": loss,
                             "seconds": round(time.perf_counter() - began, 1)}
        model.save_pretrained(args.out, getattr(torch, model.config.dtype), tensors)
        write_companions(args.out, base, record)
        write_json(args.out / runs.RECORD, record)  # the last: a folder with a record is a finished run
        checkpoint.unlink(missing_ok=True)
    say(f"wrote {args.out}: mean loss of the last epoch {loss:.4f}")


if __name__ == "__main__":
    common.run(main, interrupted="--out keeps the last whole epoch, if one was finished; "
                                  "the same command with --resume (and no --overwrite) goes on from there",
                out_of_memory="lower --token-budget, or add --gradient-checkpointing; "
                              "with --resume the run goes on from its last whole epoch")
