#!/bin/sh
# Install tangram and plugins into an environment of their own: sh install.sh TARGET SOURCE [PLUGIN ...]
# The Dockerfile and an installation below systemd use it. Bytecode is compiled, because the target is read-only later.
set -eu
target=$1
shift
"${PYTHON:-python3}" -m venv "$target"
"$target/bin/pip" install --quiet --no-cache-dir --disable-pip-version-check "$@"
"$target/bin/python" -m compileall -q "$target/lib" || true
"$target/bin/pip" uninstall --quiet --yes --disable-pip-version-check pip
"$target/bin/tangram" --version
