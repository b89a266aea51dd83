"""Write the golden checkpoints: small random models by transformers, with the logits it gives them.

    pip install torch==2.13.0 transformers==5.23.0 && python tests/golden/make.py

It also writes, into configs.json, the values that transformers reads in each config.json there. Those that bear a
model's name are as public repositories quote them; the others are made up.
An independent implementation stands on the other side of every number in here. Weights are drawn
wide, and norms moved off 1, so that a wrong rotation, grouping or scale shows in the first digits.
"""
import copy
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, MistralConfig, OlmoConfig

COMMON = dict(vocab_size=128, num_hidden_layers=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
              initializer_range=0.2)
CONFIGS = {
    "llama2": LlamaConfig(hidden_size=32, intermediate_size=72, num_attention_heads=4, rms_norm_eps=1e-5, **COMMON),
    "smollm2": LlamaConfig(hidden_size=48, intermediate_size=96, num_attention_heads=6, num_key_value_heads=2,
                           rms_norm_eps=1e-6, rope_theta=100000.0, tie_word_embeddings=True, **COMMON),
    # a scaled rope whose context of 16 makes all three kinds of frequency occur, fp16 on disk
    "llama31": LlamaConfig(hidden_size=48, intermediate_size=96, num_attention_heads=3, num_key_value_heads=1,
                           rms_norm_eps=1e-5, rope_theta=1000.0, dtype=torch.float16, rope_scaling={
                               "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                               "original_max_position_embeddings": 16}, **COMMON),
    "mistral": MistralConfig(hidden_size=32, intermediate_size=72, num_attention_heads=4, num_key_value_heads=2,
                             head_dim=16, sliding_window=12, **COMMON),
    "olmo": OlmoConfig(hidden_size=32, intermediate_size=72, num_attention_heads=4, clip_qkv=1.5, pad_token_id=0,
                       **COMMON | {"bos_token_id": None}),
}
SHARDED = {"mistral": "40KB"}  # cut into files of at most so much

for name, config in CONFIGS.items():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(config.dtype or torch.float32).eval()
    for key, parameter in model.named_parameters():
        if "norm" in key:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    folder = Path(__file__).parent / name
    model.save_pretrained(folder, max_shard_size=SHARDED.get(name, "1GB"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)  # what the files say
    (folder / "generation_config.json").unlink(missing_ok=True)
    ids = torch.randint(3, config.vocab_size, (3, 40))
    with torch.no_grad():
        logits = model(ids).logits
        options = dict(max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)
        greedy = model.generate(ids[:, :8], **options)[:, 8:]
    save_file({"ids": ids, "logits": logits, "greedy": greedy.contiguous()}, folder / "golden.safetensors")
    print(name, sum(p.numel() for p in model.parameters()), float(logits.std()))
    print(json.loads((folder / "config.json").read_text()))

READ = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "max_position_embeddings", "bos_token_id", "eos_token_id", "tie_word_embeddings",
        "rms_norm_eps", "sliding_window", "clip_qkv")
file = Path(__file__).parent / "configs.json"
configs, lines = json.loads(file.read_text()), []
for name, row in configs.items():
    config = AutoConfig.for_model(**copy.deepcopy(row["config"]))
    config.standardize_rope_params()  # as the model does before it reads them
    read = {key: getattr(config, key) for key in READ if key in type(config).__dataclass_fields__}
    read["head_dim"] = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    row["read"] = read | {"rope_parameters": config.rope_parameters}
    lines.append(f" {json.dumps(name)}: {json.dumps(row)}")
file.write_text("{\n" + ",\n".join(lines) + "\n}\n")
