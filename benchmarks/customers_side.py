"""One fit and one prediction of pymc-marketing: what `benchmarks.customers` runs elsewhere.

    python customers_side.py FILE HORIZON

FILE (npz) has frequency, recency and T, (N,) each. The last line that it prints is JSON: the
seconds of BG/NBD's maximum a posteriori with the package's own priors (the first, which compiles,
and another), of P(alive) and the expected purchases within the horizon, and the parameters. Imports
are not counted.
"""

import json
import sys
import time

import numpy as np
import pandas as pd


def main() -> None:
    from pymc_marketing.clv import BetaGeoModel

    table = pd.DataFrame(dict(np.load(sys.argv[1])))
    table.insert(0, "customer_id", np.arange(len(table)))
    told = {}
    for what in ("first", "fit"):
        start = time.perf_counter()
        model = BetaGeoModel(data=table)
        model.fit(method="map", progressbar=False)
        told[what] = time.perf_counter() - start
    start = time.perf_counter()
    model.expected_probability_alive(table)
    model.expected_purchases(table, future_t=float(sys.argv[2]))
    told["predict"] = time.perf_counter() - start
    params = {name: model.idata.posterior[name].item() for name in ("r", "alpha", "a", "b")}
    print(json.dumps(told | {"params": params}))


if __name__ == "__main__":
    main()
