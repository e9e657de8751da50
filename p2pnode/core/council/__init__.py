"""Councils: an opportunity, claims for its roles, and who holds which (pure)."""
