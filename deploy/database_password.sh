#!/bin/sh
# The database's password is made once, here, and is shown to nobody: it stays in its volume.
set -eu
umask 077
file="${SMU0_DATABASE_PASSWORD_FILE}"
if [ ! -s "${file}" ]; then
  python -c "import secrets; print(secrets.token_hex(24))" > "${file}.new"
  mv "${file}.new" "${file}"
fi
