#!/bin/sh
# The database's password is made once, here, and is known to nobody: it stays in its volume.
set -eu
umask 077
[ -s /run/smu0-database/password ] || python -c "import secrets; print(secrets.token_hex(24))" > /run/smu0-database/password
