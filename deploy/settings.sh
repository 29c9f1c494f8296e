#!/bin/sh
# Decides what the processes of this deployment work on, from which services of the compose file are up, and writes it
# where they read it (SMU0_SETTINGS). Runs to its end before any of them starts; a container that is merely restarted
# finds the decision that was made. The demo and the real market never share a ledger, nor keys.
set -eu
umask 077

runs_beside_us() { getent hosts "$1" >/dev/null 2>&1; }

if runs_beside_us mock-exchange.smu0.internal; then
  market=demo
  extra="SMU0_EXCHANGE_URL=http://mock-exchange.smu0.internal:8091"
  words="the mock exchange, ledger in SQLite"
elif runs_beside_us postgres.smu0.internal; then
  market=live
  extra="SMU0_DATABASE_URL=postgresql+psycopg://smu0:$(cat /run/smu0-database/password)@postgres.smu0.internal/smu0"
  words="the real exchange, ledger in PostgreSQL"
else
  market=live
  extra=""
  words="the real exchange, ledger in SQLite"
fi

mkdir -p "/var/lib/smu0/${market}"
printf 'SMU0_STATE=/var/lib/smu0/%s\n%s\n' "${market}" "${extra}" > "${SMU0_SETTINGS}.new"
mv "${SMU0_SETTINGS}.new" "${SMU0_SETTINGS}"
echo "smu0: this deployment trades on paper at ${words}"
