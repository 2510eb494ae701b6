"""From runs to figures, and from figures to tables and a page."""

import re

import pytest

from benchmarks.load import results_page
from benchmarks.load.campaign import CORE_STAGE, FIRST_CONTROL, LAST_CONTROL, Campaign, Turn
from benchmarks.load.figures import Figure, difference, number, ratio, spread
from benchmarks.load.measurement import Measurement, Quantiles
from benchmarks.load.tables import STREAMS, UNARY, Table, cost, layers, remarks, tables


def turn(subject: str, round_number: int, us: float, *, stage: str = CORE_STAGE) -> Turn:
    """A turn in which a chunk cost `us` microseconds and a request ten times that."""
    quantiles = dict.fromkeys(("first_token", "gap", "transit"), Quantiles(us, 2 * us))
    streams = Measurement(
        units=1000, wall_ns=10**9, subject_cpu_ns=int(us * 1e6), quantiles=quantiles
    )
    unary = Measurement(units=1000, wall_ns=10**9, subject_cpu_ns=int(us * 1e7))
    return Turn(subject, stage, round_number, 0, {STREAMS: streams, UNARY: unary})


@pytest.fixture
def campaign() -> Campaign:
    """Two rounds; in the second one the machine was twice as slow for everybody."""
    names = ("direct", "nginx", "llmproxy", "llmproxy+auth")
    made = Campaign(
        machine={"cores": "2"},
        command="python -m benchmarks.load",
        versions=dict.fromkeys(names, "1"),
    )
    for round_number, slowness in ((0, 1.0), (1, 2.0)):
        for name, us in zip(names, (1, 5, 10, 11), strict=True):
            made.turns.append(turn(name, round_number, us * slowness))
    return made


def test_ratios_are_taken_within_a_round() -> None:
    """A machine that slows down for a round slows both, and the ratio stands."""
    assert ratio({0: 10, 1: 40}, {0: 5, 1: 20}) == Figure(2, 2, 2, 2)
    assert difference({0: 10, 1: 40}, {0: 5, 1: 30}) == Figure(7.5, 5, 10, 2)


def test_rounds_without_a_partner_do_not_count() -> None:
    """No figure is compared with one of another round."""
    assert ratio({0: 10}, {1: 5}) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(4.816, "4.82"), (15.04, "15.0"), (168.7, "169"), (9860.0, "9,860"), (-0.25, "-0.25")],
)
def test_numbers_show_three_digits(value: float, text: str) -> None:
    """No more than the measurement is worth."""
    assert number(value) == text


def test_a_spread_is_told_with_its_median() -> None:
    """Median, smallest and largest; a single run has no spread; nothing is a dash."""
    assert spread(Figure.of([4, 5, 9])) == "5.00 (4.00 to 9.00)"
    assert spread(Figure.of([4])) == "4.00"
    assert spread(Figure.of([])) == "-"


def test_the_cost_table_compares_within_rounds(campaign: Campaign) -> None:
    """llmproxy costs twice nginx in either round, whatever the machine did."""
    rows = {row[0]: row for row in cost(campaign).rows}

    assert rows["llmproxy"] == [
        "llmproxy",
        *("15.0 (10.0 to 20.0)", "2.00"),
        *("150 (100 to 200)", "2.00"),
        "7,500",
    ]
    assert "direct" not in rows


def test_a_layer_is_told_by_what_it_adds(campaign: Campaign) -> None:
    """Against the bare proxy of the same round."""
    assert layers(campaign).rows == [
        ["llmproxy+auth", "1.50 (1.00 to 2.00)", "1.10", "15.0 (10.0 to 20.0)", "1.10"]
    ]


def test_a_void_run_counts_nowhere_and_is_told(campaign: Campaign) -> None:
    """One wrong byte: no figure, and a line that says so."""
    void = Measurement(units=1000, problem="WrongAnswerError: chunk 3 expected")
    campaign.turns.append(Turn("llmproxy", CORE_STAGE, 2, 0, {STREAMS: void}))

    rows = {row[0]: row for row in cost(campaign).rows}

    assert rows["llmproxy"][1] == "15.0 (10.0 to 20.0)"
    assert f"llmproxy, {STREAMS}: VOID: {void.problem}; 1 of 3 runs" in remarks(campaign)


def test_who_is_missing_and_how_the_machine_drifted_is_told(campaign: Campaign) -> None:
    """Nobody is left out silently; the control run is compared with itself."""
    campaign.left_out["haproxy"] = "haproxy is not installed"
    for stage, used in ((FIRST_CONTROL, 10_000_000), (LAST_CONTROL, 11_000_000)):
        control = Measurement(units=1000, wall_ns=10**9, server_cpu_ns=used)
        campaign.turns.append(Turn("direct", stage, 0, 0, {STREAMS: control}))

    told = "\n".join(remarks(campaign))

    assert "haproxy is left out: haproxy is not installed" in told
    assert "10.0 µs at first, 11.0 µs at last (+10 %)" in told


def test_text_columns_line_up() -> None:
    """Names to the left, figures to the right."""
    text = Table("T", ["", "µs"], [["nginx", "4.8"], ["llmproxy", "10.1"]]).as_text()

    assert text.splitlines()[2:] == [
        "            µs",
        "--------  ----",
        "nginx      4.8",
        "llmproxy  10.1",
    ]


def test_the_page_has_every_table_and_can_be_told_again(campaign: Campaign) -> None:
    """A campaign read back from its file writes the same page."""
    page = results_page.page(campaign, picture=True)

    for table in tables(campaign):
        assert f"### {table.title}" in page
    assert "![CPU and memory of each proxy](load.png)" in page
    assert not re.search(r"[{}]", page)
    again = Campaign.from_json(campaign.to_json())
    assert results_page.page(again, picture=True) == page
