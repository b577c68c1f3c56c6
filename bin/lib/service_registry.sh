# shellcheck shell=bash
# Two small image registries on loopback: `open`, where anybody may pull and push, and `private`, where only the user `ann`
# with `password` may. Sourced by bin/dev-services.

registry_password=correct-horse-7

registry_install() {
    apt_install_programs docker-registry apache2-utils ||
        die "docker-registry is missing (Debian: apt-get install docker-registry apache2-utils)"
}

registry_free_port() {
    "${PYTHON:-python3}" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

registry_pid() {
    local pid
    pid=$(cat "$1/$2.pid" 2>/dev/null) && [[ $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null) == *"$1/$2.yml"* ]] && echo "$pid"
}

registry_run() {
    local dir=$1 name=$2 auth=$3 tenths
    [[ -s $dir/$name.port ]] || registry_free_port >"$dir/$name.port"
    printf 'version: 0.1\nlog: {level: warn}\nstorage: {filesystem: {rootdirectory: %s}, delete: {enabled: true}}\nhttp: {addr: "127.0.0.1:%s"}\n%s' \
        "$dir/$name" "$(cat "$dir/$name.port")" "$auth" >"$dir/$name.yml"
    setsid docker-registry serve "$dir/$name.yml" >>"$dir/$name.log" 2>&1 </dev/null &
    echo $! >"$dir/$name.pid"
    for ((tenths = 0; tenths < 300; tenths++)); do
        if (exec 3<>"/dev/tcp/127.0.0.1/$(cat "$dir/$name.port")") 2>/dev/null; then return; fi
        sleep 0.1
    done
    tail "$dir/$name.log" >&2
    die "the registry did not start in $dir"
}

registry_start() {
    local dir=$1
    if ! { command -v docker-registry && command -v htpasswd; } >/dev/null; then registry_install; fi
    htpasswd -Bbn ann "$registry_password" >"$dir/users"
    [[ $(registry_pid "$dir" open) ]] || registry_run "$dir" open ''
    [[ $(registry_pid "$dir" private) ]] ||
        registry_run "$dir" private "auth: {htpasswd: {realm: tests, path: $dir/users}}"$'\n'
    registry_status "$dir"
}

registry_status() {
    [[ $(registry_pid "$1" open) && $(registry_pid "$1" private) ]] || exit 3
    echo "open=127.0.0.1:$(cat "$1/open.port")"
    echo "private=127.0.0.1:$(cat "$1/private.port")"
    echo "password=$registry_password"
}

registry_stop() {
    local name pid
    for name in open private; do
        if pid=$(registry_pid "$1" "$name"); then kill "$pid"; fi
    done
}

registry_remove() {
    registry_stop "$1"
    rm -rf "$1/open" "$1/private" "$1"/*.yml "$1"/*.pid "$1"/*.port "$1"/*.log "$1/users"
}
