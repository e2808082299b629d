"""The command line: ``crate-mm COMMAND`` or ``python -m crate_mm COMMAND``."""

import sys
from importlib import import_module

COMMANDS = {
    "train": "train a model by a config",
    "test": "evaluate a checkpoint",
    "predict": "predict the classes of images: printed, as CSV, or as a sheet",
    "browse": "show the images of a dataset as a model is trained on them",
    "plot": "draw the curves of runs, or the schedule of a config",
    "average": "average the weights of checkpoints, all of them or those that a validation chooses",
    "bench": "measure images a second and memory of a config, in training and in inference",
    "doctor": "say what a machine has and what is in a dataset, and what will not work",
    "neighbours": "write the features of images, or show the nearest images to others",
    "analyze": "look inside a model, one figure at a time",
    "report": "look inside models, side by side, on a page to explore and share",
    "knn": "classify by nearest neighbours on a backbone's features",
    "print_config": "print a config whole, and what follows from it",
    "get_flops": "count parameters and multiply-adds",
    "publish": "write a model's weights as safetensors, with all that using them needs",
    "export": "write a model as a program: ONNX, torch.export, TorchScript",
    "convert_official": "convert a checkpoint of another code base",
    "pack_dataset": "pack an image tree into a few large files",
    "results_table": "turn result files into the layout of the paper's Table 1",
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
