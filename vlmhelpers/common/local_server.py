"""What servers on this machine share: the loopback address, ports and tokens. Loads nothing heavy."""

import ipaddress
import secrets

LOOPBACK = "127.0.0.1"


def check_port(port: int) -> None:
    """Raises ValueError for a number that is no port."""
    if not 0 < port < 65536:
        raise ValueError(f"port {port}: choose one from 1 to 65535")


def new_token() -> str:
    """A token that nobody guesses. Never an argument of a process: those can be read by other users."""
    return secrets.token_urlsafe(32)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address or name `host`."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def is_address(host: str) -> bool:
    """Whether `host` is an IP address and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
