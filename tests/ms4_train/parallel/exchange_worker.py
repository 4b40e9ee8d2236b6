"""One rank of the exchange's checks where every rank holds a share of the experts. It writes folder/RANK.json."""

import json
import sys
from pathlib import Path

from support.exchange_checks import check_adapters, check_block, check_operation, check_order

from ms4_train.config.schema import ParallelSection
from ms4_train.parallel import init_mesh


def main() -> None:
    folder, ranks = Path(sys.argv[1]), int(sys.argv[2])
    mesh = init_mesh(ParallelSection(expert_parallel_size=ranks, timeout_seconds=60))
    checks = {"operation": check_operation, "block": check_block, "order": check_order, "adapters": check_adapters}
    (folder / f"{mesh.rank}.json").write_text(json.dumps({name: check(mesh) for name, check in checks.items()}))
    mesh.close()


if __name__ == "__main__":
    main()
