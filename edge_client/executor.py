"""The node's SuperExec: ``python -m edge_client.executor``, with the flags of Flower's `flower-superexec`.

Flower's own starts a Python process for each of a round's three messages, and each of them imports Flower and PyTorch
anew: seconds of a core. This one has imported them before it asks for work, and forks: the process of a message is
there at once, shares the memory of the libraries, and its token is on no command line. It runs client apps and nothing
else that a SuperNode may ask for, and each only after its bundle is checked (:mod:`edge_client.bundle`).

A fork is safe here: this process has one thread of Python (that of NumPy's BLAS steps aside for a fork), it computes
nothing, so no library has started others or a random generator that two children would share, and it reads no key.
"""

import logging
import os
import signal
import sys
import traceback
from importlib import import_module
from typing import NoReturn

from edge_client import bundle, flower
from edge_client.flower import ExecutionSpec, LaunchResult, TaskType

_log = logging.getLogger("pruneseal.edge_client")


class Forks:
    """Flower's interface of an executor: each task is a fork of this process."""

    def get_eligible_capacity(self, *_: object, **__: object) -> tuple[set[TaskType], set[str]]:
        """What may be asked for: client apps, whatever their bundle; the bundle is checked later."""
        return {TaskType.CLIENT_APP}, set()

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Start the process of a task."""
        if spec.task_type != TaskType.CLIENT_APP:
            return LaunchResult.failed(f"this node runs client apps, not {spec.task_type}")
        sys.stdout.flush()
        sys.stderr.flush()
        if os.fork() == 0:
            _run(spec)
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Reap the processes that have ended."""
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:  # there is none
            return

    def close(self) -> None:
        """Nothing is held: a client app ends when it finds that this process has."""


def arguments(spec: ExecutionSpec) -> list[str]:
    """The arguments of Flower's `flwr-clientapp` for a task."""
    secured = ["--root-certificates", spec.root_certificates_path] if spec.root_certificates_path else []
    transport = ["--insecure"] if spec.insecure else secured
    return [
        *("--runtime-api-address", spec.runtime_api_address, "--token", spec.token),
        *("--parent-pid", str(spec.parent_pid)),
        *transport,
    ]


def _run(spec: ExecutionSpec) -> NoReturn:
    """Be the process of a task, from the fork to the end."""
    status = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        flower.forget_exit_handlers()
        sys.argv[1:] = arguments(spec)
        bundle.main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # what the stack of the forked process would do next is not ours


def main() -> None:
    """Import what a client app needs, then run Flower's SuperExec."""
    import_module("edge_client.app")
    flower.run_superexec(Forks())


if __name__ == "__main__":
    main()
