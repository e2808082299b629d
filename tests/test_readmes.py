"""Every README is true: links have targets, Python runs, commands are valid, tables equal the code's.

``desk`` provides small files that the blocks use: checkpoints, data, images. A Python block whose first line is a file
name is that file; the other blocks of a README run one after the other. Commands run in the desk, with the replacements
and additional arguments of ``SMALL``, ``INSTEAD`` and ``FURTHER``; ``NOT_RUN`` lists the exceptions.
"""

import argparse
import ast
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml

from crate_mm.__main__ import COMMANDS
from crate_mm.checkpoints.zoo import PUBLISHED
from crate_mm.cli.new import new_files
from crate_mm.config import CONFIGS, load_config
from crate_mm.config.kinds import parse_value
from crate_mm.config.settings import GUARDS, SETTINGS
from crate_mm.datasets import FashionMNIST
from crate_mm.models import Task
from crate_mm.models.layers import Compression, Sparsification
from crate_mm.registry import MODELS
from tests import dataset_formats
from tests.checkpoints.test_export import ONNX_TAKES_ANY_BATCH
from tests.conftest import ROOT, make_image_tree
from tests.models.test_foreign import official

READMES = sorted(ROOT.glob("*.md"), key=lambda path: (path.name != "README.md", path.name))
READMES += sorted(path for part in ("configs", "crate_mm", "tools", "tests") for path in (ROOT / part).rglob("*.md"))
MAX_LINES = 130  # of the README at the root

# Run before the Python blocks of a README.
PROLOGUE = """
import torch
images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
batches = [{"inputs": images}]
"""
# Run before the Python blocks of docstrings.
DOCSTRING_PROLOGUE = """
import torch
from torch import nn
from crate_mm import *
model = init_model(None, "crate_base.pth")
images = torch.rand(2, 3, 224, 224)
batches = [images]
"""
# Loads each config in a README, resolves it, and builds its model without memory.
LOAD_CONFIGS = """
from crate_mm.config import defines_model, fill_from_data, load_config, resolve_config
from crate_mm.registry import MODELS
for name in {names}:
    cfg = load_config(name)
    if defines_model(cfg):
        with torch.device("meta"):
            MODELS.build(resolve_config(fill_from_data(cfg)[0], 1).model)
"""
ARCH = "model.backbone.arch=dict(embed_dim=48,depth=2,num_heads=3)"
ALWAYS = [f"{split}_dataloader.num_workers=0" for split in ("train", "val", "test")] + ["train_cfg.max_epochs=1"]
IN1K = [ARCH, "model.head.num_classes=3", "data_root=imagenet", "global_batch_size=12"]
FOLDERS = ["data_root=folders", "global_batch_size=20"]
DIGITS = ["global_batch_size=449", "default_hooks.white_box=None"]  # three steps of an epoch
MINI = [ARCH, "global_batch_size=20"]
TEXT = [ARCH, "train_dataloader.dataset.random_windows=32"]
SCENES = [ARCH, "global_batch_size=4", "train_dataloader.dataset.source.length=8"]
SCENES += [f"{split}_dataloader.dataset.source.length=4" for split in ("val", "test")]
# Overrides that make a config small.
SMALL = {
    "configs/crate_base_in1k.py": IN1K,
    "configs/crate_tiny_digits.py": [ARCH, *DIGITS],
    "configs/crate_mini_digits.py": DIGITS,
    "configs/crate_micro_fashion_mnist.py": ["global_batch_size=20"],
    "crate_mini_digits": [],
    "configs/debug.py": ["global_batch_size=449"],
    "configs/crate_mini_fashion_mnist.py": MINI,
    "configs/compare/crate.py": MINI,
    "configs/compare/vit.py": MINI,
    "causal_crate_mini_python": TEXT,
    "configs/causal_crate_mini_python.py": TEXT,
    "configs/segmentation_mini_scenes.py": SCENES,
    "configs/compare_dense/depict_sa_crate.py": SCENES,
    "configs/compare_dense/linear_crate.py": SCENES,
    "configs/compare_language/crate.py": TEXT,
    "configs/transfer/pets.py": ["global_batch_size=37"],
    "configs/transfer/folder.py": FOLDERS,
    "transfer/folder": FOLDERS,
    "configs/crate_mae_mini_fashion_mnist.py": MINI,
    "configs/transfer/digits.py": ["global_batch_size=449"],
    "configs/transfer/fashion_mnist.py": ["global_batch_size=20"],
    "work_dirs/folder/folder.py": FOLDERS,
    "crate_tiny_digits": [ARCH, *DIGITS],
    "my_recipe.py": FOLDERS,
    "my_layer_config.py": ["global_batch_size=449"],
    "my_family_config.py": ["global_batch_size=449"],
    "my_analysis.py": [],
    "my_task_config.py": ["global_batch_size=449"],
    "my_dataset_config.py": ["global_batch_size=64"],
}
# Paths and shell variables in the READMEs, and their replacements here.
INSTEAD = {
    "/data/imagenet-packed": "packed",
    "/data/imagenet": "imagenet",
    "/my/images": "folders",
    "/my/photos": "photos",
    "my/photos": "photos",
    "my/texts": "texts",
    "${M}": "crate",
    "$M": "crate",
    "$S": "0",
}
FURTHER = {
    "browse": ["--number", "4"],
    "bench": ["--seconds", "1"],
    "pack_dataset": ["--workers", "1"],
    "layers": ["--num-images", "20"],
    "features": ["--num-images", "50"],
    "report": ["--num-images", "20", "--shown", "4"],
    "attention": ["--layers", "1"],
    "objects": ["--num-images", "5"],
    "new": ["--out", "another_file.py"],
}
WITHOUT_CONFIG = {"demo", "new", "publish", "convert_official", "pack_dataset", "pack_text", "results_table"}
WITHOUT_CONFIG |= {"predict", "plot", "average", "doctor", "neighbours", "generate"}  # or an option names the config
# Parts of commands that are not run here, and why. Those of the package are parsed, with their config and overrides.
NOT_RUN = {
    "python -m pytest": "tests",
    "tools/run_tests.sh": "tests",
    "tools/quickstart.sh": "tests/cli/test_launchers.py runs it",
    "tools/dist_train.sh": "several processes: tests/cli/test_launchers.py and tests/faults run it",
    "tools/dist_test.sh": "several processes: tests/cli/test_launchers.py runs it",
    "tools/slurm_train.sh": "needs Slurm",
    "tools/slurm_test.sh": "needs Slurm",
    "tools/slurm_requeue.sbatch": "needs Slurm",
    "tools/benchmarks/": "takes minutes",
    "tools/site/build.py": "tests/test_site.py runs it",
    ". .venv/bin/activate": "the tests' environment is active",
    "simdino": "tests/engine/test_distillation_runs.py trains, resumes and transfers",
    "python -m mypy": "tests/test_public_names.py runs it",
    "python -m ruff": "another program, which only developers install",
    "python -m pip install": "needs a network",
    'from_official("crate_alpha_B16.pth")': "needs files that their authors publish",
    'get_model("crate_alpha_base", pretrained=True)': "needs a network",
    "sudo apt-get install": "needs a network and changes the machine",
    "for f in /usr/share/datasets/fashion-mnist/*.gz": "needs the package that the line before installs",
}
SCRIPTS = {"dist_train.sh": ("train", 1, 1), "dist_test.sh": ("test", 2, 1), "slurm_train.sh": ("train", 2, None)}
SCRIPTS |= {"slurm_test.sh": ("test", 2, None), "slurm_requeue.sbatch": ("train", 0, None)}


class Parsed(BaseException):
    """The arguments of a tool are parsed."""


def assert_parsed(script: Path, args: Sequence) -> None:
    """Run a tool in this process until it has parsed its arguments."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, *args, **kwargs):
        parse_args(self, *args, **kwargs)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        patch.setattr(sys, "argv", [str(script), *map(str, args)])
        patch.syspath_prepend(script.parent)
        with pytest.raises(Parsed):
            runpy.run_path(str(script), run_name="__main__")


class Block(NamedTuple):
    """A code block of a README: language, number of its first line, text."""

    language: str
    line: int
    text: str

    @property
    def file(self) -> str | None:
        """Return the file name in the first line of a Python block, or None."""
        match = re.match(r"# (\w+\.py)$", self.text.partition("\n")[0])
        return match[1] if match and self.language == "python" else None


class Command(NamedTuple):
    """A command of a README: a tool and its arguments, or a shell script and the tool that it runs."""

    line: str
    tool: str  # 'train', 'benchmarks/loader', ...; '' for a script without a tool
    args: tuple[str, ...]
    script: str = ""
    variables: tuple[str, ...] = ()


def blocks(readme: Path, language: str) -> list[Block]:
    text = readme.read_text()
    matches = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    return [Block(m[1], text[: m.start()].count("\n") + 2, m[2]) for m in matches if m[1] == language]


def prose(readme: Path) -> str:
    """Return a README without its code blocks."""
    return re.sub(r"^```.*?^```$", "", readme.read_text(), flags=re.M | re.S)


def docstring_blocks() -> list[tuple[str, str]]:
    """Return the literal blocks of the package's docstrings with their modules; those of layers are formulas."""
    found = []
    for path in sorted((ROOT / "crate_mm").rglob("*.py")):
        if "layers" not in path.parts:
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                    text = f"{ast.get_docstring(node)}\n"
                    found += [(module, dedent(m[1])) for m in re.finditer(r"::\n\n((?: {4}.*\n|\n)+)", text)]
    return found


def lines_of(block: Block) -> list[str]:
    """Return the commands of a block, one per line."""
    joined = block.text.replace("\\\n", " ")
    return [" ".join(line.split()) for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def is_run(line: str) -> bool:
    return not any(part in line for part in NOT_RUN)


def parse_command(line: str) -> Command:
    """Parse a line as a command of the package.

    Raises:
        ValueError: it is another command.
    """
    for text, replacement in INSTEAD.items():
        line = line.replace(text, replacement)
    words, variables = shlex.split(line, comments=True), []
    while re.match(r"[A-Z_]+=", words[0]):
        variables.append(words.pop(0).partition("=")[0])
    if words[:3] == ["python", "-m", "crate_mm"]:
        words = ["crate-mm", *words[3:]]
    if words[0] == "crate-mm" and words[1].replace("-", "_") in COMMANDS:
        return Command(line, words[1].replace("-", "_"), tuple(words[2:]))
    tool = re.fullmatch(r"tools/([\w/]+)\.py", words[1]) if words[0] == "python" and len(words) > 1 else None
    if tool:
        return Command(line, tool[1], tuple(words[2:]))
    if words[0] == "sbatch":
        words = [word for word in words[1:] if not word.startswith("--partition=")]
    script = re.fullmatch(r"tools/(\w+\.(?:sh|sbatch))", words[words[0] == "bash"])
    if script and script[1] in SCRIPTS:
        mode, count, gpus = SCRIPTS[script[1]]
        first, rest = (words[1 : 1 + count], words[1 + count :]) if gpus else ([], words[1 + count :])
        if gpus and not rest.pop(0).isdigit():
            raise ValueError(f"{line!r} does not say on how many GPUs")
        return Command(line, mode, (*first, *rest), script[1], tuple(variables))
    if script and words[0] == "bash":
        return Command(line, "", tuple(words[2:]), script[1], tuple(variables))
    raise ValueError(f"no test knows the command {line!r}")


def commands_of(lines: list[str]) -> list[Command]:
    """Parse lines as commands, without duplicates; other lines that are not in ``NOT_RUN`` go to ``UNKNOWN``."""
    commands = []
    for line in lines:
        try:
            commands.append(parse_command(line))
        except (ValueError, IndexError):
            if is_run(line):
                UNKNOWN.append(line)
    return list(dict.fromkeys(commands))


UNKNOWN: list[str] = []
LINES = [line for readme in READMES for block in blocks(readme, "bash") for line in lines_of(block)]
IN_BLOCKS = commands_of(LINES)
# In text and tables: code spans that begin like a command with arguments.
MARKED = [span for readme in READMES for span in re.findall(r"`([^`\n]+)`", prose(readme))]
COMMAND = r"(python|bash|crate-mm \w+|[A-Z_]+=\w+|tools/\w+\.sh) "
IN_PROSE = commands_of([span for span in MARKED if re.match(COMMAND, span)])
TOOLS = [c for c in IN_BLOCKS if is_run(c.line)]
# Of commands that differ in nothing but the values of their options, the first runs; a further training is described.
FIRST = {
    (c.tool, c.args[:1], next((a for a in c.args if a in SMALL), ""), *(a for a in c.args if a[:2] == "--")): c
    for c in TOOLS[::-1]
}
TO_RUN = [c for c in TOOLS if c in FIRST.values() or c.tool == "train"]
TO_PARSE = list(dict.fromkeys(c for c in (*IN_BLOCKS, *IN_PROSE) if c.tool and c not in TO_RUN))


def overrides(args: tuple[str, ...]) -> dict:
    """Return the settings after ``--cfg-options``."""
    if "--cfg-options" not in args:
        return {}
    after = args[args.index("--cfg-options") + 1 :]
    pairs = after[: next((i for i, word in enumerate(after) if word.startswith("--")), len(after))]
    return {key: parse_value(value) for key, _, value in (pair.partition("=") for pair in pairs)}


# Files that the READMEs use ------------------------------------------------------------------------------------------


def describe(model: dict, classes: list[str]) -> dict:
    """Return a checkpoint of a model with new weights and the metadata of a training checkpoint."""
    size = model["backbone"]["img_size"]
    tested = [{"type": "Resize", "size": size}, {"type": "CenterCrop", "size": size}]
    weights = MODELS.build(model).state_dict()
    return {
        "meta": {"model": model, "dataset_meta": {"classes": classes}, "test_transforms": tested},
        "state_dict": weights,
    }


def small_config(name: str, **kwargs):
    return load_config(name, overrides(("--cfg-options", *SMALL[f"configs/{name}.py"])), **kwargs)


@pytest.fixture(scope="session")
def stock(tmp_path_factory) -> Path:
    """The files of a desk."""
    place = tmp_path_factory.mktemp("stock")
    for folder in ("configs", "tools"):
        (place / folder).symlink_to(ROOT / folder)

    make_image_tree(place / "imagenet")
    for number, image in enumerate(sorted((place / "imagenet" / "val").rglob("*.JPEG")), 1):
        image.rename(image.with_name(f"ILSVRC2012_val_{number:08d}.JPEG"))
    (place / "real.json").write_text("[[0], [0, 1], [1], [], [2], [2]]")
    dataset_formats.image_folder(place / "folders", classes=5, per_class=5)
    dataset_formats.image_folder(place / "photos", classes=1, per_class=2)
    (place / "texts").mkdir()
    for number in range(20):
        (place / "texts" / f"{number}.txt").write_text(f"text {number}\n" * 100)
    for name in ("cat.jpg", "dog.jpg"):
        shutil.copy(place / "photos" / "class 0" / "0.jpg", place / name)
    dataset_formats.fashion_mnist(place / "data")
    dataset_formats.pets(place / "data", None)
    dataset_formats.voc(place / "data", {"2007_000033": np.eye(40, 30, dtype=np.uint8)})

    base = describe(small_config("crate_base_in1k").model.to_dict(), sorted(os.listdir(place / "imagenet" / "val")))
    folder = small_config("transfer/folder", model=base["meta"]["model"])
    folder.model.head.num_classes = 5
    digits = describe(small_config("crate_tiny_digits").model.to_dict(), [str(i) for i in range(10)])
    mini = describe(small_config("crate_mini_fashion_mnist").model.to_dict(), [str(i) for i in range(10)])
    mae = describe(small_config("crate_mae_mini_fashion_mnist").model.to_dict(), [str(i) for i in range(10)])
    text = small_config("causal_crate_mini_python").model.to_dict()
    text_weights = MODELS.build(text).state_dict()
    scenes = describe(small_config("segmentation_mini_scenes").model.to_dict(), [*FashionMNIST.classes, "ground"])
    scenes["meta"]["test_transforms"] = []
    third_party = {name: 0.05 * torch.randn(value.shape) for name, value in official(img_size=224).items()}
    stored = {
        "crate_base.pth": base,
        "work_dirs/crate_base_in1k/best_eval_top1_epoch_149.pth": base,
        "crate_base_official.pth": third_party,
        "crate_tiny_official.pth": third_party,
        "work_dirs/folder/epoch_200.pth": describe(folder.model.to_dict(), sorted(os.listdir(place / "folders"))),
        "epoch_1.pth": digits,
        "epoch_40.pth": digits,
        "work_dirs/crate_mini_digits/epoch_40.pth": digits,
        "work_dirs/crate0/epoch_12.pth": mini,
        **{
            f"work_dirs/{run}/epoch_5.pth": describe(
                small_config(f"compare/{kind}").model.to_dict(), [str(i) for i in range(10)]
            )
            for run, kind in (("crate0", "crate"), ("crate1", "crate"), ("vit0", "vit"))
        },
        "work_dirs/mae/epoch_12.pth": mae,
        "work_dirs/causal_crate_mini_python/epoch_3.pth": {"meta": {"model": text}, "state_dict": text_weights},
        "work_dirs/scenes/epoch_6.pth": scenes,
    }
    for name, contents in stored.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(contents, place / name)
    folder.dump(place / "work_dirs" / "folder" / "folder.py")
    result = '{"model": "crate_base", "dataset": "OxfordIIITPet", "kind": "fine-tuning", "last": {"top1": 50.0}}'
    (place / "work_dirs" / "crate0" / "result.json").write_text(result)
    for run in ("crate0", "crate1"):
        log = place / "work_dirs" / run / "20250101_000000" / "vis_data" / "scalars.json"
        log.parent.mkdir(parents=True)
        log.write_text('{"lr": 0.1, "loss": 2.0, "epoch": 1, "iter": 9, "step": 9}\n{"eval/top1": 9.5, "step": 1}\n')

    for kind in ("layer", "family", "task"):
        for path, text in new_files(kind, f"my_{kind}", place / f"my_{kind}.py").items():
            path.write_text(text)
    for readme in READMES:
        for block in blocks(readme, "python"):
            if block.file:
                assert not (place / block.file).exists(), f"two READMEs have a file {block.file}"
                (place / block.file).write_text(block.text)
    return place


@pytest.fixture
def desk(stock, tmp_path) -> Path:
    """A copy of the stock for one test."""
    return shutil.copytree(stock, tmp_path / "desk", symlinks=True, copy_function=os.link)


# Text ----------------------------------------------------------------------------------------------------------------


def test_the_first_readme_is_short():
    assert len(READMES[0].read_text().splitlines()) <= MAX_LINES


def test_every_folder_readme_is_linked_from_the_first():
    text = READMES[0].read_text()
    for readme in READMES[1:]:
        if "tests" not in readme.parts:
            assert f"({readme.relative_to(ROOT)})" in text


def test_links_lead_somewhere_and_lines_are_short():
    for readme in READMES:
        text = prose(readme)
        for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)", text, re.M):
            if target.startswith("https://"):
                continue
            path, _, anchor = target.partition("#")
            file = (readme.parent / path).resolve() if path else readme
            assert file.exists(), f"{readme}: {target} is not there"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", prose(file), re.M)
                anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in anchors, f"{readme}: {target} has no such heading"
        for number, line in enumerate(readme.read_text().splitlines(), 1):
            assert len(line) <= 120 or line.startswith("|"), f"{readme}, line {number} has {len(line)} characters"


def test_files_that_are_named_exist():
    for readme in READMES:
        named = re.findall(r"`((?:tools|configs|crate_mm|tests|_base_)/[\w./]+)`", prose(readme))
        text = "".join(block.text for block in blocks(readme, "bash"))
        named += re.findall(r"\b(?:tools|configs|tests)/[\w./]+", text)
        for name in named:
            assert (ROOT / name).exists() or (CONFIGS / name).exists(), f"{readme}: {name}"


def test_every_block_is_of_a_language_that_is_tested():
    for readme in READMES:
        text = readme.read_text()
        assert set(re.findall(r"^```(\w*)$", text, re.M)) <= {"", "python", "bash"}
        assert all(re.fullmatch(r"```\w*", line) for line in text.splitlines() if "```" in line), "an indented block"
        tested = len(blocks(readme, "python")) + len(blocks(readme, "bash"))
        assert text.count("\n```") == 2 * tested, f"{readme} has a block without a language"


def test_the_workflow_tests_the_oldest_supported_versions():
    """.github/workflows/tests.yml runs .ci/run with the lower bounds of setup.py, and with the newest versions."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    tests = workflow["jobs"]["tests"]
    versions = [(row["python"], row["torch"], row["torchvision"]) for row in tests["strategy"]["matrix"]["include"]]
    setup = (ROOT / "setup.py").read_text()
    bounds = [re.search(rf'{name}>=([\d.]+)"', setup)[1] for name in ("torch", "torchvision")]
    oldest = [python for python, *parts in versions if parts == [f"{bound}.0" for bound in bounds]]
    assert f'python_requires=">={oldest[0]}"' in setup
    assert any(parts == ["", ""] for _, *parts in versions)
    assert [step["run"] for step in tests["steps"] if "run" in step][-1] == "bash .ci/run"


def test_every_extra_that_is_named_exists():
    named = {name for readme in READMES for name in re.findall(r"(?:crate_mm|\.)\[(\w+)\]", readme.read_text())}
    assert named
    assert named <= set(re.findall(r'^        "(\w+)": ', (ROOT / "setup.py").read_text(), re.M))


def test_every_config_is_in_the_table():
    text = (ROOT / "configs" / "README.md").read_text()
    for path in sorted(CONFIGS.rglob("*.py")):
        name = str(path.relative_to(CONFIGS).with_suffix(""))
        assert "_base_" in path.parts or f"`{name}`" in text, name


def test_the_tables_of_settings_and_guards_are_the_codes():
    text = (ROOT / "crate_mm" / "config" / "README.md").read_text()
    shown = [line for line in text.splitlines() if line.startswith("| `")]
    rows = [f"| `{s.name}` | {'-' if s.default is ... else f'`{s.default!r}`'} | {s.help} |" for s in SETTINGS]
    rows += [f"| `{name}` | `{guard.type}` | {guard.effect_if_off} |" for name, guard in GUARDS.items()]
    assert shown == rows


@pytest.mark.parametrize(
    ("section", "column", "parts"), [("An operator", 1, (Compression(), Sparsification())), ("A task", 0, (Task,))]
)
def test_the_tables_of_contracts_name_members_of_their_classes(section, column, parts):
    text = (ROOT / "CONTRIBUTING.md").read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    names = {name for row in rows[1:] for name in re.findall(r"`(?:self\.)?(\w+)", row[column])}
    members = {name for part in parts for name in (*dir(part), *part.__annotations__)}
    assert names, section
    assert names <= members


def test_the_table_of_commands_is_the_commands():
    text = (ROOT / "tools" / "README.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    assert [(row[0].strip("`"), row[1]) for row in rows] == list(COMMANDS.items())
    assert {len(row) for row in rows} == {4}


def test_the_table_of_published_weights_is_the_codes():
    text = (ROOT / "crate_mm" / "checkpoints" / "README.md").read_text()
    text = text.partition("| weights | where |")[2].partition("\n\n")[0]
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    table = {name.strip(" `"): row[1:] for row in rows if len(row) == 3 for name in row[0].split(",")}
    expected = {
        name: [f"`{w.address}`" if w.address else f"<{w.page}>", f"{w.licence or 'unknown'} "]
        for name, w in PUBLISHED.items()
    }
    assert table == expected


# Python --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "readme", [r for r in READMES if blocks(r, "python")], ids=lambda path: str(path.relative_to(ROOT))
)
@pytest.mark.slow
def test_the_python_of_a_readme_runs(readme, desk, run_tool):
    parts, files = [PROLOGUE], [block.file for block in blocks(readme, "python") if block.file]
    for block in blocks(readme, "python"):
        parts.append(f"print({str(block.line)!r})\n{'' if block.file else block.text}")
    parts.append(LOAD_CONFIGS.format(names=[file for file in files if "_base_" in (desk / file).read_text()]))
    (desk / "all_blocks.py").write_text("\n".join([*parts, "print('done')"]))
    done = run_tool(str(desk / "all_blocks"), cwd=desk)
    assert done.code == 0, done.output
    assert done.last_line == "done"


@pytest.mark.slow
def test_the_python_of_docstrings_runs(desk, run_tool):
    run = [f"from {module} import *\n{code}" for module, code in docstring_blocks() if is_run(code)]
    assert len(run) >= 4
    (desk / "docstrings.py").write_text("\n".join([DOCSTRING_PROLOGUE, *run, "print(); print('done')"]))
    done = run_tool(str(desk / "docstrings"), cwd=desk)
    assert done.last_line == "done", done.output


def test_every_file_of_a_readme_is_used_in_it():
    for readme in READMES:
        all_blocks = [block for language in ("python", "bash") for block in blocks(readme, language)]
        for block in all_blocks:
            if block.file and "_base_" not in block.text:
                assert any(Path(block.file).stem in other.text for other in all_blocks if other != block), block.file


# Commands ------------------------------------------------------------------------------------------------------------


def test_there_are_commands():
    assert {command.tool for command in TO_RUN} == COMMANDS.keys()
    assert {command.script for command in IN_BLOCKS} > set(SCRIPTS)


def test_every_command_is_known():
    assert UNKNOWN == []


@pytest.mark.parametrize("part", NOT_RUN)
def test_what_is_not_run_is_there(part):
    assert any(part in line for line in LINES) or any(part in code for _, code in docstring_blocks())


def test_an_unknown_command_is_an_error():
    for line in ("python tools/train.sh", "make all", "crate-mm trane debug", "tools/dist_train.sh configs/debug.py"):
        with pytest.raises((ValueError, IndexError)):
            parse_command(line)


@pytest.mark.parametrize("command", TO_RUN, ids=lambda command: command.line[:80])
@pytest.mark.slow
def test_a_command_runs(command, desk, run_tool):
    args = list(command.args)
    if "onnx" in args and not ONNX_TAKES_ANY_BATCH:
        pytest.skip("this PyTorch fixes the batch of ONNX")
    config = next((word for word in args if word in SMALL), None)
    assert config or command.tool in WITHOUT_CONFIG or "--list" in args
    if config:
        small = [*SMALL[config], *ALWAYS]
        if "--model" in args:
            small = [*small, ARCH]
        args += ["--cfg-options", *small]
    if command not in FIRST.values():
        args.insert(1, "--dry-run")
    further = FURTHER.get(args[0] if command.tool == "analyze" else command.tool, ())
    done = run_tool(command.tool, *args, *further, cwd=desk)
    assert done.code == 0, f"{command.line}\n{done.output}"


@pytest.mark.parametrize("command", TO_PARSE, ids=lambda command: command.line[:80])
def test_arguments_are_taken(command, stock, monkeypatch):
    if command.tool == "site/build":
        pytest.importorskip("sphinx", reason="no Sphinx: it needs Python 3.11")
    script = ROOT / "tools" / f"{command.tool}.py"
    assert script.is_file(), command.line
    monkeypatch.chdir(stock)
    assert_parsed(script, command.args)


def test_configs_and_overrides_of_commands_are_known(stock, monkeypatch):
    monkeypatch.chdir(stock)
    for command in (*IN_BLOCKS, *IN_PROSE):
        configs = [word for word in command.args if word.endswith(".py")]
        assert all(Path(config).is_file() for config in configs), command.line
        settings = overrides(command.args)
        if configs and settings and "my_" not in configs[0]:  # configs in a README are loaded with its Python
            cfg = load_config(configs[0], settings)
            for key, value in settings.items():
                setting = cfg
                for part in key.split("."):
                    setting = setting[part]
                assert setting == value, f"{command.line}: {key}"


def test_the_shells_blocks_are_valid():
    for readme in READMES:
        for block in blocks(readme, "bash"):
            done = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True)
            assert done.returncode == 0, f"{readme}, line {block.line}: {done.stderr}"


def test_a_script_is_there_and_knows_its_variables():
    shared = "".join((ROOT / "tools" / name).read_text() for name in ("launch.sh", "slurm.sh"))
    commands = [command for command in (*IN_BLOCKS, *IN_PROSE) if command.script]
    for script in {ROOT / "tools" / command.script for command in commands}:
        subprocess.run(["bash", "-n", script], check=True)
        assert os.access(script, os.X_OK)
    for command in commands:
        known = (ROOT / "tools" / command.script).read_text() + shared
        for variable in command.variables:
            assert re.search(rf"\b{variable}\b", known), f"{command.line}: {variable}"
