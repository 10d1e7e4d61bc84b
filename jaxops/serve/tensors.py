"""The tensors of the Open Inference Protocol, in JSON and in bytes, as arrays and back.

Source: the protocol's version 2 for HTTP, and the extension of binary tensor data that Triton's and
KServe's clients speak.
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxops.serve.answers import plain
from jaxops.serve.refused import Refused, short

DTYPES: dict[str, Any] = {
    "BOOL": np.dtype(bool),
    **{f"UINT{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    "BF16": np.dtype(jnp.bfloat16),
    "BYTES": np.dtype(object),
}
IGNORED = ("sequence_id", "sequence_start", "sequence_end", "priority")  # no model has sequences
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LARGEST_DIMENSION = 2**40


class Inference(NamedTuple):
    """What a request for inference asks.

    Attributes:
        arrays: name -> array of the shape and dtype that was said.
        outputs: name -> whether it is wanted as bytes; None asks for all, in the form of `binary`.
        binary: whether outputs that are not named are wanted as bytes.
        id: of the request, or None.
        timeout: seconds within which the answer is wanted, or None.
    """

    arrays: dict[str, np.ndarray]
    outputs: dict[str, bool] | None
    binary: bool
    id: str | None
    timeout: float | None


def parsed(data: bytes) -> dict[str, Any]:
    """A JSON object; every number in it is finite, and every name stands once in its object.

    Raises:
        Refused: 400 for anything else.

    >>> parsed(b'{"rows": [1, 2.5]}')
    {'rows': [1, 2.5]}
    """
    try:
        found = json.loads(data, parse_constant=_not_json, object_pairs_hook=_once)
    except RecursionError:
        raise Refused(400, "the body must have few lists within lists, got too many") from None
    except ValueError as error:  # of a text that is not UTF-8, too
        raise Refused(400, f"the body must be JSON in UTF-8, got an error: {error}") from None
    if not isinstance(found, dict):
        raise Refused(400, f"the body must be an object, got {short(found)}")
    return found


def _not_json(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON; null stands for a missing value")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in an object")
    return found


def nested(name: str, data: Any) -> tuple[list[Any], tuple[int, ...]]:
    """What is in nested lists of equal lengths, flat, and their shape.

    Raises:
        Refused: no list, or lists of unequal lengths.

    >>> nested("x", [[1, 2], [3, 4]])
    ([1, 2, 3, 4], (2, 2))
    """
    if not isinstance(data, list):
        raise Refused(400, f"{name} must be lists of numbers, got {short(data)}")
    flat, shape = data, [len(data)]
    while flat and isinstance(flat[0], list):
        size = len(flat[0])
        if any(not isinstance(part, list) or len(part) != size for part in flat):
            raise Refused(400, f"{name} must be nested lists of equal lengths, got others")
        flat = [one for part in flat for one in part]
        shape.append(size)
    return flat, tuple(shape)


def array_of(name: str, flat: Sequence[Any], dtype: Any, shape: tuple[int, ...] = ()) -> np.ndarray:
    """Values of JSON as an array (N,) of a dtype that holds each of them.

    Args:
        name: what messages call it.
        flat: N values.
        dtype: of the array; objects for texts.
        shape: of the rows with their number first, by which messages number them.

    Raises:
        Refused: a value of another kind, or that the dtype does not hold, with its row.

    >>> array_of("x", [1, 2.5], "float32").tolist()
    [1.0, 2.5]
    """
    dtype = np.dtype(dtype)
    kinds = {"b": (bool,), "f": (int, float), "O": (str,)}.get(dtype.kind, (int,))
    low, high = _limits(dtype)
    for place, value in enumerate(flat):
        if type(value) not in kinds or (dtype.kind in "iuf" and not low <= value <= high):
            row = place // max(1, math.prod(shape[1:]))
            raise Refused(400, f"{name} must be {dtype}, got {short(value)} in row {row}")
    if dtype.kind == "O":
        return np.array([*flat, None], object)[:-1]
    return np.array(flat, dtype)


def _limits(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """The least and the largest number of a dtype, as numbers of Python."""
    if dtype.kind == "f":
        return float(np.finfo(dtype).min), float(np.finfo(dtype).max)
    return (np.iinfo(dtype).min, np.iinfo(dtype).max) if dtype.kind in "iu" else (None, None)


def read(data: bytes, header_length: str | None) -> Inference:
    """Read the body of a request for inference.

    Args:
        data: JSON, and behind it the bytes of the tensors that are said to be binary.
        header_length: the header `Inference-Header-Content-Length`, how many bytes are JSON.

    Raises:
        Refused: 400 for a body that does not follow the protocol.

    >>> body = b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [2]}]}'
    >>> read(body, None).arrays
    {'x': array([2.], dtype=float32)}
    """
    length = len(data)
    if header_length is not None:
        if not header_length.isascii() or not header_length.isdigit() or len(header_length) > 18:
            raise Refused(400, f"the header's length must be whole, got {short(header_length)}")
        length = int(header_length)
    if length > len(data):
        raise Refused(400, f"the header's length must be at most {len(data)}, got {length}")
    body, rest = parsed(data[:length]), memoryview(data)[length:]
    _only("the body", body, ("id", "parameters", "inputs", "outputs"))
    inputs, arrays = _list(body, "inputs"), {}
    for one in inputs:
        name, array, rest = _input(one, rest)
        if name in arrays:
            raise Refused(400, f"inputs must have names of their own, got {short(name)} twice")
        arrays[name] = array
    if len(rest):
        raise Refused(400, f"the tensors' bytes must end with the body, got {len(rest)} more")
    parameters = _object(body, "parameters")
    _only("parameters", parameters, ("binary_data_output", "timeout", *IGNORED))
    binary = _flag(parameters, "binary_data_output", False)
    timeout = parameters.get("timeout")
    if timeout is not None and (type(timeout) is not int or not 0 < timeout < 2**53):
        raise Refused(400, f"timeout must be microseconds above 0, got {short(timeout)}")
    identity = body.get("id")
    if identity is not None and not isinstance(identity, str):
        raise Refused(400, f"id must be a text, got {short(identity)}")
    seconds = None if timeout is None else timeout / 1e6
    return Inference(arrays, _outputs(body, binary), binary, identity, seconds)


def _outputs(body: Mapping[str, Any], binary: bool) -> dict[str, bool] | None:
    if not body.get("outputs"):
        return None
    outputs = {}
    for one in _list(body, "outputs"):
        _only("an output", one, ("name", "parameters"))
        parameters = _object(one, "parameters")
        _only("parameters of an output", parameters, ("binary_data",))
        outputs[_name(one)] = _flag(parameters, "binary_data", binary)
    return outputs


def _input(one: Any, rest: memoryview) -> tuple[str, np.ndarray, memoryview]:
    """The name and array of an input, and the bytes that are left."""
    _only("an input", one, ("name", "shape", "datatype", "parameters", "data"))
    name, shape, kind = _name(one), one.get("shape"), one.get("datatype")
    parameters = _object(one, "parameters")
    _only("parameters of an input", parameters, ("binary_data_size",))
    whole = isinstance(shape, list) and 1 <= len(shape) <= 8
    if not whole or any(type(n) is not int or not 1 <= n < LARGEST_DIMENSION for n in shape):
        raise Refused(
            400, f"shape of {name} must be 1 to 8 whole numbers from 1, got {short(shape)}"
        )
    if not isinstance(kind, str) or kind not in DTYPES:
        raise Refused(
            400, f"datatype of {name} must be among {', '.join(DTYPES)}, got {short(kind)}"
        )
    size, count = parameters.get("binary_data_size"), math.prod(shape)
    if (size is None) == ("data" not in one):
        raise Refused(400, f"{name} must have data or binary_data_size, got both or neither")
    if size is None:
        if kind == "BF16":
            raise Refused(400, f"{name} must be given as bytes, as JSON has no BF16, got data")
        flat, _ = nested(name, one["data"])
        if len(flat) != count:
            raise Refused(400, f"{name} must have {count} values for its shape, got {len(flat)}")
        return name, array_of(name, flat, DTYPES[kind], tuple(shape)).reshape(shape), rest
    if type(size) is not int or not 0 <= size <= len(rest):
        raise Refused(
            400, f"binary_data_size of {name} must be 0 to {len(rest)}, got {short(size)}"
        )
    part, rest = rest[:size], rest[size:]
    if kind == "BYTES":
        return name, _texts(name, part, count).reshape(shape), rest
    if size != count * DTYPES[kind].itemsize:
        wanted = count * DTYPES[kind].itemsize
        raise Refused(400, f"{name} must have {wanted} bytes for its shape, got {size}")
    if kind == "BF16":  # the upper half of a float32
        return name, (np.frombuffer(part, "<u2").astype("u4") << 16).view("f4").reshape(shape), rest
    return name, np.frombuffer(part, DTYPES[kind].newbyteorder("<")).reshape(shape), rest


def _texts(name: str, data: memoryview, count: int) -> np.ndarray:
    """Texts of UTF-8, each behind its length in four bytes."""
    texts: list[Any] = []
    place = 0
    while place < len(data):
        if place + 4 > len(data) or len(texts) == count:
            break
        (size,) = struct.unpack_from("<I", data, place)
        place += 4 + size
        if place > len(data):
            break
        try:
            texts.append(bytes(data[place - size : place]).decode())
        except UnicodeDecodeError:
            raise Refused(400, f"{name} must be UTF-8, got others in row {len(texts)}") from None
    if place != len(data) or len(texts) != count:
        raise Refused(400, f"{name} must have {count} texts behind their lengths, got others")
    return np.array([*texts, None], object)[:-1]


def write(
    head: Mapping[str, Any], outputs: Mapping[str, np.ndarray], asked: Inference
) -> tuple[bytes, int | None]:
    """The body of an answer, and where its JSON ends if bytes follow.

    Args:
        head: the names of the model and its version.
        outputs: name -> array of numbers, or of texts as objects.
        asked: the request.

    Raises:
        Refused: 400 for an output that the model does not have.

    >>> asked = Inference({}, {"p": False}, False, None, None)
    >>> write({}, {"p": np.array([0.5], np.float32)}, asked)[0]
    b'{"outputs":[{"name":"p","datatype":"FP32","shape":[1],"data":[0.5]}]}'
    """
    wanted = dict.fromkeys(outputs, asked.binary) if asked.outputs is None else asked.outputs
    told, parts = [], []
    for name, binary in wanted.items():
        if name not in outputs:
            raise Refused(400, f"outputs must be among {', '.join(outputs)}, got {short(name)}")
        value = outputs[name]
        one: dict[str, Any] = {"name": name, "datatype": datatype(value.dtype)}
        one["shape"] = [*value.shape]
        if binary:
            parts.append(_bytes(value))
            one["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            one["data"] = plain(value.reshape(-1))  # null for numbers that JSON does not have
        told.append(one)
    identity = {} if asked.id is None else {"id": asked.id}
    text = json.dumps({**head, **identity, "outputs": told}, separators=(",", ":")).encode()
    return text + b"".join(parts), len(text) if parts else None


def _bytes(value: np.ndarray) -> bytes:
    if value.dtype.kind != "O":
        return value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes()
    texts = [str(one).encode() for one in value.reshape(-1)]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def datatype(dtype: Any) -> str:
    """The protocol's name of a dtype, of which objects are texts.

    >>> datatype(np.float32), datatype("uint8"), datatype(object)
    ('FP32', 'UINT8', 'BYTES')
    """
    return NAMES[np.dtype(dtype)]


def _only(what: str, given: Any, names: Sequence[str]) -> None:
    if not isinstance(given, dict):
        raise Refused(400, f"{what} must be an object, got {short(given)}")
    odd = next((name for name in given if name not in names), None)
    if odd is not None:
        raise Refused(400, f"{what} must have {', '.join(names)} alone, got {short(odd)}")


def _object(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = given.get(name, {})
    if not isinstance(found, dict):
        raise Refused(400, f"{name} must be an object, got {short(found)}")
    return found


def _list(given: Mapping[str, Any], name: str) -> list[Any]:
    found = given.get(name)
    if not isinstance(found, list) or not found:
        raise Refused(400, f"{name} must be a list of at least one tensor, got {short(found)}")
    return found


def _name(one: Mapping[str, Any]) -> str:
    name = one.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= 200:
        raise Refused(400, f"name must be a text of 1 to 200 characters, got {short(name)}")
    return name


def _flag(given: Mapping[str, Any], name: str, default: bool) -> bool:
    found = given.get(name, default)
    if not isinstance(found, bool):
        raise Refused(400, f"{name} must be true or false, got {short(found)}")
    return found
