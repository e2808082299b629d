"""Processes: how a run learns of the others, by torchrun or Slurm, on GPUs or CPUs."""

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
    """The seconds after which a process of a config gives up waiting for the others, or None for PyTorch's default."""
    return ((cfg.get("env_cfg") or {}).get("dist_cfg") or {}).get("timeout")


def init_distributed(launcher: str, timeout: float | None = None) -> None:
    """Join the process group: nccl where there are GPUs, gloo where there are none. 'none' is a single process.

    Args:
        launcher: one of ``LAUNCHERS``.
        timeout: seconds after which a process gives up waiting for the others; PyTorch's default if not given.

    Raises:
        ValueError: the launcher's environment variables are not there, or the node has fewer GPUs than processes.
    """
    if launcher == "none" or is_distributed():
        return
    if launcher == "slurm":
        _slurm_environment()
    missing = [
        name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ
    ]
    if missing:
        raise ValueError(
            f"--launcher {launcher} finds no {', '.join(missing)} in the environment: "
            "start with tools/dist_train.sh, torchrun or srun, or leave out --launcher for one process"
        )
    if launcher == "pytorch":
        _set_parent_death_signal()
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"):
        env_number(name)  # PyTorch's sentence would name no variable
    local_rank = env_number("LOCAL_RANK")
    wait = timedelta(seconds=timeout) if timeout else None
    if not torch.cuda.is_available():
        torch.distributed.init_process_group("gloo", timeout=wait, **_rendezvous_options())
        return
    if launcher == "slurm":
        local_rank %= torch.cuda.device_count()  # Slurm may show each task its own GPU only
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"process {local_rank} of this node has no GPU: the node has {torch.cuda.device_count()}; start at most "
            "that many processes a node, and more nodes with NNODES, NODE_RANK, MASTER_ADDR and PORT"
        )
    torch.cuda.set_device(local_rank)
    device = torch.device("cuda", local_rank)
    torch.distributed.init_process_group("nccl", timeout=wait, device_id=device, **_rendezvous_options())


def _set_parent_death_signal() -> None:
    """Let the system send this process SIGTERM when torchrun dies, which else would leave it running (Linux alone)."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _rendezvous_options() -> dict:
    """Where the processes meet: after torchrun's restart not where the addresses of the dead ones still are."""
    restarts = env_number("TORCHELASTIC_RESTART_COUNT", 0)
    # A store that is not the launcher's is new in each round; and where nodes join, each has its own count of restarts.
    if not restarts or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    store, rank, world_size = next(rendezvous("env://"))
    return {"store": PrefixStore(f"restart_{restarts}", store), "rank": rank, "world_size": world_size}


def _slurm_environment() -> None:
    """Translate Slurm's variables to torchrun's; the first host of the step, which may have fewer nodes than the job,
    is the meeting point, at a port that follows from the job's number, so that two jobs may share a host."""
    nodes = "SLURM_STEP_NODELIST" if "SLURM_STEP_NODELIST" in os.environ else "SLURM_NODELIST"
    missing = [name for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", nodes) if name not in os.environ]
    if missing:
        raise ValueError(f"--launcher slurm finds no {', '.join(missing)} in the environment: start with srun")
    os.environ["RANK"] = os.environ["SLURM_PROCID"]
    os.environ["WORLD_SIZE"] = os.environ["SLURM_NTASKS"]
    os.environ["LOCAL_RANK"] = os.environ["SLURM_LOCALID"]
    of_the_job = 20000 + env_number("SLURM_JOB_ID", 9500) % 10000
    os.environ.setdefault("MASTER_PORT", os.environ.get("PORT", str(of_the_job)))
    if "MASTER_ADDR" not in os.environ:
        command = ["scontrol", "show", "hostnames", os.environ[nodes]]
        try:
            hosts = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ValueError(f"{' '.join(command)} fails ({error}): set MASTER_ADDR to the step's first host") from None
        if not hosts.stdout.split():
            raise ValueError(f"{' '.join(command)} names no host: set MASTER_ADDR to the step's first host")
        os.environ["MASTER_ADDR"] = hosts.stdout.split()[0]


def shutdown_distributed() -> None:
    """Leave the process group, if there is one."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
