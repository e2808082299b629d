"""Measure a new GPU in minutes: tests, rates, steps, a profile, inference, an epoch from JPEGs.

python tools/benchmarks/first_minutes.py --out gpu_figures
python tools/benchmarks/first_minutes.py --out gpu_figures --wheels wheels   # on a machine with PyTorch and little else

Each stage is a process with a time limit. All stages end within ``--minutes``. A stage writes JSON after each row, and
first_minutes.json records how each stage ended. A stage that fails or takes too long costs only its own results. This
script needs nothing but Python. ``--toy`` runs all stages at toy size, also on a CPU.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = Path("tools") / "benchmarks"
MIN_SECONDS = 10  # a stage starts only if this much time is left
RATES = "rates.json"  # output of the stage "rates", input of the stage "roofline_check" if it exists
QUESTION = "--query-gpu=name,memory.total,driver_version,clocks.sm,clocks.max.sm,power.limit"


class Stage(NamedTuple):
    """A script with its arguments, and its limit in seconds."""

    name: str
    script: str
    arguments: list
    limit: int


def stages(toy: bool) -> list[Stage]:
    """Return the stages, the most informative first."""
    models = ["tiny"] if toy else ["base", "tiny", "small", "large"]
    first = f"crate_{models[0]}"
    batch = ["--img-size", 32, "--batch", 2] if toy else ["--batch", 256]
    fast = ["--no-compile"] if toy else []
    rounds = ["--rounds", 1 if toy else 5]
    step = ["--precisions", "bf16", *fast, *rounds]
    inference = ["--precisions", "float32", "tf32", "bf16", "--no-compile", *rounds]
    workers = min(max((os.cpu_count() or 1) - 2, 1), 28)  # with more workers, this epoch has too few steps to time
    epoch = ["--images", 60_000, "--batch", 512, "--workers", workers, "--short-side", 320]
    check = ["--img-sizes", 224, "--batches", 256, "--precision", "bf16", "--devices", RATES]
    if toy:
        epoch = ["--images", 16, "--batch", 2, "--workers", 1]
        check = ["--img-sizes", 32, "--batches", 2, "--devices", RATES]
    tests = ["pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files_of_gpu_tests()]
    return [
        Stage("gpu_tests", "-m", tests, 120),
        Stage("rates", "devices.py", ["--precision", "float32" if toy else "bf16"], 90),
        *(Stage(f"step_{m}", "train_step.py", ["--models", f"crate_{m}", *batch, *step], 80) for m in models),
        Stage("profile", "train_step.py", ["--profile", 40, "--models", first, *batch, *step], 60),
        Stage("epoch", "end_to_end.py", ["--config", f"{first}_in1k", "--amp", "--rounds", 1, *epoch], 150),
        Stage("inference", "train_step.py", ["--inference", "--models", first, *batch, *inference], 60),
        Stage("roofline_check", "roofline.py", ["--check", "--configs", f"{first}_in1k", "--rounds", 3, *check], 60),
        *(
            Stage(f"step_base_{images}", "train_step.py", ["--models", first, "--batch", images, *step], 60)
            for images in (() if toy else (512, 1024))
        ),
    ]


def files_of_gpu_tests() -> list[str]:
    """Return the files with tests that need a GPU; other files may need packages that are not installed."""
    tests = (ROOT / "tests").rglob("test_*.py")
    return sorted(str(path.relative_to(ROOT)) for path in tests if "@pytest.mark.gpu" in path.read_text())


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results and the stages' output")
    parser.add_argument(
        "--minutes", type=float, default=9.5, help="time limit of all stages together, in minutes (default: 9.5)"
    )
    parser.add_argument("--wheels", type=Path, help="folder of wheels to use in addition to the installed packages")
    parser.add_argument("--stages", nargs="+", metavar="NAME", help="run only these stages")
    parser.add_argument("--toy", action="store_true", help="run all stages at toy size")
    args = parser.parse_args()
    names = [stage.name for stage in stages(args.toy)]
    for name in args.stages or []:
        if name not in names:
            parser.error(f"there is no stage {name!r}: choose {', '.join(names)}")
    if args.wheels and not any(args.wheels.glob("*.whl")):
        parser.error(f"{args.wheels} has no wheels")
    return args


def main() -> None:
    args = parse_args()
    end = time.monotonic() + 60 * args.minutes
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        environment = environment_for(args.wheels, Path(scratch))
        about = {**describe(), "minutes": args.minutes, "toy": args.toy}
        rows: list[dict] = []
        for stage in stages(args.toy):
            if args.stages and stage.name not in args.stages:
                continue
            rows.append(run(stage, out, environment, end))
            print(f"{rows[-1]['seconds']:6.1f} s  {stage.name}: {rows[-1]['ended']}", flush=True)
            write(out / "first_minutes.json", {**about, "rows": rows})
    sys.exit(any(row["ended"] != "well" for row in rows))


def environment_for(wheels: Path | None, scratch: Path) -> dict[str, str]:
    """Return the stages' environment: this checkout and the wheels, with all caches in ``scratch``."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    if wheels:
        site = scratch / "site"
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]
        subprocess.run([*pip, "--target", site, *wheels.glob("*.whl")], check=True)
        paths.insert(1, str(site))
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONPYCACHEPREFIX": str(scratch / "bytecode"),
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "compiled"),
        "TMPDIR": str(scratch),
    }


def describe() -> dict:
    """Describe the machine with Python alone."""
    gpu = None
    if shutil.which("nvidia-smi"):
        reply = subprocess.run(["nvidia-smi", QUESTION, "--format=csv,noheader"], capture_output=True, text=True)
        gpu = reply.stdout.strip().splitlines()
    shared = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").exists() else None
    return {
        "gpu": gpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "shared_memory_GB": shared and shared / 1e9,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def run(stage: Stage, out: Path, environment: dict[str, str], end: float) -> dict:
    """Run a stage until it ends, or stop it at its limit or at ``end``; return how it ended."""
    start = time.monotonic()
    left = end - start
    limit = min(stage.limit, left)
    if left < MIN_SECONDS:
        return {"stage": stage.name, "ended": "not started, no time left", "seconds": 0.0, "command": ""}
    script = [stage.script] if stage.script == "-m" else [str(BENCHMARKS / stage.script)]
    figures = [] if stage.script == "-m" else ["--json", out / f"{stage.name}.json"]
    rates = out / RATES if (out / RATES).exists() else "here"
    command = [str(rates if part == RATES else part) for part in (*script, *stage.arguments, *figures)]
    with open(out / f"{stage.name}.txt", "w") as log:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            code = process.wait(limit)
            ended = "well" if code == 0 else f"with exit code {code}, see {log.name}"
        except subprocess.TimeoutExpired:
            ended = f"at its limit of {limit:.0f} s; finished rows are written"
        finally:
            end_group(process)
    return {"stage": stage.name, "ended": ended, "seconds": time.monotonic() - start, "command": " ".join(command)}


def end_group(process: subprocess.Popen) -> None:
    """End a stage and its worker processes."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            continue
        time.sleep(0.2)  # for the workers
    process.wait()


def write(path: Path, contents: dict) -> None:
    """Write JSON atomically."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(contents, indent=2) + "\n")
    part.replace(path)


if __name__ == "__main__":
    main()
