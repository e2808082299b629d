"""Values of the command line, read as what their setting is: text, a list, or whatever Python would make of it."""

import ast
import inspect
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

WORDS = {"true": True, "false": False, "none": None}
TEXT = {str, Path, os.PathLike}
LISTS = {list, tuple, Sequence, Iterable}
NUMBERS = {int, float, bool}


class Given(str):
    """The text of a value as the command line has it: what it means depends on the setting that it is for."""


class _PlainPython(ast.NodeTransformer):
    """Write ``dict(a=1)`` as ``{"a": 1}`` and words as strings, at any depth, as literals have no calls and names."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if getattr(node.func, "id", None) != "dict" or node.args:
            return node
        return ast.Dict([ast.Constant(k.arg) for k in node.keywords], [self.visit(k.value) for k in node.keywords])

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(WORDS.get(node.id.lower(), node.id))


def parse_value(text: str) -> Any:
    """Read an override's value as Python would: a number, word, string, list, tuple or dict, ``dict(a=1)`` too.

    Words in brackets are strings. What is none of these is a string as it stands, spaces included, and ``a,b`` a list.

    Raises:
        ValueError: it is in brackets, and no list, tuple or dict.
    """
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        if isinstance(tree, ast.Name):
            return text
        value = ast.literal_eval(_PlainPython().visit(tree))
        return list(value) if isinstance(value, tuple) and not text.strip().startswith("(") else value
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        if re.fullmatch(r"\s*(\[.*\]|\(.*\)|\{.*\}|dict\(.*\))\s*", text, re.DOTALL):
            raise ValueError(f"{text!r} is no list, tuple or dict: put its words in quotes") from None
        if "," in text and not any(bracket in text for bracket in "([{"):
            return [parse_value(part) for part in text.split(",")]
        return text


def read(given: Given, kinds: set[Any] | None, strict: bool = False) -> Any:
    """Read the text of a command line as one of some kinds.

    Args:
        given: the text.
        kinds: of the setting, of ``accepted_types``; None where they are not known.
        strict: refuse anything but a number where nothing else is wanted.

    Raises:
        ValueError: it cannot be read.
    """
    text = str(given)
    wanted = (kinds or set()) - {type(None)}
    if text.lower() == "none" and (not wanted or type(None) in kinds):
        return None
    if wanted and wanted <= TEXT:
        return _unquoted(text)
    plain = {typing.get_origin(kind) or kind for kind in wanted}
    if plain and plain <= LISTS:
        of_text = all(set(typing.get_args(kind)) - {...} == {str} for kind in wanted)
        if of_text and not text.strip().startswith(("[", "(")):
            return [_unquoted(part) for part in text.split(",")]
        value = parse_value(text)
        if of_text and isinstance(value, (list, tuple)):
            return [str(part) for part in value]
        return value if isinstance(value, (list, tuple, dict)) else [value]
    value = parse_value(text)
    if strict and plain and plain <= NUMBERS and not isinstance(value, tuple(NUMBERS)):
        raise ValueError(f"a number is wanted, got {text!r}")
    return value


def _unquoted(text: str) -> str:
    """What quotes enclose, or the text as it stands."""
    try:
        value = ast.literal_eval(text.strip())
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return text
    return value if isinstance(value, str) else text


def signatures(target: Callable) -> Iterator[Callable]:
    """What takes the arguments of a class or function: of a class that passes keywords on, its base classes' too."""
    yield target
    if inspect.isclass(target):
        taking = target
        for base in target.__mro__[1:-1]:
            if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(taking).parameters.values()):
                break
            taking = base
            yield base


def accepted_types(target: Callable | None, name: str) -> set[Any] | None:
    """The kinds of value that an argument takes, by its annotation; None where it has none that tells."""
    for taking in signatures(target) if target is not None else ():
        try:
            hints = typing.get_type_hints(taking.__init__ if inspect.isclass(taking) else taking)
        except Exception:  # an annotation may name what is not there
            continue
        if name in hints:
            kinds = set(_members(hints[name]))
            return None if any(kind is Any or isinstance(kind, typing.TypeVar) for kind in kinds) else kinds
    return None


def _members(hint: Any) -> Iterator[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for inner in typing.get_args(hint):
            yield from _members(inner)
    else:
        yield hint
