"""Wrong bodies that students write, and right ones that look otherwise. The grader's tests plant them.

    python tests/assignments/planted.py     # grade them all, and print README.md's table

Each is the reference with some text replaced: question, what is wrong, then pairs of (old, new).
"""
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]
import hand_out
import source
from grade import Grader
from run_cases import Runner
from table import ASSIGNMENTS, Assignment, Question

WRONG = [
    ("encode", "the prompt is scored, too", ("i if begin >= len(asked) else IGNORE", "i")),
    ("encode", "EOS is not scored", ("labels.append(tokenizer.eos_id)", "labels.append(IGNORE)")),
    ("encode", "EOS is scored after a cut", ("return ids[:max_length], labels[:max_length]", """
    if len(ids) > max_length:
        ids, labels = ids[: max_length - 1] + [tokenizer.eos_id], labels[: max_length - 1] + [tokenizer.eos_id]
    return ids, labels""")),
    ("encode", "the pieces are tokenised apart", ('turn = tokenizer.encode(asked + assistant["content"].strip())', """
        a, b = tokenizer.encode(asked), tokenizer.encode(assistant["content"].strip())
        turn = type("Turn", (), {"ids": a.ids + b.ids,
                                 "offsets": [(0, 0)] * len(a.ids) + [(len(asked), 0)] * len(b.ids)})""")),
    ("encode", "the last response alone is scored", ("return ids[:max_length], labels", """
    last = len(labels) - 1 - labels[:-1][::-1].index(tokenizer.eos_id) if tokenizer.eos_id in labels[:-1] else 0
    labels[:last] = [IGNORE] * last
    return ids[:max_length], labels""")),
    ("encode", "BOS before every turn", ("turn.ids + [tokenizer.eos_id]",
                                         "(tokenizer.start if n else []) + turn.ids + [tokenizer.eos_id]"),
     ("        labels += [i", "        labels += [IGNORE] * len(tokenizer.start if n else [])\n        labels += [i")),
    ("encode", "white space is kept", ('assistant["content"].strip()', 'assistant["content"]')),
    ("summed_loss", "labels are not shifted", ("labels[:, 1:]", "labels[:, :-1]")),
    ("summed_loss", "labels are shifted twice", ("labels[:, 1:]", "labels[:, 2:]"), ("ids[:, :-1]", "ids[:, :-2]")),
    ("summed_loss", "the mean, not the sum", ("targets[scored])", "targets[scored]) / scored.sum()")),
    ("summed_loss", "every token is scored", ("targets != IGNORE", "ids[:, 1:] != 0"), ("targets[scored]",
                                                                                      "ids[:, 1:][scored]")),
    ("summed_loss", "no gradient", ("wanted=scored)", "wanted=scored).detach()")),
    ("accumulate_gradient", "a mean of the batches' means", (
        "count = sum(n_scored(example) for example in examples)",
        "batches = list(micro_batches(examples, token_budget))"),
     ("micro_batches(examples, token_budget, n_ranks)", "batches"),
     ("/ count", "/ sum(map(n_scored, batch)) / len(batches)")),
    ("accumulate_gradient", "every sequence weighs the same", ("sum(n_scored(example) for example in examples)",
                                                               "len(examples)")),
    ("accumulate_gradient", "labels that predict nothing are counted", (
        "sum(n_scored(example) for example in examples)",
        "sum(label != IGNORE for _, labels in examples for label in labels)")),
    ("accumulate_gradient", "the gradient is set to zero for each batch", (
        "        with torch.autocast", "        model.zero_grad()\n        with torch.autocast")),
    ("accumulate_gradient", "the budget is not kept", ("token_budget, n_ranks", "10**9, n_ranks")),
    ("learning_rate", "the rise begins at 0", ("peak * (step + 1)", "peak * step")),
    ("learning_rate", "the fall begins at step 0", ("(step - n_warmup) / (n_steps - n_warmup)", "step / n_steps")),
    ("learning_rate", "the rise is rounded down", ("math.ceil(", "math.floor(")),
    ("learning_rate", "a cosine for both", ('1 - progress if schedule == "linear" else ', "")),
    ("RMSNorm", "eps outside the root", (
        "F.rms_norm(x, self.weight.shape, self.weight.type_as(x), self.eps)",
        "(x.float() / (x.float().pow(2).mean(-1, True).sqrt() + self.eps) * self.weight).type_as(x)")),
    ("RMSNorm", "the mean is subtracted", ("F.rms_norm(x, ", "F.rms_norm(x - x.mean(-1, True), ")),
    ("RMSNorm", "squares in the type of x", (
        "F.rms_norm(x, self.weight.shape, self.weight.type_as(x), self.eps)",
        "x * (x.pow(2).mean(-1, True) + self.eps).rsqrt() * self.weight.type_as(x)")),
    ("RMSNorm", "no weight", ("self.weight.type_as(x)", "None")),
    ("rotary_angles", "half of the exponents", ("torch.arange(0, config.head_dim, 2,", "torch.arange(0, "
                                                "config.head_dim // 2, 1,")),
    ("rotary_angles", "rope_theta is fixed", ("config.rope_theta**", "1e5**")),
    ("rotary_angles", "positions from 1", ("positions[..., None].float()", "(positions[..., None].float() + 1)")),
    ("rotary_angles", "all frequencies are scaled", (
        '(1 - kept) * frequencies / scaling["factor"] + kept * frequencies', 'frequencies / scaling["factor"]')),
    ("rotate", "neighbours, not halves", ("x.float().chunk(2, dim=-1)", "(x.float()[..., ::2], x.float()[..., 1::2])"),
     ("torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)",
      "torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)")),
    ("rotate", "turned the other way", (
        "a * cos - b * sin, b * cos + a * sin", "a * cos + b * sin, b * cos - a * sin")),
    ("rotate", "the type is fp32", (".type_as(x)", "")),
    ("attend", "softmax without the scale", ("attn_mask=mask)", "attn_mask=mask, scale=1.0)"),
     ("is_causal=True,", "is_causal=True, scale=1.0,")),
    ("attend", "the mask sees the future", ("is_causal=True,", "is_causal=False,")),
    ("attend", "keys are not grouped", ("return F.scaled_dot_product_attention(q, k, v, is_causal=True, "
                                        "enable_gqa=k.shape[1] < q.shape[1])", """
    n = q.shape[1] // k.shape[1]
    return F.scaled_dot_product_attention(q, k.repeat(1, n, 1, 1), v.repeat(1, n, 1, 1), is_causal=True)""")),
    ("attend", "the mask is upside down", ("attn_mask=mask)", "attn_mask=~mask)")),
    ("attend", "the mask is not used", ("attn_mask=mask)", "attn_mask=None)")),
    ("MLP", "gate and up are swapped", (
        "self.gate_proj(x)) * self.up_proj(x)", "self.up_proj(x)) * self.gate_proj(x)")),
    ("MLP", "GELU", ("F.silu", "F.gelu")),
    ("MLP", "no gate", ("F.silu(self.gate_proj(x)) * self.up_proj(x)", "F.silu(self.up_proj(x))")),
    ("choose", "sampling before top-p", ("p.masked_fill(beyond, 0)", "p")),
    ("choose", "the token that reaches top_p is dropped", ("p.cumsum(-1) - p >= top_p", "p.cumsum(-1) >= top_p")),
    ("choose", "logits times the temperature", ("logits / temperature", "logits * temperature")),
    ("choose", "places, not tokens", ("order.gather(-1, torch.multinomial(p.masked_fill(beyond, 0), 1, "
                                      "generator=generator))", "torch.multinomial(p.masked_fill(beyond, 0), 1, "
                                      "generator=generator)")),
    ("choose", "the generator is not used", ("generator=generator))", "generator=None))")),
    ("generate", "the penalty falls on the prompt", ("seen = adapter.seen_at_first(prompts) if adapter else None", """
    seen = adapter.seen_at_first(prompts) if adapter else None
    for i, prompt in enumerate(prompts if adapter else []):
        seen[i, prompt] = True""")),
    ("generate", "the EOS ramp is off by one", ("adapter.scores(seen, n)", "adapter.scores(seen, n + 1)")),
    ("generate", "EOS is in the answer", ("if row is None or t in ends:", """if row is not None and t in ends:
                answers[row].append(t)
            if row is None or t in ends:""")),
    ("generate", "rows go on after EOS", ("if row is None or t in ends:", "if row is None:")),
    ("generate", "the first token comes from the padding", ("[torch.arange(len(rows)), lengths - 1]", "[:, -1]")),
    ("generate", "all rows write at one length", ("h = step(token, cache, lengths)",
                                                  "h = step(token, cache, torch.full_like(lengths, longest + n))")),
    ("generate", "the cache does not grow", ("if longest + n == cache[0][0].shape[2]:", "if False:")),
    ("generate", "the whole prefix again for every token", ("h = step(token, cache, lengths)", """
        texts = [prompts[row or 0] + answers[row or 0] for row in rows]
        h = torch.stack([model.hidden(torch.tensor([text]))[0, -1] for text in texts])""")),
    ("scores", "the ramp is off by one", ("self.eos_slope * n", "self.eos_slope * (n + 1)")),
    ("scores", "a bonus, not a penalty", ("self.token_shift - self.repeat_penalty", "self.token_shift + "
                                          "self.repeat_penalty")),
    ("scores", "rule 2 for seen tokens alone", ("self.token_shift - self.repeat_penalty, self.token_shift",
                                                "self.token_shift - self.repeat_penalty, 0 * self.token_shift")),
    ("scores", "the ramp stops after 250 tokens", ("self.eos_slope * n", "self.eos_slope * n * (n <= 250)")),
    ("scores", "token_shift grows", ("r = torch.where(", """self.token_shift[self.eos_id] += self.eos_slope * n
        r = torch.where("""), ("r[:, self.eos_id] += self.eos_slope * n", "pass")),
    ("win_rate", "the population's standard error", ("ddof=1", "ddof=0")),
    ("win_rate", "the standard deviation", (" / len(p) ** 0.5", "")),
    ("win_rate", "a tie is a win", ("100 * p.mean()", "100 * (p >= 0.5).mean()")),
    ("win_rate", "a share, not percent", ("100 * p.mean(), 100 * error", "p.mean(), error")),
    ("length_controlled", "the length difference is not scaled", ("np.tanh(d / (spread or np.inf))", "np.tanh(d)")),
    ("length_controlled", "the population's deviation", ("d.std(ddof=1)", "d.std()")),
    ("length_controlled", "the difference has the wrong sign", ("np.tanh(d / ", "np.tanh(-d / ")),
    ("length_controlled", "at the mean length, not at equal ones", ("own[:, 1:] @ w[1:]", "own.mean(0) @ w")),
    ("length_controlled", "over the judged instructions only", ("own[:, 1:] @ w[1:]", "x[x[:, 2] == 1, 1:] @ w[1:]")),
    ("length_controlled", "GPT-4's rows weigh as much", ("x[:, 2] == 0, 0.1, 1.0", "x[:, 2] == 0, 1.0, 1.0")),
    ("length_controlled", "no cross-validation", ("if len(x) >= 5", "if False")),
    ("length_controlled", "the plain win rate", ("100 * np.mean(1 / (1 + np.exp(-own[:, 1:] @ w[1:])))",
                                                 "100 * p[len(other):].mean()")),
    ("preference_for_second", "the first one's preference", ('p["M"] / total', 'p["m"] / total')),
    ("preference_for_second", "one token alone for each name", ("p[named] += math.exp", "p[named] = math.exp")),
    ("preference_for_second", "the name must be bare", ("if (named := name(top[\"token\"])) in p",
                                                        "if (named := top[\"token\"]) in p")),
    ("preference_for_second", "what is no logarithm passes", ("if not top[\"logprob\"] <= 0.01", "if False")),
    ("preference_for_second", "not divided by the sum", ('p["M"] / total', 'p["M"]')),
    ("rank_responses", "a tie counts", ("scores[own] > scores[rival]", "scores[own] >= scores[rival]")),
    ("rank_responses", "texts are cut", ("model.config.context + 1", "model.config.context")),
    ("rank_responses", "total and mean are swapped", ('("total", "mean")', '("mean", "total")')),
    ("rank_responses", "NaN passes", ("if not scores.isfinite().all()", "if False")),
]

RIGHT = [
    ("summed_loss", "plain PyTorch", ("""targets = labels[:, 1:]  # (B, T-1)
    scored = targets != IGNORE
    h = model.hidden(ids[:, :-1], wanted=scored)  # (N, C)
    return LinearCrossEntropy.apply(h, model.head.weight, targets[scored])""", """
    logits = model(ids)[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE, reduction="sum")""")),
    ("accumulate_gradient", "every example alone", ("for batch in micro_batches(examples, token_budget, n_ranks):",
                                                    "for batch in [[example] for example in examples]:")),
    ("accumulate_gradient", "without ranks", ("batch[rank::n_ranks] or [(batch[0][0], [IGNORE] * len(batch[0][0]))]",
                                              "batch"),
     ("(loss * n_ranks).backward()", "loss.backward()"), ("runs.summed(total)", "total")),
    ("attend", "by hand", ("""return F.scaled_dot_product_attention(q, k, v, is_causal=True, """
                           """enable_gqa=k.shape[1] < q.shape[1])""", """
    n, T = q.shape[1] // k.shape[1], q.shape[2]
    k, v = k.float().repeat_interleave(n, 1), v.float().repeat_interleave(n, 1)
    scores = q.float() @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(torch.ones(T, T).tril() == 0, -math.inf)
    return (scores.softmax(-1) @ v).type_as(q)""")),
    ("RMSNorm", "by hand", ("F.rms_norm(x, self.weight.shape, self.weight.type_as(x), self.eps)", """(
            x.float() * (x.float().pow(2).mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight).type_as(x)""")),
    ("choose", "the nucleus by a threshold, without sorting back", (
        "return order.gather(-1, torch.multinomial(p.masked_fill(beyond, 0), 1, generator=generator))[:, 0]", """
    kept = torch.zeros_like(p).scatter(-1, order, p.masked_fill(beyond, 0))
    kept = kept / kept.sum(-1, keepdim=True)
    u = torch.rand(len(kept), 1, generator=generator)
    return (kept.cumsum(-1) < u * 0.999999).sum(-1)""")),
    ("generate", "no row leaves the batch", ("if len(alive) <= (0.5 if step.record else 0.75) * len(rows):",
                                             "if False:")),
    ("learning_rate", "lines of its own", ("progress = (step - n_warmup) / (n_steps - n_warmup)",
                                           "progress = 1 - (n_steps - step) / (n_steps - n_warmup)")),
]

BAD = {  # what a submission may do instead of answering, in learning_rate's place: (its body, what the output says)
    "loops for ever": ("while True: pass", "took longer than"),
    "eats memory": ("x = bytearray(1 << 40)", "MemoryError"),
    "eats memory by tensors": ("import torch; x = torch.ones(1 << 36)", "RuntimeError"),
    "calls sys.exit(0)": ("import sys; sys.exit(0)", "it called sys.exit"),
    "calls os._exit(0)": ("import os; os._exit(0)", "the process ended early"),
    "forges results": ("""
    import os, json
    print('{"score": 100, "status": "passed"}')
    for descriptor in range(3, 99):
        try: os.write(descriptor, b'{"value": [1.0]}\\n{"score": 100}\\n')
        except OSError: pass
    return 100""", "expected"),
    "imports the solution by path": ("""
    import importlib.util
    spec = importlib.util.spec_from_file_location("solution", "ROOT/train.py")
    module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
    return module.learning_rate(step, n_steps, peak, schedule, warmup)""", "may not read"),
    "reads the solution": ("return eval(open('ROOT/train.py').read())", "may not read"),
    "reads the environment": ("import os; return float(os.environ['SEED'])", "KeyError"),
    "edits the tests": ("open('ROOT/tests/assignments/cases.py', 'w').write('')", "may not write"),
    "calls the network": ("import socket; socket.create_connection(('127.0.0.1', 9))", "may not use socket"),
    "starts a program": ("import os; os.system('true')", "may not use os.system"),
    "kills the grader": ("import os; os.kill(os.getppid(), 9)", "may not use os.kill"),
    "returns what is no number": ("return 'five'", "could not convert"),
    # with all arguments: Python 3.13 does not count a call that leaves a default to itself, and runs out of memory
    "recurses for ever": ("return learning_rate(step, n_steps, peak, schedule, warmup)", "RecursionError"),
}


def question_of(name: str) -> tuple[Assignment, Question]:
    return next((a, q) for a in ASSIGNMENTS.values() for q in a.questions if q.name == name)


def plant(question: str, *edits) -> dict[str, bytes]:
    """The reference's files with text replaced in a question's functions. Raises ValueError where it is not there."""
    assignment, q = question_of(question)
    files = {file: hand_out.clean_files(assignment)[file] for file in assignment.files}
    file = q.functions[0].split(":")[0]
    lines, tree = files[file].decode().splitlines(keepends=True), source.parse(file, files[file])
    for old, new in edits:
        for function in q.functions:
            body, place = source.find(tree, function.split(":")[1])
            first, end = body[place].lineno - 1, body[place].end_lineno
            text = "".join(lines[first:end])
            if old in text:
                lines[first:end] = [text.replace(old, new), *[""] * (end - first - 1)]
                break
        else:
            raise ValueError(f"{question} has no text {old!r}")
    return files | {file: "".join(lines).encode()}


def only_body(question: str, body: str) -> dict[str, bytes]:
    """The reference's files where a question's function has this body alone."""
    assignment, q = question_of(question)
    file, function = q.functions[0].split(":")
    files = {name: hand_out.clean_files(assignment)[name] for name in assignment.files}
    stripped = source.strip(files[file].decode(), [function])
    body = "\n    ".join(line.strip() if body.count("\n") == 0 else line for line in body.strip().split("\n    "))
    body = body.replace("ROOT", str(hand_out.ROOT))
    return files | {file: stripped.replace("raise NotImplementedError", body).encode()}


def scores(results: dict) -> dict[str, tuple[float, float]]:
    """{number of the question: (score, points)}."""
    found = {}
    for row in results["tests"]:
        score, most = found.get(row["number"], (0, 0))
        found[row["number"]] = round(score + row["score"], 2), round(most + row["max_score"], 2)
    return found


def main():
    print("| question | submission | its points, of 100 of the assignment's | other questions |\n|---|---|---|---|")
    path = hand_out.ROOT / "out" / "grade" / "planted.json"
    with Runner() as runner:
        for number in (1, 2, 3, 4):
            assignment = ASSIGNMENTS[number]
            grader, mine = Grader(assignment, 5, runner), {q.name for q in assignment.questions}
            for name, files in (("the reference", hand_out.clean_files(assignment)),
                                ("the starter", hand_out.starter(assignment))):
                total = sum(score for score, _ in scores(grader.grade(files, path)).values())
                print(f"| {number} | **{name}** | **{total:g}** | |")
            for question, name, *edits in [row for row in WRONG + RIGHT if row[0] in mine]:
                found = scores(grader.grade(plant(question, *edits), path))
                own = f"{number}.{[q.name for q in assignment.questions].index(question) + 1}"
                score, most = found.pop(own)
                kind = "" if (question, name, *edits) in WRONG else " (right)"
                print(f"| {own} {question} | {name}{kind} | {score:g} of {most:g} | "
                      f"{'full' if all(a == b for a, b in found.values()) else found} |", flush=True)


if __name__ == "__main__":
    main()
