"""The command line: ``crate-mm COMMAND`` or ``python -m crate_mm COMMAND``."""

import sys
from importlib import import_module

COMMANDS = {
    "train": "train the model of a config",
    "test": "evaluate a checkpoint",
    "predict": "predict the classes of images: printed, as CSV, or as a sheet",
    "browse": "show training images after the transforms",
    "plot": "draw the curves of runs, or the schedule of a config",
    "average": "average the weights of checkpoints, all of them or those selected by validation",
    "bench": "measure the speed and memory of a config in training and inference",
    "doctor": "check a machine, an environment and a dataset for problems",
    "neighbours": "write the features of images, or show nearest neighbors",
    "analyze": "analyze a model, one figure at a time",
    "report": "compare models on an interactive, self-contained page",
    "knn": "classify by nearest neighbors of a backbone's features",
    "print_config": "print a resolved config and derived settings",
    "get_flops": "count parameters and multiply-adds",
    "publish": "write a self-contained safetensors file of a model",
    "export": "export a model to ONNX, torch.export or TorchScript",
    "convert_official": "convert a third-party checkpoint",
    "pack_dataset": "pack an image tree into shards",
    "results_table": "tabulate result files in the layout of the paper's Table 1",
}


def main() -> None:
    """Run a command. An unknown command ends with exit code 2."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("", "-h", "--help"):
        listed = "\n".join(f"  {command:<18}{text}" for command, text in COMMANDS.items())
        print(f"usage: crate-mm COMMAND [arguments]\n\n{listed}\n\ncrate-mm COMMAND --help lists its arguments.")
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
