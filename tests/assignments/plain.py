"""Values between processes, as text: JSON, with arrays as base64. Reading it runs nothing, whoever wrote it."""
import base64
import json

import numpy as np

DTYPES = ("bool", "int64", "float32", "float64")


def dumps(value) -> str:
    """One line of JSON. value: JSON's own types, tuples (which become lists), numpy arrays and scalars, tensors."""
    return json.dumps(value, default=as_plain)


def as_plain(value):
    if hasattr(value, "detach"):  # a tensor; numpy knows no bf16
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, np.ndarray) or value.dtype.name not in DTYPES:
        raise TypeError(f"a value of type {type(value).__name__} is not plain data")
    data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
    return {"array": data, "dtype": value.dtype.name, "shape": list(value.shape)}


def loads(text: str | bytes):
    """The value of a text from `dumps`. Raises ValueError where it is none."""
    try:
        return json.loads(text, object_hook=as_array)
    except (RecursionError, TypeError) as error:
        raise ValueError(f"not plain data ({type(error).__name__})") from None


def as_array(value: dict):
    if value.keys() != {"array", "dtype", "shape"}:
        return value
    if value["dtype"] not in DTYPES:
        raise ValueError(f"arrays have one of the types {', '.join(DTYPES)}")
    return np.frombuffer(base64.b64decode(value["array"]), value["dtype"]).reshape(value["shape"])
