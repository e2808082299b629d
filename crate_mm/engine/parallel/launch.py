"""Initialize torch.distributed under torchrun or Slurm, on GPUs or CPUs."""

import ctypes
import os
import signal
import subprocess
import sys
from datetime import timedelta

import torch
import torch.distributed
from mmengine.config import Config
from mmengine.dist import is_distributed
from torch.distributed import PrefixStore
from torch.distributed.rendezvous import rendezvous

from ...io.untrusted import env_number

LAUNCHERS = ("none", "pytorch", "slurm")


def dist_timeout(cfg: Config) -> float | None:
    """Return the config's timeout of the process groups in seconds, or None for PyTorch's default."""
    return ((cfg.get("env_cfg") or {}).get("dist_cfg") or {}).get("timeout")


def init_distributed(launcher: str, timeout: float | None = None) -> None:
    """Join the process group, with nccl on GPUs and gloo on CPUs.

    Args:
        launcher: one of ``LAUNCHERS``; 'none' is a single process.
        timeout: seconds to wait for the other ranks (default: PyTorch's).

    Raises:
        ValueError: the launcher's environment variables are not set, or the node has fewer GPUs than processes.
    """
    if launcher == "none" or is_distributed():
        return
    if launcher == "slurm":
        _slurm_environment()
    _require(
        launcher,
        ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"),
        "start with tools/dist_train.sh, torchrun or srun, or leave out --launcher to train in one process",
    )
    if launcher == "pytorch":
        _set_parent_death_signal()
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"):
        env_number(name)  # PyTorch's error message would not name the variable
    local_rank = env_number("LOCAL_RANK")
    wait = timedelta(seconds=timeout) if timeout else None
    if not torch.cuda.is_available():
        torch.distributed.init_process_group("gloo", timeout=wait, **_rendezvous_options())
        return
    if launcher == "slurm":
        local_rank %= torch.cuda.device_count()  # Slurm may make only one GPU visible to each task
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"process {local_rank} of this node has no GPU: the node has {torch.cuda.device_count()} GPUs; start at "
            "most one process per GPU, and use more nodes with NNODES, NODE_RANK, MASTER_ADDR and PORT"
        )
    torch.cuda.set_device(local_rank)
    device = torch.device("cuda", local_rank)
    torch.distributed.init_process_group("nccl", timeout=wait, device_id=device, **_rendezvous_options())


def _require(launcher: str, names: tuple[str, ...], advice: str) -> None:
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise ValueError(f"--launcher {launcher} finds no {', '.join(missing)} in the environment: {advice}")


def _set_parent_death_signal() -> None:
    """Make the kernel send SIGTERM to this process when torchrun dies, so that the process ends too (Linux only)."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _rendezvous_options() -> dict:
    """Return the options of the store: after a torchrun restart, a new key prefix in the store of torchrun's agent.

    This store still has the addresses of dead processes. Any other store is new in each round and must have no prefix:
    when nodes join, restart counts differ between nodes.
    """
    restarts = env_number("TORCHELASTIC_RESTART_COUNT", 0)
    if not restarts or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    store, rank, world_size = next(rendezvous("env://"))
    return {"store": PrefixStore(f"restart_{restarts}", store), "rank": rank, "world_size": world_size}


def _slurm_environment() -> None:
    """Set torchrun's environment variables from Slurm's.

    The rendezvous host is the first host of the step, which may have fewer nodes than the job. The port is derived from
    the job ID, so that two jobs can share a host.
    """
    nodes = "SLURM_STEP_NODELIST" if "SLURM_STEP_NODELIST" in os.environ else "SLURM_NODELIST"
    _require("slurm", ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", nodes), "start with srun")
    for name, source in (("RANK", "PROCID"), ("WORLD_SIZE", "NTASKS"), ("LOCAL_RANK", "LOCALID")):
        os.environ[name] = os.environ[f"SLURM_{source}"]
    job_port = 20000 + env_number("SLURM_JOB_ID", 9500) % 10000
    os.environ.setdefault("MASTER_PORT", os.environ.get("PORT", str(job_port)))
    if "MASTER_ADDR" not in os.environ:
        command = ["scontrol", "show", "hostnames", os.environ[nodes]]
        try:
            hosts = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ValueError(
                f"{' '.join(command)} failed ({error}): set MASTER_ADDR to the step's first host"
            ) from None
        if not hosts.stdout.split():
            raise ValueError(f"{' '.join(command)} printed no host: set MASTER_ADDR to the step's first host")
        os.environ["MASTER_ADDR"] = hosts.stdout.split()[0]


def shutdown_distributed() -> None:
    """Leave the process group, if there is one."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
