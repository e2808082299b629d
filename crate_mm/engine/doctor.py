"""What a machine has, and what of it will not work. A finding is a triple: 'ok', 'note' or 'fault', a topic, a text."""

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
from packaging.requirements import Requirement  # which matplotlib brings

import crate_mm

from ..config.resolve import share_of_cores
from ..io.untrusted import sanitized

LEAST_SHARED, LEAST_FREE, LEAST_FILES = 2 * 2**30, 5 * 2**30, 1024
# Instructions that products in bf16 and int8 are fast with, as Linux names them.
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
    """Look at Python and its packages, the processor, the memory, the GPUs, and where a run writes.

    Args:
        work_dir: a folder for runs, which need not be there.
    """
    yield from check_packages()
    yield from check_processor()
    yield from check_gpus()
    yield from check_places(work_dir)


def check_packages() -> Iterator[Finding]:
    """The versions of what is needed and of what is optional, as the installation asks for them."""
    yield "ok", "Python", f"{platform.python_version()}, {platform.platform()}"
    yield "ok", "crate_mm", f"{crate_mm.__version__} in {sanitized(Path(crate_mm.__file__).parent)}"
    try:
        wanted = [Requirement(text) for text in metadata.requires("crate_mm") or ()]
    except metadata.PackageNotFoundError:
        yield "note", "packages", "crate_mm is not installed, only found: which versions it needs is not compared"
        return
    extras: dict[str, list[str]] = {}
    for need in wanted:
        extra = re.search(r'extra == "(\w+)"', str(need.marker)) if need.marker else None
        try:
            version = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            version = None
        right = version is not None and need.specifier.contains(version, prereleases=True)
        if extra is None and right:
            yield "ok", need.name, version
        elif extra is None:
            yield "fault", need.name, f"{version or 'is not installed'}: {need.name}{need.specifier} is needed"
        elif not right:
            extras.setdefault(extra[1], []).append(f"{need.name}{need.specifier}")
        else:
            extras.setdefault(extra[1], [])
    for name in sorted(extras.keys() & {"export", "timm"}):
        missing = ", ".join(extras[name])
        yield (
            "ok",
            f"extra {name}",
            f"not there, lacks {missing}: pip install 'crate_mm[{name}]'" if missing else "there",
        )


def check_processor() -> Iterator[Finding]:
    """Cores, instructions and memory."""
    name = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.M)
    known = [title for flag, title in INSTRUCTIONS.items() if flag in processor_flags()]
    yield "ok", "CPU", f"{name[1] if name else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    yield "ok", "instructions", ", ".join(known) or "not known"
    cores = share_of_cores()
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    allowed = int(quota[0]) / int(quota[1]) if len(quota) == 2 and quota[0].isdigit() else None
    yield "ok", "cores given", f"{cores}; PyTorch takes {torch.get_num_threads()} threads"
    if allowed is not None and allowed < cores:
        yield "note", "cores given", f"the group of this process has the time of {allowed:g} cores: workers will wait"
    memory = dict(re.findall(r"^(\w+):\s+(\d+) kB$", _read("/proc/meminfo"), re.M))
    if "MemTotal" in memory:
        free = _bytes(1024 * int(memory.get("MemAvailable", 0)))
        yield "ok", "memory", f"{_bytes(1024 * int(memory['MemTotal']))}, {free} free"
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if compiler is None:
        yield "note", "compiler", "no C++ compiler is found: compile_blocks needs one on a CPU"


def processor_flags() -> set[str]:
    """The names that Linux has for a processor's instructions; none where they are not known."""
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.M)
    return set(flags[1].split()) if flags else set()


def emulates_bf16() -> bool:
    """Whether mixed precision is on a processor that has no instructions for it."""
    flags = processor_flags()
    return bool(flags) and not flags & {"avx512_bf16", "amx_bf16", "bf16"} and not torch.cuda.is_available()


def check_gpus() -> Iterator[Finding]:
    """Each GPU, on which a product is taken."""
    if not torch.cuda.is_available():
        there = Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs"
        if there and not hidden:
            yield "fault", "GPU", f"the machine has one that PyTorch, {built}, cannot use"
        else:
            yield "ok", "GPU", f"none{' is visible' if hidden else ''}; PyTorch is {built}"
        return
    for number in range(torch.cuda.device_count()):
        about, topic = torch.cuda.get_device_properties(number), f"GPU {number}"
        try:
            free, total = torch.cuda.mem_get_info(number)
            ones = torch.ones(64, 64, device=f"cuda:{number}")
            right = torch.equal(ones @ ones, torch.full_like(ones, 64))
        except RuntimeError as error:
            yield "fault", topic, f"{about.name} computes nothing: {sanitized(error)}"
            continue
        with torch.cuda.device(number):
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        kind = f"compute capability {about.major}.{about.minor}, {'bf16' if bf16 else 'no bf16'}"
        text = f"{about.name}, {_bytes(total)}, {_bytes(free)} free, {kind}"
        yield "ok" if right else "fault", topic, text if right else f"{text}: a product of ones is wrong"


def check_places(work_dir: str | Path) -> Iterator[Finding]:
    """Where runs write, what workers share, and how many files may be open."""
    place = Path(work_dir).absolute()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
        free = shutil.disk_usage(place).free
        text = f"{sanitized(place)} has {_bytes(free)} free"
        few = ": a checkpoint of CRATE-Base with its optimizer's state takes 0.2 GB" if free < LEAST_FREE else ""
        yield "note" if few else "ok", "work folder", text + few
    except OSError as error:
        yield "fault", "work folder", f"{sanitized(place)} cannot be written to: {sanitized(error)}"
    if Path("/dev/shm").is_dir():
        size = shutil.disk_usage("/dev/shm").total
        advice = ": loaders' workers hand batches on there (docker run --shm-size=8g)" if size < LEAST_SHARED else ""
        yield "note" if advice else "ok", "/dev/shm", _bytes(size) + advice
    with suppress(ImportError):  # there is none on Windows
        import resource

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        advice = ": ulimit -n 4096 raises it" if 0 <= most < LEAST_FILES else ""
        yield "note" if advice else "ok", "open files", f"{most} at most{advice}"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _bytes(number: float) -> str:
    return f"{number / 2**30:.1f} GiB"
