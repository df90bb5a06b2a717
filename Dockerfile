# hwprune in a container, with the kernels built for its processor. For torch without CUDA, name the index
# of torch's CPU builds: --build-arg PIP_EXTRA_INDEX_URL=...
#
#   docker build -t hwprune .
#   docker run --rm -v "$PWD:/data" --user "$(id -u)" hwprune compile model.pt --target jetson-nano
#
# The gate alone (check, inspect, bench, report, targets, calibrate), without torch: docker build --build-arg EXTRA= .
FROM python:3.12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends cmake g++ make \
    && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /src

FROM python:3.12-slim
ARG EXTRA=[compile]
ARG PIP_EXTRA_INDEX_URL
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir "$(echo /wheels/hwprune-*.whl)${EXTRA}" && rm -r /wheels
# Caches of libraries go where any user may write.
ENV HOME=/tmp
WORKDIR /data
ENTRYPOINT ["hwprune"]
CMD ["--help"]
