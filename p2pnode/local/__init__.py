"""The client's side of the local API: addresses, a small HTTP client, event streams. Standard library only."""
