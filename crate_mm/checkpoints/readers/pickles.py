"""Scan a pickle before PyTorch builds its objects: the names in it, and the memory and time that it requests.

``torch.load(weights_only=True)`` runs no code of a file, but it allocates the memory that the file requests. A file of
69 bytes can request gigabytes, and a tuple nested forty times in itself takes years to hash. This scan interprets the
opcodes, but builds small stand-ins that record sizes instead of the objects.
"""

import pickletools
import re
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import torch

from ...io.untrusted import sanitized
from ..validate import ADVICE, CheckpointError

MAX_DIMENSIONS = 64  # PyTorch's own limit
MAX_TUPLE_SIZE, MAX_TUPLE_DEPTH = 1_000_000, 32  # a tuple can be a dict key, and hashing it visits every part
# Storage type -> bytes per element.
STORAGES = {
    **dict.fromkeys(("Byte", "Char", "Bool", "Untyped"), 1),
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    **dict.fromkeys(("Float", "Int"), 4),
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    "ComplexDouble": 16,
}
VALUES = {"NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1"}
VALUES |= {"BINUNICODE", "SHORT_BINSTRING"}
# Names that PyTorch would load but that no checkpoint of crate_mm contains.
OTHER_TENSORS = (
    r"torch\._utils\._rebuild_\w+",
    r"torch\._tensor\._rebuild_\w+",
    r"torch\.(\w+\.)?\w*(Tensor|Storage)",
    r"torch\.nn\.parameter\.\w+",
    r"torch\.serialization\._get_layout",
    r"torch\.(per_\w+|strided|sparse_\w+|jagged)",
)


class RefusedPickleError(ValueError):
    """A pickle is refused; ``runs_code`` is False if it only names an unsupported kind of tensor or data."""

    def __init__(self, reason: str, runs_code: bool = False) -> None:
        super().__init__(reason)
        self.runs_code = runs_code


class _Name(NamedTuple):
    """Name in a GLOBAL opcode."""

    path: str
    item_bytes: int = 0  # bytes per element of a storage or dtype


class _Storage(NamedTuple):
    numel: int
    item_bytes: int


class _Tuple(NamedTuple):
    parts: tuple
    size: int  # total number of parts; a shared part counts each time
    depth: int


class ObjectStub:
    """Stand-in for a list, dict or other object: its type and its items (for a dict, its keys)."""

    def __init__(self, kind: str, size: int = 1) -> None:
        self.kind = kind
        self.items: list[Any] = []
        self.size = size


def _is_quick_key(key: Any) -> bool:
    """Return whether a key is fast to hash and compare. Large integers are not: many can have the same hash."""
    if isinstance(key, int):
        return abs(key) < 2**31
    return isinstance(key, (str, bytes, type(None), _Name)) or (isinstance(key, ObjectStub) and key.kind == ENCODE)


def _is_list_of_keys(*parts: Any) -> bool:
    return len(parts) == 1 and isinstance(parts[0], ObjectStub) and all(map(_is_quick_key, parts[0].items))


ENCODE = "_codecs.encode"
NAMESPACE = "argparse.Namespace"  # command-line arguments in third-party files; created empty, then filled
DICTS = ["dict", "collections.OrderedDict", "collections.Counter"]
# Permitted callable -> check that its arguments are of the form that pickling writes.
CALLS: dict[str, Callable[..., bool]] = {
    "collections.OrderedDict": lambda *parts: not parts,
    "collections.Counter": lambda *parts: not parts or _is_list_of_keys(*parts),
    "builtins.set": lambda *parts: not parts or _is_list_of_keys(*parts),
    "builtins.complex": lambda *parts: all(isinstance(part, (int, float)) for part in parts),
    "builtins.bytearray": lambda *parts: (
        not parts
        or (isinstance(parts[0], ObjectStub) and parts[0].kind == ENCODE and len(parts) == 1)
        or (isinstance(parts[0], str) and parts[1:] == ("latin-1",))
    ),
    ENCODE: lambda *parts: len(parts) == 2 and isinstance(parts[0], str) and parts[1] == "latin1",
    "torch.Size": lambda *parts: (
        len(parts) == 1 and isinstance(parts[0], _Tuple) and all(isinstance(n, int) for n in parts[0].parts)
    ),
    "torch.device": lambda *parts: all(isinstance(part, (str, int)) for part in parts),
    # ``_call`` checks these arguments.
    **dict.fromkeys(
        [f"torch._utils._rebuild_{kind}" for kind in ("tensor", "tensor_v2", "tensor_v3", "parameter")],
        lambda *parts: True,
    ),
}


class PickleScan:
    """Interpreter of the pickles of one file.

    Args:
        file_bytes: size of the file, which limits the memory that its pickles may request.
        records: for an archive, bytes of each storage's record by key. If None, the file is no archive, and all
            storages together may not be larger than the file.
    """

    def __init__(self, file_bytes: int, records: dict[str, int] | None = None) -> None:
        self.file_bytes = file_bytes
        self.records = records
        self.storages: dict[Any, int] = {}
        self.storage_bytes = 0
        self.copied_items = 0

    def interpret(self, stream: BinaryIO) -> Any:
        """Interpret one pickle and return the stand-in for its object.

        Raises:
            RefusedPickleError: the pickle names anything other than tensors and plain data, or requests more memory
                than the file can fill.
            Exception: the pickle is damaged; the exception can have any type.
        """
        stack: list[Any] = []
        marks: list[list[Any]] = []
        memo: dict[int, Any] = {}
        for opcode, argument, _ in pickletools.genops(stream):
            name = opcode.name
            if name in ("PROTO", "FRAME"):
                continue
            if name == "STOP":
                return stack.pop()
            if name == "GLOBAL":
                stack.append(self._resolve_name(argument))
            elif name == "MARK":
                marks.append(stack)
                stack = []
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name == "TUPLE":
                items, stack = stack, marks.pop()
                stack.append(self._tuple(items))
            elif name in ("EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
                count = 0 if name == "EMPTY_TUPLE" else int(name[-1])
                items = [stack.pop() for _ in range(count)][::-1]
                stack.append(self._tuple(items))
            elif name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"):
                stack.append(ObjectStub(name.removeprefix("EMPTY_").lower()))
            elif name in ("APPENDS", "SETITEMS"):
                items, stack = stack, marks.pop()
                self._grow(stack[-1], items, name)
            elif name in ("APPEND", "SETITEM"):
                count = 1 if name == "APPEND" else 2
                items = [stack.pop() for _ in range(count)][::-1]
                self._grow(stack[-1], items, name)
            elif name == "REDUCE":
                arguments = stack.pop()
                stack.append(self._call(stack.pop(), arguments))
            elif name == "NEWOBJ":
                arguments, cls = stack.pop(), stack.pop()
                if cls != _Name(NAMESPACE) or not isinstance(arguments, _Tuple) or arguments.parts:
                    raise RefusedPickleError("it creates an object other than an empty argparse.Namespace")
                stack.append(ObjectStub(NAMESPACE))
            elif name == "BUILD" and isinstance(stack[-2], ObjectStub) and stack[-2].kind == NAMESPACE:
                self._fill_namespace(stack[-2], stack.pop())
            elif name == "BUILD":  # an OrderedDict's attributes, such as a state_dict's _metadata
                state = stack.pop()
                ordered = isinstance(stack[-1], ObjectStub) and stack[-1].kind == "collections.OrderedDict"
                if not (ordered and isinstance(state, ObjectStub) and state.kind == "dict"):
                    raise RefusedPickleError("it sets attributes of an object that is not an OrderedDict")
                if set(state.items) - {"_metadata"}:
                    raise RefusedPickleError("it sets attributes of a dict other than _metadata")
            elif name == "BINPERSID":
                stack.append(self._storage(stack.pop()))
            elif name in VALUES:
                stack.append(argument)
            else:
                raise ValueError(f"its pickle has the opcode {name}, which PyTorch does not write")
        raise EOFError("the pickle is truncated")

    @staticmethod
    def _resolve_name(argument: str) -> _Name:
        module, _, name = argument.partition(" ")
        module = {"__builtin__": "builtins"}.get(module, module)
        path = f"{module}.{name}"
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            item_bytes = STORAGES.get(name.removesuffix("Storage"))
            if item_bytes is not None:
                return _Name(path, item_bytes)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return _Name(path, getattr(torch, name).itemsize)
        if path in CALLS or path == NAMESPACE:
            return _Name(path)
        if any(re.fullmatch(kind, path) for kind in OTHER_TENSORS):
            raise RefusedPickleError(f"it holds {path}")
        raise RefusedPickleError(path, runs_code=True)

    @staticmethod
    def _tuple(items: list[Any]) -> _Tuple:
        inner = [item for item in items if isinstance(item, _Tuple)]
        size = 1 + len(items) + sum(item.size for item in inner)
        depth = 1 + max((item.depth for item in inner), default=0)
        if size > MAX_TUPLE_SIZE or depth > MAX_TUPLE_DEPTH:
            raise RefusedPickleError(f"it has a tuple of {size:,} parts and depth {depth}")
        return _Tuple(tuple(items), size, depth)

    @staticmethod
    def _grow(container: Any, items: list[Any], opcode: str) -> None:
        kinds = ["list"] if opcode.startswith("APPEND") else DICTS
        if not isinstance(container, ObjectStub) or container.kind not in kinds:
            raise RefusedPickleError("it adds entries to an object that is not a list or dict")
        if container.kind != "list":
            items = items[::2]
            if not all(map(_is_quick_key, items)):
                raise RefusedPickleError("it has a key that is neither a name nor a small integer")
        container.items += items
        container.size += len(items)

    def _fill_namespace(self, namespace: ObjectStub, state: Any) -> None:
        if namespace.items or not (isinstance(state, ObjectStub) and state.kind == "dict"):
            raise RefusedPickleError("it fills an argparse.Namespace twice, or not from a dict")
        if not all(isinstance(key, str) for key in state.items):
            raise RefusedPickleError("it has an argparse.Namespace with a name that is not a string")
        namespace.items, namespace.size = [*state.items], state.size
        self._copy(state.size)

    def _call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, _Name) or not isinstance(arguments, _Tuple):
            raise RefusedPickleError("it calls an object that is not a name")
        path, parts = function.path, arguments.parts
        if path not in CALLS:
            raise RefusedPickleError(f"it calls {path}")
        if path.startswith("torch._utils._rebuild_tensor"):
            self._check_tensor(path, parts)
            return _Name("tensor")
        if path == "torch._utils._rebuild_parameter":
            if not parts or parts[0] != _Name("tensor"):
                raise RefusedPickleError("it creates a parameter from an object that is not a tensor")
            return _Name("tensor")
        if len(parts) > 2 or not CALLS[path](*parts):
            raise RefusedPickleError(f"it calls {path} with arguments that pickling does not write")
        size = sum(part.size if isinstance(part, (ObjectStub, _Tuple)) else len(str(part)) for part in parts)
        self._copy(size)
        return parts[0] if path == "torch.Size" else ObjectStub(path, size)  # a Size hashes like its tuple

    def _copy(self, size: int) -> None:
        self.copied_items += size
        if self.copied_items > 16 * self.file_bytes + 2**16:
            raise RefusedPickleError("it copies the same data repeatedly")

    def _storage(self, persistent_id: Any) -> _Storage:
        parts = persistent_id.parts if isinstance(persistent_id, _Tuple) else ()
        if len(parts) not in (5, 6) or parts[0] != "storage" or not isinstance(parts[1], _Name):
            raise RefusedPickleError("it has a persistent object that is not a storage")
        kind, key, numel = parts[1], parts[2], parts[4]
        if not kind.item_bytes or not isinstance(numel, int) or numel < 0 or not isinstance(key, (str, bytes, int)):
            raise RefusedPickleError("it has a storage without a valid type or size")
        if self.records is not None:
            if numel * kind.item_bytes != self.records.get(str(key)):
                raise ValueError(f"the size of its storage {sanitized(key)} does not match its record")
            return _Storage(numel, kind.item_bytes)
        earlier_bytes = self.storages.get(key, 0)
        self.storages[key] = max(numel * kind.item_bytes, earlier_bytes)
        self.storage_bytes += self.storages[key] - earlier_bytes
        if self.storage_bytes > self.file_bytes:
            raise RefusedPickleError("its tensors are larger than the file")
        view = parts[5].parts if len(parts) == 6 and isinstance(parts[5], _Tuple) else None
        if view is not None:
            valid = len(view) == 3 and isinstance(view[1], int) and isinstance(view[2], int)
            if not valid or view[1] < 0 or view[2] < 0 or view[1] + view[2] > numel:
                raise RefusedPickleError("it has a view beyond its storage")
            numel = view[2]
        return _Storage(numel, kind.item_bytes)

    @staticmethod
    def _check_tensor(function: str, parts: tuple) -> None:
        if len(parts) < 4 or not isinstance(parts[0], _Storage) or not isinstance(parts[1], int):
            raise RefusedPickleError("it has a tensor without a storage")
        if not all(isinstance(part, _Tuple) and all(isinstance(n, int) for n in part.parts) for part in parts[2:4]):
            raise RefusedPickleError("it has a tensor without a shape")
        storage, offset, shape, strides = parts[0], parts[1], parts[2].parts, parts[3].parts
        capacity = storage.numel
        if function.endswith("v3"):
            if len(parts) < 7 or not isinstance(parts[6], _Name) or not parts[6].item_bytes:
                raise RefusedPickleError("it has a tensor without a dtype")
            capacity = storage.numel * storage.item_bytes // parts[6].item_bytes
        if len(shape) > MAX_DIMENSIONS or len(shape) != len(strides) or min((offset, *shape, *strides)) < 0:
            raise RefusedPickleError("it has a tensor without a valid shape")
        numel, last = 1, offset
        for length, stride in zip(shape, strides):
            numel *= length
            last += (length - 1) * stride
        if numel and (last >= capacity or numel > capacity):
            raise RefusedPickleError("it has a tensor that is larger than its storage, not a dense and complete tensor")


def refusal(error: RefusedPickleError, source: object) -> CheckpointError:
    """Return the error for a refused pickle."""
    if error.runs_code:
        return CheckpointError(
            f"checkpoint {source} is refused: loading it would run code from the file ({error}); "
            "a checkpoint may hold only tensors, numbers, strings, lists and dicts"
        )
    return CheckpointError(
        f"{source} is not a checkpoint: {error}; a checkpoint may hold dense tensors, numbers, strings, lists and "
        f"dicts: {ADVICE}"
    )
