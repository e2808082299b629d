"""torchrun for launch.sh, changed for runs that save a checkpoint when they are stopped.

* After a signal, the processes have GRACE_SECONDS (default: 600) to save. torchrun alone would kill them after 30 s.
* --max-restarts does not restart a run that was asked to stop or that cannot continue.
* The exit code and error message are the failed process's, not torchrun's.
* ``--master-port 0`` selects a free port of this machine.
* With NNODES=MIN:MAX, processes that saved because a node left or joined are restarted.
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

GRACE_SECONDS = int(os.environ.get("GRACE_SECONDS") or "600")  # validated by launch.sh
EXIT_PREEMPTED, EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_IN_USE = 85, 130, 2, 75  # of crate_mm's tools

exit_codes: list[int] = []  # of the processes, after they are closed
monitor_workers, close = LocalElasticAgent._monitor_workers, PContext.close
rendezvous = LocalElasticAgent._rendezvous


def is_elastic(agent: LocalElasticAgent) -> bool:
    """Return whether nodes may leave and join (NNODES=MIN:MAX)."""
    settings = getattr(agent.get_worker_group().spec.rdzv_handler, "settings", None)
    return settings is not None and settings.max_nodes > 1


def monitor_without_futile_restarts(agent: LocalElasticAgent, group):
    result = monitor_workers(agent, group)
    codes = {failure.exitcode for failure in result.failures.values()}
    if codes & {EXIT_PREEMPTED, EXIT_INTERRUPTED, EXIT_IN_USE} and is_elastic(agent):
        # This launcher received no signal. Either another node was stopped or joined, and all processes have saved, or
        # a disconnected node still holds the lock of the work directory. Restart without counting it.
        agent._remaining_restarts += 1
    elif codes & {EXIT_PREEMPTED, EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_IN_USE}:
        agent._remaining_restarts = 0
    return result


def with_free_port(arguments: list[str]) -> list[str]:
    """Replace port 0 of ``--master-port`` with a free port, the same for all processes."""
    if "--master-port" not in arguments:
        return arguments
    index = arguments.index("--master-port") + 1
    if arguments[index] != "0":
        return arguments
    with socket.create_server(("127.0.0.1", 0)) as server:
        return [*arguments[:index], str(server.getsockname()[1]), *arguments[index + 1 :]]


def rendezvous_or_raise(agent: LocalElasticAgent, group) -> None:
    exit_codes.clear()  # of an earlier start
    try:
        rendezvous(agent, group)
    except RendezvousGracefulExitError as error:  # raised on a surplus node; torchrun turns it into an AttributeError
        raise RendezvousClosedError(str(error)) from error


def close_patiently(context: PContext, death_sig: signal.Signals | None = None, timeout: int = 30) -> None:
    processes = [handler.proc for handler in getattr(context, "subprocess_handlers", {}).values()]
    all_running = all(process.poll() is None for process in processes)
    if isinstance(sys.exc_info()[1], SignalException) or all_running:  # otherwise one failed, and the rest may hang
        timeout = max(timeout, GRACE_SECONDS)
    close(context, death_sig, timeout)
    exit_codes[:] = [process.returncode for process in processes]


def failure_exit_code(error: ChildFailedError) -> int:
    """Return the exit code of the process that failed first."""
    # Several may be found dead at once. The launcher's SIGTERM follows a failure; any other kill precedes the errors.
    failures = {rank: failure for rank, failure in error.failures.items() if failure.exitcode != -signal.SIGTERM}
    failures = failures or error.failures
    rank = min(failures, key=lambda rank: (failures[rank].exitcode > 0, failures[rank].timestamp))
    if failures[rank].exitcode > 0:
        return EXIT_STOPPED if failures[rank].exitcode == EXIT_IN_USE else failures[rank].exitcode
    name = signal.Signals(-failures[rank].exitcode).name
    print(
        f"error: process {rank} was killed by {name} (possibly out of memory); the other processes were stopped. "
        "--resume continues from the newest checkpoint",
        file=sys.stderr,
    )
    return 1


def rendezvous_message(error: RendezvousError) -> str:
    """Return why the rendezvous of NNODES=MIN:MAX failed."""
    resume = "--resume continues from the newest checkpoint"
    if isinstance(error, RendezvousClosedError):
        return "the job has ended: training is done, or another node could not continue"
    if isinstance(error, RendezvousTimeoutError):
        return f"timed out waiting for the minimum of NNODES nodes; {resume}"
    if isinstance(error, RendezvousConnectionError):
        return f"the rendezvous node MASTER_ADDR does not answer at PORT: it is lost, or the job has ended; {resume}"
    return f"the rendezvous of the nodes failed ({type(error).__name__}: {error}); {resume}"


def signal_exit_code(number: int) -> int:
    """Return the exit code after a signal: the processes' own, if all of them ended as expected."""
    expected = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_PREEMPTED
    if all(code == expected for code in exit_codes):
        return expected
    print(f"error: the processes ended with {exit_codes} after {signal.Signals(number).name}", file=sys.stderr)
    return 128 + number


def raise_signal_exception(number: int, _frame: object) -> None:
    """Stop the processes as torchrun does after SIGTERM."""
    raise SignalException(f"received {signal.Signals(number).name}", signal.Signals(number))


if __name__ == "__main__":
    # PyTorch 2.6 ignores TORCHELASTIC_SIGNALS_TO_HANDLE: SIGUSR1, Slurm's warning, would kill the launcher.
    signal.signal(signal.SIGUSR1, raise_signal_exception)
    LocalElasticAgent._monitor_workers = monitor_without_futile_restarts
    LocalElasticAgent._rendezvous = rendezvous_or_raise
    PContext.close = close_patiently
    try:
        main(with_free_port(sys.argv[1:]))
    except ChildFailedError as error:
        sys.exit(failure_exit_code(error))
    except RendezvousError as error:
        print(f"error: {rendezvous_message(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except SignalException as error:
        sys.exit(signal_exit_code(error.sigval))
