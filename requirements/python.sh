#!/bin/sh
# Prints the Python that .venv shall be made with: the one that is named ($1), else the first supported one on the PATH, else
# 3.11 as uv brings it. Where there is none, one message says what to install.
set -u
supported='import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
seen=
for name in ${1:-python3.11 python3.12 python3.13 python3}; do
    found=$(command -v "$name") || continue
    if "$found" -c "$supported" >/dev/null 2>&1 </dev/null; then
        echo "$found"
        exit 0
    fi
    # A shim of a version that is not there answers nothing.
    version=$("$found" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null </dev/null) && seen="$seen $name is $version;"
done

if [ -z "${1:-}" ]; then
    # --retries 0 and short time-outs: without a network this ends in seconds.
    export UV_HTTP_TIMEOUT=15 UV_HTTP_RETRIES=0
    if ! uv=$(command -v uv); then
        folder=$(mktemp -d)
        trap 'rm -rf "$folder"' EXIT
        awk '/^[^ #]/ {is = /^uv==/} is' "$(dirname "$0")/cpu.lock" >"$folder/uv.txt"
        python3 -m venv "$folder" >/dev/null 2>&1 </dev/null &&
            "$folder/bin/python" -m pip install --quiet --retries 0 --timeout 15 --no-deps --require-hashes -r "$folder/uv.txt" >/dev/null 2>&1 </dev/null
        uv=$folder/bin/uv
    fi
    if "$uv" python install 3.11 >/dev/null 2>&1 </dev/null && found=$("$uv" python find --managed-python 3.11 2>/dev/null </dev/null); then
        echo "$found"
        exit 0
    fi
    tried=" uv could not bring one;"
fi

cat >&2 <<MESSAGE
cft-ray needs Python 3.11, 3.12 or 3.13 with its venv module.$seen${tried:-}
  fix: install one (Debian and Ubuntu: apt install python3.11 python3.11-venv; anywhere, with uv: uv python install 3.11),
       or name one: make PYTHON=/path/to/python3.11
MESSAGE
exit 1
