#!/bin/sh
# Makes the administrator's password at the first start, shows it once, and starts Grafana.
set -eu
password="${GF_SECURITY_ADMIN_PASSWORD__FILE}"
if [ ! -s "${password}" ]; then
  umask 077
  head -c 18 /dev/urandom | base64 | tr -d '\n' > "${password}"
  echo "Grafana: user admin, password $(cat "${password}") (shown this once)"
fi
exec /run.sh "$@"
