"""The assignments and their questions. A new question is a row here, a call in calls.py and its cases in cases.py."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """functions: "FILE:FUNCTION", all of one file; they are stripped from the handout.

    tolerance: the largest error that passes, as a share of the largest number of the value that is right (see
    tolerance.py). needs: questions whose functions this one calls; in the handout they must be written first.
    """

    name: str
    points: int
    functions: tuple[str, ...]
    about: str
    tolerance: float = 0.0
    needs: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        return self.functions[0].split(":")[0]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(function.split(":")[1] for function in self.functions)


@dataclass(frozen=True)
class Assignment:
    """keep: patterns of the files that a handout has, and that a submission runs with. hidden: those of the grader."""

    number: int
    title: str
    questions: tuple[Question, ...]
    keep: tuple[str, ...]
    hidden: tuple[str, ...] = ()

    @property
    def files(self) -> list[str]:
        """The files that students write in."""
        return list(dict.fromkeys(question.file for question in self.questions))

    def functions(self, file: str) -> tuple[str, ...]:
        """The functions of a file that the handout has stripped."""
        return tuple(name for question in self.questions if question.file == file for name in question.names)


COMMON = ("LICENSE", "requirements.txt", "data/*.py", "data/README.md", "data/tiny/*")
# Sums of some hundred fp32 numbers differ by 1e-6 of their size between processors, and a gradient's by ten times that.
# A bf16 number has 8 bits, and rounding twice is not wrong. The wrong bodies in planted.py are off by more than 1e-2.
FP32, GRADIENT, EXACT = 1e-4, 1e-3, 1e-9

ASSIGNMENTS = {assignment.number: assignment for assignment in [
    Assignment(1, "The mask", (
        Question("encode", 35, ("data/format.py:encode",), "a dialogue as tokens, and which of them are scored"),
        Question("summed_loss", 25, ("train.py:collate", "train.py:summed_loss"),
                 "a batch, and its loss on scored tokens", GRADIENT),
        Question("accumulate_gradient", 25, ("train.py:accumulate_gradient",),
                 "the gradient of a step, however it is cut", GRADIENT, ("summed_loss",)),
        Question("learning_rate", 15, ("train.py:learning_rate",), "the schedule", EXACT),
    ), (*COMMON, "train.py", "model.py")),
    Assignment(2, "The model", (
        Question("RMSNorm", 15, ("model.py:RMSNorm.forward",), "the norm, in fp32 whatever comes in", FP32),
        Question("rotary_angles", 20, ("model.py:rotary_angles",), "the angles of positions, and Llama 3.1's scaling",
                 1e-3),  # position 200 times a frequency that is off by fp32's 1e-7, several times over
        Question("rotate", 20, ("model.py:rotate",), "queries and keys turned by their positions", FP32),
        Question("attend", 30, ("model.py:attend_slowly", "model.py:attend"),
                 "attention with grouped heads, causal or with a mask", FP32),
        Question("MLP", 15, ("model.py:MLP.forward",), "SwiGLU", FP32),
    ), (*COMMON, "model.py", "tests/golden/llama2/config.json", "tests/golden/llama2/model*",
        "tests/golden/llama31/config.json", "tests/golden/llama31/model*"),
        ("tests/golden/*/config.json", "tests/golden/*/model*")),
    Assignment(3, "Decoding and rules", (
        Question("choose", 30, ("generate.py:choose",), "greedy choice, temperature, nucleus",
                 0.07),  # six standard errors of 20,000 draws,
        Question("generate", 45, ("generate.py:read_prompts", "generate.py:generate"),
                 "the decoding loop: ragged batches, a cache, the rules",
                 needs=("choose", "scores")),
        Question("scores", 25, ("adapter.py:Adapter.scores",), "the three rules, equation 4", FP32),
    ), (*COMMON, "generate.py", "adapter.py", "model.py")),
    Assignment(4, "Judging", (
        Question("win_rate", 20, ("judge.py:win_rate",), "the win rate and its standard error", EXACT),
        Question("length_controlled", 30, ("judge.py:length_controlled",), "the win rate at equal lengths",
                 2e-5),  # 0.001 percentage points: what another fit leaves that has converged
        Question("preference_for_second", 25, ("judge.py:preference_for_second",),
                 "a judge model's log-probabilities as a preference", EXACT),
        Question("rank_responses", 25, ("judge.py:rank_responses",), "response ranking, equation 3", EXACT),
    ), (*COMMON, "judge.py", "model.py")),
    Assignment(5, "An experiment", (
        Question("prediction", 20, ("prediction.md:",), "what you predict and why, written before the run"),
        Question("run", 30, ("result.json:",), "the run in a world of your own seed, done again by the grader"),
    ), (*COMMON, "train.py", "model.py", "generate.py", "adapter.py", "judge.py")),
]}
