"""The only package that imports libp2p: connections, streams, and for now the library's router."""
