"""An estimate of the memory that training takes on 1, 2, 4 and 8 GPUs, in GB (1e9 bytes), from a config.json.

    python tests/estimate.py models/meta-llama/Llama-2-7b-hf/config.json --token-budget 2048
"""
import sys
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from data import common  # first: Ctrl-C is quiet from here on

import torch

from data.common import markdown
from model import Config, Llama
from train import GPU_TOKEN_BUDGET, LinearCrossEntropy


def memory(config: Config, token_budget: int, n_ranks: int = 1, gradient_checkpointing: bool = False) -> dict[str, int]:
    """Bytes that training takes on each of n_ranks GPUs, part by part, if the layers are not compiled.

    Weights, gradients and AdamW's moments are fp32 and sharded over the GPUs; activations are bf16 (autocast).
    token_budget: tokens in a micro-batch of one GPU.
    """
    with torch.device("meta"):
        model = Llama(config)
    n = sum(p.numel() for p in model.parameters())
    n_layer = sum(p.numel() for p in model.model.layers[0].parameters())
    C, V, L = config.hidden_size, config.vocab_size, config.num_hidden_layers
    n_q, n_kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim

    # For each token, backward needs of a layer: two norms' inputs in fp32, five projections' inputs, q, k, v and the
    # attention's output, and of the MLP the gate before and after SiLU, the other half and their product.
    layer = 2 * 4 * C + 5 * 2 * C + 2 * (2 * n_q + 2 * n_kv) + 4 * 2 * config.intermediate_size
    kept = L * 4 * C + layer if gradient_checkpointing else L * layer

    # On one GPU, autocast keeps a copy of every weight. Sharded, there are two layers' weights in bf16, one's gradient
    # in bf16 and fp32, and the embedding and the vocabulary matrix with their gradients in fp32.
    copies = 2 * n if n_ranks == 1 else (2 * 2 + 2 + 4) * n_layer + 8 * (n - L * n_layer)
    return {"weights": 4 * n // n_ranks, "gradients": 4 * n // n_ranks, "moments": 8 * n // n_ranks, "copies": copies,
            "logits": LinearCrossEntropy.ROWS * V * 8 + 6 * V * C, "activations": token_budget * (kept + 12 * C)}


def main():
    parser = common.parser(__doc__)
    parser.add_argument("config", type=Path, help="a config.json, or the folder that holds it")
    parser.add_argument("--token-budget", type=common.positive(int), default=GPU_TOKEN_BUDGET,
                        help="tokens in a micro-batch of one GPU")
    args, rows = parser.parse_args(), []
    config = Config.from_json(args.config / "config.json" if args.config.is_dir() else args.config)
    for n_ranks, checkpointing in product((1, 2, 4, 8), (False, True)):
        parts = memory(config, args.token_budget, n_ranks, checkpointing)
        parts["each GPU, GB"] = sum(parts.values())
        cells = {part: f"{n_bytes / 1e9:.1f}" for part, n_bytes in parts.items()}
        rows.append({"GPUs": n_ranks, "checkpointing": "yes" if checkpointing else "no"} | cells)
    print(markdown(rows))


if __name__ == "__main__":
    common.run(main)
