"""How alike two texts are, to a base model: the cosine of the means of their last hidden states."""
import torch
import torch.nn.functional as F

from lab.lab import load


@torch.inference_mode()
def embed(base, texts: list[str]):
    """The mean over a text's tokens of the last layer's hidden states, (N, C)."""
    model, tokenizer = load(base.folder)
    return torch.cat([model.hidden(torch.tensor([tokenizer.start + tokenizer.encode(text or "\n").ids[:200]])).mean(1)
                      for text in texts])


def likeness(base, texts: list[str], *groups: list[str], centre: list[str]) -> list:
    """The mean cosine similarity of each text to the texts of each group: for each group (N,), from -1 to 1.

    centre: texts whose mean is taken off first, since the hidden states of all texts point in one direction.
    """
    middle = embed(base, centre).mean(0)

    def unit(some):
        return F.normalize(embed(base, some) - middle, dim=-1)  # (N, C)

    return [(unit(texts) @ unit(group).T).mean(1) for group in groups]
