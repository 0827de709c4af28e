#!/bin/sh
# h5py 3.16.0, channel measurements in MATLAB's files of version 7.3 (here written by hdf5storage 0.2.2, as data sets of 6G
# papers are): a complex array comes as pairs named real and imag, and numpy's .real of it is the whole array of pairs,
# without an error, so that code that works on complex numbers takes both parts for one; abs() does raise. All dimensions
# are in reverse.
#
# Seen on 2026-11-30, a complex array of 3 rows and 2 columns:
#   h5py: shape (2, 3), its .real still has the fields real and imag; hdf5storage: shape (3, 2), complex128
# Ends with 0 while that is so, with 1 when it has changed.
set -eu
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet "h5py==3.16.0" "hdf5storage==0.2.2" "numpy<3"
cd "$place"
cat > look.py <<'PYTHON'
import h5py
import hdf5storage
import numpy as np

wanted = np.arange(6).reshape(3, 2) + 1j * np.arange(6, 12).reshape(3, 2)
hdf5storage.savemat("channel.mat", {"H": wanted}, format="7.3")
with h5py.File("channel.mat") as file:
    pairs = file["H"][()]
whole = hdf5storage.loadmat("channel.mat")["H"]
print(f"h5py: shape {pairs.shape}, .real has the fields {pairs.real.dtype.names}")
print(f"hdf5storage: shape {whole.shape}, {whole.dtype}")
assert pairs.shape == (2, 3) and pairs.real.dtype.names == ("real", "imag"), "h5py reads it otherwise"
assert ((pairs["real"] + 1j * pairs["imag"]).T == wanted).all(), "the numbers are others"
assert (whole == wanted).all(), "hdf5storage no longer gives MATLAB's order"
PYTHON
"$place/venv/bin/python" look.py || { echo "this has changed"; exit 1; }
