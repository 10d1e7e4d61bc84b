"""Tables and texts without persons: k-anonymity, pseudonyms, masks, and the risk that remains.

    risk = jaxops.anonymity.reidentification(table, ["age", "zip", "sex"])
    told = jaxops.anonymity.mondrian(table, ["age", "zip", "sex"], k=10)
    told.table, told.loss

Nothing here is differential privacy: k-anonymity protects against those who know what was expected
of them, and `jaxops.privacy` against everybody.
"""

from jaxops.anonymity.generalisation import Anonymised, generalised, mondrian, ranges
from jaxops.anonymity.groups import Diversity, k_anonymity, l_diversity, t_closeness
from jaxops.anonymity.masks import Found, iban_is_valid, luhn_is_valid, masked, personal
from jaxops.anonymity.pseudonyms import Pseudonyms
from jaxops.anonymity.risks import ColumnRisk, Risk, reidentification

__all__ = [
    "Anonymised",
    "ColumnRisk",
    "Diversity",
    "Found",
    "Pseudonyms",
    "Risk",
    "generalised",
    "iban_is_valid",
    "k_anonymity",
    "l_diversity",
    "luhn_is_valid",
    "masked",
    "mondrian",
    "personal",
    "ranges",
    "reidentification",
    "t_closeness",
]
