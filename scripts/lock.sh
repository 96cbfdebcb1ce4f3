#!/usr/bin/env bash
# Compile locks/py3*.txt: for each Python one file of constraints for Linux and macOS, with every extra of pyproject.toml.
# Versions that are in the files stay where they still fit; `scripts/lock.sh --upgrade` takes the newest of everything.
set -euo pipefail
cd "$(dirname "$0")/.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if ! uv=$(command -v uv); then
  "${PYTHON:-python3}" -m venv "$scratch/venv"
  "$scratch/venv/bin/pip" install -q uv
  uv=$scratch/venv/bin/uv
fi

for version in 3.11 3.12 3.13; do
  lock=locks/py${version/./}.txt
  # uv takes the platforms from a pyproject.toml alone; saelink itself is not built for that.
  project=$scratch/$version
  mkdir -p "$project/saelink"
  cp README.md LICENSE "$project/"
  cp saelink/_version.py "$project/saelink/"
  python="python_full_version >= '$version' and python_full_version < '3.$((${version#3.} + 1))'"
  {
    cat pyproject.toml
    printf '\n[tool.uv]\nenvironments = ["%s and sys_platform == '\''linux'\''", ' "$python"
    printf '"%s and sys_platform == '\''darwin'\''"]\n' "$python"
  } > "$project/pyproject.toml"
  if [ -f "$lock" ]; then cp "$lock" "$project/lock.txt"; fi
  "$uv" pip compile --project "$project" "$project/pyproject.toml" --all-extras --universal --python-version "$version" \
    -c locks/pins.in --no-emit-index-url --no-annotate --no-header --strip-extras --quiet -o "$project/lock.txt" "$@" \
    > /dev/null
  # A constraint on a package that nobody asks for does nothing: only two versions of one need to say where.
  {
    echo "# Python $version, Linux and macOS: pip install -c $lock -e '.[dev]'. Compiled by scripts/lock.sh."
    awk -F '==' 'NR == FNR { versions[$1]++; next } versions[$1] == 1 { sub(/ ;.*/, "") } { print }' \
      "$project/lock.txt" "$project/lock.txt"
  } > "$scratch/lock.txt"
  mv "$scratch/lock.txt" "$lock"
  echo "$lock"
done
