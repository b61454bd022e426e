# Builds Runcast and packs the one binary into a small image.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin runcast

FROM debian:bookworm-slim
# Roots for the TLS of providers, brokers and databases; curl for the health check.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates curl \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --home-dir /var/lib/runcast --create-home runcast
COPY --from=build /src/target/release/runcast /usr/local/bin/runcast
USER runcast
WORKDIR /var/lib/runcast
ENV RUNCAST_LISTEN=0.0.0.0:7070
EXPOSE 7070
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD curl -fsS http://127.0.0.1:7070/health
# The node drains on SIGTERM; give it longer than worker.drain_grace.
STOPSIGNAL SIGTERM
ENTRYPOINT ["runcast"]
CMD ["serve"]
