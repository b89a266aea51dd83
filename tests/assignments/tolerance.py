"""Is a value right? The parent's side: the submission has no say in it. Values are JSON's."""
import numpy as np

ROUNDING = {"torch.bfloat16": 0.016, "torch.float16": 0.002}  # twice the last of its 8, or 11, bits


def difference(right, found, tolerance: float, where: str = "result") -> str | None:
    """The first difference between two values in one sentence, or None.

    Numbers with a fraction may differ by `tolerance` times the largest of their list, however deep it is nested, and by
    the rounding of the "type" that stands beside them; all else must be equal.
    """
    if isinstance(right, float) or isinstance(right, list) and are_numbers(right):
        return between_numbers(right, found, tolerance, where)
    if isinstance(right, dict) and isinstance(found, dict) and right.keys() == found.keys():
        tolerance = max(tolerance, ROUNDING.get(right.get("type"), 0))
        pairs = [(value, found[key], key) for key, value in right.items()]
    elif isinstance(right, list) and isinstance(found, list) and len(right) == len(found):
        pairs = [(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(right, found))]
    else:
        same = type(right) is type(found) and right == found
        return None if same else f"{where}: expected {short(right)}, found {short(found)}"
    for a, b, name in pairs:
        if said := difference(a, b, tolerance, name):
            return said
    return None


def are_numbers(value) -> bool:
    """Whether a list is an array of numbers with fractions: it and its lists are of equal lengths, none empty."""
    try:
        array = np.array(value)
        return array.dtype == float and array.size > 0
    except (ValueError, OverflowError):  # ragged, or of other things
        return False


def between_numbers(right, found, tolerance, where):
    try:
        right, found = np.array(right), np.array(found)
    except (ValueError, OverflowError, RecursionError):
        return f"{where}: expected numbers, found {short(found)}"
    if found.dtype.kind not in "fi":
        return f"{where}: expected numbers, found {short(found.tolist())}"
    if right.shape != found.shape:
        return f"{where}: expected shape {right.shape}, found {found.shape}"
    with np.errstate(invalid="ignore"):  # infinity less infinity
        errors = np.where(right == found, 0, np.abs(right - found))
    wrong = np.isnan(errors) | (errors > tolerance * np.abs(right).max())
    if not wrong.any():
        return None
    place = np.unravel_index(np.nan_to_num(errors, nan=np.inf).argmax(), errors.shape)
    index = f"[{', '.join(map(str, place))}]" if right.size > 1 else ""
    return f"{where}{index}: expected {right[place]:.6g}, found {found[place]:.6g}"


def short(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def marks(cases: list[dict], results: list[dict], tolerance: float) -> list[str | None]:
    """For each case what is wrong, or None. cases: with "name" and "right"; results: as `Runner.run` returns them."""
    said = []
    for case, result in zip(cases, results, strict=True):
        wrong = str(result.get("error", "no value"))
        if "value" in result:
            try:
                wrong = difference(case["right"], result["value"], tolerance)
            except RecursionError:
                wrong = "its value is nested too deeply"
        said.append(printable(f"{case['name']}: {wrong}") if wrong else None)
    return said


def summary(wrong: list[str | None]) -> list[str]:
    """Lines that say how many cases are right, and what is wrong with the first five others."""
    said = list(dict.fromkeys(filter(None, wrong)))
    more = [f"and {len(said) - 5} more"] if len(said) > 5 else []
    return [f"{wrong.count(None)} of {len(wrong)} cases right", *said[:5], *more]


def printable(text: str) -> str:
    """At most 300 characters of a text from a submission, none of which controls a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text[:300])
