# `scripts/bench postgres…`: backup and restore of PostgreSQL beside pg_dump and pg_restore, in turn, in one run. Sourced by scripts/bench.
#
# Three databases: *balanced*, eight tables alike; *dominant*, one table with four indexes and a key that holds nine tenths; *toast*, one table
# whose bytes are nearly all in long values. Ours goes into MinIO, theirs into a local file or folder.

# fill_database KIND MB
fill_database() {
    local table tables=8 each=$(($2 * 1000000 / 8))
    psql_on "$source_port" postgres -c "SET client_min_messages = warning" -c "DROP DATABASE IF EXISTS altlas" \
        -c "CREATE DATABASE altlas TEMPLATE template0 ENCODING 'UTF8'"
    [[ "$1" == balanced ]] || tables=2 each=$(($2 * 1000000 / 20))
    psql_on "$source_port" altlas -c "CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL)" \
        -c "INSERT INTO customers SELECT g, md5(g::text) FROM generate_series(1, 10000) g"
    # About 210 bytes a row.
    local columns="g AS id, 1 + g % 10000 AS customer, timestamptz '2026-01-01' + g * interval '1 second' AS at,
        (g % 100000 / 100.0)::numeric(12,2) AS amount, (ARRAY['new','paid','sent','done'])[1 + g % 4] AS status,
        md5(g::text) || md5((g + 1)::text) AS token, repeat('note ', (g % 12)::int) || g AS note, random() AS score"
    for ((table = 1; table <= tables; table++)); do
        psql_on "$source_port" altlas -c "CREATE TABLE orders_$table AS SELECT $columns FROM generate_series(1, $each / 210) g" \
            -c "ALTER TABLE orders_$table ADD PRIMARY KEY (id), ALTER customer SET NOT NULL" -c "CREATE INDEX ON orders_$table (at)" \
            -c "ALTER TABLE orders_$table ADD FOREIGN KEY (customer) REFERENCES customers"
    done
    case "$1" in
        dominant)
            psql_on "$source_port" altlas -c "CREATE TABLE events AS SELECT $columns FROM generate_series(1, $2 * 900000 / 210) g" \
                -c "ALTER TABLE events ADD PRIMARY KEY (id)" -c "CREATE INDEX ON events (at)" -c "CREATE INDEX ON events (customer, at)" \
                -c "CREATE INDEX ON events (token)" -c "CREATE INDEX ON events (status, amount)" ;;
        toast)
            psql_on "$source_port" altlas -c "CREATE TABLE documents (id bigint PRIMARY KEY, title text, body text)" \
                -c "INSERT INTO documents SELECT d, 'document ' || d, (SELECT string_agg(md5((d * 1000 + n)::text), '') FROM generate_series(1, 1250) n)
                    FROM generate_series(1, $2 * 900000 / 40000) d" ;;
    esac
    psql_on "$source_port" altlas -c "VACUUM ANALYZE" -c "CHECKPOINT"
}

start_minio() {
    local program=$tools/bin/minio attempt
    [[ -x "$program" ]] || die "no $program: scripts/tools --minio builds it"
    mkdir -p "$folder/minio/data/bench"
    for attempt in 1 2 3 4 5; do
        minio_port=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))
        MINIO_ROOT_USER=bench MINIO_ROOT_PASSWORD=$password HOME=$folder/minio MINIO_UPDATE=off MINIO_BROWSER=off MINIO_CALLHOME_ENABLE=off \
            setsid setpriv --pdeathsig KILL -- "$program" server --quiet --address "127.0.0.1:$minio_port" \
            --console-address "127.0.0.1:$((minio_port + 1))" --config-dir "$folder/minio/config" "$folder/minio/data" >"$folder/minio/log" 2>&1 &
        minio_pid=$!
        for _ in $(seq 100); do
            kill -0 "$minio_pid" 2>/dev/null || break
            if curl -fsS "http://127.0.0.1:$minio_port/minio/health/ready" >/dev/null 2>&1; then return; fi
            sleep 0.1
        done
    done
    tail "$folder/minio/log" >&2
    die "MinIO does not start (attempt $attempt)"
}

# seconds_of PID: CPU seconds of a process and of its children that have ended.
seconds_of() { awk -v hz="$(getconf CLK_TCK)" '{ sub(/.*\) /, ""); printf "%.1f", ($12 + $13 + $14 + $15) / hz }' "/proc/$1/stat"; }
postmaster() { head -n 1 "$folder/$1/data/postmaster.pid"; }

# ours NAME [LINE...]: a configuration with a repository of its own in MinIO, and lines for the source.
ours() {
    local name=$1
    shift
    cat >"$folder/$name.toml" <<CONFIG
[repository]
url = "s3://bench/$name"
[repository.s3]
endpoint = "http://127.0.0.1:$minio_port"
region = "us-east-1"
path_style = true
[[source]]
name = "database"
kind = "postgres"
url = "postgres://postgres@127.0.0.1:$source_port/postgres"
databases = ["altlas"]
password_file = "$folder/password"
$(printf '%s\n' "$@")
CONFIG
    altlas-backup --quiet --config "$folder/$name.toml" init >/dev/null
}

# one_backup WHAT NAME: leaves $wall, $cpu, $peak, $server and $stored.
one_backup() {
    local before pid
    pid=$(postmaster source)
    before=$(seconds_of "$pid")
    local url="host=127.0.0.1 port=$source_port user=postgres dbname=altlas"
    case "$1" in
        ours) measured altlas-backup --quiet --config "$folder/$2.toml" backup ;;
        "pg_dump -Fc -Z0 | zstd -3 -T0")
            measured env PGPASSWORD="$password" bash -o pipefail -c "pg_dump -Fc -Z0 '$url' | zstd -3 -T0 -q -o '$folder/$2'" ;;
        "pg_dump -Fd -j2") measured env PGPASSWORD="$password" pg_dump -Fd -j2 -f "$folder/$2" "$url" ;;
        "pg_dump -Fc") measured env PGPASSWORD="$password" pg_dump -Fc -f "$folder/$2" "$url" ;;
    esac
    server=$(awk "BEGIN { printf \"%.1f\", $(seconds_of "$pid") - $before }")
    if [[ "$1" == ours ]]; then stored=$(du -sb "$folder/minio/data/bench/$2" | cut -f1); else stored=$(du -sb "$folder/$2" | cut -f1); fi
}

# one_restore WHAT NAME
one_restore() {
    local before pid
    pid=$(postmaster target)
    before=$(seconds_of "$pid")
    case "$1" in
        ours)
            ALTLAS_BACKUP_TARGET_DATABASE_PASSWORD=$password measured altlas-backup --quiet --config "$folder/$2.toml" restore latest --yes \
                --target "database=postgres://postgres@127.0.0.1:$target_port/postgres" ;;
        "pg_restore -j2")
            psql_on "$target_port" postgres -c "CREATE DATABASE altlas TEMPLATE template0 ENCODING 'UTF8'"
            measured env PGPASSWORD="$password" pg_restore -j2 -d "host=127.0.0.1 port=$target_port user=postgres dbname=altlas" "$folder/$2" ;;
    esac
    server=$(awk "BEGIN { printf \"%.1f\", $(seconds_of "$pid") - $before }")
    psql_on "$target_port" postgres -c "DROP DATABASE altlas" -c "CHECKPOINT"
}

# told ROUND KIND WHAT, and medians at the end.
told() {
    printf '%6s %9s %-30s %8s %8s %9s %9s %12s\n' "$1" "$2" "$3" "$wall" "$cpu" "$server" "$peak" "${stored:--}"
    walls[$2.$3]+=" $wall"
}

postgres() {
    local size=${1:-1000} rounds=${2:-3} kinds=${3:-balanced,dominant,toast} round kind what name server stored=''
    local -A walls=()
    local backups=(ours "pg_dump -Fc -Z0 | zstd -3 -T0" "pg_dump -Fd -j2" "pg_dump -Fc")
    export AWS_ACCESS_KEY_ID=bench AWS_SECRET_ACCESS_KEY=$password
    start_minio
    start target
    printf '%6s %9s %-30s %8s %8s %9s %9s %12s\n' round database what wall/s cpu/s server/s peak/MiB stored/B
    for kind in ${kinds//,/ }; do
        fill_database "$kind" "$size"
        ours warm
        one_backup ours warm
        for ((round = 1; round <= rounds; round++)); do
            for what in "${backups[@]}"; do
                name=$kind-$round-${what//[^a-zA-Z0-9]/}
                [[ "$what" != ours ]] || ours "$name"
                one_backup "$what" "$name"
                told "$round" "$kind" "$what"
            done
            stored=''
            one_restore ours "$kind-$round-ours"
            told "$round" "$kind" restore
            one_restore "pg_restore -j2" "$kind-$round-pgdumpFdj2"
            told "$round" "$kind" "pg_restore -j2"
            rm -rf "${folder:?}/$kind-$round"-* "$folder/minio/data/bench/$kind-$round"-*
        done
        rm -rf "${folder:?}"/warm* "$folder/minio/data/bench/warm"
    done
    printf '\n%9s %-30s %9s %12s\n' database what median/s ours/theirs
    for kind in ${kinds//,/ }; do
        # shellcheck disable=SC2086
        for what in "${backups[@]}" restore "pg_restore -j2"; do
            local ours=ours
            [[ "$what" != *restore* ]] || ours=restore
            printf '%9s %-30s %9s %12s\n' "$kind" "$what" "$(median ${walls[$kind.$what]})" \
                "$(ratio "$(median ${walls[$kind.$ours]})" "$(median ${walls[$kind.$what]})")"
        done
    done
}

# A local repository is enough here: what is stored does not depend on where.
postgres-nights() {
    local size=${1:-1000} night first='' report
    fill_database dominant "$size"
    write_config nights
    sed -i '/^kind = /a workers = 8' "$folder/nights.toml"
    altlas-backup --quiet --config "$folder/nights.toml" init >/dev/null
    night() {
        psql_on "$source_port" altlas "${@:2}"
        report=$(altlas-backup --quiet --json --config "$folder/nights.toml" backup | jq -r '[.sources[0] | .uploaded, .new_parts, .parts] + [.seconds] | @tsv')
        read -r stored new parts seconds <<<"$report"
        first=${first:-$stored} first_seconds=${first_seconds:-$seconds}
        printf '%-45s %9.1f %8s %8s %12s %9s %9s\n' "$1" "$seconds" "$parts" "$new" "$stored" "$(ratio "$seconds" "$first_seconds")" "$(ratio "100 * $stored" "$first") %"
    }
    local stored new parts seconds first_seconds=''
    printf '%-45s %9s %8s %8s %12s %9s %9s\n' night wall/s parts new stored/B s/first stored/first
    night "the first" -c "CHECKPOINT"
    night "nothing changed" -c "SELECT"
    night "1 % appended" -c "INSERT INTO events SELECT id + 1000000000, customer, at, amount, status, md5(token) || token, note, score FROM events WHERE id % 100 = 0"
    night "5 % deleted at random" -c "DELETE FROM events WHERE random() < 0.05"
    night "VACUUM FULL" -c "VACUUM FULL"
}

postgres-value() {
    local size=${1:-600} command
    start target
    psql_on "$source_port" postgres -c "CREATE DATABASE altlas TEMPLATE template0 ENCODING 'UTF8'"
    psql_on "$source_port" altlas -c "CREATE TABLE large (id int PRIMARY KEY, value bytea)" -c "ALTER TABLE large ALTER value SET STORAGE EXTERNAL" \
        -c "INSERT INTO large SELECT 1, convert_to(repeat(string_agg(md5(g::text), ''), $size), 'UTF8') FROM generate_series(1, 32768) g"
    printf '%10s %9s %9s %10s %12s\n' command wall/s cpu/s peak/MiB child/MiB
    write_config value
    altlas-backup --quiet --config "$folder/value.toml" init >/dev/null
    for command in "backup" "verify --level content" "verify"; do
        # shellcheck disable=SC2086
        measured altlas-backup --quiet --config "$folder/value.toml" $command
        printf '%10s %9s %9s %10s %12s\n' "${command//--level /}" "$wall" "$cpu" "$peak" "$child_peak"
    done
    bring_back value
    printf '%10s %9s %9s %10s %12s\n' restore "$wall" "$cpu" "$peak" "$child_peak"
}

# What the fingerprints of rows cost. A copy of the program is built that takes a row's last bytes for its hash: parts are cut as often, and
# that is all it is good for.
postgres-fingerprints() {
    local size=${1:-1000} rounds=${2:-5} round program with=() without=()
    local hash='xxh3_128_with_seed(row, seed)'
    mkdir "$folder/without"
    cp -r Cargo.toml Cargo.lock src tests "$folder/without/"
    [[ "$(grep -cF "    $hash" src/pipeline/rows.rs)" == 1 ]] || die "src/pipeline/rows.rs: there is no $hash"
    sed -i "s/^    xxh3_128_with_seed(row, seed)\$/    row.last_chunk().map_or(0, |last| u128::from_be_bytes(*last) ^ u128::from(seed)).wrapping_mul(0x9e3779b97f4a7c15f39cc0605cedc835)/" \
        "$folder/without/src/pipeline/rows.rs"
    # A name of its own: the same folder has everything else built already.
    printf '[[bin]]\nname = "altlas-backup-without"\npath = "src/main.rs"\n' >>"$folder/without/Cargo.toml"
    say "building a program that hashes no rows"
    (cd "$folder/without" && cargo build --release --locked --quiet --bin altlas-backup-without) || die "the build"
    fill_database balanced "$size"
    printf '%6s %10s %9s %9s\n' round hashes wall/s cpu/s
    for ((round = 0; round <= rounds; round++)); do
        for program in with without; do
            write_config "$program-$round"
            altlas-backup --quiet --config "$folder/$program-$round.toml" init >/dev/null
            local path=altlas-backup
            [[ "$program" == with ]] || path=altlas-backup-without
            measured "$path" --quiet --config "$folder/$program-$round.toml" backup
            rm -rf "${folder:?}/$program-$round"
            # The first round warms the server's cache and is not counted.
            ((round > 0)) || continue
            printf '%6d %10s %9s %9s\n' "$round" "$program" "$wall" "$cpu"
            if [[ "$program" == with ]]; then with+=("$wall"); else without+=("$wall"); fi
        done
    done
    say "with / without: $(ratio "$(median "${with[@]}")" "$(median "${without[@]}")")"
}
