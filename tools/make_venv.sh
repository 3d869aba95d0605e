#!/bin/sh
# Make a virtual environment, with the system packages that the build and the simulation need.
#
#   tools/make_venv.sh FOLDER [PYTHON]
#
# PYTHON: an interpreter; otherwise the first of python3.11, 3.12, 3.10 and python3 that is one of
# 3.10 to 3.12. Missing Debian and Ubuntu packages are installed when run as root; otherwise one
# sentence says which command to run. System packages are checked once, here.
set -eu

venv=$1
python=${2:-}

fail() {
  echo "error: $*" >&2
  exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

fits() { # whether $1 runs and is a Python that the pinned packages exist for
  "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1
}

find_python() {
  for candidate in python3.11 python3.12 python3.10 python3; do
    if fits "$candidate"; then
      echo "$candidate"
      return
    fi
  done
}

# Prints the Debian packages that are missing for interpreter $1 (empty: for the system's python3).
missing_packages() {
  have git || echo git
  have make || echo make
  have cc || echo gcc libc6-dev
  have c++ || echo g++
  if [ -z "$1" ]; then
    echo python3 python3-venv python3-dev
    return
  fi
  "$1" - <<'END'
import ctypes, glob, importlib.util, os, sys, sysconfig

version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
if not all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")):
    print(f"{version}-venv")
if not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
    print(f"{version}-dev")


def loads(*names):
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False


# MuJoCo renders without a screen, by EGL with Mesa's software driver.
if not loads("libOSMesa.so.8", "libOSMesa.so.6"):
    if not loads("libEGL.so.1"):
        print("libegl1")
    if not loads("libEGL_nvidia.so.0"):
        if not loads("libEGL_mesa.so.0"):
            print("libegl-mesa0")
        drivers = ("dri/swrast_dri.so", "libgallium*.so")
        if not any(glob.glob(f"/usr/lib*/{d}") + glob.glob(f"/usr/lib/*/{d}") for d in drivers):
            print("libgl1-mesa-dri")
END
}

if [ -n "$python" ]; then
  fits "$python" || fail "PYTHON=$python does not run or is not Python 3.10, 3.11 or 3.12."
else
  python=$(find_python)
fi
if [ -z "$python" ] && { [ "$(id -u)" != 0 ] || ! have apt-get || have python3; }; then
  fail "no Python 3.10, 3.11 or 3.12 found (python3 is $(python3 -V 2>&1 || echo missing));" \
    "install one, or name it: make PYTHON=/path/to/python3.11"
fi

missing=$(missing_packages "$python" | tr '\n' ' ' | sed 's/ $//')
if [ -n "$missing" ]; then
  command="apt-get install --no-install-recommends $missing"
  if [ "$(id -u)" = 0 ] && have apt-get; then
    echo "Installing system packages: $missing"
    apt-get update -qq
    # shellcheck disable=SC2086 # a list of names
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing >/dev/null
  elif have apt-get; then
    fail "system packages are missing; run: sudo $command"
  else
    fail "system packages are missing; install what Debian calls: $missing"
  fi
  if [ -z "$python" ]; then
    python=$(find_python)
    [ -n "$python" ] || fail "this system's python3 is $(python3 -V), need 3.10, 3.11 or 3.12;" \
      "install one, or name it: make PYTHON=/path/to/python3.11"
  fi
fi

echo "Making $venv with $("$python" -V)"
"$python" -m venv "$venv"
