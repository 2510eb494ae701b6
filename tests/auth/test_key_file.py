"""A file of keys that is watched: taken over as a whole, or not at all."""

import logging
import os
from pathlib import Path

import pytest

from llmproxy.auth.configured import ConfiguredKeys
from llmproxy.auth.key_file import KeyFile, load_keys
from llmproxy.auth.keyring import Keyring
from tests.auth.making import ALICE, FIELDS, Seen, Time

BOB = "sk-bob-q7Vd93LmXzT2"


def ring(path: Path) -> Keyring:
    keys = ConfiguredKeys()
    file = KeyFile(str(path), fields=FIELDS, environ={"BOBS": BOB}, taken=keys.replace)
    return Keyring(keys, file=file)


async def named(keyring: Keyring) -> list[str]:
    """Return which of the two keys work."""
    found = [await keyring.find(secret.encode()) for secret in (ALICE, BOB)]
    return [each.name for each in found if each is not None]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("keys.txt", f"# who\nalice:{ALICE};team=red\n\nbob:env:BOBS\n"),
        ("keys.toml", f'[keys]\nalice = "{ALICE}"\n[keys.bob]\nkey = "env:BOBS"\nteam = "blue"\n'),
        ("keys.toml", f'[[keys]]\nname = "alice"\nkey = "{ALICE}"\n[bob]\n[[keys]]\nname = "bob"'
         '\nkey = "env:BOBS"\nexpires = 2090-01-01\n'),
        ("keys.json", f'{{"alice": "{ALICE}", "bob": {{"key": "env:BOBS"}}}}'),
        ("keys", f'["alice:{ALICE}", "bob:env:BOBS"]'),
        ("bom.txt", f"\ufeffalice:{ALICE}\r\nbob:env:BOBS\r\n"),
    ],
)  # fmt: skip
async def test_a_file_may_be_lines_toml_or_json(name: str, text: str, tmp_path: Path) -> None:
    """The same entries in each."""
    path = tmp_path / name
    path.write_text(text)

    assert await named(ring(path)) == ["alice", "bob"]


def test_a_file_is_read_at_the_start(tmp_path: Path) -> None:
    """So that a broken one stops it."""
    path = tmp_path / "keys"
    path.write_text(f"alice:{ALICE}\nbob:env:BOBS")

    assert len(load_keys(str(path), fields=FIELDS, environ={"BOBS": BOB})) == 2


async def test_a_change_is_noticed_without_a_restart(tmp_path: Path, passing: Time) -> None:
    """Also one that leaves size and time as they were, by a file put in its place."""
    path = tmp_path / "keys"
    path.write_text(f"alice:{ALICE}")
    os.utime(path, (1, 1))
    keyring = ring(path)
    assert await named(keyring) == ["alice"]

    other = tmp_path / "other"
    other.write_text(f"bobby:{BOB[:-2]}xy;"[: path.stat().st_size])
    other.write_text(f"b:{BOB}".ljust(path.stat().st_size))
    os.utime(other, (1, 1))
    other.rename(path)
    passing.passes(5)

    assert await named(keyring) == ["b"]


async def test_a_file_that_gives_the_admin_key_away_is_not_taken(
    tmp_path: Path, passing: Time, caplog: pytest.LogCaptureFixture
) -> None:
    """Its caller would be the admin. The keys stay as they are, and the log shows none."""
    path = tmp_path / "keys"
    path.write_text(f"alice:{ALICE}")
    keys = ConfiguredKeys(admin_key=BOB)
    file = KeyFile(str(path), fields=FIELDS, environ={}, taken=keys.replace)
    keyring = Keyring(keys, file=file)
    before = await named(keyring)
    path.write_text(f"carol:{BOB}")
    passing.passes(5)

    assert await named(keyring) == before == ["alice", "admin"]
    assert "entry 1 has the admin's key" in caplog.text
    assert BOB not in caplog.text


@pytest.mark.parametrize("broken", ["gone", "alice", "{", "b:changeme", "\0", "latin"])
async def test_a_broken_file_leaves_the_keys_as_they_are(
    broken: str, tmp_path: Path, passing: Time, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so once and shows no key; the next good one is taken."""
    path = tmp_path / "keys"
    path.write_text(f"alice:{ALICE}")
    keyring = ring(path)
    assert await named(keyring) == ["alice"]

    secret = "sk-typed-wrong-Zx81"
    if broken == "gone":
        path.unlink()
    elif broken == "latin":
        path.write_bytes(b"bob:" + secret.encode() + b"\xff")
    else:
        path.write_text(f"bob:{BOB}\n{broken}{secret} x")
    for _ in range(3):
        passing.passes(5)
        assert await named(keyring) == ["alice"]
    said = [record.getMessage() for record in caplog.records]

    assert len(said) == 1 and "was not taken over" in said[0]
    assert caplog.records[0].levelno == logging.ERROR
    Seen(caplog.text).has_none_of(ALICE, BOB, secret)

    path.write_text(f"bob:{BOB}")
    passing.passes(5)

    assert await named(keyring) == ["bob"]


async def test_whoever_asks_soon_again_is_not_held_up(tmp_path: Path, passing: Time) -> None:
    """After a second a look begins in the background; it counts for those who come later."""
    path = tmp_path / "keys"
    path.write_text(f"alice:{ALICE}")
    keyring = ring(path)
    assert await named(keyring) == ["alice"]
    path.write_text(f"bob:{BOB}")

    passing.passes(0.5)
    assert await named(keyring) == ["alice"]
    passing.passes(1)
    asking = keyring.find(ALICE.encode())
    with pytest.raises(StopIteration):
        asking.send(None)
    await keyring.aclose()


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    """A mistake in a path must not fill the memory."""
    path = tmp_path / "keys"
    with path.open("wb") as file:
        file.truncate(17 * 1024 * 1024)

    with pytest.raises(ValueError, match="larger than"):
        load_keys(str(path), fields=FIELDS, environ={})


async def test_who_comes_again_is_asked_for_when_the_file_may_have_changed(
    tmp_path: Path, passing: Time
) -> None:
    """A key that was taken out of it is not known for longer than it would be found."""
    path = tmp_path / "keys"
    path.write_text(f"alice:{ALICE}")
    keyring = ring(path)
    assert await named(keyring) == ["alice"]
    known = keyring.known(ALICE.encode())
    assert keyring.again(known, None) is not None

    path.write_text(f"bob:{BOB}")
    passing.passes(1)
    assert keyring.again(known, None) is None
    passing.passes(4)
    assert await named(keyring) == ["bob"]
    assert keyring.again(known, None) is None
