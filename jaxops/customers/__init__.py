"""Customers: from a log of purchases to who is alive, how often they will buy, and their value."""

from jaxops.customers.cutoffs import Histories, Summary, histories, snapshots, summary
from jaxops.customers.data import Purchases, purchases
from jaxops.customers.inference import (
    CustomerBase,
    Outlook,
    expected_purchases,
    outlook,
    purchase_probability,
)
from jaxops.customers.jobs import evaluate, fit
from jaxops.customers.measures import (
    Deciles,
    deciles,
    normalized_gini,
    plot_deciles,
    spearman,
    value_scores,
)
from jaxops.customers.models.beta_geometric import BGNBD, MBGNBD
from jaxops.customers.models.bg_bb import BGBB
from jaxops.customers.models.gamma_gamma import GammaGamma
from jaxops.customers.models.pareto_nbd import ParetoNBD
from jaxops.customers.profit import (
    MaximumProfit,
    ProfitCurve,
    expected_maximum_profit,
    plot_profit,
    profit_curve,
    worth_contacting,
)
from jaxops.customers.reader import LogReader
from jaxops.customers.tasks import Estimate, estimate

__all__ = [
    "BGBB",
    "BGNBD",
    "MBGNBD",
    "CustomerBase",
    "Deciles",
    "Estimate",
    "GammaGamma",
    "Histories",
    "LogReader",
    "MaximumProfit",
    "Outlook",
    "ParetoNBD",
    "ProfitCurve",
    "Purchases",
    "Summary",
    "deciles",
    "estimate",
    "evaluate",
    "expected_maximum_profit",
    "expected_purchases",
    "fit",
    "histories",
    "normalized_gini",
    "outlook",
    "plot_deciles",
    "plot_profit",
    "profit_curve",
    "purchase_probability",
    "purchases",
    "snapshots",
    "spearman",
    "summary",
    "value_scores",
    "worth_contacting",
]
