"""HTTP as the last road: signed messages from sidecar to sidecar, and JSON to agents that run none."""
