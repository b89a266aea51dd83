"""What tuning changes in the weights: as a vector that can be compared, scaled, and added to another model."""
import torch

from data.format import encode_prompt
from lab.conditions import grades_of
from lab.lab import identity, kept, load, save_tuned


def change(before, after) -> dict:
    """{name of a weight: its change}, between the models of two folders."""
    old, new = (load(folder)[0].state_dict() for folder in (before, after))
    return {name: new[name] - weight for name, weight in old.items()}


def compared(base, one, other) -> dict:
    """Two models that were tuned from a base: "by layer" and "cosine" of their changes, in percent, for the embedding,
    each layer, and all weights; "length" of the other's change to the one's; "CKA" of their last hidden states."""
    ours, theirs = change(base.folder, one), change(base.folder, other)

    def vector(weights, part):
        return torch.cat([weight.flatten() for name, weight in weights.items() if part in name])

    n_layers, cosines = load(base.folder)[0].config.num_hidden_layers, []
    for part in ("embed_tokens", *(f".layers.{i}." for i in range(n_layers)), ""):
        a, b = vector(ours, part), vector(theirs, part)
        cosines.append(round(100 * torch.cosine_similarity(a, b, 0).item(), 1))
    return {"by layer": cosines[:-1], "cosine": cosines[-1],  # the last part is all weights
            "length": round((b.norm() / a.norm()).item(), 2),
            "CKA": round(100 * cka(states(base, one), states(base, other)), 1)}


@torch.inference_mode()
def states(base, folder):
    """The last hidden state of each instruction's prompt, from which an answer's first token is said, (N, C)."""
    model, tokenizer = load(folder)
    return torch.stack([model.hidden(torch.tensor([encode_prompt(tokenizer, task.instruction)]))[0, -1]
                        for task in base.tasks("eval")])


def cka(a, b) -> float:
    """How alike two models' states of the same N inputs are, from 0 to 1, however either is turned or scaled: linear
    CKA, |A^T B|^2 / (|A^T A| |B^T B|) of centred A, B (Kornblith et al., 2019). a, b: (N, C)."""
    a, b = a - a.mean(0), b - b.mean(0)
    return ((a.T @ b).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())).item()


def moved(base, factor: float, changes: list) -> list[tuple[float, float]]:
    """The (content, grade) of the base plus factor times some changes, each given as its two folders."""
    def make(folder):
        model, _ = load(base.folder)
        weights = model.state_dict()
        for pair in changes:
            for name, difference in change(*pair).items():
                weights[name].add_(difference, alpha=factor)
        save_tuned(model, base.folder, folder)

    of = [list(map(identity, pair)) for pair in changes]
    made = kept("tuned", ["moved", identity(base.folder), factor, of], make)
    return grades_of(base, made, base.tasks("eval"))
