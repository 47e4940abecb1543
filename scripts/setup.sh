#!/usr/bin/env bash
# Makes .venv in the repository root and installs mcdi into it, editable.
#
#   scripts/setup.sh          what running mcdi needs
#   scripts/setup.sh dev      also what ./test.sh needs
#
# Safe to call again: it returns at once when pyproject.toml, this file and the extras are those of an earlier call.
# Another torch than the one chosen here: install it into .venv first (torch>=2.6,<3), and it is kept.
# Another Python: PYTHON=/path/to/python scripts/setup.sh
set -euo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

torch="torch==2.13.0"
cpu_index="https://download.pytorch.org/whl/cpu"
extras=$(IFS=,; echo "$*")
py=.venv/bin/python
stamps=.venv/.mcdi-setup
key=$( (pwd; cat pyproject.toml scripts/setup.sh) | cksum | tr ' ' '-')

say() { echo "setup: $*" >&2; }
is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.14 python; do
        if is_new_enough "$candidate"; then echo "$candidate"; return; fi
    done
    say "error: no Python 3.11 or newer found. Install one, or name it: PYTHON=/path/to/python scripts/setup.sh"
    return 1
}

make_venv() {
    if [ -e "$stamps/root" ] && [ "$(cat "$stamps/root")" != "$PWD" ]; then
        say ".venv was made in another folder and contains its paths: making it again"
        rm -rf .venv
    fi
    if ! "$py" -m pip --version >/dev/null 2>&1; then
        local python
        python=$(find_python)
        say "making .venv with $("$python" --version)"
        "$python" -m venv .venv
    elif ! is_new_enough "$py"; then
        say "error: .venv has $("$py" --version), mcdi needs 3.11 or newer. Remove .venv and call again."
        return 1
    fi
}

pip() { "$py" -m pip --disable-pip-version-check "$@"; }

# The default torch of Linux brings gigabytes of CUDA libraries, so machines without a GPU take the CPU build.
# Its index provides only torch (--no-deps); what torch depends on comes with mcdi, from the default index.
install_torch() {
    if "$py" -c 'import torch' 2>/dev/null; then
        say "keeping the installed torch"
    elif nvidia-smi >/dev/null 2>&1; then
        say "NVIDIA GPU found: installing $torch with CUDA"
        pip install "$torch"
    elif [ "$(uname -s)" != Linux ]; then
        say "installing $torch"
        pip install "$torch"
    else
        say "no NVIDIA GPU: installing the CPU build of $torch"
        if ! pip --retries 0 --timeout 15 install --no-deps --index-url "$cpu_index" "$torch"; then
            say "no CPU build from $cpu_index; installing $torch from the default index"
            pip install "$torch"
        fi
    fi
}

# Without extras, any finished call is enough.
if [ -e "$stamps/$key/${extras:-base}" ] || { [ -z "$extras" ] && [ -n "$(ls "$stamps/$key" 2>/dev/null)" ]; }; then
    exit 0
fi

make_venv
mkdir -p "$stamps"
pwd > "$stamps/root"
find "$stamps" -mindepth 1 -maxdepth 1 -type d ! -name "$key" -exec rm -rf {} +
install_torch
say "installing mcdi${extras:+ with extras: $extras}"
pip install --quiet --editable ".${extras:+[$extras]}"
"$py" -c 'import torch; print("setup: torch", torch.__version__, "with CUDA" if torch.cuda.is_available() else "on CPU")' >&2
mkdir -p "$stamps/$key"
touch "$stamps/$key/${extras:-base}"
