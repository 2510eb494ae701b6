"""What the documents promise is what the code does."""

import re
from pathlib import Path

import pytest

from llmproxy import errors
from llmproxy.cli import LATER as LATER_COMMANDS
from llmproxy.cli import parser
from llmproxy.errors import ProxyError
from llmproxy.exposition import FAMILIES
from llmproxy.metrics import Metrics
from llmproxy.protocol.presets import PRESETS
from llmproxy.routing.aliases import aliases
from llmproxy.routing.policies import POLICIES
from llmproxy.routing.rules import rules
from llmproxy.settings.variables import IN_THIS_VERSION, PREFIX

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "interface.md").read_text()
README = (ROOT / "README.md").read_text()
ROUTING = (ROOT / "docs" / "routing.md").read_text()
FIXED = {f"{PREFIX}SERVICE_", f"{PREFIX}PORT_"}  # Kubernetes' own, named to say so


def section(title: str) -> str:
    """Return the part of the page under one heading."""
    return re.split(r"\n##+ ", PAGE.split(f"# {title}\n", 1)[1], maxsplit=1)[0]


def variables_in(text: str) -> set[str]:
    """Return every variable that a text names."""
    return set(re.findall(r"LLMPROXY_[A-Z_]+", text)) - FIXED


def first_column(text: str) -> list[str]:
    """Return the first cell of each row of the tables in a text."""
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    return [row.split(" | ")[0] for row in rows]


def concrete_errors(cls: type[ProxyError] = ProxyError) -> set[type[ProxyError]]:
    """Return every error that can be raised."""
    found = {cls} if hasattr(cls, "code") else set()
    return found.union(*(concrete_errors(each) for each in cls.__subclasses__()))


def test_every_variable_is_on_the_page_once() -> None:
    """What can be set is written down, and what is written down can be set."""
    listed = [name for cell in first_column(section("Environment")) for name in variables_in(cell)]

    assert sorted(listed) == sorted(PREFIX + name for name in IN_THIS_VERSION)


def test_the_readme_names_no_variable_that_does_not_exist() -> None:
    """A newcomer can set whatever the README mentions."""
    assert variables_in(README) <= {PREFIX + name for name in IN_THIS_VERSION}


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_no_page_names_a_variable_that_does_not_exist(page: Path) -> None:
    """Short forms of several names included (`LLMPROXY_TIMEOUT_*`)."""
    named = set(re.findall(r"LLMPROXY_[A-Z_]*[A-Z](?![A-Z_*])", page.read_text()))

    assert named <= {PREFIX + name for name in IN_THIS_VERSION}


def test_every_policy_is_on_the_pages() -> None:
    """Each can be chosen, and its reader knows what it does."""
    table = ROUTING.split("## Policies", 1)[1].split("## ", 1)[0]
    [row] = [row for row in PAGE.splitlines() if row.startswith("| `LLMPROXY_ROUTING`")]

    assert sorted(cell.strip("| `") for cell in first_column(table)) == sorted(POLICIES)
    assert set(POLICIES) <= set(re.findall(r"`(\w+)`", row))


def test_every_condition_of_a_rule_is_on_the_page() -> None:
    """The examples of the page are rules, too."""
    table = ROUTING.split("## Rules", 1)[1].split("## ", 1)[0]
    words = [re.findall(r"`(\w+[:~]?)", cell) for cell in first_column(table)]
    with pytest.raises(ValueError) as refused:
        rules("nonsense")

    known = set(re.findall(r"(\w+[:~]?)", str(refused.value)))
    assert {word for cell in words for word in cell} <= known
    assert sum(map(len, words)) == 9
    for written in re.findall(r"LLMPROXY_RULES='([^']+)'", ROUTING):
        assert rules(written)
    for written in re.findall(r"LLMPROXY_ALIASES='([^']+)'", ROUTING + README):
        assert aliases(written)


def test_every_error_code_is_on_the_page_with_its_status() -> None:
    """Scripts can rely on codes, so there is no secret one."""
    rows = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", section("Errors"), re.MULTILINE))

    assert {code: int(status) for code, status in rows.items()} == {
        error.code: error.status for error in concrete_errors(errors.ProxyError)
    }


def test_every_metric_is_on_the_page() -> None:
    """A dashboard is built from the page, not from the source."""
    metrics = Metrics()
    metrics.probed("a", True)
    exported = set(re.findall(r"^# HELP (\w+)", metrics.render().decode(), re.MULTILINE))
    listed = set(re.findall(r"`(llmproxy_\w+)`", section("Metrics")))

    assert listed == exported


def test_every_metric_is_labelled_as_the_page_says() -> None:
    """A query by label finds what it looks for."""
    labels = {name: set(family.labels) for name, family in FAMILIES.items()}

    for row in [line for line in section("Metrics").splitlines() if line.startswith("| `")]:
        name, _, rest = row.partition(" | ")
        metric = re.findall(r"`(llmproxy_\w+)`", name)[0].removesuffix("_total")
        assert set(re.findall(r"`(\w+)`", rest)) == labels[metric], metric


@pytest.mark.parametrize("command", ["serve", "check", "config", "keys", "demo-upstream"])
def test_every_command_on_the_page_exists(command: str) -> None:
    """Each command can be asked for its help."""
    with pytest.raises(SystemExit, match="0"):
        parser().parse_args([command, "--help"])

    assert f"`llmproxy {command}`" in section("Commands")


@pytest.mark.parametrize("command", LATER_COMMANDS)
def test_no_command_is_promised_before_it_is_built(command: str) -> None:
    """What answers `not in this version` stands on no page."""
    assert f"llmproxy {command}" not in PAGE + README


def test_every_preset_is_on_the_page() -> None:
    """The list of presets is complete."""
    assert set(re.findall(r"`(\w+)://`", section("Environment"))) == set(PRESETS)


def test_the_links_between_the_documents_lead_somewhere() -> None:
    """No page sends its reader into the void."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} -> {target}"
