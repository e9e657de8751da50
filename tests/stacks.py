"""The two transport stacks, for tests that must hold on both."""

from __future__ import annotations

from typing import get_args

import pytest

from p2pnode.config.settings import Stack

__all__ = ["STACKS", "Stack", "on_both_stacks", "on_both_stacks_in_time"]

STACKS: tuple[Stack, ...] = get_args(Stack)

on_both_stacks = pytest.mark.parametrize("stack", STACKS)

on_both_stacks_in_time = pytest.mark.parametrize("stack", ["fused", pytest.param("library", marks=pytest.mark.soak)])
"""For tests that take long: the default stack in `make test`, the other in `make soak`."""
