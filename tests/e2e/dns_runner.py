"""A DNS server as a process: UDP port 53 of the address in its first argument, with the A records in its second.

`python -m tests.e2e.dns_runner 10.78.0.1 '{"fleet.test": ["10.78.0.2"]}'`; prints a line when it listens.
"""

from __future__ import annotations

import json
import socket
import sys

import dns.message

from tests.discovery.dns_server import zone


def main(host: str, records: str) -> None:
    answer = zone(json.loads(records), ttl=1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind((host, 53))
        print("listening", flush=True)
        while True:
            wire, asker = udp.recvfrom(65535)
            for datagram in answer(dns.message.from_wire(wire), False) or ():
                udp.sendto(datagram, asker)


if __name__ == "__main__":
    main(*sys.argv[1:])
