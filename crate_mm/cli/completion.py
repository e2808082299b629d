"""Shell completion of commands, options and their values, configs, published weights, and files."""

import argparse
import sys
from importlib import import_module
from typing import Any

from ..checkpoints.zoo import PUBLISHED
from ..config.load import packaged_configs
from .options import Parser, ParserBuilt, user_errors

SHELLS = ("bash", "zsh", "fish")


def parser_of(command: str) -> Parser:
    """Return the parser that a command builds."""
    argv, sys.argv, Parser.build_only = sys.argv, [f"crate-mm {command.replace('_', '-')}"], True
    try:
        import_module(f"crate_mm.cli.{command}").main()
    except ParserBuilt as built:
        return built.parser
    finally:
        sys.argv, Parser.build_only = argv, False
    raise ValueError(f"{command} has no Parser")


def names_or_files(kind: str, names: list[str]) -> dict[str, Any]:
    """Return shtab's description of a value that is one of the names or a file."""
    function, words = f"_file_or_{kind}_of_crate_mm", " ".join(names)  # "_file" makes bash add / to a folder
    return {
        "bash": function,
        "zsh": function,
        "fish": f"({function})",
        "preamble": {
            "bash": f"{function}() {{ compgen -W '{words}' -- $1; compgen -f -- $1; }}",
            "zsh": f"{function}() {{ compadd -- {words}; _files }}",
            "fish": f"function {function}; printf '%s\\n' {words}; __fish_complete_path (commandline -ct); end",
        },
    }


def completion(shell: str, commands: dict[str, str]) -> str:
    """Return the script that completes ``crate-mm`` in a shell.

    Args:
        shell: one of ``SHELLS``.
        commands: name -> description.

    Raises:
        ImportError: shtab is not installed.
    """
    try:
        import shtab
    except ModuleNotFoundError:
        why = "completion needs shtab, which is not installed: pip install 'crate_mm[completion]'"
        raise ImportError(why) from None
    weights = names_or_files("weights", [name for name, entry in PUBLISHED.items() if entry.address])
    values = dict.fromkeys(("CHECKPOINT", "CHECKPOINTS", "IN"), weights)
    values["CONFIG"] = names_or_files("config", list(packaged_configs()))
    values |= dict.fromkeys(("DIR", "RUN", "ROOT", "WORK_DIR", "SOURCE", "TARGET"), shtab.DIRECTORY)
    values |= dict.fromkeys(("FILE", "PATH", "OUT"), shtab.FILE)

    def describe(parser: argparse.ArgumentParser) -> None:
        for action in parser._actions:
            value = action.metavar or action.dest
            value = (value if isinstance(value, str) else value[0]).upper()
            if isinstance(action, argparse._SubParsersAction):
                for subparser in action.choices.values():
                    describe(subparser)
            elif value in values and not action.choices:
                action.complete = values[value]

    parser = argparse.ArgumentParser("crate-mm")
    parser.add_argument("--version", action="version")
    parser.add_argument("--print-completion", choices=SHELLS, help="print the completion script of a shell")
    subparsers = parser.add_subparsers()
    for command, text in commands.items():
        own = parser_of(command)
        describe(own)
        subparsers.add_parser(command.replace("_", "-"), help=text, description=text, parents=[own], add_help=False)
    return shtab.complete(parser, shell)


def main(arguments: list[str], commands: dict[str, str]) -> None:
    with user_errors():
        if len(arguments) != 1 or arguments[0] not in SHELLS:
            raise ValueError(f"--print-completion takes one shell: choose {', '.join(SHELLS)}")
        print(completion(arguments[0], commands))
