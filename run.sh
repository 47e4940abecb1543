#!/usr/bin/env bash
# Installs mcdi into .venv and runs a recipe; results go to runs/<recipe>.
#
#   ./run.sh                          a demo of a minute, then the default recipe, glyphs: no downloads, no GPU
#   ./run.sh <recipe> [options...]    a recipe's name or a TOML file; options are those of `mcdi run`
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
recipe=glyphs
first=$([ $# -eq 0 ] && echo demo || true)
if [ $# -gt 0 ] && [[ $1 != -* ]]; then
    recipe=$1
    shift
fi
# Recipes named text-..., glue-... or ...-lora generate adapters of language models.
"$root/scripts/setup.sh" "$([[ $(basename "$recipe" .toml) =~ ^(text|glue)-|-lora$ ]] && echo lora)"
if [ -n "$first" ]; then
    mkdir -p "$root/runs"
    "$root/.venv/bin/mcdi" demo symbols --out "$root/runs/symbols.png"
    echo "Now the main job, the recipe glyphs: nine minutes on two slow cores. Stop it whenever you like; ./run.sh resumes."
fi
exec "$root/.venv/bin/mcdi" run "$recipe" --out "$root/runs/$(basename "$recipe" .toml)" "$@"
