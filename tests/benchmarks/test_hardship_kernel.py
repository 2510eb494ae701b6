"""What is read from the kernel, and from the proxy's own metrics."""

import socket
import sys

import pytest

from benchmarks.hardship.kernel import (
    connecting,
    in_kernel,
    parse_busy,
    parse_rss,
    parse_tcp,
    parse_waited,
)
from benchmarks.hardship.stage import Collapse, Lag

TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0FA0 0100007F:C350 01 00000400:00000010 01:00000014 00000000     0        0 1 1
"""
BUCKET = b'llmproxy_event_loop_lag_seconds_bucket{le="%s"} %d\n'


def lag(*counts: int) -> Lag:
    bounds = (b"0.005", b"0.05", b"1.0", b"+Inf")
    return Lag.parse(b"".join(BUCKET % pair for pair in zip(bounds, counts, strict=True)))


def test_resident_memory_is_the_first_line_of_its_name() -> None:
    """`Rss:` in kB, and none of the lines that end alike."""
    assert parse_rss("55d0 [rollup]\nRss:   900 kB\nPss: 469 kB\nShared_Rss: 1 kB\n") == 900 * 1024
    with pytest.raises(ValueError, match="without an Rss"):
        parse_rss("Pss: 1 kB\n")


def test_the_queues_of_a_socket_are_hexadecimal() -> None:
    """Ports too."""
    (seen,) = parse_tcp(TCP)

    assert (seen.local, seen.remote) == (4000, 50000)
    assert (seen.unacknowledged, seen.unread) == (1024, 16)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_sent_and_not_read_is_in_the_kernel() -> None:
    """Counted once, although two sockets know of it."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as near,
        listening.accept()[0],
    ):
        near.sendall(b"x" * 1000)
        seen = in_kernel(listening.getsockname()[1])

    assert seen == 1000


def test_idling_and_waiting_for_disks_is_not_busy() -> None:
    """The fourth and the fifth number of the line."""
    assert parse_busy("cpu  1 2 4 1000 2000 8 16 32 0 0") == 63


def test_waiting_for_a_core_is_told_beside_running() -> None:
    """It comes second, and how often it was given one comes last."""
    assert parse_waited("90000 1234 17\n") == 1234


def test_lag_is_what_came_since() -> None:
    """The bound of the slowest bucket that got one more; those before it got it as well."""
    assert lag(10, 10, 10, 10).most_since(lag(8, 8, 8, 8)) == 0.005
    assert lag(10, 12, 12, 12).most_since(lag(8, 9, 9, 9)) == 0.05
    assert lag(10, 12, 12, 13).most_since(lag(10, 12, 12, 12)) == float("inf")
    assert lag(1, 1, 2, 2).most_since(lag(1, 1, 2, 2)) == 0.0


def test_a_quantile_of_lag_is_the_bound_of_its_bucket() -> None:
    """Of what came since: one late appointment of a thousand is beyond neither 99.9 % nor 99."""
    seen = lag(1090, 1099, 1100, 1100).since(lag(100, 100, 100, 100))

    assert seen.count == 1000
    assert seen.quantile(0.99) == 0.005
    assert seen.quantile(0.999) == 0.05
    assert seen.quantile(1.0) == 1.0
    with pytest.raises(Collapse):
        seen.since(seen).quantile(0.5)


def test_a_page_without_the_metric_is_no_pass() -> None:
    """It would look like a loop that is never late."""
    with pytest.raises(Collapse):
        Lag.parse(b"HTTP/1.1 500 Oh\r\n\r\n")


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux")
def test_connections_that_are_not_there_yet_are_counted() -> None:
    """Neither those that the kernel has taken, nor those to anybody else."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        clients = [socket.socket() for _ in range(20)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        port = listener.getsockname()[1]
        seen, elsewhere = connecting(port), connecting(1)
        for client in clients:
            client.close()
        left = connecting(port)

    assert 10 < seen < 20
    assert (elsewhere, left) == (0, 0)
