"""The table on the terminal, and `benchmarks/ROUTING.md`. Pure."""

from collections.abc import Iterator, Mapping

from benchmarks.load.figures import Figure, number, spread
from benchmarks.routing.engine import Build
from benchmarks.routing.scenes import BASE, SCENES, TARGETS, Rounds
from benchmarks.routing.trial import ENGINES, MEASURED, PACE, WARM_UP

PAGE = """\
# Where requests go, and what that is worth

Written by `{command}`; do not edit by hand.

A `llmproxy serve` with the layer `routing`, one worker, stands in front of {engines} modelled
engines that speak vLLM's dialect on sockets of their own. An engine reads one prompt at a time,
{prefill:,.0f} tokens/s but for what its KV cache has; then writes {decode:.0f} tokens/s to each
of at most {sequences} sequences. The cache holds {cache:,} tokens in blocks of 64, those of
running sequences included, and forgets what was not used for longest. So all engines together
hold what one cannot. The slow engine is four times slower at both. All of that runs {pace:g}
times as fast as the clock, and every time below is told in seconds of the model.

## Targets

{targets}

Ratios are taken within a round, in which the policies take turns with the same prompts; the
median of {rounds} rounds (least to most).

## What was seen

Medians over the rounds. *Cached* is the part of all tokens of prompts that the engines had in
their caches; *most* what the busiest server got of the prompts, by the mean of all.

{scenes}
* **shared**: conversations of four turns, each under one of 64 system prompts of 4,096 tokens
  (Zipf: the first is in a fifth of them); 128 tokens a question and an answer. 256 clients that
  ask without a pause.
* **unshared**: prompts of 4,224 tokens that have nothing in common. **small head**: they have 512
  in common. **one system prompt**: all have the same 4,096, and 128 of their own.
* **one slow**: one engine of eight is four times slower; prompts of 512 to 3,584 tokens with
  nothing in common come at random (Poisson), 8/s or 20/s. When all take turns, the slow engine
  can just bear the first, and not the second: then what is waiting there grows for as long as one
  measures.

## The machine

{machine}

Cores in use, at most: {cores}; by everybody else {others:.1f}. Times of the model are kept by the
engines' own clock, so that a timer that comes late delays one answer and not the queue behind it.

## How to repeat it

```sh
python -m benchmarks.routing --write-page               # some 8 minutes a round
python -m benchmarks.routing shared unshared --rounds 3
```

The exit code is 1 when a target is missed. A run is {warm_up:.0f} s of warming up and
{measured:.0f} s of measuring, with engines and a proxy of its own, and caches that are empty at
first.

## What the figures do not say

* **How a real engine does.** Here a prefill disturbs no decode, a large batch is no slower than a
  small one, nothing is preempted, and a prompt that is being read is not shared before it is.
* **How it is with several workers or proxies.** Each remembers for itself where a beginning was
  read.
* **What the proxy costs.** `python -m benchmarks.micro routing` tells that.
* **How it is for other traffic.** Where all prompts fit into every cache, or none into any, there
  is little to gain. The clients are as many as the fleet has places: what is gained is bounded by
  that.
* **How old load may be.** The engines' pages are read once a second of the clock, as ever: at
  this pace what they say is up to {pace:g} s old, which is worse than in life.
"""

HEADER = (
    "| | answers/s | first token | p99 | cached | most |",
    "|---|---:|---:|---:|---:|---:|",
)


def targets(played: Mapping[str, Rounds]) -> str:
    """Return the table of what was to be reached."""
    lines = ["| | measured | target | |", "|---|---:|---:|---|"]
    for target in TARGETS:
        reached = target.reached(played.get(target.scene, {}))
        if reached is None:
            continue
        what = "answers/s" if target.figure == "per_second" else "p99 to a first token"
        wanted = f"≥ {target.least:g}" if target.least else f"< {target.most:g}"
        verdict = "holds" if target.holds(reached) else "DOES NOT HOLD"
        lines.append(
            f"| {target.scene}: {what}, `{target.policy}` / `{BASE}` | {spread(reached)} |"
            f" {wanted} | {verdict} |"
        )
    return "\n".join(lines)


def scene(name: str, rounds: Rounds) -> str:
    """Return the table of one scene."""
    return "\n".join([f"### {name}", "", *HEADER, *_rows(rounds), ""])


def page(
    played: Mapping[str, Rounds], machine: Mapping[str, str], command: str, others: float
) -> str:
    build = Build()
    everything = [each for rounds in played.values() for some in rounds.values() for each in some]
    cores = {name: max(each.cores[name] for each in everything) for name in everything[0].cores}
    count = max(len(some) for rounds in played.values() for some in rounds.values())
    return PAGE.format(
        command=command,
        engines=ENGINES,
        prefill=build.prefill,
        decode=build.decode,
        sequences=build.sequences,
        cache=build.cache,
        pace=PACE,
        rounds=count,
        warm_up=WARM_UP,
        measured=MEASURED,
        targets=targets(played),
        scenes="\n".join(scene(name, played[name]) for name in SCENES if name in played),
        machine="\n".join(f"* {name}: {value}" for name, value in machine.items()),
        cores=", ".join(f"{name} {value:.2f}" for name, value in cores.items()),
        others=others,
    )


def _rows(rounds: Rounds) -> Iterator[str]:
    for policy, outcomes in rounds.items():
        seen = {
            figure: Figure.of(getattr(each, figure) for each in outcomes)
            for figure in ("per_second", "first_token", "first_token_p99", "hit_rate", "imbalance")
        }
        told = {name: number(figure.median) for name, figure in seen.items() if figure}
        yield (
            f"| `{policy}` | {told['per_second']} | {told['first_token']} s |"
            f" {told['first_token_p99']} s | {told['hit_rate']} | {told['imbalance']} |"
        )
