# shellcheck shell=bash
# A private nginx with etc/nginx/sirepo-jobs.conf: own port, own certificate. Sourced by bin/dev-services.
# UPSTREAM says where the front end listens (127.0.0.1:8421 unless said otherwise). Prints url= and ca_file=.

nginx_install() {
    apt_install_programs nginx-light openssl || die "nginx is missing (Debian, as root: apt-get install nginx-light)"
}

nginx_program() {
    PATH=$PATH:/usr/sbin command -v nginx
}

nginx_pid() {
    local pid
    pid=$(cat "$1/nginx.pid" 2>/dev/null) && [[ $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null) == *"$1"* ]] &&
        echo "$pid"
}

nginx_certificate() {
    [[ -s $1/cert.pem ]] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 7 \
        -keyout "$1/key.pem" -out "$1/cert.pem" -subj /CN=jobs.example.org \
        -addext subjectAltName=DNS:jobs.example.org,DNS:localhost 2>"$1/openssl.log"
}

# The sample as it is, but for the four things that everybody has to change.
nginx_configure() {
    local dir=$1 port=$2
    sed -e "s|127\.0\.0\.1:8421|${UPSTREAM:-127.0.0.1:8421}|" -e "s|listen 443 ssl|listen 127.0.0.1:$port ssl|" \
        -e "s|/etc/ssl/certs/jobs\.example\.org\.pem|$dir/cert.pem|" \
        -e "s|/etc/ssl/private/jobs\.example\.org\.key|$dir/key.pem|" \
        -e 's|server_name jobs\.example\.org|server_name jobs.example.org localhost|' \
        "$repo/etc/nginx/sirepo-jobs.conf" >"$dir/site.conf"
    cat >"$dir/nginx.conf" <<END
pid $dir/nginx.pid;
error_log $dir/error.log warn;
worker_processes 1;
$([[ $(id -u) != 0 ]] || echo 'user root;')
events { worker_connections 512; }
http {
    access_log $dir/access.log;
    client_body_temp_path $dir/body;
    proxy_temp_path $dir/proxy;
    fastcgi_temp_path $dir/fastcgi;
    uwsgi_temp_path $dir/uwsgi;
    scgi_temp_path $dir/scgi;
    include $dir/site.conf;
}
END
}

nginx_say() {
    echo "url=https://localhost:$(cat "$1/port")/compute"
    echo "ca_file=$1/cert.pem"
}

nginx_start() {
    local dir=$1 program port
    program=$(nginx_program) || { nginx_install && program=$(nginx_program); }
    if ! nginx_pid "$dir" >/dev/null; then
        nginx_certificate "$dir" || die "openssl made no certificate: $(tail -n 3 "$dir/openssl.log")"
        for _ in 1 2 3 4 5 6 7 8; do # a port that is free, by trying
            port=$((20000 + RANDOM % 12000))
            nginx_configure "$dir" "$port"
            if "$program" -c "$dir/nginx.conf" -e "$dir/error.log" </dev/null >"$dir/start.log" 2>&1; then
                echo "$port" >"$dir/port"
                break
            fi
            grep -q 'Address already in use' "$dir/start.log" || break
        done
        if [[ ! -s $dir/port ]]; then
            tail -n 20 "$dir/start.log" >&2
            die "nginx did not start in $dir"
        fi
    fi
    nginx_say "$dir"
}

nginx_stop() {
    local pid
    if pid=$(nginx_pid "$1"); then
        kill -TERM "$pid"
        while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
    fi
    rm -f "$1/port"
}

nginx_status() {
    if nginx_pid "$1" >/dev/null && [[ -s $1/port ]]; then nginx_say "$1"; else exit 3; fi
}

nginx_remove() {
    nginx_stop "$1"
    rm -rf "$1"/{body,proxy,fastcgi,uwsgi,scgi} "$1"/*.{log,pem,conf}
}
