#!/bin/sh
# Install torch and torchvision, in the build that was asked for, without ever taking the CUDA
# build of several GB by accident.
#
#   tools/install_torch.sh PYTHON cpu|cuXYZ|pypi [REQUIREMENTS]
#
# cpu    PyTorch's CPU build: from pip's own sources if they have it, else from PyTorch's index
# cu128  (or cu126, ...) the CUDA build of that name from PyTorch's index
# pypi   what pip's own sources take for the plain name: on Linux the CUDA build
set -eu

python=$1
build=$2
requirements=${3:-requirements/torch.txt}
index=https://download.pytorch.org/whl

torch=$(sed -n 's/^torch==//p' "$requirements")
vision=$(sed -n 's/^torchvision==//p' "$requirements")

pip() { "$python" -m pip install --disable-pip-version-check "$@"; }
quietly() { pip --quiet "$@" >/dev/null 2>&1; }
from_index() { pip --index-url "$index/$build" --timeout 15 --retries 1 "$@"; }

installed=$("$python" -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null || true)
case "$build:$installed" in
  "cpu:$torch+cpu" | "pypi:$torch" | "$build:$torch+$build") ;;
  cpu:*)
    echo "Installing torch $torch, CPU build"
    # Plain versions are no match for ==X+cpu, so neither line can take a CUDA build.
    quietly --no-deps "torch==$torch+cpu" || from_index --no-deps "torch==$torch+cpu" || {
      echo "error: the CPU build of torch $torch is neither in pip's sources nor at $index/cpu;" \
        "give pip a folder that has it (PIP_FIND_LINKS=...), or take PyPI's build of several GB:" \
        "make setup TORCH=pypi" >&2
      exit 1
    }
    ;;
  pypi:*)
    echo "Installing torch $torch as pip's sources have it"
    pip "torch==$torch"
    ;;
  *)
    echo "Installing torch $torch, build $build"
    from_index "torch==$torch+$build" || {
      echo "error: $index/$build has no torch $torch; see TORCH in 'make help'." >&2
      exit 1
    }
    ;;
esac

# Without its own dependencies: it would pull a second torch. A torchvision of another build
# imports with the help of wristworld_ros/compat.py, which says why.
case "$build" in
  pypi) pip --quiet --no-deps "torchvision==$vision" ;;
  *)
    quietly --no-deps "torchvision==$vision+$build" ||
      from_index --quiet --no-deps "torchvision==$vision+$build" >/dev/null 2>&1 ||
      pip --quiet --no-deps "torchvision==$vision"
    ;;
esac
