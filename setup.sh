#!/bin/sh
# Make .venv from requirements.lock, with uv (with pip where uv cannot be had), and keep it true to the lock.
# Every target of the Makefile calls this first; with nothing to do it ends at once. PYTHON chooses the Python to begin
# with: any from 3.9 on. The lock needs Python 3.11, which uv finds or fetches.
set -u
cd "$(dirname "$0")" || exit

made_from="$(pwd -P) $(cat requirements.lock setup.sh dipp_core/repair.py | cksum)"
is_ready() { [ "$(cat .venv/.ready 2>/dev/null)" = "$made_from" ] && [ -x .venv/bin/python ]; }
is_ready && exit

say() { echo "setup: $*"; }
fail() { echo "setup: $*" >&2; exit 1; }
disk_full="the disk is full: free at least 3 GB (8 GB with a CUDA build of torch), then run the same command again"
no_network="no network: the package index cannot be reached; connect (or set PIP_INDEX_URL to a mirror), then run the \
same command again"
no_python="no Python 3.11 here, and none could be fetched: install one, then \
\`make PYTHON=/path/to/python3.11 ..\` (or use conda: environment.yml)"
offline="dns error|error sending request|connect error|timed out|name resolution|NewConnectionError|\
Network is unreachable|Connection refused|ProxyError|ConnectTimeout"

megabytes_free() { df -Pk . | awk 'NR == 2 { print int($4 / 1000) }'; }

exec 3>&1
try() {  # run a command and show its output, but for uv's list of every package; a failure of a known kind ends here
    output=$({ "$@" 2>&1 && echo succeeded; } | while IFS= read -r line; do
        printf '%s\n' "$line"
        case $line in succeeded | " + "* | " - "*) ;; *) printf '  %s\n' "$line" >&3 ;; esac
    done)
    case $output in
        *succeeded) return 0 ;;
        *"No space left"* | *"os error 28"* | *"Errno 28"*) fail "$disk_full" ;;
    esac
    [ "$(megabytes_free)" -ge 50 ] || fail "$disk_full"
    if echo "$output" | grep -Eiq "$offline"; then fail "$no_network"; fi
    return 1
}
must() { try "$@" || fail "this command failed, its output is above: $*"; }

# one set-up at a time
exec 9>.venv.lock
if command -v flock >/dev/null && ! flock -n 9; then
    say "another set-up of this checkout is running; waiting for it"
    flock 9
    is_ready && exit
fi

# a set-up that was killed left no .ready; what others made stays
if [ -e .venv/.ready ]; then
    say "the environment is out of date"
elif [ -e .venv/.unfinished ]; then
    say "an interrupted set-up was found; starting over"
elif [ -n "$(ls -A .venv 2>/dev/null)" ]; then
    fail ".venv exists and was not made by this set-up; move it away or delete it, then run the same command again"
fi
rm -rf .venv.old
[ ! -e .venv ] || mv .venv .venv.old  # in one step: a killed removal must not leave half an environment behind
rm -rf .venv .venv.old

case $PWD in *:*) fail "the path of this checkout has a colon, which no PATH can hold: move it" ;; esac
free=$(megabytes_free)
[ "$free" -ge 3000 ] || fail "too little disk: $free MB free here, 3 GB needed (8 GB with a CUDA build of torch)"

# another environment must not leak in; pip's settings count for uv, too
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV
[ -z "${PIP_FIND_LINKS:-}" ] || export UV_FIND_LINKS="${UV_FIND_LINKS:-$PIP_FIND_LINKS}"
[ -z "${PIP_INDEX_URL:-}" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}"
[ -z "${PIP_EXTRA_INDEX_URL:-}" ] || export UV_INDEX="${UV_INDEX:-$PIP_EXTRA_INDEX_URL}"
[ -z "${PIP_CERT:-}" ] || export SSL_CERT_FILE="${SSL_CERT_FILE:-$PIP_CERT}"
export UV_INDEX_STRATEGY="${UV_INDEX_STRATEGY:-unsafe-best-match}"  # as pip does: the best version of all indexes

say "making .venv (1 to 2 minutes, and the download)"
mkdir .venv && : >.venv/.unfinished || fail "nothing can be written here"
python=${PYTHON:-python3}
is() { "$python" -c "import sys, venv, ensurepip; sys.exit(not $1)" 2>/dev/null; }
if uv --version >/dev/null 2>&1; then
    uv=uv
else
    is "sys.version_info >= (3, 9)" || fail "$python cannot begin: Python 3.9 or newer with its venv module is needed \
(Debian, Ubuntu: \`sudo apt install python3-venv\`), or \`make PYTHON=/path/to/python3.11 ..\`"
    must "$python" -m venv .venv/bootstrap
    uv=.venv/bootstrap/bin/uv
    try .venv/bootstrap/bin/python -m pip install -q --retries 2 --timeout 20 "uv>=0.5" || uv=
fi
is "(3, 11) <= sys.version_info < (3, 12)" || python=
if [ -n "$uv" ]; then
    "$uv" venv --quiet --allow-existing --python "${python:->=3.11,<3.12}" .venv || fail "$no_python"
    must "$uv" pip install --python .venv/bin/python -r requirements.lock
    must "$uv" pip check --python .venv/bin/python --quiet
else
    say "uv cannot be had here; pip does the same, more slowly"
    "${python:=python3.11}" -m venv .venv && is "sys.version_info >= (3, 11)" || fail "$no_python"
    must .venv/bin/python -m pip install -q -r requirements.lock
    must .venv/bin/python -m pip check
fi
must .venv/bin/python dipp_core/repair.py
# the package itself, from any folder; `pip install -e` fails where the path of the checkout has a $
for site in .venv/lib/python3.*/site-packages; do echo ../../../.. >"$site/dipp_core.pth"; done
echo "$made_from" >.venv/.new && mv .venv/.new .venv/.ready && rm .venv/.unfinished && say "ready"
