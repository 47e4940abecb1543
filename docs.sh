#!/usr/bin/env bash
# Builds the documentation into site/ (open site/index.html); a broken link or formula is an error.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
scripts/setup.sh docs
export NO_MKDOCS_2_WARNING=1 # an advertisement on every build
exec .venv/bin/mkdocs build --strict "$@"
