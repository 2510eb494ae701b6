"""What a client may do, and how long it may take for it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Limits of one listening server; bytes, counts and seconds."""

    head: int = 32 * 1024
    field: int = 8 * 1024
    fields: int = 100
    target: int = 8 * 1024

    head_timeout: float = 10.0  # from the first byte of a head, or from the connection
    body_timeout: float = 60.0  # from the end of the head; bytes renew it only at `body_rate`
    body_rate: int = 64 * 1024  # bytes a second that a large body has to keep up
    write_timeout: float = 60.0  # for a client to take anything at all of what waits for it
    idle_timeout: float = 75.0  # between two requests; above the 60 s of nginx' own pool

    connections: int = 0  # open at once, 0 = no limit of ours

    read_ahead: int = 64 * 1024  # of a body that the app has not asked for yet
    write_ahead: int = 4 * 1024  # bytes that may wait for the kernel before the app has to
    overhead: int = 64 * 1024  # bytes of chunk framing in a row that carry no body
    send_buffer: int = 256 * 1024  # SO_SNDBUF; the kernel would take 4 MiB for a reader who stands
    lame_duck: float = 1.0  # after a drain began, for a request that is on its way already
    linger: float = 2.0  # for a client to read a refusal while it is still sending
    user_timeout: float = 60.0  # for a peer that vanished without a word
