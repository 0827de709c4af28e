"""Arrays of numbers from the files that numpy, safetensors, MATLAB and HDF5 write."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from fedlora.errors import FedloraError

FORMATS: Final = (".npy", ".npz", ".safetensors", ".mat", ".h5", ".hdf5")
"""What the names of such files end in."""

_MOST_BYTES: Final = 8 << 30
_MATLAB_HDF5: Final = b"MATLAB 7.3"
_PARTS: Final = ({"real", "imag"}, {"r", "i"})  # as MATLAB, and as h5py and Julia store them

Arrays = dict[str, NDArray[Any]]


def read_arrays(place: Path) -> Arrays:
    """Return the arrays of a file by name; that of a ``.npy`` is called ``values``.

    - ``.mat`` up to v7, by scipy; v7.3 is HDF5, whose axes are turned round to MATLAB's order.
    - ``.h5``, ``.hdf5``: all datasets, by their paths (the extra ``fedlora[hdf5]``). A compound of
      real and imaginary parts is complex.

    Nothing is unpickled.

    Raises
    ------
    FedloraError
        When it cannot be read, holds no numbers, or more than 8 GiB.
    """
    try:
        match place.suffix.lower():
            case ".safetensors":
                return _safetensors(place)
            case ".mat":
                with place.open("rb") as file:
                    newest = file.read(len(_MATLAB_HDF5)) == _MATLAB_HDF5
                return _hdf5(place, matlab=True) if newest else _matlab(place)
            case ".h5" | ".hdf5":
                return _hdf5(place, matlab=False)
        return _numpy(place)
    except FedloraError:
        raise
    except Exception as error:  # what damaged files raise is no closed list
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FedloraError(
            f"{place} holds no arrays of numbers that can be read ({reason}); write it with "
            "numpy.save, numpy.savez or safetensors, without objects"
        ) from None


def _check(place: Path, size: int) -> None:
    if size > _MOST_BYTES:
        raise FedloraError(
            f"{place} holds {size / 2**30:.1f} GiB, and fedlora reads at most {_MOST_BYTES >> 30}; "
            "write a part of it"
        )


def _numpy(place: Path) -> Arrays:
    size = place.stat().st_size
    if zipfile.is_zipfile(place):
        with zipfile.ZipFile(place) as packed:
            size = sum(item.file_size for item in packed.infolist())
    _check(place, size)
    found = np.load(place, allow_pickle=False)
    if isinstance(found, np.ndarray):
        return {"values": found}
    with found:
        return {name: found[name] for name in found.files}


def _safetensors(place: Path) -> Arrays:
    _check(place, place.stat().st_size)
    with safe_open(place, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)


def _matlab(place: Path) -> Arrays:
    from scipy.io import loadmat, whosmat

    sizes = [math.prod(shape) * 16 for _, shape, _ in whosmat(place)]
    _check(place, sum(sizes))
    found: Mapping[str, Any] = loadmat(place)
    return {name: _row(value) for name, value in found.items() if not name.startswith("__")}


def _row(value: NDArray[Any]) -> NDArray[Any]:
    """Return a row or column, which MATLAB has no arrays of one axis for, as one axis."""
    return value.ravel() if value.ndim == 2 and 1 in value.shape else value


def _hdf5(place: Path, *, matlab: bool) -> Arrays:
    try:
        import h5py
    except ImportError as error:
        raise FedloraError(
            f"{place} is HDF5, which needs h5py ({error}); pip install 'fedlora[hdf5]'"
        ) from None
    found: Arrays = {}
    with h5py.File(place, "r") as file:
        objects: dict[str, Any] = {}
        file.visititems(objects.__setitem__)
        plain = {
            name: own
            for name, own in objects.items()
            if isinstance(own, h5py.Dataset) and not name.startswith("#refs#")
        }
        _check(place, sum(own.nbytes for own in plain.values()))
        for name, own in plain.items():
            value = np.asarray(own[()])
            names = set(value.dtype.names or ())
            if names in _PARTS:
                real, imaginary = ("real", "imag") if "real" in names else ("r", "i")
                value = value[real] + 1j * value[imaginary]
            found[name] = _row(value.T) if matlab else value
    return found
