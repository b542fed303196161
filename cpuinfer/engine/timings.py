"""What a request took."""

from __future__ import annotations

from cpuinfer.engine.outputs import Timings
from cpuinfer.engine.sequence import Request


def timings(request: Request, load_s: float) -> Timings:
    """What a request took. Its sequences run side by side: the first to start and the last to end
    count.
    """
    sequences = request.sequences
    last = max(s.finished or request.created for s in sequences)
    started = min((s.started for s in sequences if s.started), default=last)
    first = min((s.first_token for s in sequences if s.first_token), default=last)
    computed = sequences[0].n_prompt - sequences[0].cached
    later = sum(max(0, len(s.tokens) - s.n_prompt - 1) for s in sequences)
    return Timings(
        load_s=load_s,
        queue_s=started - request.created,
        ttft_s=first - request.created,
        prefill_tok_s=computed / (first - started) if first > started else 0.0,
        decode_tok_s=later / (last - first) if last > first else 0.0,
        total_s=last - request.created,
    )
