"""Adapters that are trained, for the laboratory: LoRA, one layer, and numbers for the paper's three rules."""
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils import parametrize

from data.format import IGNORE, encode
from lab.lab import fit, identity, kept, kept_value, load, save_tuned


class LoRA(nn.Module):
    """W + B A, of which A (rank, in) and B (out, rank) are trained; B is zero at first (Hu et al., 2021)."""

    def __init__(self, weight, rank: int):
        super().__init__()
        self.a = nn.Parameter(torch.randn(rank, weight.shape[1]) / weight.shape[1] ** 0.5)
        self.b = nn.Parameter(torch.zeros(weight.shape[0], rank))

    def forward(self, weight):
        return weight + self.b @ self.a


def trainable(model, kind: str) -> int:
    """Freeze what this kind of adapter does not train, add what it does. Returns the number of trained weights."""
    if kind != "all weights":
        model.requires_grad_(False)
    if kind == "one layer":
        model.model.layers[len(model.model.layers) // 2].requires_grad_(True)
    if kind.startswith("LoRA"):
        for matrix in [module for module in model.model.layers.modules() if isinstance(module, nn.Linear)]:
            parametrize.register_parametrization(matrix, "weight", LoRA(matrix.weight, int(kind.split()[-1])))
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def adapt(base, dialogues, epochs, seed, kind, lr):
    """Response tuning of some of the weights. Returns the folder of the whole model."""
    def make(folder):
        torch.manual_seed(seed)
        model, tokenizer = load(base)
        trainable(model, kind)
        examples = [encode(tokenizer, messages, model.config.context, blank=True) for messages in dialogues]
        fit(model, examples, epochs, lr, seed)
        for module in list(model.modules()):
            if parametrize.is_parametrized(module):
                parametrize.remove_parametrizations(module, "weight")
        save_tuned(model, base, folder)

    return kept("tuned", ["adapted", identity(base), dialogues, epochs, seed, kind, lr], make)


def predicting(labels):
    """The positions from which a scored token is predicted: those before one. labels: (T,). Returns (N,) int64."""
    return (labels[1:] != IGNORE).nonzero()[:, 0]


@torch.no_grad()
def positions(model, examples):
    """For each (ids, labels): the base's logits (N, V) before its N scored tokens, these, their numbers from 0 on, and
    which tokens the response has had before, (N, V) bool."""
    for ids, labels in examples:
        ids, labels = torch.tensor(ids), torch.tensor(labels)
        before = predicting(labels)
        targets, n = labels[before + 1], torch.arange(len(before))
        seen = torch.zeros(len(before), model.config.vocab_size, dtype=torch.bool)
        for i, token in enumerate(targets.tolist(), 1):
            seen[i:, token] = True
        yield model(ids[None, :-1])[0, before], targets, n, seen


def fit_rules(base, dialogues, blank: bool, decay: float) -> dict:
    """The token shifts, slope and penalty that maximise the likelihood of the responses under base and rules together.

    The mean loss per scored token plus decay times the squared shifts is convex; L-BFGS finds its minimum.
    """
    def make():
        model, tokenizer = load(base)
        examples = [encode(tokenizer, messages, model.config.context, blank) for messages in dialogues]
        logits, targets, n, seen = map(torch.cat, zip(*positions(model, examples)))  # (N, V), (N,), (N,), (N, V)
        shift, slope, penalty = (torch.zeros(size, requires_grad=True) for size in (logits.shape[1], 1, 1))
        eos = F.one_hot(torch.tensor(tokenizer.eos_id), logits.shape[1])
        solver = torch.optim.LBFGS([shift, slope, penalty], max_iter=100, line_search_fn="strong_wolfe")

        def loss():
            solver.zero_grad()
            scores = logits + shift + slope * n[:, None] * eos - penalty * seen
            value = F.cross_entropy(scores, targets) + decay * shift.square().sum()
            value.backward()
            return value

        solver.step(loss)
        return {"token_shift": shift.tolist(), "eos_slope": slope.item(), "repeat_penalty": penalty.item()}

    return kept_value("rules", [identity(base), dialogues, blank, decay], make)
