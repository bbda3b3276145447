# Throwaway PostgreSQL 15 servers for scripts/demo and scripts/bench; sourced, not run.
#
# make_folder NAME makes $folder, which is removed at the end, however that comes, with every server that runs in it.
# start NAME starts a server and puts its port into NAME_port; $password and $folder/password hold its superuser's password.
# psql_on PORT DATABASE ARGUMENT... runs psql.

PATH="/usr/lib/postgresql/15/bin:$PATH"
# Nothing of the caller's own settings shall reach the servers or the program.
unset "${!PG@}" "${!ALTLAS_BACKUP_@}"

folder=
cleanup() {
    trap '' INT TERM HUP
    local data
    if [[ -n "$folder" ]]; then
        for data in "$folder"/*/data; do
            if [[ -s "$data/postmaster.pid" ]]; then
                as_server pg_ctl -D "$data" -m immediate -w -t 20 stop >/dev/null 2>&1 || true
            fi
        done
        rm -rf "$folder"
    fi
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

make_folder() {
    folder=$(mktemp -d "/tmp/altlas-$1.XXXXXX")
    chmod 755 "$folder"
    password=$(openssl rand -hex 16)
    (umask 077 && printf '%s\n' "$password" >"$folder/password")
}

# PostgreSQL refuses to run as root.
as_server() {
    if [[ "$(id -u)" == 0 ]]; then
        setpriv --reuid postgres --regid postgres --clear-groups -- "$@"
    else
        "$@"
    fi
}

# start NAME: initialises and starts a server, and puts its port into the variable NAME_port.
start() {
    local data=$folder/$1/data port attempt
    mkdir "$folder/$1" "$data"
    install -m 644 /dev/null "$folder/$1/log"
    if [[ "$(id -u)" == 0 ]]; then
        install -o postgres -m 600 "$folder/password" "$folder/$1/initial-password"
        chown postgres "$folder/$1" "$data" "$folder/$1/log"
    else
        cp "$folder/password" "$folder/$1/initial-password"
    fi
    # From a folder that the server's user may be in.
    (cd / && as_server initdb --no-sync --username=postgres --auth=scram-sha-256 --pwfile="$folder/$1/initial-password" \
        --encoding=UTF8 --locale=C.UTF-8 --pgdata="$data") >"$folder/initdb.log" 2>&1 ||
        { cat "$folder/initdb.log" >&2; die "initdb"; }
    rm -f "$folder/$1/initial-password"
    for attempt in 1 2 3 4 5 6 7 8 9 10; do
        port=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))
        # Durability is off: these two live for a minute.
        if (cd / && as_server pg_ctl -D "$data" -l "$folder/$1/log" -w -t 30 -s start -o \
            "-p $port -k $folder/$1 -c listen_addresses=127.0.0.1 -c fsync=off -c wal_level=minimal -c max_wal_senders=0") \
            >/dev/null 2>&1; then
            printf -v "$1_port" %s "$port"
            return
        fi
        [[ "$attempt" == 1 ]] || sleep 0.2
    done
    tail -n 20 "$folder/$1/log" >&2
    die "the $1 server does not start (above is the end of its log)"
}

# psql_on PORT DATABASE ARGUMENT...
psql_on() {
    local port=$1 database=$2
    shift 2
    PGPASSWORD=$password PGOPTIONS='' psql -X -q -A -t -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$port" -U postgres -d "$database" "$@"
}
