"""Training over clients that keep their rows: rounds in one program, or over real machines."""

from jaxops.federation.clients import Clients
from jaxops.federation.flower import flower_client, from_arrays, to_arrays
from jaxops.federation.rounds import Private
from jaxops.federation.secure import (
    PublicKeys,
    Revealed,
    SecureClient,
    from_integers,
    secure_sum,
    to_integers,
    unmasked_sum,
)
from jaxops.federation.splits import by_id, by_shard, dirichlet, even
from jaxops.federation.training import Carried, fit
from jaxops.federation.updates import Compression, eight_bits, top_k

__all__ = [
    "Carried",
    "Clients",
    "Compression",
    "Private",
    "PublicKeys",
    "Revealed",
    "SecureClient",
    "by_id",
    "by_shard",
    "dirichlet",
    "eight_bits",
    "even",
    "fit",
    "flower_client",
    "from_arrays",
    "from_integers",
    "secure_sum",
    "to_arrays",
    "to_integers",
    "top_k",
    "unmasked_sum",
]
