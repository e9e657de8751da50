"""GossipSub v1.1 and v1.2, sans I/O: `Router.handle(input, now)` returns effects."""
