# shellcheck shell=bash
# A private Docker engine: own data, own state, own network of none. Sourced by bin/dev-services. Needs root.
#
# Prints url= (unix socket), and tls_url= with ca=, cert= and key= for the same engine over TCP, where only that client
# certificate is let in. DEV_DOCKER_ARGS at start are further arguments to dockerd (`--live-restore`).

docker_install() {
    apt_install_programs docker.io openssl busybox-static ||
        die "the Docker engine is missing (Debian, as root: apt-get install docker.io openssl busybox-static)"
}

# Sockets need short paths, and the engine's files must not lie where tests count them.
docker_home() {
    if [[ ! -s $1/home ]]; then mktemp -d "${TMPDIR:-/tmp}/dev-docker.XXXXXX" >"$1/home"; fi
    cat "$1/home"
}

docker_pid() {
    local pid
    pid=$(cat "$1/pid" 2>/dev/null) && [[ $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null) == *"$1"* ]] && echo "$pid"
}

docker_make_certificates() {
    local home=$1
    [[ ! -s $home/tls/key.pem ]] || return 0
    mkdir -p "$home/tls"
    (
        cd "$home/tls"
        umask 077
        openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=dev-docker -keyout ca-key.pem -out ca.pem
        for name in server client; do
            openssl req -newkey rsa:2048 -nodes -subj "/CN=$name" -keyout "$name-key.pem" -out "$name.csr"
            openssl x509 -req -in "$name.csr" -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 30 -out "$name.pem" \
                -extfile <(echo "subjectAltName=IP:127.0.0.1
extendedKeyUsage=${name}Auth")
        done
        mv client.pem cert.pem
        mv client-key.pem key.pem
    ) >"$home/openssl.log" 2>&1 || { tail "$home/openssl.log" >&2; return 1; }
}

docker_lines() {
    echo "url=unix://$1/docker.sock"
    echo "tls_url=https://127.0.0.1:$(cat "$1/port")"
    local name
    for name in ca cert key; do echo "$name=$1/tls/$name.pem"; done
    echo "pid=$(docker_pid "$1")"
}

docker_free_port() {
    "${PYTHON:-python3}" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

docker_answers() { docker -H "unix://$1/docker.sock" version >/dev/null 2>&1; }

docker_start() {
    local home
    home=$(docker_home "$1")
    if ! { command -v dockerd && command -v openssl && command -v busybox; } >/dev/null; then docker_install; fi
    if [[ ! $(docker_pid "$home") ]]; then
        docker_make_certificates "$home" || die "no certificates for $home"
        [[ -s $home/port ]] || docker_free_port >"$home/port"
        rm -f "$home/pid"
        # A containerd that is dead and not yet reaped counts as alive for dockerd, which would wait for it in vain.
        local containerd=$home/exec/containerd/containerd.pid
        if [[ -s $containerd && $(ps -o stat= -p "$(cat "$containerd")" 2>/dev/null) != [A-Y]* ]]; then
            rm -f "$containerd"
        fi
        # Of the engine's own networks there is none: no bridge, no packet filter of the machine is touched.
        # shellcheck disable=SC2086
        setsid dockerd --data-root "$home/data" --exec-root "$home/exec" --pidfile "$home/pid" \
            -H "unix://$home/docker.sock" -H "tcp://127.0.0.1:$(cat "$home/port")" --tlsverify \
            --tlscacert "$home/tls/ca.pem" --tlscert "$home/tls/server.pem" --tlskey "$home/tls/server-key.pem" \
            --bridge none --iptables=false --ip6tables=false ${DEV_DOCKER_ARGS-} >>"$home/log" 2>&1 </dev/null &
        local started=$! tenths
        for ((tenths = 0; tenths < 600; tenths++)); do
            if docker_answers "$home"; then break; fi
            kill -0 "$started" 2>/dev/null || break
            sleep 0.1
        done
        docker_answers "$home" || { tail -n 20 "$home/log" >&2; die "the Docker engine did not start in $home"; }
    fi
    docker_lines "$home"
}

docker_status() {
    local home
    if home=$(cat "$1/home" 2>/dev/null) && [[ $(docker_pid "$home") ]] && docker_answers "$home"; then
        docker_lines "$home"
    else
        exit 3
    fi
}

# Also what an engine with --live-restore leaves running; only what carries our directory.
docker_end() {
    local home=$1 pid tenths
    if pid=$(docker_pid "$home"); then
        kill -CONT "$pid"
        if docker_answers "$home"; then
            docker -H "unix://$home/docker.sock" ps -q | xargs -r docker -H "unix://$home/docker.sock" kill >/dev/null 2>&1 || true
        fi
        kill "$pid" 2>/dev/null || true
        for ((tenths = 0; tenths < 200; tenths++)); do
            [[ $(docker_pid "$home") ]] || break
            sleep 0.1
        done
        pid=$(docker_pid "$home") && kill -9 "$pid"
    fi
    local found
    for found in /proc/[0-9]*; do
        if [[ $({ tr '\0' ' ' <"$found/cmdline"; } 2>/dev/null) == *containerd*"$home/exec"* ]]; then
            kill -9 "${found#/proc/}" 2>/dev/null || true
        fi
    done
}

docker_stop() {
    local home
    home=$(cat "$1/home" 2>/dev/null) || return 0
    docker_end "$home"
}

docker_remove() {
    local home place
    home=$(cat "$1/home" 2>/dev/null) || return 0
    docker_end "$home"
    while read -r _ place _; do
        if [[ $place == "$home"/* ]]; then umount -l "$place" 2>/dev/null || true; fi
    done < <(tac /proc/mounts)
    rm -rf "$home"
    rm -f "$1/home"
}
