#!/usr/bin/env bash
# The one gate: lint, format, spelling, types, layers, tests. Everything runs, pytest last; exits non-zero if anything failed.
#
#   ./test.sh [pytest options...]     -m "not gpu" for slow tests too
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
scripts/setup.sh dev || exit 1
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS=1

failed=()
check() {
    echo "==> $*"
    "$@" || failed+=("$*")
}

check ruff check .
check ruff format --check .
check codespell
check mypy
check lint-imports
[ ${#failed[@]} -eq 0 ] || printf 'FAILED: %s\n' "${failed[@]}" >&2
check pytest --doctest-modules -n 2 --dist loadfile --durations=15 src tests "$@"

if [ ${#failed[@]} -gt 0 ]; then
    printf 'FAILED: %s\n' "${failed[@]}" >&2
    exit 1
fi
