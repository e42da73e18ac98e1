# A serving image with one runtime, and no framework that it does not need:
#   docker build --build-arg RUNTIME=onnx-runtime --tag medserve-onnx .
#   docker run --rm --publish 127.0.0.1:8000:8000 --volume "$PWD/artifacts/cells:/artifacts/cells:ro" medserve-onnx /artifacts/cells
FROM python:3.11-slim AS build
ARG RUNTIME=onnx-runtime
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY medserve medserve
COPY serve serve
COPY train train
COPY export export
COPY loadtest loadtest
RUN python -m venv /medserve && /medserve/bin/pip install --no-cache-dir --constraint constraints.txt ".[$RUNTIME]"

FROM python:3.11-slim
# OpenMP, for the runtimes that bring none of their own.
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
COPY --from=build /medserve /medserve
USER nobody
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK CMD ["/medserve/bin/python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/v2/health/ready')"]
# The container's own network is the only one that can reach it until a port is published.
ENTRYPOINT ["/medserve/bin/python", "-m", "serve", "--host", "0.0.0.0", "--port", "8000"]
