"""Parse command-line values by the type of their setting: text, a list, or a Python literal."""

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


class RawText(str):
    """Unparsed text of a command-line value; its meaning depends on the type of its setting."""


class _PlainPython(ast.NodeTransformer):
    """Rewrite ``dict(a=1)`` as ``{"a": 1}`` and names as strings, at any depth, for ``ast.literal_eval``."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if getattr(node.func, "id", None) != "dict" or node.args:
            return node
        return ast.Dict([ast.Constant(k.arg) for k in node.keywords], [self.visit(k.value) for k in node.keywords])

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(WORDS.get(node.id.lower(), node.id))


def parse_value(text: str) -> Any:
    """Parse an override's value as Python: a number, word, string, list, tuple, dict or ``dict(a=1)``.

    Words in brackets are strings, and ``a,b`` is a list. Any other text is a string, spaces included.

    Raises:
        ValueError: text in brackets that is not a list, tuple or dict.
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
            raise ValueError(f"{text!r} is not a list, tuple or dict: put its words in quotes") from None
        if "," in text and not any(bracket in text for bracket in "([{"):
            return [parse_value(part) for part in text.split(",")]
        return text


def read(raw: RawText, value_types: set[Any] | None, strict: bool = False) -> Any:
    """Parse a command-line value as one of several types.

    Args:
        raw: the text.
        value_types: types that the setting accepts (``accepted_types``); None if they are unknown.
        strict: if the setting accepts only numbers, raise an error for any other value.

    Raises:
        ValueError: the text cannot be parsed.
    """
    text = str(raw)
    expected = (value_types or set()) - {type(None)}
    if text.lower() == "none" and (not expected or type(None) in value_types):
        return None
    if expected and expected <= TEXT:
        return _unquoted(text)
    origins = {typing.get_origin(value_type) or value_type for value_type in expected}
    if origins and origins <= LISTS:
        of_text = all(set(typing.get_args(value_type)) - {...} == {str} for value_type in expected)
        if of_text and not text.strip().startswith(("[", "(")):
            return [_unquoted(part) for part in text.split(",")]
        value = parse_value(text)
        if of_text and isinstance(value, (list, tuple)):
            return [str(part) for part in value]
        return value if isinstance(value, (list, tuple, dict)) else [value]
    value = parse_value(text)
    if strict and origins and origins <= NUMBERS and not isinstance(value, tuple(NUMBERS)):
        raise ValueError(f"expected a number, got {text!r}")
    return value


def _unquoted(text: str) -> str:
    """Return text without enclosing quotes."""
    try:
        value = ast.literal_eval(text.strip())
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return text
    return value if isinstance(value, str) else text


def signatures(target: Callable) -> Iterator[Callable]:
    """Yield a class or function; for a class that passes its ``**kwargs`` on, also its base classes."""
    yield target
    if inspect.isclass(target):
        receiver = target
        for base in target.__mro__[1:-1]:
            if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(receiver).parameters.values()):
                break
            receiver = base
            yield base


def accepts(target: Callable, name: str) -> bool:
    """Return whether a class or function has an argument of this name."""
    return any(name in inspect.signature(receiver).parameters for receiver in signatures(target))


def accepted_types(target: Callable | None, name: str) -> set[Any] | None:
    """Return the types that an argument's annotation accepts; None without an annotation, or with Any or a TypeVar."""
    for receiver in signatures(target) if target is not None else ():
        try:
            hints = typing.get_type_hints(receiver.__init__ if inspect.isclass(receiver) else receiver)
        except Exception:  # an annotation may refer to missing names
            continue
        if name in hints:
            value_types = set(_members(hints[name]))
            return None if any(t is Any or isinstance(t, typing.TypeVar) for t in value_types) else value_types
    return None


def _members(hint: Any) -> Iterator[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for inner in typing.get_args(hint):
            yield from _members(inner)
    else:
        yield hint
