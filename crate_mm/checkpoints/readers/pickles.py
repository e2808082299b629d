"""A look through a pickle before PyTorch builds what it says: what it names, and what memory and time that takes.

``torch.load(weights_only=True)`` runs no code of a file, but does take the memory that a file asks for: 69 bytes can
ask for gigabytes, and a tuple that holds itself forty times over takes years to hash. Here the instructions are
followed with the sizes of things in the place of the things.
"""

import pickletools
import re
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import torch

from ...io.untrusted import sanitized
from ..validate import ADVICE, CheckpointError

MOST_DIMENSIONS = 64  # PyTorch's own most
MOST_IN_TUPLE, MOST_TUPLES_DEEP = 1_000_000, 32  # tuples are keys of dicts, and a key is hashed to its last part
# By the bytes of a number.
STORAGES = {
    **dict.fromkeys(("Byte", "Char", "Bool", "Untyped"), 1),
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    **dict.fromkeys(("Float", "Int"), 4),
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    "ComplexDouble": 16,
}
VALUES = {"NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1"}
VALUES |= {"BINUNICODE", "SHORT_BINSTRING"}
# What PyTorch would read, and take memory for, and what no checkpoint of ours holds.
OTHER_TENSORS = (
    r"torch\._utils\._rebuild_\w+",
    r"torch\._tensor\._rebuild_\w+",
    r"torch\.(\w+\.)?\w*(Tensor|Storage)",
    r"torch\.nn\.parameter\.\w+",
    r"torch\.serialization\._get_layout",
    r"torch\.(per_\w+|strided|sparse_\w+|jagged)",
)


class RefusedPickleError(ValueError):
    """A pickle that is not read; ``runs_code`` says whether what it names is code rather than a kind of tensor."""

    def __init__(self, reason: str, runs_code: bool = False) -> None:
        super().__init__(reason)
        self.runs_code = runs_code


class _Name(NamedTuple):
    """What a GLOBAL instruction names."""

    path: str
    item_bytes: int = 0  # of a storage's or a dtype's numbers


class _Storage(NamedTuple):
    numbers: int
    item_bytes: int


class _Tuple(NamedTuple):
    parts: tuple
    size: int  # of all in it, what is shared counted each time
    depth: int


class ObjectStub:
    """A list, dict or whatever else: what made it, and the things in it, of a dict the keys."""

    def __init__(self, kind: str, size: int = 1) -> None:
        self.kind = kind
        self.items: list[Any] = []
        self.size = size


def _is_quick_key(key: Any) -> bool:
    """Whether a key is hashed and compared in no time: whole numbers can be chosen so that all hashes are the same."""
    if isinstance(key, int):
        return abs(key) < 2**31
    return isinstance(key, (str, bytes, type(None), _Name)) or (isinstance(key, ObjectStub) and key.kind == ENCODE)


def _is_list_of_keys(*parts: Any) -> bool:
    return len(parts) == 1 and isinstance(parts[0], ObjectStub) and all(map(_is_quick_key, parts[0].items))


ENCODE = "_codecs.encode"
NAMESPACE = "argparse.Namespace"  # the arguments of other code bases' command lines; made empty, then given its names
DICTS = ["dict", "collections.OrderedDict", "collections.Counter"]
# What may be called, and whether it may be with these arguments, which are those that pickling writes.
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
    # Looked at by themselves.
    **dict.fromkeys(
        [f"torch._utils._rebuild_{kind}" for kind in ("tensor", "tensor_v2", "tensor_v3", "parameter")],
        lambda *parts: True,
    ),
}
WORDS = {
    ENCODE: "text and latin1",
    "builtins.bytearray": "bytes",
    "collections.OrderedDict": "nothing",
    "torch.Size": "whole numbers",
    "builtins.set": "a list of names and numbers",
}


class PickleScan:
    """Follows one file's pickles.

    Args:
        file_bytes: of the whole file, which bound what its pickles may ask for.
        records: of an archive the bytes of each storage's record, by its key; else None, and storages together may
            not be larger than the file.
    """

    def __init__(self, file_bytes: int, records: dict[str, int] | None = None) -> None:
        self.file_bytes = file_bytes
        self.records = records
        self.storages: dict[Any, int] = {}
        self.stored = 0
        self.copied = 0

    def follow(self, stream: BinaryIO) -> Any:
        """Follow one pickle to its end, and return what stands for the thing that it makes.

        Raises:
            Refused: it names something else than tensors and plain data, or asks for more than the file holds.
            Exception: of many kinds; it is damaged.
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
                stack.append(self._named(argument))
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
                arguments, made = stack.pop(), stack.pop()
                if made != _Name(NAMESPACE) or not isinstance(arguments, _Tuple) or arguments.parts:
                    raise RefusedPickleError("it makes something else than an empty argparse.Namespace")
                stack.append(ObjectStub(NAMESPACE))
            elif name == "BUILD" and isinstance(stack[-2], ObjectStub) and stack[-2].kind == NAMESPACE:
                self._name(stack[-2], stack.pop())
            elif name == "BUILD":  # an OrderedDict's attributes, such as a state_dict's _metadata
                state = stack.pop()
                ordered = isinstance(stack[-1], ObjectStub) and stack[-1].kind == "collections.OrderedDict"
                if not (ordered and isinstance(state, ObjectStub) and state.kind == "dict"):
                    raise RefusedPickleError("it changes the attributes of something else than an OrderedDict")
                if set(state.items) - {"_metadata"}:
                    raise RefusedPickleError("it changes other attributes of a dict than _metadata")
            elif name == "BINPERSID":
                stack.append(self._storage(stack.pop()))
            elif name in VALUES:
                stack.append(argument)
            else:
                raise ValueError(f"its pickle has the instruction {name}, which PyTorch does not write")
        raise EOFError("the pickle has no end")

    @staticmethod
    def _named(argument: str) -> _Name:
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
        if size > MOST_IN_TUPLE or depth > MOST_TUPLES_DEEP:
            raise RefusedPickleError(f"it has a tuple of {size:,} parts, {depth} deep")
        return _Tuple(tuple(items), size, depth)

    @staticmethod
    def _grow(thing: Any, items: list[Any], instruction: str) -> None:
        kinds = ["list"] if instruction.startswith("APPEND") else DICTS
        if not isinstance(thing, ObjectStub) or thing.kind not in kinds:
            raise RefusedPickleError("it adds entries to something else than a list or dict")
        if thing.kind != "list":
            items = items[::2]
            if not all(map(_is_quick_key, items)):
                raise RefusedPickleError("it has a key that is no name and no number")
        thing.items += items
        thing.size += len(items)

    def _name(self, namespace: ObjectStub, state: Any) -> None:
        """Give a Namespace its names, once."""
        if namespace.items or not (isinstance(state, ObjectStub) and state.kind == "dict"):
            raise RefusedPickleError("it gives an argparse.Namespace something else than its names, once")
        if not all(isinstance(key, str) for key in state.items):
            raise RefusedPickleError("it has an argparse.Namespace with a name that is none")
        namespace.items, namespace.size = [*state.items], state.size
        self._copy(state.size)

    def _call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, _Name) or not isinstance(arguments, _Tuple):
            raise RefusedPickleError("it calls something else than a name")
        path, parts = function.path, arguments.parts
        if path not in CALLS:
            raise RefusedPickleError(f"it calls {path}")
        if path.startswith("torch._utils._rebuild_tensor"):
            self._check_tensor(path, parts)
            return _Name("tensor")
        if path == "torch._utils._rebuild_parameter":
            if not parts or parts[0] != _Name("tensor"):
                raise RefusedPickleError("it makes a parameter of something else than a tensor")
            return _Name("tensor")
        if len(parts) > 2 or not CALLS[path](*parts):
            raise RefusedPickleError(f"it calls {path} with something else than {WORDS.get(path, 'plain data')}")
        size = sum(part.size if isinstance(part, (ObjectStub, _Tuple)) else len(str(part)) for part in parts)
        self._copy(size)
        return parts[0] if path == "torch.Size" else ObjectStub(path, size)  # a Size is hashed as its tuple is

    def _copy(self, size: int) -> None:
        self.copied += size
        if self.copied > 16 * self.file_bytes + 2**16:
            raise RefusedPickleError("it copies the same data again and again")

    def _storage(self, wanted: Any) -> _Storage:
        parts = wanted.parts if isinstance(wanted, _Tuple) else ()
        if len(parts) not in (5, 6) or parts[0] != "storage" or not isinstance(parts[1], _Name):
            raise RefusedPickleError("it has a persistent object that is no storage")
        kind, key, numbers = parts[1], parts[2], parts[4]
        if not kind.item_bytes or not isinstance(numbers, int) or numbers < 0 or not isinstance(key, (str, bytes, int)):
            raise RefusedPickleError("it has a storage of no kind or size")
        if self.records is not None:
            if numbers * kind.item_bytes != self.records.get(str(key)):
                raise ValueError(f"its storage {sanitized(key)} is of another size than what is there")
            return _Storage(numbers, kind.item_bytes)
        known = self.storages.get(key, 0)
        self.storages[key] = max(numbers * kind.item_bytes, known)
        self.stored += self.storages[key] - known
        if self.stored > self.file_bytes:
            raise RefusedPickleError("its tensors are larger than the file")
        view = parts[5].parts if len(parts) == 6 and isinstance(parts[5], _Tuple) else None
        if view is not None:
            right = len(view) == 3 and isinstance(view[1], int) and isinstance(view[2], int)
            if not right or view[1] < 0 or view[2] < 0 or view[1] + view[2] > numbers:
                raise RefusedPickleError("it has a view of more than its storage")
            numbers = view[2]
        return _Storage(numbers, kind.item_bytes)

    @staticmethod
    def _check_tensor(function: str, parts: tuple) -> None:
        if len(parts) < 4 or not isinstance(parts[0], _Storage) or not isinstance(parts[1], int):
            raise RefusedPickleError("it has a tensor without a storage")
        if not all(isinstance(part, _Tuple) and all(isinstance(n, int) for n in part.parts) for part in parts[2:4]):
            raise RefusedPickleError("it has a tensor without a shape")
        storage, offset, shape, strides = parts[0], parts[1], parts[2].parts, parts[3].parts
        room = storage.numbers
        if function.endswith("v3"):
            if len(parts) < 7 or not isinstance(parts[6], _Name) or not parts[6].item_bytes:
                raise RefusedPickleError("it has a tensor without a kind of number")
            room = storage.numbers * storage.item_bytes // parts[6].item_bytes
        if len(shape) > MOST_DIMENSIONS or len(shape) != len(strides) or min((offset, *shape, *strides)) < 0:
            raise RefusedPickleError("it has a tensor of no shape")
        numbers, last = 1, offset
        for length, stride in zip(shape, strides):
            numbers *= length
            last += (length - 1) * stride
        if numbers and (last >= room or numbers > room):
            raise RefusedPickleError(
                "it has a tensor that is larger than its storage, not a dense one with all its numbers"
            )


def refusal(error: RefusedPickleError, source: object) -> CheckpointError:
    """The sentence for a pickle that is refused."""
    if error.runs_code:
        return CheckpointError(
            f"checkpoint {source} is refused: loading it would run code of its own ({error}); "
            "a checkpoint may hold tensors, numbers, strings, lists and dicts only"
        )
    return CheckpointError(
        f"{source} is no checkpoint: {error}; a checkpoint may hold dense tensors, numbers, strings, lists and dicts: "
        f"{ADVICE}"
    )
