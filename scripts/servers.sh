# Throwaway PostgreSQL 15, Redis 7.0 and NATS servers for scripts/demo and scripts/bench; sourced, not run.
#
# make_folder NAME makes $folder, which is removed at the end, however that comes, with every server that runs in it.
# $password and $folder/password hold the password of all servers.
#
# start NAME starts a PostgreSQL server and puts its port into NAME_port. $postgres_options are more of its options.
# psql_on PORT DATABASE ARGUMENT... runs psql.
#
# start_redis NAME [LINE...] starts a Redis server with these lines of configuration and puts its port into NAME_port.
# stop_redis NAME ends it without a save; its folder stays.
# redis_on PORT ARGUMENT... runs redis-cli.
# python_on PORT SCRIPT ARGUMENT... runs one of tests/fixtures/redis with the port and the password as its first arguments.
#
# start_nats NAME [LINE...] starts a NATS server with JetStream and with these lines of configuration, and puts its port into
# NAME_port: the program that $nats_program names, which is Debian's (2.9) unless it is set. The user is $nats_user.
# stop_nats NAME ends it at once; its folder stays, and start_nats starts it again on that.
# nats_python_on PORT SCRIPT ARGUMENT... runs one of tests/fixtures/nats with the port, the user and the password as its first
# arguments.
#
# waited COMMAND... runs a command so that a signal ends it and the script at once, and not when the command is done.

PATH="/usr/lib/postgresql/15/bin:$PATH"
# Nothing of the caller's own settings shall reach the servers or the program.
unset "${!PG@}" "${!ALTLAS_BACKUP_@}" "${!REDISCLI_@}"

# The same rule as in scripts/tools.
if [[ "$(id -u)" == 0 ]]; then tools=/var/cache/altlas-backup-tools; else tools=$HOME/.cache/altlas-backup-tools; fi
tools=${ALTLAS_TOOLS:-$tools}

nats_program=${nats_program:-/usr/sbin/nats-server}
nats_user=backup

folder=
cleanup() {
    trap '' INT TERM HUP
    local data job
    # The last first: a client whose server goes before it would say so.
    for job in $(jobs -p | tac); do end "$job"; done
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

# end PID: kill -9, with all that it has forked. Standing still first, so that it forks nobody between our look and its end.
end() {
    local child
    kill -STOP "$1" 2>/dev/null || return 0
    for child in $(pgrep -P "$1"); do end "$child"; done
    { kill -KILL "$1" && wait "$1"; } 2>/dev/null || true
}

waited() {
    "$@" <&0 &
    wait $!
}

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
            "-p $port -k $folder/$1 -c listen_addresses=127.0.0.1 -c fsync=off -c wal_level=minimal -c max_wal_senders=0 ${postgres_options:-}") \
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

# start_redis NAME [LINE...]: on the files in $folder/NAME/data, if there are any. Waits until its data is loaded.
start_redis() {
    local name=$1 data=$folder/$1/data port pid attempt
    shift
    mkdir -p "$data"
    for attempt in 1 2 3 4 5 6 7 8 9 10; do
        port=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))
        (umask 077 && printf '%s\n' "bind 127.0.0.1" "port $port" "requirepass $password" "dir $data" "$@" >"$folder/$name/redis.conf")
        # A job of ours, so that it is found at the end; away from the terminal, whose Ctrl-C is ours to answer.
        : >"$folder/$name/log"
        setsid setpriv --pdeathsig KILL -- /usr/bin/redis-server "$folder/$name/redis.conf" >>"$folder/$name/log" 2>&1 &
        pid=$!
        while kill -0 "$pid" 2>/dev/null; do
            # The right password does not work with somebody else's server.
            if [[ "$(redis_on "$port" PING 2>/dev/null)" == PONG ]]; then
                printf -v "${name}_port" %s "$port"
                printf -v "${name}_pid" %s "$pid"
                return
            fi
            sleep 0.02
        done
    done
    tail -n 20 "$folder/$name/log" >&2
    die "the $name server does not start (above is the end of its log)"
}

stop_redis() {
    local pid=$1_pid
    end "${!pid}"
}

# redis_on PORT ARGUMENT...
redis_on() {
    local port=$1
    shift
    REDISCLI_AUTH=$password redis-cli -e -h 127.0.0.1 -p "$port" "$@"
}

# python_on PORT SCRIPT ARGUMENT...
python_on() {
    local port=$1 script=$2
    shift 2
    env -i PATH=/usr/bin:/bin LC_ALL=C.UTF-8 TZ=UTC PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$tools/python" \
        /usr/bin/python3 "tests/fixtures/redis/$script" "$port" "$password" "$@"
}

# start_nats NAME [LINE...]: on the files in $folder/NAME/data, if there are any. Waits until JetStream answers.
start_nats() {
    local name=$1 port pid attempt
    shift
    mkdir -p "$folder/$name"
    (umask 077 && printf '%s\n' "authorization { user: $nats_user, password: \"$password\" }" \
        "jetstream { store_dir: \"$folder/$name/data\" }" "$@" >"$folder/$name/nats.conf")
    for attempt in 1 2 3 4 5 6 7 8 9 10; do
        port=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))
        # A job of ours, so that it is found at the end; away from the terminal, whose Ctrl-C is ours to answer.
        : >"$folder/$name/log"
        setsid setpriv --pdeathsig KILL -- "$nats_program" --config "$folder/$name/nats.conf" --addr 127.0.0.1 --port "$port" \
            >>"$folder/$name/log" 2>&1 &
        pid=$!
        while kill -0 "$pid" 2>/dev/null; do
            # The right password does not work with somebody else's server.
            if nats_answers "$port"; then
                printf -v "${name}_port" %s "$port"
                printf -v "${name}_pid" %s "$pid"
                return
            fi
            sleep 0.02
        done
    done
    tail -n 20 "$folder/$name/log" >&2
    die "the $name server does not start (above is the end of its log)"
}

# nats_answers PORT: does a server let us in there, and does its JetStream answer?
nats_answers() {
    (
        exec 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
        read -r -t 10 line <&3 && [[ "$line" == "INFO "* ]] || exit 1
        printf 'CONNECT {"verbose":false,"user":"%s","pass":"%s"}\r\nSUB answer 1\r\nPUB $JS.API.INFO answer 0\r\n\r\n' \
            "$nats_user" "$password" >&3
        while read -r -t 10 line <&3; do
            case "$line" in
                "MSG answer "*) exit 0 ;;
                -ERR*) exit 1 ;;
            esac
        done
        exit 1
    ) 2>/dev/null
}

stop_nats() {
    local pid=$1_pid
    end "${!pid}"
}

# nats_python_on PORT SCRIPT ARGUMENT...
nats_python_on() {
    local port=$1 script=$2
    shift 2
    env -i PATH=/usr/bin:/bin LC_ALL=C.UTF-8 TZ=UTC PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$tools/python" \
        /usr/bin/python3 "tests/fixtures/nats/$script" "$port" "$nats_user" "$password" "$@"
}
