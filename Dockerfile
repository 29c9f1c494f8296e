# One image for every process: the API, the paper trader, training, and the mock exchange of the demo.
#
#   docker build -t smu0:local .
#
# Where PyPI is reached through a mirror or a proxy that signs TLS anew, and torch comes from elsewhere:
#
#   docker build -t smu0:local --network host \
#     --build-arg PIP_INDEX_URL=https://mirror.example/simple --build-arg TORCH_INDEX=https://mirror.example/torch-cpu \
#     --secret id=ca,src=/path/to/ca.pem --build-context wheels=/path/to/wheels .
#
# The secret "ca" and the context "wheels" are optional. A torch wheel found in "wheels" is taken instead of TORCH_INDEX.
# Pin the base to one content with --build-arg BASE_IMAGE=python:3.11-slim-bookworm@sha256:...
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM scratch AS wheels

# --- what is installed, and the kernels compiled ----------------------------------------------------------------------
# Compiled kernels are kept for a named processor, not for the one that builds: an image that is built here must not
# compile again elsewhere. x86-64-v3 is every Intel since Haswell (2013) and every AMD since Zen; `generic` on ARM has
# NEON. NUMBA_CPU_FEATURES is empty so that nothing of the building processor is added.
FROM ${BASE_IMAGE} AS base-amd64
ENV NUMBA_CPU_NAME=x86-64-v3
FROM ${BASE_IMAGE} AS base-arm64
ENV NUMBA_CPU_NAME=generic

FROM base-${TARGETARCH} AS build
ARG PIP_INDEX_URL=
# Where torch is taken from; empty: from where everything else is. PyPI's torch for x86-64 brings several GB of CUDA that
# nothing here uses: give PyTorch's index of CPU wheels for an image of a third of the size (docs/operations.md).
ARG TORCH_INDEX=
# Not empty: the image can be a node of a Ray cluster too (deploy/ray).
ARG WITH_RAY=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PYTHON=/opt/venv/bin/python PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python3 -m venv --without-pip /opt/venv
COPY requirements.lock requirements-ray.lock ./
RUN --mount=type=secret,id=ca,required=false --mount=type=bind,from=wheels,target=/wheels \
    set -eu; \
    if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi; \
    if [ -z "${PIP_INDEX_URL}" ]; then unset PIP_INDEX_URL; fi; \
    torch="$(grep '^torch==' requirements.lock)"; \
    if ls "/wheels/torch-${torch#torch==}"[+-]*.whl >/dev/null 2>&1; \
    then python3 -m pip install --no-deps --no-index --find-links /wheels "${torch}"; \
    elif [ -n "${TORCH_INDEX}" ]; then python3 -m pip install --no-deps --index-url "${TORCH_INDEX}" "${torch}"; fi; \
    python3 -m pip install -r requirements.lock; \
    if [ -n "${WITH_RAY}" ]; then python3 -m pip install -r requirements-ray.lock; fi
# What no process here ever opens: test suites, headers, and parts of libraries this project does not use. The imports
# below fail the build if one of them is missed.
RUN set -eu; cd /opt/venv/lib/python3.*/site-packages; \
    find . -type d \( -name tests -o -name test \) -not -path './torch/testing/*' -prune -exec rm -rf {} +; \
    rm -rf torch/include torch/share pyarrow/include numpy/_core/include plotly/labextension; \
    find torch/bin -type f ! -name torch_shm_manager -delete; \
    rm -rf pyarrow/*flight* pyarrow/*s3* ccxt/pro ccxt/async_support; \
    /opt/venv/bin/python -c "import ccxt, pandas, pyarrow.dataset, pyarrow.parquet, scipy.stats, arch, ta, plotly.graph_objects, torch.utils.tensorboard, numba, gymnasium, uvicorn, fastapi"

COPY pyproject.toml README.md LICENSE ./
COPY data ./data
COPY market_env ./market_env
COPY agent ./agent
COPY configs ./configs
COPY backtest ./backtest
COPY service ./service
RUN python3 -m pip install --no-deps --no-index --no-build-isolation . && rm -rf build *.egg-info

COPY models /opt/smu0/models
COPY deploy/compile_kernels.py /src/deploy/compile_kernels.py
# Kernels are compiled once, here. The directory is copied to where it may be written when a container starts.
RUN cd /opt/smu0 \
    && NUMBA_CPU_FEATURES= NUMBA_CACHE_DIR=/opt/smu0/kernels PYTHONSAFEPATH=1 \
       /opt/venv/bin/python /src/deploy/compile_kernels.py models \
    && chmod -R a+rX /opt/smu0

# --- what runs --------------------------------------------------------------------------------------------------------
FROM base-${TARGETARCH} AS runtime
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="smu0" \
      org.opencontainers.image.description="Stochastic MuZero for trading: decisions over REST, paper trading, dashboard" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
# A new named volume takes over the owner of the directory it is mounted on.
RUN groupadd --gid 10001 smu0 \
    && useradd --uid 10001 --gid smu0 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin smu0 \
    && install -d -o smu0 -g smu0 -m 0750 /var/lib/smu0 /var/lib/smu0-database /run/smu0-database
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/smu0 /opt/smu0
COPY configs/*.yaml /opt/smu0/configs/
COPY --chmod=0755 deploy/entrypoint.sh /usr/local/bin/smu0-entrypoint
COPY --chmod=0755 deploy/settings.sh /usr/local/bin/smu0-settings
COPY --chmod=0755 deploy/database_password.sh /usr/local/bin/smu0-database-password
# PYTHONSAFEPATH: with packages named data and agent, the working directory must never be a place to import from.
# One thread for linear algebra: a decision is too small for several, and the other cores have requests to read.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    OMP_NUM_THREADS=1 \
    NUMBA_CACHE_DIR=/tmp/kernels NUMBA_CPU_FEATURES= \
    HOME=/tmp \
    SMU0_STATE=/var/lib/smu0 SMU0_RUNS=/var/lib/smu0/var/runs SMU0_BARS=/var/lib/smu0/var/bars SMU0_MODELS=/opt/smu0/models
WORKDIR /opt/smu0
USER 10001:10001
EXPOSE 8000
ENTRYPOINT ["smu0-entrypoint"]
CMD ["python", "-m", "service", "serve"]
