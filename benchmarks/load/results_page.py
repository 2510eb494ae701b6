"""`benchmarks/RESULTS.md`: the figures, how to get them again, and what they do not say."""

from benchmarks.load.campaign import Campaign
from benchmarks.load.tables import remarks, tables

PAGE = """\
# What llmproxy costs

Written by `{command}`; do not edit by hand.

{picture}## The machine

{machine}

## Who took part

{versions}

## The figures

{tables}

## What to know before you believe them

{remarks}

## How to repeat it

```sh
python -m benchmarks.load --quick           # one minute: nginx, sglang-router, llmproxy
python -m benchmarks.load --write-results   # everything above, and this page
python -m benchmarks.load --peers haproxy,litellm,vllm-router
python -m benchmarks.load --hold llmproxy   # under load until Ctrl-C: perf top -p PID, py-spy top
```

nginx and HAProxy are taken from the system. Python peers are installed at their pinned version
into `.bench/` on first use. Who cannot be had is left out, and named above. The picture needs
`pip install matplotlib`.

A scripted model server, one subject and a load generator are started anew for every turn. Each
round gives every subject one turn, in rotated order. Every chunk and every answer is verified
to be the right one for its request, in order, and complete; one wrong byte voids the run. CPU is
the kernel's clock of each process of the subject, read in nanoseconds before the first connection
and after the last one has closed.

## What the figures do not say

* **How your machine behaves.** Absolute microseconds depend on kernel, processor, virtualisation
  and neighbours; compare ratios, and the loopback yardstick above with your own.
* **What a chunk costs at another pace.** A proxy that is woken for every chunk pays for the waking;
  the busier it is, the more chunks it finds at once and the cheaper each one gets. Measured by
  hand at five times the pace, nginx and sglang-router cost about 12 µs each where they differ by
  a factor near two here. Compare subjects at one pace only, and expect less under more load.
* **What a network costs.** Everything runs over loopback in the clear: no TLS, no latency, no
  packet loss, and clients that read at once.
* **What the kernel does elsewhere.** Work of the network stack that is done in the context of
  another process is not charged to the proxy, nor are socket buffers counted as its memory.
* **How it feels behind a real engine.** Chunks are paced by a script, all of one size, answers
  are of one length; a real engine adds milliseconds that hide most of what is measured here.
* **What features cost that were not on.** Peers only forward here, with logs, retries and health
  checks off where they can be. llmproxy keeps its defaults, access log included, and
  LiteLLM checks a key, because it does not start without one.
* **Where the limit is.** Load generator, model server and proxy share the cores; measured
  requests per second are a floor, and those per core a calculation from CPU per request.
* **What happens on bad days.** Nothing fails, nobody hangs up, no server is slow.
"""


def page(campaign: Campaign, *, picture: bool) -> str:
    return PAGE.format(
        command=campaign.command,
        picture="![CPU and memory of each proxy](load.png)\n\n" if picture else "",
        machine=_listed([f"{name}: {value}" for name, value in campaign.machine.items()]),
        versions=_listed([f"{name}: {version}" for name, version in campaign.versions.items()]),
        tables="\n\n".join(table.as_markdown() for table in tables(campaign)),
        remarks=_listed(remarks(campaign)),
    )


def _listed(lines: list[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)
