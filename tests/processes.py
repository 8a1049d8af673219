"""Two processes for tests of what is reduced over processes."""

import multiprocessing
from collections.abc import Callable

HANGS = 3600  # seconds: a process that takes this long hangs, however busy the machine is


def run_pair(work: Callable, *arguments) -> None:
    """Call `work(rank, *arguments)` in two processes, and wait until both have ended well."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.support"])  # one server serves all tests of a process
    processes = [context.Process(target=work, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(HANGS)
        assert process.exitcode == 0
