"""Private names of other packages (``_x``) are used in the files of ``ALLOWED`` and nowhere else.

A name is ours where the package defines it: a function, class or variable, or an attribute that a class without bases
or a constructor sets. All other private attributes and imports are another package's, which may rename them.
"""

import ast
from functools import cache

from tests.test_import_rules import FILES, PACKAGE, tree_of

# Set in classes with bases, after the constructor.
OURS = {"_decoders", "_draws", "_ends", "_own", "_saved", "_sizes", "_views"}
DOCUMENTED = {"_asdict", "_fields", "_replace", "_exit"}  # of named tuples, and of os
ALLOWED = {
    "config/load.py": {"_cfg_dict"},
    "config/overrides.py": {"_cfg_dict"},
    "datasets/benchmarks.py": {"_image_files", "_images"},
    "engine/loop.py": {"_decide_current_val_interval", "_epoch", "_iter"},
    "engine/optim/wrapper.py": {"_accumulative_counts", "_init_lr", "_inner_count"},
    "engine/mmengine_private.py": {
        "_count_history",
        "_default_greater_keys",
        "_default_less_keys",
        "_load_from",
        "_log_history",
        "_randomness_cfg",
        "_resume",
        "_test_loop",
        "_train_loop",
        "_val_loop",
        "mmengine.optim.scheduler.param_scheduler._ParamScheduler",
    },
    "cli/completion.py": {"_SubParsersAction", "_actions"},
    "engine/optim/schedule.py": {"_global_step", "_last_value"},
    "torch_private.py": {
        "_dynamo",
        "_iterator",
        "_shutdown_workers",
        "torch._C.PyTorchFileReader",
        "torch._dynamo",
        "torch._foreach_add_",
        "torch._foreach_mul",
        "torch._foreach_mul_",
        "torch._foreach_norm",
        "torch._foreach_sign_",
        "torch.nn.modules.batchnorm._BatchNorm",
    },
}
LOOKUPS = {"getattr", "setattr", "hasattr", "delattr"}


def is_private(name: object) -> bool:
    """Whether a part of a dotted name begins with one underscore."""
    parts = name.split(".") if isinstance(name, str) else []
    return any(part.startswith("_") and not part.startswith("__") and part != "_" for part in parts)


@cache
def trees() -> dict[str, ast.Module]:
    return {str(path.relative_to(PACKAGE)): tree_of(module) for module, path in FILES.items()}


def attributes_set(node: ast.AST) -> set[str]:
    return {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}


def defined(tree: ast.AST) -> set[str]:
    """The names that a file defines."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            if node.name in ("__init__", "__enter__") or (isinstance(node, ast.ClassDef) and not node.bases):
                names |= attributes_set(node)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def used(tree: ast.AST, ours: set[str]) -> set[str]:
    """The private names of other packages in a file: attributes, imports, and literals in a ``getattr`` or the like."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and not node.module.startswith("crate_mm"):
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in LOOKUPS:
            names.update(argument.value for argument in node.args if isinstance(argument, ast.Constant))
    return {name for name in names if is_private(name)} - ours - DOCUMENTED


def test_private_names_of_other_packages_stand_in_the_files_that_may_use_them():
    ours = OURS.union(*map(defined, trees().values()))
    names = {file: used(tree, ours) for file, tree in trees().items()}
    added = {file: new for file, found in names.items() if (new := found - ALLOWED.get(file, set()))}
    assert added == {}, f"private names of other packages, in files that may not use them: {added}"
    unused = {file: old for file, allowed in ALLOWED.items() if (old := allowed - names.get(file, set()))}
    assert unused == {}, f"no longer used, to be taken off the list: {unused}"


def test_a_private_name_is_noticed():
    text = "import torch._dynamo\nfrom torch import _foreach_mul\nloop._max_epochs\ngetattr(loader, '_iterator')\n"
    expected = {"torch._dynamo", "torch._foreach_mul", "_max_epochs", "_iterator"}
    assert used(ast.parse(text), set()) == expected
    assert used(ast.parse("plan._asdict(), x.__class__, x._own, lambda _: _.y"), {"_own"}) == set()
    assert defined(ast.parse("class Loop(Base):\n    def run(self):\n        self._epoch = 1")) == {"Loop", "run"}
    assert "_own" in defined(ast.parse("class Loop(Base):\n    def __init__(self):\n        self._own = 1"))
