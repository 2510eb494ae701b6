"""How a table stands in the terminal."""

import os
import pty
import subprocess
import sys
from pathlib import Path

from llmproxy.cli.table import table

HEAD = ("name", "team", "note")
ROWS = [("blue", "-", "for the shop"), ("green", "sales", "-")]


def test_columns_stand_below_each_other() -> None:
    """As wide as their widest cell."""
    assert table(HEAD, ROWS).splitlines() == [
        "name   team   note",
        "blue   -      for the shop",
        "green  sales  -",
    ]
    assert table(HEAD, ROWS, 26) == table(HEAD, ROWS)


def test_rows_that_do_not_fit_stand_by_themselves() -> None:
    """Lines that a terminal breaks are no columns any more. What is not said is left out."""
    assert table(HEAD, ROWS, 25).splitlines() == [
        "blue",
        "  note  for the shop",
        "green",
        "  team  sales",
    ]


def test_a_column_is_as_wide_as_it_looks() -> None:
    """A Chinese character takes two places, and an accent that is put on another one none."""
    rows = [("日本", "a"), ("e\N{COMBINING ACUTE ACCENT}", "b"), ("ü", "c")]

    assert table(("name", "x"), rows).splitlines() == [
        "name  x",
        "日本  a",
        "e\N{COMBINING ACUTE ACCENT}     b",
        "ü     c",
    ]


def test_what_moves_the_cursor_is_shown() -> None:
    """Whoever writes a note writes into no other cell."""
    assert table(("a", "b"), [("\x1b[2J", "x\ry")]).splitlines()[1] == "\\x1b[2J  x\\ry"


def test_the_list_of_keys_fits_the_terminal(tmp_path: Path) -> None:
    """A terminal of 40 columns gets each key by itself, a file gets the whole width."""
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("LLMPROXY_")},
        "LLMPROXY_STORE": f"sqlite://{tmp_path}/keys.db",
        "LLMPROXY_AUTH": "keys",
        "COLUMNS": "40",
    }
    command = [sys.executable, "-m", "llmproxy", "keys"]
    created = [*command, "create", "--name", "blue", "--limits", "60 req/min|8 concurrent"]
    subprocess.run(created, env=environ, check=True, capture_output=True, timeout=30)
    terminal, end = pty.openpty()
    subprocess.run([*command, "list"], env=environ, check=True, stdout=end, timeout=30)
    os.close(end)
    said = os.read(terminal, 65536)
    os.close(terminal)

    lines = said.decode().splitlines()
    assert lines[0] == "blue"
    assert "  limits   60 req/min per key, 8 concurrent per key" in lines
