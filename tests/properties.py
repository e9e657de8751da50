"""How property tests run here: no deadline, since a slow machine is no failure; a failure prints how to replay it.

PROPERTY_SHARE in the environment makes them run with that share of their examples.
"""

from __future__ import annotations

import os

from hypothesis import settings

_SHARE = float(os.environ.get("PROPERTY_SHARE", "1"))

many = settings(deadline=None, max_examples=round(300 * _SHARE))
some = settings(deadline=None, max_examples=round(60 * _SHARE))
