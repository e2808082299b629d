"""torchrun for launch.sh, with what a run that saves itself needs.

* After a signal the processes have GRACE_SECONDS (600) to save, where torchrun kills them after 30.
* A process that was asked to stop, or that cannot go on, is not started again by --max-restarts.
* Its exit code, not torchrun's, and its sentence, not torchrun's traceback, are what is seen.
* ``--master-port 0`` is a free port of this machine.
* Where nodes may come and go, processes that have saved because another node left or came are started again.
"""

import os
import signal
import socket
import sys

from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import PContext, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    RendezvousGracefulExitError,
    RendezvousTimeoutError,
)
from torch.distributed.run import main

GRACE_SECONDS = int(os.environ.get("GRACE_SECONDS") or "600")  # launch.sh has looked at it
PREEMPTED, INTERRUPTED, STOPPED, IN_USE = 85, 130, 2, 75  # exit codes of crate_mm's tools

ended_by: list[int] = []  # the processes' exit codes, once they have been closed
monitor_workers, close = LocalElasticAgent._monitor_workers, PContext.close
meet = LocalElasticAgent._rendezvous


def nodes_change(agent: LocalElasticAgent) -> bool:
    """Whether nodes may leave and join (NNODES=MIN:MAX)."""
    settings = getattr(agent.get_worker_group().spec.rdzv_handler, "settings", None)
    return settings is not None and settings.max_nodes > 1


def monitor_without_vain_restarts(agent: LocalElasticAgent, group):
    result = monitor_workers(agent, group)
    codes = {failure.exitcode for failure in result.failures.values()}
    if codes & {PREEMPTED, INTERRUPTED, IN_USE} and nodes_change(agent):
        # This launcher was asked for nothing: another node was, or a node joins. All have saved, and go on. Or a node
        # that is cut off, and has not noticed it yet, holds the work folder.
        agent._remaining_restarts += 1
    elif codes & {PREEMPTED, INTERRUPTED, STOPPED, IN_USE}:
        agent._remaining_restarts = 0
    return result


def with_free_port(arguments: list[str]) -> list[str]:
    """Replace port 0 of ``--master-port`` by a free one: all processes must be told the same."""
    if "--master-port" not in arguments:
        return arguments
    place = arguments.index("--master-port") + 1
    if arguments[place] != "0":
        return arguments
    with socket.create_server(("127.0.0.1", 0)) as free:
        return [*arguments[:place], str(free.getsockname()[1]), *arguments[place + 1 :]]


def meet_or_end(agent: LocalElasticAgent, group) -> None:
    ended_by.clear()  # those of an earlier start do not count
    try:
        meet(agent, group)
    except RendezvousGracefulExitError as error:  # of a node too many; torchrun makes an AttributeError of it
        raise RendezvousClosedError(str(error)) from error


def close_patiently(context: PContext, death_sig: signal.Signals | None = None, timeout: int = 30) -> None:
    processes = [handler.proc for handler in getattr(context, "subprocess_handlers", {}).values()]
    all_run = all(process.poll() is None for process in processes)
    if isinstance(sys.exc_info()[1], SignalException) or all_run:  # else one has failed, and the others may well hang
        timeout = max(timeout, GRACE_SECONDS)
    close(context, death_sig, timeout)
    ended_by[:] = [process.returncode for process in processes]


def code_of_failure(error: ChildFailedError) -> int:
    """The exit code of the process that failed first."""
    # Of those found dead at once, one that was killed has not died of the others.
    ended = {rank: failure for rank, failure in error.failures.items() if failure.exitcode != -signal.SIGTERM}
    ended = ended or error.failures
    rank = min(ended, key=lambda rank: (ended[rank].exitcode > 0, ended[rank].timestamp))
    if ended[rank].exitcode > 0:
        return STOPPED if ended[rank].exitcode == IN_USE else ended[rank].exitcode
    name = signal.Signals(-ended[rank].exitcode).name
    print(
        f"error: process {rank} was killed by {name} (for want of memory, perhaps); the others have been ended. "
        "--resume goes on from the newest checkpoint",
        file=sys.stderr,
    )
    return 1


def sentence_of_meeting(error: RendezvousError) -> str:
    """Why the nodes of NNODES=MIN:MAX do not meet (again)."""
    resume = "--resume goes on from the newest checkpoint"
    if isinstance(error, RendezvousClosedError):
        return "the job has ended: its training is done, or another node could not go on"
    if isinstance(error, RendezvousTimeoutError):
        return f"fewer nodes than the least of NNODES have come in time; {resume}"
    if isinstance(error, RendezvousConnectionError):
        lost = "does not answer at PORT, or no longer: it is lost, or the job has ended"
        return f"the node of MASTER_ADDR, where all meet, {lost}; {resume}"
    return f"the nodes do not meet ({type(error).__name__}: {error}); {resume}"


def code_of_signal(number: int) -> int:
    """The exit code after a signal: that of the processes, if they ended as they should."""
    expected = INTERRUPTED if number == signal.SIGINT else PREEMPTED
    if all(code == expected for code in ended_by):
        return expected
    print(f"error: the processes ended with {ended_by} after {signal.Signals(number).name}", file=sys.stderr)
    return 128 + number


if __name__ == "__main__":
    LocalElasticAgent._monitor_workers = monitor_without_vain_restarts
    LocalElasticAgent._rendezvous = meet_or_end
    PContext.close = close_patiently
    try:
        main(with_free_port(sys.argv[1:]))
    except ChildFailedError as error:
        sys.exit(code_of_failure(error))
    except RendezvousError as error:
        print(f"error: {sentence_of_meeting(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except SignalException as error:
        sys.exit(code_of_signal(error.sigval))
