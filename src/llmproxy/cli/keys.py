"""`llmproxy keys`: issue, list, rotate and revoke keys.

A new key is the one thing that `create` and `rotate` write to stdout, on a line of its own;
everything else that there is to say goes to stderr.
"""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from llmproxy.cli.configuration import BAD_CONFIGURATION, loaded
from llmproxy.cli.table import NOTHING, table, width_of_stdout

if TYPE_CHECKING:
    from llmproxy.cli.key_desks import Desk
    from llmproxy.settings import Settings

# Options of `create` that are fields of a key under the same name.
_FIELDS = {
    "team": ("NAME", "whom it belongs to"),
    "tier": ("NAME", "a class of keys"),
    "tags": ("A|B", "words to find it by"),
    "role": ("ROLE", "caller (if not set), viewer or admin"),
    "models": ("A|B", "globs of the models it may use; without, all"),
    "routes": ("A|B", "names of endpoints or globs of paths; without, all"),
    "networks": ("A|B", "addresses or networks it may be used from; without, all"),
    "limits": ("LIMITS", "such as '60 req/min|100000 tok/min|8 concurrent'"),
    "budget": ("BUDGET", "such as '10 usd/day' or 'soft:1e6 tok/month'"),
    "weight": ("NUMBER", "its share when there is a queue"),
    "priority": ("NUMBER", "the highest class it may ask for"),
    "max_tokens": ("NUMBER", "the most that one answer may have"),
    "expires": ("DATE", "such as 2030-01-31, in UTC"),
    "note": ("TEXT", "for people"),
}
_ALWAYS_SHOWN = ("name", "state")
_COLUMNS = (
    *("name", "source", "state", "team", "tier", "role", "tags", "models", "routes"),
    *("networks", "limits", "budget", "expires", "created", "note"),
)


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command line."""
    parser = commands.add_parser("keys", help="issue, list, rotate and revoke API keys")
    actions = parser.add_subparsers(dest="action", metavar="action", required=True)
    create = actions.add_parser("create", help="issue a key; it is shown once, on stdout")
    create.add_argument("--name", required=True, help="what it is called in logs and lists")
    for field, (metavar, about) in _FIELDS.items():
        create.add_argument(f"--{field.replace('_', '-')}", metavar=metavar, help=about)
    create.add_argument("--signing", action="store_true", help="requests may be signed with it")
    create.add_argument(
        "--unsigned", action="store_true", help="uploads may be signed without their content"
    )
    listing = actions.add_parser("list", help="show all keys, without their secrets")
    rotate = actions.add_parser("rotate", help="issue a new key in the place of one")
    rotate.add_argument("name", metavar="NAME")
    rotate.add_argument(
        "--overlap", default="1h", metavar="TIME", help="how long the old one still works (1h)"
    )
    revoke = actions.add_parser("revoke", help="refuse a key from now on")
    revoke.add_argument("name", metavar="NAME")
    for each, run in ((create, _create), (listing, _list), (rotate, _rotate), (revoke, _revoke)):
        each.add_argument("--json", action="store_true", help="print JSON")
        each.add_argument("--url", help="ask the proxy there, instead of LLMPROXY_STORE")
        each.set_defaults(run=_run, act=run)


def _run(arguments: argparse.Namespace) -> int:
    from llmproxy.cli.key_desks import Failed

    configured = loaded()
    if configured is None:
        return BAD_CONFIGURATION
    try:
        desk = _desk(configured.settings, arguments.url)
        arguments.act(desk, arguments)
    except Failed as exc:
        _say(str(exc))
        return exc.code
    return 0


def _desk(settings: "Settings", url: str | None) -> "Desk":
    from llmproxy.cli.admin_client import (
        AdminClient,
        NotAnAddress,
        address_of_settings,
        address_of_url,
    )
    from llmproxy.cli.key_desks import Failed, ProxyDesk, StoreDesk

    if url is None and settings.store.shared:
        return StoreDesk(settings)
    try:
        address = address_of_url(url) if url is not None else address_of_settings(settings)
    except NotAnAddress as exc:
        raise Failed(f"--url {exc}", BAD_CONFIGURATION) from exc
    if settings.admin_key is None:
        raise Failed(
            "set LLMPROXY_ADMIN_KEY to the one of the proxy that is to be asked, or LLMPROXY_STORE"
            " to its redis://... or sqlite:///...",
            BAD_CONFIGURATION,
        )
    return ProxyDesk(AdminClient(address, settings.admin_key.get_secret_value()))


def _create(desk: "Desk", arguments: argparse.Namespace) -> None:
    given: dict[str, object] = {"name": arguments.name}
    for field in _FIELDS:
        if (value := getattr(arguments, field)) is not None:
            given[field] = value
    for switch in ("signing", "unsigned"):
        if getattr(arguments, switch):
            given[switch] = True
    made = desk.create(given)
    _hand_over(made, arguments)
    _say(f"the key of {made['name']}; it is shown this once and kept nowhere")


def _rotate(desk: "Desk", arguments: argparse.Namespace) -> None:
    made = desk.rotate(arguments.name, arguments.overlap)
    _hand_over(made, arguments)
    _say(f"the new key of {made['name']}; the one before works for {made['overlap']:g} s more")


def _revoke(desk: "Desk", arguments: argparse.Namespace) -> None:
    revoked = desk.revoke(arguments.name)
    if arguments.json:
        _print_json(revoked)
    _say(f"{revoked['name']} is revoked; every worker refuses it within 5 s")


def _list(desk: "Desk", arguments: argparse.Namespace) -> None:
    found = desk.keys()
    if arguments.json:
        _print_json(found)
        return
    if not found:
        _say("there is no key yet; make one with: llmproxy keys create --name NAME")
        return
    rows = [{column: _cell(key.get(column)) for column in _COLUMNS} for key in found]
    # Nobody reads a column in which nothing is said.
    shown = [
        column
        for column in _COLUMNS
        if column in _ALWAYS_SHOWN or any(row[column] not in ("", "caller") for row in rows)
    ]
    cells = [[row[column] or NOTHING for column in shown] for row in rows]
    print(table(shown, cells, width_of_stdout()))


def _hand_over(made: dict[str, Any], arguments: argparse.Namespace) -> None:
    from llmproxy.cli.key_desks import Failed

    try:
        if arguments.json:
            _print_json(made)
        else:
            print(made["key"])
        sys.stdout.flush()
    except OSError as exc:
        name = made["name"]
        raise Failed(
            f"the key of {name} was made, but could not be shown: {exc.strerror}."
            f" It is lost; get another one with: llmproxy keys rotate {name} --overlap 0"
        ) from None
    if not made["lasting"]:
        _say("it ends with the proxy, whose LLMPROXY_STORE is memory")
    if notice := made.get("notice"):  # a proxy that is older than this command has none
        _say(notice)


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _print_json(value: object) -> None:
    from llmproxy import codec

    print(codec.dumps_pretty(value).decode())


def _say(text: str) -> None:
    plain = "".join(char if char.isprintable() else "?" for char in text)
    print(f"llmproxy: {plain}", file=sys.stderr)
