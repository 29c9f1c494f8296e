#!/bin/sh
# Decides what the processes of this deployment work on, and writes it where they read it (SMU0_SETTINGS).
#
#   smu0-settings want demo|postgres    a profile of the compose file says that it is there
#   smu0-settings decide                takes what was wanted since the last decision, and decides
#
# `docker compose up` runs both to their end before any process starts. A container that is merely restarted finds the
# decision that was made, so an exchange or a database that is away for a while never changes which ledger is meant.
# The demo and the real market share no ledger and no keys.
set -eu
umask 077
state="$(dirname "${SMU0_SETTINGS}")"
wanted="${state}/wanted"

case "${1:-}" in
want)
  mkdir -p "${wanted}"
  touch "${wanted}/${2:?which}"
  ;;
decide)
  market=live
  extra=""
  words="the real exchange, ledger in SQLite"
  if [ -e "${wanted}/demo" ]; then
    market=demo
    extra="SMU0_EXCHANGE_URL=http://mock-exchange:8091"
    words="the mock exchange, ledger in SQLite"
  elif [ -e "${wanted}/postgres" ]; then
    password="$(cat "${SMU0_DATABASE_PASSWORD_FILE}")"
    extra="SMU0_DATABASE_URL=postgresql+psycopg://smu0:${password}@postgres/smu0"
    words="the real exchange, ledger in PostgreSQL"
  fi
  mkdir -p "${state}/${market}"
  printf 'SMU0_STATE=%s/%s\n%s\n' "${state}" "${market}" "${extra}" > "${SMU0_SETTINGS}.new"
  mv "${SMU0_SETTINGS}.new" "${SMU0_SETTINGS}"
  rm -rf "${wanted}"
  echo "smu0: paper trading at ${words}"
  ;;
*)
  echo "usage: smu0-settings want demo|postgres, or smu0-settings decide" >&2
  exit 2
  ;;
esac
