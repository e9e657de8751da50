"""Noise and yamux frames in one pass, behind the library's own handshake."""
