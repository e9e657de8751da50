"""What else can carry a signed message, besides gossip: NATS and HTTP."""
