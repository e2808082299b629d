"""The command line: ``crate-mm COMMAND`` or ``python -m crate_mm COMMAND``."""

import sys
from importlib import import_module

from . import __version__

# Title of a group of commands, ending in an example -> the commands and their help texts.
GROUPS = {
    "Train and evaluate: crate-mm train crate_tiny_digits": {
        "train": "train the model of a config",
        "test": "evaluate a checkpoint",
        "knn": "classify by nearest neighbors on a backbone's features",
        "average": "average the weights of checkpoints, all of them or those that validation selects",
        "plot": "draw the curves of runs, or the schedule of a config",
        "results_table": "summarize result files in the layout of the paper's Table 1",
    },
    "Use a model: crate-mm predict epoch_40.pth my/photos": {
        "predict": "predict the classes of images or pixels, as text, CSV, a sheet of images or masks",
        "generate": "continue a text with a language model",
        "neighbours": "write the features of images, or show their nearest neighbors",
    },
    "Look inside: crate-mm demo": {
        "demo": "write a page that shows a trained CRATE beside an untrained one, without training or download",
        "report": "compare models side by side on a self-contained HTML page",
        "analyze": "look inside a model, one figure at a time",
        "get_flops": "count parameters and multiply-adds",
        "bench": "measure a model's speed and memory, in training and in inference",
    },
    "Convert and publish: crate-mm export crate_tiny_digits epoch_40.pth --to onnx": {
        "publish": "write a self-contained safetensors file: weights, model config, classes, metrics",
        "export": "export a model to ONNX, torch.export or TorchScript",
        "convert_official": "convert a third-party checkpoint",
    },
    "Configs, data and machine: crate-mm print-config --list": {
        "new": "write a recipe, layer, family or task to start from",
        "print_config": "print a config with its base configs and overrides, and the settings derived from it",
        "browse": "show training images after the transforms",
        "pack_dataset": "pack an image tree into WebDataset shards",
        "pack_text": "convert text files to token files for a language model",
        "doctor": "check a machine and a dataset, and flag what will not work",
    },
}
COMMANDS = {name: text for commands in GROUPS.values() for name, text in commands.items()}
OPTIONS = {
    "--help": "show this text",
    "--version": "show the version",
    "--print-completion": "print the completion script of a shell: bash, zsh or fish",
}


def help_text() -> str:
    def rows(entries: dict[str, str]) -> str:
        return "\n".join(f"  {name.replace('_', '-'):<19}{text}" for name, text in entries.items())

    groups = "\n\n".join(f"{title}\n{rows(commands)}" for title, commands in GROUPS.items())
    return f"""usage: crate-mm COMMAND [arguments]

{groups}

Options
{rows(OPTIONS)}

crate-mm COMMAND --help lists a command's arguments."""


def main() -> None:
    """Run a command, or exit with code 2 if it is unknown."""
    name, *arguments = sys.argv[1:] or [""]
    command = name.replace("-", "_")
    if command in COMMANDS:
        sys.argv = [f"crate-mm {name.replace('_', '-')}", *arguments]
        import_module(f"crate_mm.cli.{command}").main()
    elif name in ("-h", "--help", ""):
        print(help_text())
        sys.exit(0 if name else 2)
    elif name == "--version":
        print(f"crate-mm {__version__}")
    elif name == "--print-completion":
        from .cli.completion import main as print_completion

        print_completion(arguments, COMMANDS)
    else:
        from .registry import suggest

        known = [*(known.replace("_", "-") for known in COMMANDS), *OPTIONS]
        kind = "option" if name.startswith("-") else "command"
        print(f"error: crate-mm has no {kind} {name!r}: {suggest(name.replace('_', '-'), known)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
