"""How alike two texts are, to a base model: the cosine of the means of their last hidden states."""
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from lab.lab import load


@cache  # every task is compared with the same texts
@torch.inference_mode()
def embed(folder: Path, texts: tuple[str, ...]):
    """The mean over a text's tokens of the last layer's hidden states, (N, C)."""
    (model, tokenizer), means = load(folder), []
    rows = [torch.tensor(tokenizer.start + tokenizer.encode(text or "\n").ids[:200]) for text in texts]
    for i in range(0, len(rows), 64):
        lengths = torch.tensor([len(row) for row in rows[i : i + 64]])
        ids = pad_sequence(rows[i : i + 64], batch_first=True)  # (B, T)
        real = (torch.arange(ids.shape[1]) < lengths[:, None]).flatten()  # (B * T,) bool: no padding
        h = model.hidden(ids, wanted=real.nonzero()[:, 0])  # (sum of lengths, C), row by row
        means += [states.mean(0) for states in h.split(lengths.tolist())]
    return torch.stack(means)


def likeness(base, texts: list[str], *groups: list[str], centre: list[str]) -> list:
    """The mean cosine similarity of each text to the texts of each group: for each group (N,), from -1 to 1.

    centre: texts whose mean is taken off first, since the hidden states of all texts point in one direction.
    """
    middle = embed(base.folder, tuple(centre)).mean(0)

    def unit(group):
        return F.normalize(embed(base.folder, tuple(group)) - middle, dim=-1)  # (N, C)

    return [(unit(texts) @ unit(group).T).mean(1) for group in groups]
