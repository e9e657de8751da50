"""Runs a module with a wall clock that is wrong: `wrong_clock.py SECONDS PYTHON -m MODULE ARGUMENT…`.

A process cannot have a wall clock of its own on Linux (time namespaces leave it out), so ours is asked in Python.
"""

from __future__ import annotations

import runpy
import sys
import time


def main() -> None:
    ahead = int(sys.argv[1])
    module = sys.argv[4]
    right, right_ns = time.time, time.time_ns
    time.time = lambda: right() + ahead
    time.time_ns = lambda: right_ns() + ahead * 10**9
    sys.argv = [module, *sys.argv[5:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
