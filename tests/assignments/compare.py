"""Is a value right? The parent's side: the submission has no say in it."""
import math
import numbers

import numpy as np


ROUNDING = {"torch.bfloat16": 0.016, "torch.float16": 0.002}  # twice the last of its 8, or 11, bits


def difference(right, found, tolerance: float, where: str = "result") -> str | None:
    """The first difference between two plain values in one sentence, or None.

    Numbers with a fraction may differ by `tolerance` times the largest of their list or array, and by the rounding of
    the "type" that stands beside them; all else must be equal.
    """
    if isinstance(right, dict):
        if not isinstance(found, dict) or found.keys() != right.keys():
            return f"{where}: expected {', '.join(right)}, found {short(found)}"
        tolerance = max(tolerance, ROUNDING.get(right.get("type"), 0))
        pairs = [(value, found[key], key) for key, value in right.items()]
    elif isinstance(right, np.ndarray) or are_floats(right):
        return between_arrays(right, found, tolerance, where)
    elif isinstance(right, list):
        if not isinstance(found, list) or len(found) != len(right):
            return f"{where}: expected {len(right)} items, found {len(found) if isinstance(found, list) else found!r}"
        pairs = [(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(right, found))]
    elif isinstance(right, float):
        return between_arrays([right], [found], tolerance, where)
    else:
        same = type(right) is type(found) and right == found
        return None if same else f"{where}: expected {short(right)}, found {short(found)}"
    return next((said for a, b, name in pairs if (said := difference(a, b, tolerance, name))), None)


def are_floats(value) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(number, float) for number in value)


def between_arrays(right, found, tolerance, where):
    if isinstance(found, list) and not all(isinstance(x, numbers.Real) and not isinstance(x, bool) for x in found):
        return f"{where}: expected numbers, found {short(found)}"
    if not isinstance(found, (list, np.ndarray)):
        return f"{where}: expected numbers, found {short(found)}"
    try:
        right, found = np.asarray(right, dtype=float), np.asarray(found, dtype=float)
    except OverflowError:
        return f"{where}: expected numbers, found {short(found)}"
    if right.shape != found.shape:
        return f"{where}: expected shape {right.shape}, found {found.shape}"
    if not right.size:
        return None
    size = np.abs(right).max()
    errors = np.where(right == found, 0, np.abs(right - found))
    errors[np.isnan(errors)] = math.inf
    if errors.max() <= tolerance * size:
        return None
    place = np.unravel_index(errors.argmax(), errors.shape)
    index = f"[{', '.join(map(str, place))}]" if right.size > 1 else ""
    return f"{where}{index}: expected {right[place]:.6g}, found {found[place]:.6g}"


def short(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def marks(cases: list[dict], results: list[dict], tolerance: float) -> list[str | None]:
    """For each case what is wrong, or None. cases: with "name" and "right"; results: as `Runner.run` returns them."""
    said = []
    for case, result in zip(cases, results, strict=True):
        if not isinstance(result, dict) or "value" not in result:
            wrong = str(result.get("error") if isinstance(result, dict) else "no value")[:400]
        else:
            wrong = difference(case["right"], result["value"], tolerance)
        said.append(f"{case['name']}: {wrong}" if wrong else None)
    return said
