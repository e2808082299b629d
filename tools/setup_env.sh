# Set up an environment with crate_mm; sourced by quickstart.sh and run_tests.sh.
#   . tools/setup_env.sh EXTRA     EXTRA: an extra of setup.py, such as "test", or ""
# Uses the active virtual or conda environment; if there is none, creates .venv in the clone. Later calls take a second.
if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  case "${1:-}" in -h | --help) sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "$0"; exit 0 ;; esac
fi
fail() { echo "error: $*" >&2; exit 2; }
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 2

if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
  if [ ! -x .venv/bin/python ]; then
    python=$(command -v python3 || command -v python) || fail "no python3 found: install Python 3.10 or newer"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
      fail "$("$python" --version) is too old: install Python 3.10 or newer"
    echo "Creating an environment in $root/.venv"
    "$python" -m venv .venv ||
      { rm -rf .venv; fail "python3 -m venv failed: on Debian and Ubuntu, run 'apt-get install python3-venv'"; }
  fi
  # shellcheck disable=SC1091
  . .venv/bin/activate
fi

version="$root:$(cksum <setup.py)"
stamps=$(python -c 'import sys; print(sys.prefix)')/.crate_mm-installed
stamp=$stamps${1:+-$1}
# The test extra contains every other extra that a script asks for.
if ! grep -qxF "$version" "$stamp" "$stamps-test" 2>/dev/null; then
  echo "Installing crate_mm and its dependencies; the first time takes some minutes, because PyTorch is large"
  python -m pip install -qq --disable-pip-version-check --editable ".${1:+[$1]}" ||
    fail "the installation failed, see above"
  echo "$version" >"$stamp"
fi
