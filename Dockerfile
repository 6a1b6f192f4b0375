# The image tunes and serves. Without a command it serves the checkpoint mounted on /app/model, on port 9010.
#
#     docker build --tag pareto-price-forecaster .
#     docker build --tag pareto-price-forecaster:gpu --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#
# The target `serve-slim` serves exported models (.onnx) alone, without torch and what else serving does not need:
#
#     docker build --tag pareto-price-forecaster:slim --target serve-slim .

# The version the tests run on. Every node of a Ray cluster must have the same version.
ARG PYTHON_VERSION=3.11


FROM python:${PYTHON_VERSION}-slim AS venv

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
# pip compiles the packages it installs, 0.4 of 2.1 GB. Otherwise each of Ray's processes would compile its imports at
# every start, because the image's user cannot write here.
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

WORKDIR /src
# Requirements come first, from their one definition, so that a code change does not reinstall them.
COPY pyproject.toml constraints.txt ./


FROM venv AS build

# The index for torch: PyPI's build brings several GB of CUDA. Leave it empty to use PyPI anyway. Of the version in
# constraints.txt, pip takes the index's build: 2.13.0+cpu counts as newer than 2.13.0.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > requirements.txt
RUN pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --constraint constraints.txt --requirement requirements.txt
COPY README.md LICENSE ./
COPY forecast forecast
COPY serve_app serve_app
COPY tune_jobs tune_jobs
RUN pip install --no-deps . && pip check


FROM venv AS build-slim

# The same list, without what `tool.serve-slim` leaves out.
RUN python -c "import re, tomllib; read = tomllib.load(open('pyproject.toml', 'rb')); out = read['tool']['serve-slim']['left-out']; print(*[line for line in read['project']['dependencies'] if re.split('[<>=]', line)[0] not in out], sep='\n')" > requirements.txt
# The check comes before the package, which asks for everything.
RUN pip install --constraint constraints.txt --requirement requirements.txt && pip check
COPY README.md LICENSE ./
COPY forecast forecast
COPY serve_app serve_app
COPY tune_jobs tune_jobs
RUN pip install --no-deps .


FROM python:${PYTHON_VERSION}-slim AS base

LABEL org.opencontainers.image.title="pareto-price-forecaster" \
      org.opencontainers.image.description="Tunes an LSTM price forecaster over three objectives on Ray, and serves it over HTTP" \
      org.opencontainers.image.licenses="Apache-2.0"

RUN useradd --uid 1000 --user-group --no-create-home --home-dir /tmp forecaster
WORKDIR /app
# Mounts over these directories bring their own owner.
RUN install --directory --owner=forecaster --group=forecaster /app/model /app/artifacts
# A new volume gets the mode of this directory: any user may write to it, as to the home directory below.
RUN install --directory --mode=1777 /app/models

# Any user may write to the home directory, whatever `--user` is. LOGNAME: some libraries ask for a user name, and users
# unknown to the image have none. The object store holds one array or none: Ray would give it 30 % of the memory, and
# put it on disk where /dev/shm is smaller than that.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    LOGNAME=forecaster \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES=1000000000 \
    FORECAST_CHECKPOINT=/app/model/best_pareto_lstm.pt
USER 1000:1000


FROM base AS runtime
COPY --from=build /opt/venv /opt/venv


# The study's web page, in a separate image: serving does not need it.
FROM runtime AS dashboard
USER 0:0
COPY constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt 'pareto-price-forecaster[dashboard]'
USER 1000:1000
EXPOSE 8080
CMD ["optuna-dashboard", "--host", "0.0.0.0", "--port", "8080", "sqlite:////app/artifacts/optuna_study.db"]


FROM base AS server
VOLUME /app/model
EXPOSE 9010
# Start-up takes 20 to 40 seconds, longer with few cores.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9010/healthz', timeout=4)"]
CMD ["python", "-m", "serve_app", "run", "--host", "0.0.0.0", "--port", "9010"]


FROM server AS serve-slim
COPY --from=build-slim /opt/venv /opt/venv
ENV FORECAST_CHECKPOINT=/app/model/best_pareto_lstm.onnx


# The last one is what `docker build` makes without a target.
FROM server AS serve
COPY --from=build /opt/venv /opt/venv
