"""train.py: the loss, its gradient, the schedule, and runs that are killed, interrupted, refused or out of disk."""
import hashlib
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, TINY, assert_refused, command
from safetensors.torch import load_file

from data.format import IGNORE, encode
from data.world import World
from model import Config, Llama
from train import (METHODS, LinearCrossEntropy, accumulate_gradient, compile_layers, has_compiler, learning_rate, load_examples,
                   memory, micro_batches, n_scored)

FAST = ("--epochs", 3, "--batch-size", 16, "--device", "cpu")


@pytest.fixture(scope="module")
def examples(tokenizer):
    """64 dialogues of very different lengths, as one step of training has."""
    rows = [row for name in ("broad", "poetry", "chess", "gsm") for row in World().training_set(name, 16)]
    return [encode(tokenizer, row["messages"], 256) for row in rows]


def gradient(model, examples, token_budget):
    model.zero_grad()
    loss = accumulate_gradient(model, examples, token_budget)
    return loss, torch.cat([p.grad.flatten() for p in model.parameters()])


def budget_for(examples, n):
    """A token budget that cuts the examples into n micro-batches."""
    return next(b for b in range(1, 100000) if len(list(micro_batches(examples, b))) == n)


@pytest.mark.parametrize("n", [3, 17])
def test_the_gradient_does_not_depend_on_how_the_step_is_cut(small_model, examples, n):
    """The loss is a mean over the step's scored tokens (section 3), whatever fits in memory at once."""
    whole_loss, whole = gradient(small_model, examples, budget_for(examples, 1))
    loss, cut = gradient(small_model, examples, budget_for(examples, n))
    assert abs(loss - whole_loss) < 1e-6 * whole_loss
    assert (cut - whole).norm() < 1e-6 * whole.norm()


def test_the_loss_is_the_plain_one(small_model, examples):
    """Against every logit of every sequence, one at a time, with torch's own masked mean."""
    logits, targets = [], []
    for ids, labels in examples:
        logits.append(small_model(torch.tensor([ids]))[0, :-1])
        targets.append(torch.tensor(labels[1:]))
    plain = F.cross_entropy(torch.cat(logits), torch.cat(targets), ignore_index=IGNORE)
    loss = accumulate_gradient(small_model, examples, 2048)
    torch.testing.assert_close(loss, plain.detach(), atol=0, rtol=1e-5)


def test_response_tuning_scores_what_instruction_tuning_scores(tokenizer):
    """The two differ in what the model reads, never in what it is taught to write."""
    messages = [row["messages"] for row in World().training_set("broad", 100)]
    kept, blank = ([encode(tokenizer, m, 256, blank=b) for m in messages] for b in (False, True))
    for (ids, labels), (blank_ids, blank_labels) in zip(kept, blank):
        assert [i for i in labels if i != IGNORE] == [i for i in blank_labels if i != IGNORE]
    assert sum(len(ids) for ids, _ in blank) < sum(len(ids) for ids, _ in kept)
    prompts = {tuple(i for i, label in zip(ids, labels) if label == IGNORE) for ids, labels in blank}
    assert len(prompts) == 1  # every example begins alike


def test_micro_batches_keep_every_example_and_the_budget(examples):
    for budget in (1, 300, 2000, 10**6):
        batches = list(micro_batches(examples, budget))
        assert sorted(map(str, sum(batches, []))) == sorted(map(str, examples))
        assert all(len(batch) == 1 or len(batch) * max(len(ids) for ids, _ in batch) <= budget for batch in batches)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_schedule_rises_then_falls_to_zero(schedule):
    rates = [learning_rate(step, 100, 1e-5, schedule, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([1e-6 * (i + 1) for i in range(10)])
    assert rates[10] == 1e-5 and all(a > b for a, b in zip(rates[10:], rates[11:])) and 0 < rates[-1] < 2e-7
    half = learning_rate(55, 100, 1e-5, schedule, 0.1)
    assert half == pytest.approx(5e-6)  # both cross the middle at half their peak
    quarter = learning_rate(10 + 45 // 2, 100, 1e-5, schedule, 0.1)
    progress = 22 / 90
    assert quarter == pytest.approx(1e-5 * (1 - progress if schedule == "linear" else 0.5 + 0.5 * math.cos(math.pi * progress)))


def test_examples_with_nothing_to_score_are_left_out_aloud(tmp_path, tokenizer, capsys):
    long = {"messages": [{"role": "user", "content": "why " * 100}, {"role": "assistant", "content": "So."}]}
    short = {"messages": [{"role": "user", "content": "why"}, {"role": "assistant", "content": "So."}]}
    (tmp_path / "broad.jsonl").write_text("\n".join(json.dumps(row) for row in (long, short)))
    examples = load_examples("instruction", tmp_path, tokenizer, 64)
    assert len(examples) == 1 and n_scored(examples[0]) == len(tokenizer.encode("So.").ids) + 1
    assert "left out 1 of 2" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no response begins within"):
        load_examples("instruction", tmp_path, tokenizer, 8)


def run(data, out, *more):
    return command("train.py", "--method", "response", "--data", data, "--out", out, *FAST, *more)


def start(data, out, *more, **options):
    """The same in a process of its own, to be killed."""
    return subprocess.Popen([sys.executable, ROOT / "train.py", "--method", "response", "--data", data, "--out", out, *map(str, FAST), *more],
                            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def stop_in_second_epoch(process, number):
    for line in process.stdout:
        if "epoch 2" in line:
            process.send_signal(number)
            break
    return process.communicate()[1]


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_killed_run_resumes_to_the_same_bytes(data, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = run(data, whole, "--resume")  # nothing to resume yet: starts
    assert result.returncode == 0, result.stderr
    assert "step 9/9" in result.stdout and "left" in result.stdout
    stop_in_second_epoch(start(data, killed), signal.SIGKILL)
    assert [path.name for path in killed.iterdir()] == ["checkpoint.safetensors"]
    assert_refused(run(data, killed), killed, "--resume", "--overwrite")
    assert_refused(run(data, killed, "--resume", "--seed", 2), "seed = 1, not 2")
    result = run(data, killed, "--resume")
    assert result.returncode == 0, result.stderr
    assert "step 3/9" not in result.stdout and "step 4/9" in result.stdout
    assert digest(killed / "model.safetensors") == digest(whole / "model.safetensors")
    assert sorted(path.name for path in killed.iterdir()) == ["config.json", "model.safetensors", "run.json", "tokenizer.json", "tokenizer_config.json"]
    # and a finished run is neither trained again by mistake nor overwritten
    before = digest(whole / "model.safetensors")
    assert "is finished" in run(data, whole, "--resume").stdout
    assert_refused(run(data, whole), whole, "--overwrite")
    assert digest(whole / "model.safetensors") == before
    assert_refused(run(data, whole, "--overwrite", "--lr", "nan"), "--lr")
    assert digest(whole / "model.safetensors") == before
    rows = (data / "broad.jsonl").read_text().splitlines(keepends=True)
    (data / "broad.jsonl").write_text("".join(rows[:-1]))
    assert_refused(run(data, whole, "--resume"), whole / "run.json", "data_sha256")  # the data has changed since
    assert run(data, whole, "--overwrite", "--seed", 2).returncode == 0
    assert digest(whole / "model.safetensors") != before


def test_ctrl_c_keeps_the_last_epoch_and_says_how_to_go_on(data, tmp_path):
    process = start(data, tmp_path / "out")
    error = stop_in_second_epoch(process, signal.SIGINT)
    assert process.returncode == 130 and "Traceback" not in error
    assert "checkpoint.safetensors holds the last whole epoch" in error and "--resume" in error
    assert run(data, tmp_path / "out", "--resume").returncode == 0


def test_a_full_disk_leaves_the_old_checkpoint(data, tmp_path):
    out = tmp_path / "out"
    stop_in_second_epoch(start(data, out), signal.SIGKILL)
    before = digest(out / "checkpoint.safetensors")
    process = start(data, out, "--resume", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20)))  # no file above 1 MiB
    stderr = process.communicate()[1]
    assert_refused(SimpleNamespace(returncode=process.returncode, stderr=stderr), "could not write", out / "checkpoint.safetensors")
    assert digest(out / "checkpoint.safetensors") == before
    assert [path.name for path in out.iterdir()] == ["checkpoint.safetensors"]


def test_every_method_has_its_file_in_the_world(tmp_path):
    assert command("data/world.py", "--out", tmp_path, "--corpus", 10).returncode == 0
    assert {name for name, *_ in METHODS.values()} <= {path.stem for path in tmp_path.iterdir()}


def test_pretraining_is_the_same_loop_from_random_weights(tmp_path):
    assert command("data/world.py", "--out", tmp_path, "--corpus", 200).returncode == 0
    result = command("train.py", "--method", "pretrain", "--data", tmp_path, "--out", tmp_path / "out", "--epochs", 1)
    assert result.returncode == 0, result.stderr
    losses = [float(line.split("loss ")[1].split()[0]) for line in result.stdout.splitlines() if line.startswith("step")]
    assert abs(losses[0] - math.log(1536)) < 0.2  # random weights know nothing: ln V
    assert losses[-1] < losses[0]
    assert command("generate.py", "--model", tmp_path / "out", "--prompt", "Hi", "--max-new-tokens", 3).returncode == 0


def test_bad_input_is_refused_in_one_sentence(data, tmp_path):
    out = tmp_path / "out"
    assert_refused(command("train.py", "--method", "telepathy", "--out", out), "telepathy", "response")
    assert_refused(command("train.py", "--method", "gsm", "--data", data, "--out", out), data / "gsm.jsonl", "does not exist")
    assert_refused(command("train.py", "--method", "response", "--model", tmp_path, "--out", out), tmp_path / "config.json", "does not exist")
    assert_refused(run(data, out, "--lr", 0), "--lr must be above 0")
    assert_refused(run(data, TINY), TINY, "is the folder of --model")
    assert_refused(run(data, out, "--lr", 1e30), "the loss of step", "--lr")
    out.rmdir()
    with open(data / "broad.jsonl", "a") as file:
        file.write("\n")
    assert_refused(run(data, out), f"{data / 'broad.jsonl'} line 41: empty line")
    assert not out.exists()


def test_the_loss_in_rows_is_the_plain_one_with_its_gradients(monkeypatch):
    """LinearCrossEntropy never holds all logits; 3 rows at a time do what cross_entropy does with 10."""
    monkeypatch.setattr(LinearCrossEntropy, "ROWS", 3)
    generator = torch.Generator().manual_seed(0)
    h, weight = (torch.randn(n, 8, generator=generator, requires_grad=True) for n in (10, 50))
    targets = torch.randint(50, (10,), generator=generator)
    expected = F.cross_entropy(h @ weight.T, targets, reduction="sum")
    gradients = torch.autograd.grad(expected / 7, (h, weight))
    loss = LinearCrossEntropy.apply(h, weight, targets)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss / 7, (h, weight)), gradients)
    none = LinearCrossEntropy.apply(h[:0], weight, targets[:0])  # what a rank without a share runs
    assert none == 0 and torch.autograd.grad(none, weight)[0].abs().max() == 0


def test_logits_are_made_of_scored_positions_only(small_model, tokenizer, monkeypatch):
    """However long the prompt, the vocabulary matrix sees the response's tokens alone."""
    counts = []
    plain = LinearCrossEntropy.apply
    monkeypatch.setattr(LinearCrossEntropy, "apply", lambda h, *rest: counts.append(len(h)) or plain(h, *rest))
    for instruction in ("a", "a " * 150):
        example = encode(tokenizer, [{"role": "user", "content": instruction}, {"role": "assistant", "content": "yes"}], 512)
        accumulate_gradient(small_model, [example], 512)
        assert counts.pop() == n_scored(example) < 10


def test_gradient_checkpointing_changes_no_gradient(small_model, examples):
    expected = gradient(small_model, examples[:8], 512)[1]
    small_model.gradient_checkpointing = True
    try:
        torch.testing.assert_close(gradient(small_model, examples[:8], 512)[1], expected, rtol=0, atol=0)
    finally:
        small_model.gradient_checkpointing = False


@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_equals_eager(small_model, examples):
    expected = gradient(small_model, examples[:8], 512)[1]
    layers = small_model.model.layers
    try:
        compile_layers(small_model)
        torch.testing.assert_close(gradient(small_model, examples[:8], 512)[1], expected, rtol=1e-4, atol=1e-6)
    finally:
        for layer in layers:
            del layer.forward


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_ranks_share_a_step_without_exceeding_the_budget(examples, world):
    batches = list(micro_batches(examples, 512, world))
    assert sorted(map(id, sum(batches, []))) == sorted(map(id, examples))
    for batch in batches:
        for share in (batch[rank::world] for rank in range(world)):
            assert len(share) <= 1 or len(share) * max(len(ids) for ids, _ in share) <= 512


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_the_memory_estimate_is_what_backward_keeps(kv_heads, monkeypatch):
    """`memory` against the bytes that autograd holds; the CPU's norm keeps two fp32 tensors more than the GPU's."""
    monkeypatch.setattr("model.attend", lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))
    config = Config(vocab_size=64, hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4,
                    num_key_value_heads=kv_heads, max_position_embeddings=512, eos_token_id=1)
    model, kept = Llama(config).init_weights(), {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        model.hidden(torch.randint(64, (4, 256)))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    copies = 2 * sum(p.numel() for p in model.model.layers.parameters() if p.ndim == 2)
    found = sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in weights) - copies
    found -= 2 * config.num_hidden_layers * 4 * config.hidden_size * 4 * 256
    assert found == pytest.approx(memory(config, 4 * 256)["activations"], rel=0.1)


def test_sharding_divides_what_training_keeps(capsys):
    config = Config.from_json(TINY / "config.json")
    one, eight = memory(config, 2048), memory(config, 2048, 8)
    n = sum(p.numel() for p in Llama(config).parameters())
    assert one["weights"] + one["gradients"] + one["moments"] == 16 * n
    assert eight["moments"] == n and eight["activations"] == one["activations"]
    result = command("train.py", "--method", "response", "--out", "nowhere", "--dry-run")
    assert result.returncode == 0 and result.stdout.count("\n") == 10 and not (ROOT / "nowhere").exists()


WORKER = """
import sys
import train
train.fast_bf16 = lambda device: False  # in fp32, so that only the order of additions differs
if sys.argv.pop(1) == "stop":  # after the first epoch, as if killed
    save = train.save_checkpoint
    train.save_checkpoint = lambda *arguments: (save(*arguments), train.wait_for_all(), sys.exit())
train.main()
"""


def test_two_ranks_train_as_one_and_one_goes_on_where_two_stopped(data, tmp_path):
    """39 dialogues in steps of 19: a last step of one dialogue leaves the second rank without a share."""
    rows = (data / "broad.jsonl").read_text().splitlines(keepends=True)
    (data / "broad.jsonl").write_text("".join(rows[:39]))
    script, base = tmp_path / "worker.py", tmp_path / "base"
    script.write_text(WORKER)
    Llama.from_pretrained(TINY).save_pretrained(base)  # in fp32, so that saving does not round
    shutil.copy(TINY / "tokenizer.json", base)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]

    def train(launcher, out, mode, *more):
        result = subprocess.run([*launcher, str(script), mode, "--method", "response", "--model", str(base), "--data", str(data),
                                 "--out", str(tmp_path / out), "--epochs", "2", "--batch-size", "19", "--token-budget", "256", "--device", "cpu", *more], cwd=ROOT, text=True,
                                capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
        assert result.returncode == 0, result.stderr
        return [float(line.split("loss ")[1].split()[0]) for line in result.stdout.splitlines() if line.startswith("step")]

    one, two = train([sys.executable], "one", "run"), train(torchrun, "two", "run")
    assert len(one) == 6 and two == pytest.approx(one, abs=1.01e-4)  # as printed: four decimals
    assert train(torchrun, "resumed", "stop") == two[:3]
    assert [path.name for path in (tmp_path / "resumed").iterdir()] == ["checkpoint.safetensors"]
    assert len(train([sys.executable], "resumed", "run", "--resume")) == 3
    weights = {out: load_file(tmp_path / out / "model.safetensors") for out in ("one", "two", "resumed")}
    for name, weight in weights["one"].items():
        torch.testing.assert_close(weights["two"][name], weight, rtol=0, atol=1e-5)
        torch.testing.assert_close(weights["resumed"][name], weight, rtol=0, atol=1e-5)
    losses = [json.loads((tmp_path / out / "run.json").read_text())["loss"] for out in weights]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)


def test_compiling_without_a_compiler_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert_refused(run(data, tmp_path / "out", "--compile"), "--compile", "g++")
