"""Adapters that are trained, for the laboratory: LoRA, one layer, and numbers for the paper's three rules."""
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils import parametrize

from data.common import read_json, write_json
from data.format import encode
from lab.lab import fit, identity, kept, load, save_tuned


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


def fit_rules(base, dialogues, blank: bool, decay: float) -> dict:
    """The token shifts, slope and penalty that maximise the likelihood of the responses under base and rules together.

    The mean loss per scored token plus decay times the squared shifts is convex; L-BFGS finds its minimum.
    """
    @torch.no_grad()
    def positions(model, tokenizer):
        for messages in dialogues:
            ids, labels = (torch.tensor(row) for row in encode(tokenizer, messages, model.config.context, blank))
            at = (labels[1:] >= 0).nonzero()[:, 0]  # the places from which a scored token is predicted
            seen = torch.zeros(len(at), model.config.vocab_size, dtype=torch.bool)
            for n in range(1, len(at)):
                seen[n:, labels[at[n - 1] + 1]] = True
            yield model(ids[None, :-1])[0, at], labels[at + 1], torch.arange(len(at)), seen

    def make(folder):
        model, tokenizer = load(base)
        logits, targets, n, seen = map(torch.cat, zip(*positions(model, tokenizer)))  # (N, V), (N,), (N,), (N, V)
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
        write_json(folder / "rules.json", {"token_shift": shift.tolist(), "eos_slope": slope.item(),
                                           "repeat_penalty": penalty.item()})

    made = kept("rules", [identity(base), dialogues, blank, decay], make)
    return read_json(made / "rules.json", "remove its folder")
