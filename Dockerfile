# A serving image with one runtime, and no framework that it does not need:
#   docker build --build-arg RUNTIME=onnx-runtime --tag medserve-onnx .
#   docker run --rm --publish 127.0.0.1:8000:8000 --volume "$PWD/artifacts/cells:/artifacts/cells:ro" medserve-onnx /artifacts/cells
# Another port inside the container: docker run --env MEDSERVE_PORT=9000 ...
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
# By number, for Kubernetes' runAsNonRoot does not know names: nobody.
USER 65534:65534
# The server and the health check both read it, and the server refuses another --port.
ENV MEDSERVE_PORT=8000
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK CMD ["/medserve/bin/python", "-c", "import http.client, os, sys; asked = http.client.HTTPConnection('127.0.0.1', int(os.environ['MEDSERVE_PORT'])); asked.request('GET', '/v2/health/ready'); sys.exit(asked.getresponse().status != 200)"]
# The container's own network is the only one that can reach it until a port is published.
ENTRYPOINT ["/medserve/bin/python", "-m", "serve", "--host", "0.0.0.0"]
