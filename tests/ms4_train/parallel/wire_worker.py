"""Two ranks that exchange some 100 MB, and what the loopback device counted meanwhile. Without RANK it starts both.

It writes folder/RANK.json: bytes that the rank counted, bytes that passed the device, and what rows for each (token, expert) pair would be.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from support.distributed import run_ranks

from ms4_train.config.schema import ParallelSection
from ms4_train.parallel import init_mesh, traffic
from ms4_train.parallel.exchange import ExpertExchange

TOKENS, HIDDEN, EXPERTS, TOP_K, CALLS = 1024, 1024, 8, 4, 8


def bytes_on_loopback() -> int:
    """Bytes sent over it since the system started."""
    (line,) = [line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:")]
    return int(line.split(":")[1].split()[8])


def main() -> None:
    folder = Path(sys.argv[1])
    if "RANK" not in os.environ:
        run_ranks(Path(__file__), str(folder), timeout=200)
        return
    mesh = init_mesh(ParallelSection(expert_parallel_size=2, timeout_seconds=60))
    exchange = ExpertExchange(mesh.expert_parallel_group, EXPERTS)
    torch.manual_seed(mesh.rank)
    ids_tk = torch.rand(TOKENS, EXPERTS).topk(TOP_K).indices
    remote_pairs = int((ids_tk // (EXPERTS // 2) != mesh.rank).sum())
    dist.barrier()
    before = bytes_on_loopback()
    for _ in range(CALLS):
        hidden_td, weights_tk = torch.randn(TOKENS, HIDDEN).bfloat16().requires_grad_(), torch.rand(TOKENS, TOP_K, requires_grad=True)
        dispatched = exchange.start(hidden_td, ids_tk, weights_tk)
        out_td = dispatched.finish(
            dispatched.hidden_rd, dispatched.weights_rk, lambda arrivals: arrivals.hidden_rd * arrivals.weights_rk.sum(1, True).bfloat16()
        )
        out_td.sum().backward()
    dist.barrier()
    sent = traffic.take()
    total = sent.forward + sent.backward
    report = {
        "counted": total.dispatch + total.combine + total.metadata,
        "seen": bytes_on_loopback() - before,
        "pair_by_pair": CALLS * 4 * remote_pairs * HIDDEN * 2,
    }
    (folder / f"{mesh.rank}.json").write_text(json.dumps(report))
    dist.barrier()
    mesh.close()


if __name__ == "__main__":
    main()
