"""The command line: ``crate-mm COMMAND`` or ``python -m crate_mm COMMAND``."""

import sys
from importlib import import_module

COMMANDS = {
    "train": "train the model of a config",
    "test": "evaluate a checkpoint",
    "predict": "predict the classes of images; print them, or write a CSV file or a sheet of images",
    "browse": "show training images after the transforms",
    "plot": "draw the curves of runs, or the schedule of a config",
    "average": "average the weights of checkpoints, all of them or those that validation selects",
    "bench": "measure a model's speed and memory, in training and in inference",
    "doctor": "check a machine and a dataset, and report faults",
    "neighbours": "write the features of images, or show their nearest neighbors",
    "analyze": "look inside a model, one figure at a time",
    "report": "compare models side by side on a self-contained HTML page",
    "knn": "classify by nearest neighbors on a backbone's features",
    "print_config": "print a config with its base configs and overrides, and the settings derived from it",
    "get_flops": "count parameters and multiply-adds",
    "publish": "write a self-contained safetensors file: weights, model config, classes, metrics",
    "export": "export a model to ONNX, torch.export or TorchScript",
    "convert_official": "convert a third-party checkpoint",
    "pack_dataset": "pack an image tree into WebDataset shards",
    "results_table": "turn result files into the layout of the paper's Table 1",
}


def main() -> None:
    """Run a command, or exit with code 2 if it is unknown."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("", "-h", "--help"):
        table = "\n".join(f"  {command:<18}{text}" for command, text in COMMANDS.items())
        print(f"usage: crate-mm COMMAND [arguments]\n\n{table}\n\ncrate-mm COMMAND --help lists a command's arguments.")
        sys.exit(0 if name else 2)
    command = name.replace("-", "_")
    if command not in COMMANDS:
        from .registry import suggest

        print(f"error: crate-mm has no command {name!r}: {suggest(command, list(COMMANDS))}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"crate-mm {command}", *sys.argv[2:]]
    import_module(f"crate_mm.cli.{command}").main()


if __name__ == "__main__":
    main()
