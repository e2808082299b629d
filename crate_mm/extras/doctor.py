"""Check a machine for crate_mm. A finding is a triple: level ('ok', 'note' or 'fault'), topic, text."""

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import torch
from packaging.requirements import Requirement  # a dependency of matplotlib

import crate_mm

from ..config.resolve import share_of_cores
from ..io.untrusted import sanitized

MIN_SHARED, MIN_FREE, MIN_FILES = 2 * 2**30, 5 * 2**30, 1024
# Linux's names of instructions that speed up matrix products in bf16 and int8.
INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 bf16",
    "amx_tile": "AMX",
    "amx_bf16": "AMX bf16",
    "asimd": "NEON",
    "bf16": "bf16",
}
Finding = tuple[str, str, str]


def check_machine(work_dir: str | Path = "work_dirs") -> Iterator[Finding]:
    """Check Python and its packages, the processor, the memory, the GPUs, and the disk of the work directory.

    Args:
        work_dir: the work directory, which need not exist.
    """
    yield from check_packages()
    yield from check_processor()
    yield from check_gpus()
    yield from check_resources(work_dir)


def check_packages() -> Iterator[Finding]:
    """Check the versions of required and optional packages against the installed metadata."""
    yield "ok", "Python", f"{platform.python_version()}, {platform.platform()}"
    yield "ok", "crate_mm", f"{crate_mm.__version__} in {sanitized(Path(crate_mm.__file__).parent)}"
    try:
        requirements = [Requirement(text) for text in metadata.requires("crate_mm") or ()]
    except metadata.PackageNotFoundError:
        yield "note", "packages", "crate_mm is importable but not installed: the versions of packages are not checked"
        return
    extras: dict[str, list[str]] = {}
    for requirement in requirements:
        name = requirement.name
        extra = re.search(r'extra == "(\w+)"', str(requirement.marker)) if requirement.marker else None
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            version = None
        satisfied = version is not None and requirement.specifier.contains(version, prereleases=True)
        if extra is None and satisfied:
            yield "ok", name, version
        elif extra is None:
            yield "fault", name, f"{version or 'not installed'}: {name}{requirement.specifier} is required"
        elif not satisfied:
            extras.setdefault(extra[1], []).append(f"{name}{requirement.specifier}")
        else:
            extras.setdefault(extra[1], [])
    for name in sorted(extras.keys() & {"export", "timm"}):
        missing = ", ".join(extras[name])
        yield (
            "ok",
            f"extra {name}",
            f"not installed, needs {missing}: pip install 'crate_mm[{name}]'" if missing else "installed",
        )


def check_processor() -> Iterator[Finding]:
    """Check cores, instructions, memory and compiler."""
    name = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.M)
    instructions = [title for flag, title in INSTRUCTIONS.items() if flag in processor_flags()]
    yield "ok", "CPU", f"{name[1] if name else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    yield "ok", "instructions", ", ".join(instructions) or "unknown"
    cores = share_of_cores()
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    quota_cores = int(quota[0]) / int(quota[1]) if len(quota) == 2 and quota[0].isdigit() else None
    yield "ok", "usable cores", f"{cores}; PyTorch uses {torch.get_num_threads()} threads"
    if quota_cores is not None and quota_cores < cores:
        yield "note", "usable cores", f"the cgroup limits this process to the time of {quota_cores:g} cores"
    memory = dict(re.findall(r"^(\w+):\s+(\d+) kB$", _read("/proc/meminfo"), re.M))
    if "MemTotal" in memory:
        free = _bytes(1024 * int(memory.get("MemAvailable", 0)))
        yield "ok", "memory", f"{_bytes(1024 * int(memory['MemTotal']))}, {free} free"
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if compiler is None:
        yield "note", "compiler", "no C++ compiler found: compile_blocks needs one on a CPU"


def processor_flags() -> set[str]:
    """Return Linux's names of the processor's instructions; an empty set if they are unknown."""
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.M)
    return set(flags[1].split()) if flags else set()


def emulates_bf16() -> bool:
    """Return whether bf16 runs on a processor without bf16 instructions."""
    flags = processor_flags()
    return bool(flags) and not flags & {"avx512_bf16", "amx_bf16", "bf16"} and not torch.cuda.is_available()


def check_gpus() -> Iterator[Finding]:
    """Check each GPU with a matrix product."""
    if not torch.cuda.is_available():
        has_gpu = Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs"
        if has_gpu and not hidden:
            yield "fault", "GPU", f"the machine has a GPU, but PyTorch ({build}) cannot use it"
        else:
            yield "ok", "GPU", f"none{' is visible' if hidden else ''}; PyTorch is {build}"
        return
    for number in range(torch.cuda.device_count()):
        properties, topic = torch.cuda.get_device_properties(number), f"GPU {number}"
        try:
            free, total = torch.cuda.mem_get_info(number)
            ones = torch.ones(64, 64, device=f"cuda:{number}")
            correct = torch.equal(ones @ ones, torch.full_like(ones, 64))
        except RuntimeError as error:
            yield "fault", topic, f"{properties.name} cannot compute: {sanitized(error)}"
            continue
        with torch.cuda.device(number):
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        capability = f"compute capability {properties.major}.{properties.minor}, {'bf16' if bf16 else 'no bf16'}"
        text = f"{properties.name}, {_bytes(total)}, {_bytes(free)} free, {capability}"
        yield "ok" if correct else "fault", topic, text if correct else f"{text}: a matrix product is wrong"


def check_resources(work_dir: str | Path) -> Iterator[Finding]:
    """Check the disk of the work directory, shared memory, and the limit of open files."""
    folder = Path(work_dir).absolute()
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
        free = shutil.disk_usage(folder).free
        text = f"{sanitized(folder)} has {_bytes(free)} free"
        advice = ": a checkpoint of CRATE-Base with its optimizer state takes 0.2 GB" if free < MIN_FREE else ""
        yield "note" if advice else "ok", "work_dir", text + advice
    except OSError as error:
        yield "fault", "work_dir", f"cannot write to {sanitized(folder)}: {sanitized(error)}"
    if Path("/dev/shm").is_dir():
        size = shutil.disk_usage("/dev/shm").total
        advice = ": data-loader workers pass batches through it (docker run --shm-size=8g)" if size < MIN_SHARED else ""
        yield "note" if advice else "ok", "/dev/shm", _bytes(size) + advice
    with suppress(ImportError):  # not available on Windows
        import resource

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        advice = ": raise it with ulimit -n 4096" if 0 <= limit < MIN_FILES else ""
        yield "note" if advice else "ok", "open files", f"at most {limit}{advice}"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _bytes(number: float) -> str:
    return f"{number / 2**30:.1f} GiB"
