"""What the how-tos show is what runs."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_how_to_shows_the_python_agent_as_it_is() -> None:
    code = (DOCS / "examples" / "council_agent.py").read_text()
    assert f"```python\n{code}```\n" in (DOCS / "howto-agent-python.md").read_text()


def test_the_python_agent_has_twenty_lines() -> None:
    code = (DOCS / "examples" / "council_agent.py").read_text()
    said = [line for line in code.splitlines() if line.strip() and not line.startswith('"""')]
    assert len(said) <= 20
