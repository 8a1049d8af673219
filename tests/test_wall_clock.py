"""No test may fail because the machine is busy."""

import re
from pathlib import Path

from tests.processes import HANGS

# A number of seconds that something must not take: of `timeout=`, `.wait(` and `.join(`.
_BOUND = re.compile(r"timeout=(\d+)|\.wait\((\d+)|\.join\((\d+)|monotonic\(\) \+ (\d+)")


def test_no_test_waits_for_a_shorter_time_than_one_in_which_only_what_hangs_does_not_end():
    """A process that imports diffusers took more than 300 s on a machine with other work."""
    bounds = {}
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        found = [next(filter(None, match)) for match in _BOUND.findall(path.read_text())]
        bounds |= {f"{path.name}: {seconds}": int(seconds) for seconds in found}
    assert not {place: seconds for place, seconds in bounds.items() if seconds < HANGS}
