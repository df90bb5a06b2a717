# hwprune in a container, with the kernels built for its processor; torch is the CPU's.
#
#   docker build -t hwprune .
#   docker run --rm -v "$PWD:/work" --user "$(id -u)" hwprune compile model.pt --target jetson-nano
#
# The gate alone (check, inspect, bench, report), without torch: docker build --build-arg EXTRA= .
FROM python:3.12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends cmake g++ make \
    && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /src

FROM python:3.12-slim
ARG EXTRA=[compile]
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
      "$(echo /wheels/hwprune-*.whl)${EXTRA}" && rm -r /wheels
# Caches of libraries go where any user may write.
ENV HOME=/tmp
WORKDIR /work
ENTRYPOINT ["hwprune"]
CMD ["--help"]
