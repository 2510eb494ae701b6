"""What the guarded server withstands, measured: each figure beside the limit that it has to keep.

Every file that is named after a hardship inflicts one on a real `llmproxy serve` and returns its
`findings`. `stage` starts the processes: `prober` is the client whose patience is measured,
`crowd` the one that is killed, `bare_server` the control; `flood` is an engine without an end.
`kernel` is asked for memory, CPU and queues; `page` tells what came of it.
"""
