"""The clients that leave, and who sees what becomes of their engines' connections."""

import socket
import time

import pytest

from benchmarks.hardship import leaving_clients
from benchmarks.hardship.leavers import NAME
from benchmarks.hardship.leaving_clients import PHASES, Phase, post
from benchmarks.hardship.stage import listening
from benchmarks.hardship.witness import HEAD, TOKEN, Silence, witnessing
from tests.support.calls import eventually

SAID = {
    Silence.HEAD: b"",
    Silence.TOKEN: HEAD,
    Silence.GAP: HEAD + TOKEN,
    Silence.NEVER: HEAD + 3 * TOKEN,
}


@pytest.mark.parametrize("silence", Silence)
async def test_an_engine_says_so_much_and_sees_who_leaves(silence: Silence) -> None:
    """It notes when the connection was closed, and not one on which nobody has asked."""
    with witnessing() as witness:
        witness.begin(silence)
        with (
            socket.create_connection(("127.0.0.1", witness.port)) as client,
            socket.create_connection(("127.0.0.1", witness.port)),
        ):
            client.settimeout(5)
            client.sendall(post("open"))
            await eventually(lambda: witness.asked == 1, "it was asked")
            said = b""
            while len(said) < len(SAID[silence]):
                said += client.recv(65_536)
            left_at = time.monotonic()
        await eventually(lambda: witness.asked == 0, "it has seen it")
        closed_at = dict(witness.closed_at)

    assert said == SAID[silence]
    assert closed_at.keys() == {NAME}
    assert left_at <= closed_at[NAME] <= time.monotonic()


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
async def test_a_round_sees_every_client(phase: Phase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether their process is killed or closes its sockets, through the relay of the control."""
    monkeypatch.setattr(leaving_clients, "MANY", 5)
    monkeypatch.setattr(leaving_clients, "ROUNDS", 1)
    monkeypatch.setattr(leaving_clients, "SETTLE", 0.05)
    with witnessing() as witness:
        arguments = ["--upstream", str(witness.port)]
        async with listening("benchmarks.hardship.bare_relay", *arguments) as port:
            seen = await leaving_clients._rounds(phase, witness, port)

    for times in (seen.since_signal, seen.since_leaving):
        assert len(times) == 5
        assert all(0 < each < 5_000 for each in times)
