#!/bin/sh
# dp-accounting 0.6.0, neighbouring data sets that differ in one replaced record: its two accountants mean different
# noise by the same event. For GaussianDpEvent(1.0) the Renyi accountant answers as it does where a record is added or
# removed (the sum moves by the bound C), the one of privacy loss distributions as for a sum that moves by 2 C, which is
# what replacing one record of bound C can do. So a multiplier that was calibrated with one and is reported with the other
# is off by a factor of two in the noise. fedlora counts a replaced record as a shift of 2 C, as the second one does.
#
# Seen on 2026-11-30, epsilon at delta 1e-5 of one release with noise multiplier 1:
#   ADD_OR_REMOVE_ONE: Renyi 4.7285, privacy loss distribution 4.3772; closed form for a shift of C 4.3772
#   REPLACE_ONE:       Renyi 4.7285, privacy loss distribution 9.9973; closed form for a shift of 2 C 9.9973
# Ends with 0 while that is so, with 1 when it has changed.
set -eu
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet "dp-accounting==0.6.0" "numpy<3"
cd "$place"
cat > look.py <<'PYTHON'
import math

from dp_accounting import GaussianDpEvent, NeighboringRelation
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from scipy.optimize import brentq
from scipy.stats import norm

DELTA = 1e-5


def closed_form(shift: float) -> float:
    """Return epsilon of a unit Gaussian whose mean moves by so much (Balle and Wang 2018, theorem 8)."""

    def beyond(epsilon: float) -> float:
        near, far = norm.cdf(shift / 2 - epsilon / shift), norm.cdf(-shift / 2 - epsilon / shift)
        return near - math.exp(epsilon) * far - DELTA

    return brentq(beyond, 0, 50)


found = {}
for relation, shift in ((NeighboringRelation.ADD_OR_REMOVE_ONE, 1.0), (NeighboringRelation.REPLACE_ONE, 2.0)):
    renyi, distribution = (
        kind(neighboring_relation=relation).compose(GaussianDpEvent(1.0)).get_epsilon(DELTA)
        for kind in (RdpAccountant, PLDAccountant)
    )
    exact = closed_form(shift)
    found[relation] = renyi
    print(f"{relation.name}: Renyi {renyi:.4f}, privacy loss distribution {distribution:.4f}, closed form {exact:.4f}")
    assert abs(distribution - exact) < 0.01, "privacy loss distributions no longer shift so"
added, replaced = found.values()
assert abs(added - replaced) < 1e-6, "the Renyi accountant tells the two apart now"
PYTHON
"$place/venv/bin/python" look.py || { echo "this has changed"; exit 1; }
