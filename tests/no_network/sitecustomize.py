"""On PYTHONPATH, this blocks every connection that leaves the machine, in the process and in its children."""

import ipaddress
import sys


def guard(event, args):
    if event == "socket.getaddrinfo":
        host = args[0]
    elif event == "socket.connect" and isinstance(args[1], tuple):
        host = args[1][0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host in (None, "", "localhost"):
        return
    try:
        inside = ipaddress.ip_address(host).is_loopback or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        inside = False
    if not inside:
        raise PermissionError(f"the tests allow no network: {host}")


sys.addaudithook(guard)
