#!/bin/sh
# Starts a process of the image. The root file system may be read-only; /tmp must be writable.
set -eu

# Compiled kernels are for this processor family (see the Dockerfile). Say so, rather than die of an illegal instruction.
if [ "${NUMBA_CPU_NAME:-}" = x86-64-v3 ] && ! grep -qw avx2 /proc/cpuinfo; then
  echo "smu0: the kernels of this image need a processor with AVX2, this one has none." >&2
  echo "      Set NUMBA_CPU_NAME=generic: they are then compiled at the start, which takes some 20 seconds." >&2
  exit 1
fi

# numba opens its cache for writing even when it only reads, so the kernels move from the image to where that is
# allowed. With another NUMBA_CPU_NAME nothing in there fits, and what is compiled instead is kept beside it.
if [ ! -d "${NUMBA_CACHE_DIR}" ]; then
  cp -R /opt/smu0/kernels "${NUMBA_CACHE_DIR}.$$"
  mv -T "${NUMBA_CACHE_DIR}.$$" "${NUMBA_CACHE_DIR}"
fi

exec "$@"
