# shellcheck shell=bash
# A private PostgreSQL: own data directory, unix socket only. Sourced by bin/dev-services.

# Debian keeps the server's programs off PATH.
postgres_bin() {
    local found
    found=$(
        {
            if command -v initdb >/dev/null; then readlink -f "$(command -v initdb)"; fi
            find /usr/lib/postgresql -path '*/bin/initdb' 2>/dev/null | sort -rV
        } | head -n 1
    )
    [[ $found ]] && dirname "$found"
}

postgres_install() {
    # Debian's package would start a server of its own on the usual port; we want the programs only.
    if [[ $(id -u) == 0 && ! -e /etc/postgresql-common/createcluster.conf ]]; then
        mkdir -p /etc/postgresql-common
        echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
    fi
    apt_install postgresql || die "PostgreSQL is missing: put initdb on PATH (Debian: apt-get install postgresql)"
}

# The server refuses to run as root.
postgres_run() {
    if [[ $(id -u) != 0 ]]; then
        "$@"
    else
        runuser -u "$(postgres_user)" -- "$@"
    fi
}

postgres_user() {
    if getent passwd postgres >/dev/null; then echo postgres; else echo nobody; fi
}

# Where data and socket lie: in DIR, unless the unprivileged user cannot get there (a parent is private) or the
# socket's path would be longer than the kernel takes (107 bytes).
postgres_home() {
    local dir=$1
    if [[ ! -s $dir/home ]]; then
        local home=$dir/pg
        chmod a+x "$dir"
        if ((${#home} > 80)) || ! postgres_run test -x "$dir"; then
            home=$(mktemp -d "${TMPDIR:-/tmp}/dev-postgres.XXXXXX")
        fi
        echo "$home" >"$dir/home"
    fi
    cat "$dir/home"
}

postgres_url() {
    echo "url=postgresql+psycopg://sirepo_jobs@/sirepo_jobs?host=$1"
}

postgres_is_up() {
    [[ -d $1/data ]] && (cd / && postgres_run "$2/pg_ctl" -D "$1/data" status >/dev/null 2>&1)
}

# Runs in /, because the caller's directory may be closed to the server's user. One chain: `set -e` sleeps inside `if`.
postgres_boot() {
    local home=$1 bin=$2
    { [[ -s $home/data/PG_VERSION ]] ||
        postgres_run "$bin/initdb" -D "$home/data" -U sirepo_jobs -A trust -E UTF8 --locale=C --no-sync; } &&
        postgres_run "$bin/pg_ctl" -D "$home/data" -l "$home/log" -w -t 60 \
            -o "-c listen_addresses='' -c unix_socket_directories='$home' -c fsync=on" start &&
        { postgres_run "$bin/psql" -X -h "$home" -U sirepo_jobs -d sirepo_jobs -c '' ||
            postgres_run "$bin/createdb" -h "$home" -U sirepo_jobs sirepo_jobs; }
}

postgres_start() {
    local dir=$1 bin home
    bin=$(postgres_bin) || { postgres_install && bin=$(postgres_bin); }
    home=$(postgres_home "$dir")
    if ! postgres_is_up "$home" "$bin"; then
        mkdir -p "$home"
        chmod 0700 "$home"
        if [[ $(id -u) == 0 ]]; then chown "$(postgres_user)" "$home"; fi
        if ! (cd / && postgres_boot "$home" "$bin") </dev/null >"$dir/start.log" 2>&1; then
            tail -n 20 "$dir/start.log" >&2
            tail -n 20 "$home/log" >&2 2>/dev/null || true
            die "PostgreSQL did not start in $home"
        fi
    fi
    postgres_url "$home"
}

postgres_end() {
    (cd / && postgres_run "$2/pg_ctl" -D "$1/data" -m "$3" -w -t 60 stop >/dev/null 2>&1)
}

postgres_stop() {
    local home bin
    home=$(cat "$1/home" 2>/dev/null) || return 0
    bin=$(postgres_bin) || return 0
    if postgres_is_up "$home" "$bin"; then
        # `fast` ends sessions; a server that takes longer than a minute is ended without a checkpoint, as by a crash.
        postgres_end "$home" "$bin" fast || postgres_end "$home" "$bin" immediate
    fi
}

postgres_status() {
    local home bin
    if home=$(cat "$1/home" 2>/dev/null) && bin=$(postgres_bin) && postgres_is_up "$home" "$bin"; then
        postgres_url "$home"
    else
        exit 3
    fi
}

postgres_remove() {
    local home
    postgres_stop "$1"
    if home=$(cat "$1/home" 2>/dev/null); then
        rm -rf "$home"
    fi
    rm -f "$1/home" "$1/start.log"
}
