"""The two transport stacks, for tests that must hold on both."""

from __future__ import annotations

from typing import get_args

import pytest

from p2pnode.config.settings import Stack

__all__ = ["STACKS", "Stack", "on_both_stacks"]

STACKS: tuple[Stack, ...] = get_args(Stack)

on_both_stacks = pytest.mark.parametrize("stack", STACKS)
