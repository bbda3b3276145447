# altlas-backup with the servers' own programs: pg_dump and psql to back up and restore, and the servers that a verification
# starts and throws away.
#
#   docker build -t altlas-backup:0.1.0 .
#   docker build -t altlas-backup:0.1.0 --build-arg POSTGRES_MAJORS="14 16" .
#
# POSTGRES_MAJORS: the major versions of the PostgreSQL servers to back up. Each needs the programs of its own major version.
# 15 alone comes from Debian; anything else from PostgreSQL's own package archive (apt.postgresql.org).
#
# Redis is Debian's 7.0 and NATS Debian's 2.9. A backup of a newer server is verified by a server that is as new: put its program
# where it is found first.
#
#   FROM altlas-backup:0.1.0
#   COPY --from=nats:2.12 /nats-server /usr/local/bin/nats-server
#   COPY --from=redis:8.2-bookworm /usr/local/bin/redis-server /usr/local/bin/redis-server
#
# The base images are pinned by tag, and a tag can be moved. For production give them with the digests that your registry tells:
# --build-arg RUST_IMAGE=rust:1.95.0-bookworm@sha256:… --build-arg DEBIAN_IMAGE=debian:12.12-slim@sha256:…
ARG RUST_IMAGE=rust:1.95.0-bookworm
ARG DEBIAN_IMAGE=debian:12.12-slim

# hadolint ignore=DL3006
FROM ${RUST_IMAGE} AS build
WORKDIR /build
COPY .cargo .cargo
COPY Cargo.toml Cargo.lock ./
COPY src src
RUN cargo build --release --locked --bin altlas-backup

# hadolint ignore=DL3006
FROM ${DEBIAN_IMAGE}
ARG POSTGRES_MAJORS=15
# Versions of packages are the distribution's newest, for their security fixes; so DL3008. The two files keep packages from
# making a database cluster and from starting services. What was installed must run, else there is no image.
# hadolint ignore=DL3008
RUN set -eu; export DEBIAN_FRONTEND=noninteractive; \
    mkdir -p /etc/postgresql-common/createcluster.d; \
    echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.d/altlas-backup.conf; \
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; \
    chmod 755 /usr/sbin/policy-rc.d; \
    apt-get update; \
    apt-get install -y --no-install-recommends \
        age ca-certificates nats-server postgresql-common redis-server tzdata util-linux zstd; \
    if [ "$POSTGRES_MAJORS" != 15 ]; then /usr/share/postgresql-common/pgdg/apt.postgresql.org.sh -y; fi; \
    for major in $POSTGRES_MAJORS; do \
        apt-get install -y --no-install-recommends "postgresql-$major" "postgresql-client-$major"; \
    done; \
    rm -rf /var/lib/apt/lists/* /usr/sbin/policy-rc.d; \
    for major in $POSTGRES_MAJORS; do \
        for program in initdb postgres pg_dump pg_dumpall psql; do "/usr/lib/postgresql/$major/bin/$program" --version; done; \
    done; \
    redis-server --version; nats-server --version; setpriv --version; age --version; zstd --version

# With a name in /etc/passwd: initdb refuses to run as a user that has none.
RUN groupadd --gid 10001 altlas && \
    useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin altlas
COPY --from=build /build/target/release/altlas-backup /usr/local/bin/altlas-backup
ENV LC_ALL=C.UTF-8 TZ=UTC
WORKDIR /
USER 10001:10001
ENTRYPOINT ["altlas-backup"]
