"""A run of `jaxops predict` whose parts are small, to be killed.

python predict_worker.py ROWS predict ...    # on a Ray cluster of two machines in this one
"""

import importlib
import os
import sys

from jaxops import cli
from jaxops.model import scoring


def main(rows, words):
    scoring.PART = rows
    sys.exit(cli.main(words))


if __name__ == "__main__":
    utilities = importlib.import_module("ray.cluster_utils")
    machine = {"num_cpus": 1, "object_store_memory": 100_000_000}
    cluster = utilities.Cluster(initialize_head=True, head_node_args=machine)
    cluster.add_node(**machine)
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        main(int(sys.argv[1]), sys.argv[2:])
    finally:
        cluster.shutdown()
