"""Finetuning and pretraining: a masked loss, its gradient, AdamW, and the loop over them.

    python train.py --method response --model data/tiny --data data/world --out out/response
    torchrun --nproc_per_node=8 train.py ...        # the same run, sharded over eight GPUs

A method is a file of dialogues and whether their instructions are blanked (sections 3 to 5 of the paper). `pretrain` is
the same loop over documents, from random weights, with every token scored.
"""
import argparse
import math
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

from data import common  # first: Ctrl-C is quiet from here on

import torch
import torch.nn.functional as F

from data import distributed
from data.checkpoint import (CHECKPOINT, RECORD, claimed, config_text, discard, load_checkpoint, save_checkpoint, state,
                             weight_files, write_companions)
from data.common import check_fields, clock, fingerprint, read_jsonl, write_json, write_text
from data.device import compile_layers, default_device, device_name, fast_bf16, prepare, to_device
from data.distributed import say
from data.format import (IGNORE, Tokenizer, check_dialogue, check_template, dialogue, encode, encode_document,
                         train_tokenizer)
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
    """A method's training set as (ids, labels) pairs. Examples without a scored token are left out, and counted."""
    path = folder / f"{method.file}.jsonl"
    if method.file == "corpus":
        rows = read_jsonl(path, check_fields("text"))
        examples = [encode_document(tokenizer, row["text"], max_length) for row in rows]
    else:
        check_template(tokenizer)
        rows = read_jsonl(path, check_dialogue)
        examples = [encode(tokenizer, row["messages"], max_length, method.blank) for row in rows]
    scored = [example for example in examples if n_scored(example)]
    if not scored:
        raise ValueError(f"{path}: no response begins within --max-length {max_length} tokens")
    if len(scored) < len(examples):
        say(f"{path}: left out {len(examples) - len(scored)} of {len(examples)} examples, "
            f"whose instruction alone fills {max_length} tokens")
    return scored


def load_held_out(folder: Path, tokenizer: Tokenizer, max_length: int) -> list:
    """The rows of val.jsonl with a response within max_length, as (ids, labels) pairs. Their instructions are kept:
    response tuning is trained on one thing and asked another."""
    path = folder / "val.jsonl"
    rows = read_jsonl(path, check_fields("instruction")) if path.exists() else []
    answered = [row for row in rows if isinstance(row.get("response"), str)]
    examples = [encode(tokenizer, dialogue(row["instruction"], row["response"]), max_length) for row in answered]
    return list(filter(n_scored, examples))


def n_scored(example) -> int:
    """How many tokens of an example the loss falls on: the first has nothing before it to predict it from."""
    return sum(label != IGNORE for label in example[1][1:])


class MicroBatch(NamedTuple):
    """Some of a step's examples, as int64 tensors: what several rows begin with is there once, see `collate`."""

    tokens: torch.Tensor  # (1, N)
    index: torch.Tensor  # (B, T), which of the N is at each place of a row
    places: torch.Tensor  # (1, N), where each of the N is in index.flatten()
    scored: torch.Tensor  # (n_scored,), which of the N predict a scored token
    targets: torch.Tensor  # (n_scored,), the tokens that they are to predict


def collate(examples: list, device) -> MicroBatch:
    """A micro-batch from (ids, labels) pairs, padded on the right. The padding is neither seen nor scored.

    What the model computes for a token depends only on it and those before it. So rows that begin alike share the
    work: in response tuning all prompts are one. The tokens are those of the trie of the rows, the tree in which every
    row is a path from the root and a common beginning is a common path:

        rows    5 7 8 2        tokens    5 7 8 2 9 3
                5 7 9 3        index     0 1 2 3        places    0 1 2 3 6 7
                                         0 1 4 5
    """
    tokens, found, paths, scored, targets, nodes = [], [], [], [], [], {}
    for row, (ids, labels) in enumerate(examples):
        # Position t predicts token t + 1, so a row needs its tokens before the last scored one.
        n_needed = max([1] + [t for t, label in enumerate(labels) if label != IGNORE])

        # Go down the trie. A token that is new behind its parent is a new token of the micro-batch.
        parent, path = -1, []
        for token, target in zip(ids[:n_needed], [*labels[1:], IGNORE]):
            if (parent, token) not in nodes:
                nodes[parent, token] = len(tokens)
                tokens.append(token)
                found.append((row, len(path)))
            parent = nodes[parent, token]
            path.append(parent)
            if target != IGNORE:
                scored.append(parent)
                targets.append(target)
        paths.append(path)

    # oneDNN keeps a program for every shape of a matrix product. The first token again and again, up to a multiple of
    # 64, makes the shapes few, and halves the memory.
    n_more = -len(tokens) % 64
    width = max(map(len, paths))
    index = [path + [0] * (width - len(path)) for path in paths]  # (B, T)
    places = [row * width + t for row, t in found + found[:1] * n_more]
    lists = [[tokens + tokens[:1] * n_more], index, [places], scored, targets]
    return MicroBatch(*(to_device(torch.tensor(values, dtype=torch.int64), device) for values in lists))


def summed_loss(model: Llama, batch: MicroBatch):
    """The cross-entropy of every scored token, summed: -sum of log p(target | the tokens before it), an fp32 scalar.

    The vocabulary matrix is applied at the positions that predict a scored token, and at no other.
    """
    h = model.hidden(batch.tokens, shared=(batch.index, batch.places), wanted=batch.scored)  # (n_scored, C)
    return LinearCrossEntropy.apply(h, model.head.weight, batch.targets)


def micro_batches(examples: list, token_budget: int):
    """Cut examples, sorted by length, into runs of at most `token_budget` tokens (or one example that has more), and
    with the padding, which only attention computes, of at most twice as many."""
    chosen, n_tokens = [], 0
    for example in sorted(examples, key=lambda example: len(example[0])):
        length = len(example[0])
        if chosen and (n_tokens + length > token_budget or (len(chosen) + 1) * length > 2 * token_budget):
            yield chosen
            chosen, n_tokens = [], 0
        chosen.append(example)
        n_tokens += length
    if chosen:
        yield chosen


def accumulate_gradient(model: Llama, examples: list, token_budget: int, autocast: bool = False):
    """Add to every .grad the gradient of one step's mean loss per scored token. Returns that loss, a detached scalar;
    under torch.no_grad that is all that it does.

    examples: (ids, labels) pairs, the whole step's, with a scored token among them. They are cut into micro-batches
    of at most token_budget tokens; the loss of each is summed and divided by the count of scored tokens in the *whole*
    step, over all ranks. So the gradient does not depend on how the step is cut. (A mean of the micro-batches' means
    would weigh a token by its neighbours' lengths.) autocast: multiply in bf16.
    """
    count = sum(map(n_scored, examples))
    total = torch.zeros((), device=model.device)

    # Neighbours in length go to different ranks, and each rank cuts its share. A rank that has run out of micro-batches
    # computes an example that is not scored, since the ranks gather every layer's weights together.
    def cut(share):
        return micro_batches(share, token_budget)

    ranked = sorted(examples, key=lambda example: len(example[0]))
    not_scored = [(ranked[0][0], [IGNORE] * len(ranked[0][0]))]
    for chosen in distributed.dealt(ranked, cut, not_scored):
        with torch.autocast(model.device.type, torch.bfloat16, enabled=autocast):
            loss = summed_loss(model, collate(chosen, model.device)) / count
        if torch.is_grad_enabled():
            (loss * distributed.n_ranks()).backward()  # sharded gradients are averaged over ranks; this is to be a sum
        total += loss.detach()
    return distributed.summed(total)


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
    """AdamW without weight decay, as in the paper. beta2: how long squared gradients are remembered. Pretraining takes
    0.95, as Llama's did: its gradients shrink fast at first, and a long memory would keep the steps small."""
    return torch.optim.AdamW(model.parameters(), betas=(0.9, beta2), weight_decay=0.0, fused=True)


CPU_TOKEN_BUDGET, GPU_TOKEN_BUDGET = 1024, 16384  # tokens of a micro-batch: more take memory and bring no speed


@dataclass(frozen=True)
class Hyperparameters:
    """What makes a run what it is, beside its model and data. The defaults are those of the paper's text."""

    epochs: int
    lr: float  # the highest learning rate
    batch_size: int = 64  # sequences in a step
    seed: int = 1  # of the data order
    schedule: str = "cosine"
    warmup: float = 0.1  # share of steps
    token_budget: int = CPU_TOKEN_BUDGET  # of a micro-batch: speed and memory, not results


def batches(examples: list, batch_size: int, seed: int, epoch: int):
    """The steps of an epoch, each a list of batch_size examples (the last may be shorter), in an order of its own."""
    generator = torch.Generator().manual_seed(seed * 1000003 + epoch)
    order = torch.randperm(len(examples), generator=generator).tolist()
    for i in range(0, len(order), batch_size):
        yield [examples[j] for j in order[i : i + batch_size]]


def train(model: Llama, examples: list, hyper: Hyperparameters, optimizer=None, first_epoch: int = 0, after_epoch=None,
          report=say, gradient=accumulate_gradient) -> list[float]:
    """Train all parameters on (ids, labels) pairs. Returns each step's loss. Raises ValueError if one is not finite.

    first_epoch: go on behind so many epochs, with the optimizer of then. after_epoch(epochs_done, losses) is called at
    the end of each epoch, report(line) after every step. gradient: in place of `accumulate_gradient`, for another loss.
    """
    optimizer = optimizer or adamw(model)
    autocast = fast_bf16(model.device.type)
    steps_per_epoch = math.ceil(len(examples) / hyper.batch_size)
    n_steps, first_step = steps_per_epoch * hyper.epochs, steps_per_epoch * first_epoch
    step, losses, start = first_step, [], time.perf_counter()
    for epoch in range(first_epoch, hyper.epochs):
        for batch in batches(examples, hyper.batch_size, hyper.seed, epoch):
            began = time.perf_counter()

            # 1. The step's learning rate: up to hyper.lr, then down towards 0.
            rate = learning_rate(step, n_steps, hyper.lr, hyper.schedule, hyper.warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate

            # 2. The gradient of its loss, micro-batch by micro-batch.
            optimizer.zero_grad()
            loss = gradient(model, batch, hyper.token_budget, autocast).item()
            if not math.isfinite(loss):
                raise ValueError(f"the loss of step {step + 1} is {loss}; a lower --lr may help")

            # 3. The update of all weights.
            optimizer.step()
            losses.append(loss)
            step += 1

            # 4. A line for the reader.
            now = time.perf_counter()
            speed = sum(len(ids) for ids, _ in batch) / (now - began)
            left = (now - start) / (step - first_step) * (n_steps - step)
            report(f"step {step}/{n_steps}  epoch {epoch + 1}  loss {loss:.4f}  lr {rate:.2e}  "
                   f"{speed:,.0f} tokens/s  {clock(left)} left")
        if after_epoch:
            after_epoch(epoch + 1, losses[-steps_per_epoch:])
    return losses


class LinearCrossEntropy(torch.autograd.Function):
    """F.cross_entropy(h @ W.T, targets, reduction="sum"), without ever holding all of the logits.

    h: (N, C); weight W: (V, C); targets: (N,) int64. Returns an fp32 scalar. The gradient of a logit is
    softmax - onehot, so it is taken while the logits of a few rows are at hand: with SmolLM2's 49,152 words that halves
    the time of the loss on a CPU. (With bf16 inputs, torch 2.13's F.linear_cross_entropy sums in bf16 and is 5 % off.)
    """

    ROWS = 512

    @staticmethod
    def forward(ctx, h, weight, targets):
        loss = torch.zeros((), device=h.device)
        dh, dw = torch.zeros_like(h), torch.zeros_like(weight)
        for i in range(0, len(h), LinearCrossEntropy.ROWS):
            # 1. The logits of some rows. Rows of zeros make them a multiple of 64: few shapes, as in `collate`.
            answers = targets[i : i + LinearCrossEntropy.ROWS, None]  # (n, 1)
            n = len(answers)
            rows = F.pad(h[i : i + n], (0, 0, 0, -n % 64))
            logits = F.linear(rows, weight)  # (n + padding, V)

            # 2. Their loss.
            log_p = F.log_softmax(logits, -1, dtype=torch.float32)
            loss -= log_p[:n].gather(1, answers).sum()

            # 3. The gradient of the logits, and with it those of h and the weight.
            dlogits = log_p.exp_()
            dlogits[:n].scatter_add_(1, answers, -torch.ones_like(answers, dtype=torch.float32))
            dlogits[n:] = 0
            dlogits = dlogits.to(logits.dtype)
            dh[i : i + n] = (dlogits @ weight)[:n]
            dw += dlogits.T @ rows
        ctx.save_for_backward(dh, dw)
        return loss

    @staticmethod
    def backward(ctx, dloss):
        dh, dw = ctx.saved_tensors
        return dh * dloss, dw.mul_(dloss), None  # in place: backward runs once


# The command line. These options change how fast a run goes or where it goes, or are known by their content's hash:
NOT_SETTINGS = {"out", "device", "resume", "overwrite", "token_budget", "compile", "gradient_checkpointing", "model",
                "data"}


def parse_arguments():
    parser = common.parser(__doc__)
    add, either = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    epochs = [f"{name} {method.epochs}" for name, method in METHODS.items()]
    add("--method", required=True, choices=METHODS, help="what to train on")
    add("--model", default="data/tiny", help="the base model's folder, or its ORG/NAME on the hub; pretrain reads only "
        "its config.json")
    add("--data", type=Path, default=Path("data/world"), help="folder of the .jsonl training sets")
    add("--out", type=common.path, required=True, help="folder to write, in the hub's layout")
    add("--epochs", type=common.positive(int), help="default: " + ", ".join(epochs))
    add("--lr", type=common.positive(float), help="highest learning rate; default: from width 2,048 the paper's 1e-5 "
        "(OLMo: 3e-6), below 5e-5; for pretrain 3e-3")
    add("--schedule", choices=["cosine", "linear"], default="cosine", help="the way down towards 0 after warm-up")
    add("--warmup", type=common.share, default=0.1, help="share of steps over which the rate rises, from 0 to 1")
    add("--batch-size", type=common.positive(int), default=64, help="sequences in a step (the paper's)")
    add("--max-length", type=common.positive(int), default=2048, help="tokens at which an example is cut (the paper's)")
    add("--token-budget", type=common.positive(int), help="tokens in a micro-batch of one device: speed and memory, "
        "not results (but their last bits); default: 1,024 on a CPU, 16,384 on a GPU")
    add("--compile", action=argparse.BooleanOptionalAction, help="torch.compile the layers; default: on a GPU. A CPU "
        "needs a C++ compiler and 10 to 20 s for it, and saves memory more than time")
    add("--gradient-checkpointing", action="store_true", help="less memory, a third more time")
    add("--seed", type=common.seed, default=1, help="of the data order, and of pretraining's first weights")
    add("--device", type=device_name, default=default_device())
    either("--resume", action="store_true", help="continue from the last whole epoch; start if there is no run")
    either("--overwrite", action="store_true", help="discard the run that --out holds")
    return parser.parse_args()


def settle_defaults(args, config: Config):
    """Fill in the options that depend on the method, the model and the device."""
    cuda = args.device.startswith("cuda")
    args.epochs = args.epochs or METHODS[args.method].epochs
    args.max_length = min(args.max_length, config.context)
    args.token_budget = args.token_budget or (GPU_TOKEN_BUDGET if cuda else CPU_TOKEN_BUDGET)
    if args.compile is None:
        args.compile = cuda
    if args.method == "pretrain":
        args.lr = args.lr or 3e-3
    elif config.hidden_size < 2048:  # a narrow model takes, and needs, larger steps than the paper's
        args.lr = args.lr or 5e-5
    else:
        args.lr = args.lr or (3e-6 if config.model_type == "olmo" else 1e-5)


def settings_of(args) -> dict:
    """The options and inputs that make a run what it is, for run.json and for --resume to compare."""
    settings = {key: value for key, value in vars(args).items() if key not in NOT_SETTINGS}
    settings["data_sha256"] = fingerprint(args.data / f"{METHODS[args.method].file}.jsonl")
    files = [args.model / "config.json"]
    if args.method != "pretrain":
        files += [args.model / "tokenizer.json", *weight_files(args.model)]
    code = [Path(__file__).parent / name for name in ("train.py", "model.py", "data/format.py")]
    return settings | {"model_sha256": fingerprint(*files), "code_sha256": fingerprint(*code)}


def first_model(args, config: Config, scratch: Path) -> tuple[Path, Llama]:
    """(folder of config.json and tokenizer, model) before training: the base; or random weights, and a tokenizer
    that is trained on the corpus and written to `scratch`: --out stays as it is until the input is known to be good."""
    def shard(model):
        distributed.shard(model, fast_bf16(args.device))

    if args.method != "pretrain":
        return args.model, Llama.from_pretrained(args.model, device=args.device, shard=shard)
    if (config.bos_token_id, config.eos_token_id) != (0, 1):
        raise ValueError(f"{args.model / 'config.json'}: set bos_token_id to 0 and eos_token_id to 1, as the tokenizer "
                         "that is trained here has them")
    texts = [row["text"] for row in read_jsonl(args.data / "corpus.jsonl", check_fields("text"))]
    write_text(scratch / "tokenizer.json", train_tokenizer(texts, config.vocab_size).to_str(pretty=True))
    write_text(scratch / "config.json", config_text(config))
    model = Llama(config).init_weights(torch.Generator().manual_seed(args.seed)).to(args.device)
    shard(model)
    return scratch, model


def run(args, config: Config, scratch: Path):
    """Load, train, save."""
    # What does --out hold already? The first rank looks, for all.
    settings = distributed.from_main(lambda: settings_of(args))
    found = distributed.from_main(lambda: state(args.out, settings, args.resume, args.overwrite))
    if found == "all":
        return say(f"{args.out} is finished; --overwrite (make: OVERWRITE=1) trains it again")

    # The model, what it is trained on, and how far an interrupted run was.
    base, model = first_model(args, config, scratch)
    model.gradient_checkpointing = args.gradient_checkpointing
    if args.compile:
        compile_layers(model)
    tokenizer, bf16 = Tokenizer(base), fast_bf16(args.device)
    examples = load_examples(METHODS[args.method], args.data, tokenizer, args.max_length)
    held_out = load_held_out(args.data, tokenizer, args.max_length)
    optimizer = adamw(model, beta2=0.95 if args.method == "pretrain" else 0.999)
    checkpoint, first_epoch, curves = args.out / CHECKPOINT, 0, {"loss": [], "held_out_loss": []}
    if found == "half":
        first_epoch, curves = load_checkpoint(checkpoint, model, optimizer)
    say(f"{args.method}: {len(examples):,} examples, {sum(map(n_scored, examples)):,} scored tokens, "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters on {distributed.n_ranks()} x {args.device}"
        + ", bf16 autocast" * bf16 + ", compiled" * args.compile
        + f", from epoch {first_epoch + 1}" * (first_epoch > 0))
    if args.overwrite and distributed.is_main():  # only now that the input is known to be good
        discard(args.out)

    def after_epoch(epochs_done, losses):
        curves["loss"] += losses
        line = f"epoch {epochs_done}/{args.epochs}  mean loss {sum(losses) / len(losses):.4f}"
        if held_out:
            with torch.no_grad():
                loss = accumulate_gradient(model, held_out, args.token_budget, bf16).item()
            curves["held_out_loss"].append(loss)
            line += f", on held-out dialogues {loss:.4f}"
        say(line)
        save_checkpoint(checkpoint, model, optimizer, settings, epochs_done, curves)

    # The loop, then what it made. The last epoch has a checkpoint, too: a run can be killed while it saves.
    hyper = Hyperparameters(**{field.name: getattr(args, field.name) for field in fields(Hyperparameters)})
    train(model, examples, hyper, optimizer, first_epoch, after_epoch)
    record = settings | {"model": str(args.model), "data": str(args.data)} | curves
    save(args, base, model, record, loss_svg(**curves))
    say(f"wrote {args.out}, with the curves of both losses in loss.svg")


def save(args, base: Path, model: Llama, record: dict, svg: str):
    """Write the folder of a finished run; run.json comes last, since a folder that has it is finished."""
    tensors = distributed.gathered(model.state_dict())
    if distributed.is_main():
        model.save_pretrained(args.out, getattr(torch, model.config.dtype), tensors)
        write_companions(args.out, base, args.method != "pretrain")
        write_text(args.out / "loss.svg", svg)
        write_json(args.out / RECORD, record)
        (args.out / CHECKPOINT).unlink(missing_ok=True)


def loss_svg(loss: list[float], held_out_loss: list[float]) -> str:
    """The loss of every step, and behind every epoch that of the held-out dialogues, as a picture."""
    top = max(loss + held_out_loss)
    svg = ('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 600 300" font-family="sans-serif" font-size="12">\n'
           '<rect width="600" height="300" fill="white"/>\n<path d="M40 10V290H590" fill="none" stroke="black"/>\n'
           f'<text x="8" y="18">{top:.1f}</text>\n<text x="8" y="294">0.0</text>\n')
    lines = [("training loss", loss, "#0072b2", 30), ("held-out loss", held_out_loss, "#d55e00", 48)]
    for name, values, color, y in lines:
        x = [40 + 550 * (i + 1) / len(values) for i in range(len(values))]
        points = " ".join(f"{a:.1f},{290 - 280 * value / top:.1f}" for a, value in zip(x, values))
        svg += (f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>\n'
                f'<text x="590" y="{y}" text-anchor="end" fill="{color}">{name}</text>\n')
    return svg + "</svg>\n"


def main():
    args = parse_arguments()
    args.model = model_folder(args.model)
    config = Config.from_json(args.model / "config.json")
    prepare(args.device)
    args.device = distributed.start_ranks(args.device)
    settle_defaults(args, config)
    with claimed(args.out, args.model), tempfile.TemporaryDirectory() as scratch:
        try:
            run(args, config, Path(scratch))
        except RuntimeError as error:
            if not args.compile or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = str(error).strip().splitlines()[0][:200]
            raise ValueError(f"torch.compile failed ({reason}); add --no-compile, which trains without") from error
        distributed.end_ranks()


if __name__ == "__main__":
    common.run(main, interrupted="--out keeps the last whole epoch, if one was finished; "
                                 "the same command with --resume (and no --overwrite) goes on from there",
               out_of_memory="lower --token-budget, or add --gradient-checkpointing; "
                             "with --resume the run goes on from its last whole epoch")
