"""How property tests run here: no deadline, since a slow machine is no failure; a failure prints how to replay it."""

from __future__ import annotations

from hypothesis import settings

many = settings(deadline=None, max_examples=300)
some = settings(deadline=None, max_examples=60)
