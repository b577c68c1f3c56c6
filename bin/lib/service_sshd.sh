# shellcheck shell=bash
# A private sshd with real, unprivileged users for tests. Sourced by bin/dev-services. Needs root.
#
# Three servers with one set of host keys and homes: `port` and `port2` are two login nodes (the second has a host
# name and processes of its own), `gate_port` is a jump host with its own host key. Users begin with `prefix`:
#
#   key       a key only                     pass      a password
#   otp       a password and a code (HOTP)   both      a key, and then password and code
#   csh       tcsh as login shell            noisy     start files that talk
#   forced    ForceCommand                   full      a home without space
#   nofwd     no forwarding of any kind      nologin   nologin as shell

sshd_names=(key pass otp both csh noisy forced full nofwd nologin)
sshd_password=correct-horse-7
sshd_secret=3132333435363738393031323334353637383930

sshd_install() {
    apt_install_programs openssh-server openssh-client libpam-oath tcsh ||
        die "sshd is missing (Debian, as root: apt-get install openssh-server libpam-oath tcsh)"
}

sshd_is_installed() {
    [[ -x /usr/sbin/sshd && -x /bin/tcsh ]] && compgen -G '/usr/lib/*/security/pam_oath.so' >/dev/null ||
        compgen -G '/lib/*/security/pam_oath.so' >/dev/null
}

sshd_alive() {
    local pid
    pid=$(cat "$1" 2>/dev/null) && [[ $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null) == *"$2"* ]]
}

# Where everything lies: users must be able to get there, and sockets need short paths.
sshd_home() {
    if [[ ! -s $1/home ]]; then
        local home
        home=$(mktemp -d "${TMPDIR:-/tmp}/dev-sshd.XXXXXX")
        chmod 0755 "$home"
        echo "$home" >"$1/home"
    fi
    cat "$1/home"
}

# Accounts are the machine's: each instance has a prefix of its own.
sshd_prefix() { echo "sj$(printf '%s' "$1" | sha256sum | cut -c1-5)"; }

sshd_free_port() {
    "${PYTHON:-python3}" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

sshd_make_users() {
    local home=$1 prefix=$2 name user shell
    mkdir -p "$home/homes" "$home/keys"
    for name in "${sshd_names[@]}"; do
        user=$prefix$name shell=/bin/bash
        [[ $name != csh ]] || shell=/bin/tcsh
        [[ $name != nologin ]] || shell=/usr/sbin/nologin
        getent passwd "$user" >/dev/null ||
            useradd --no-log-init --home-dir "$home/homes/$user" --no-create-home --shell "$shell" "$user"
        echo "$user:$sshd_password" | chpasswd
        mkdir -p "$home/homes/$user"
        cp "$home/user_key.pub" "$home/keys/$user"
        if [[ $name == full ]] && ! mountpoint -q "$home/homes/$user"; then
            mount -t tmpfs -o size=64k,mode=0700 dev-sshd "$home/homes/$user"
        fi
        chown "$user:" "$home/homes/$user"
        chmod 0700 "$home/homes/$user"
    done
    {
        echo 'echo "Welcome to the cluster, $USER!  {\"pid\": 1}"'
        echo 'echo "quota: 93% used" >&2'
    } >"$home/homes/${prefix}noisy/.bashrc"
    echo 'echo "setenv is not needed here"' >"$home/homes/${prefix}csh/.cshrc"
    # a file that fills it
    dd if=/dev/zero of="$home/homes/${prefix}full/data" bs=4k count=64 2>/dev/null || true
}

sshd_make_config() {
    local home=$1 prefix=$2 which=$3 port=$4
    cat <<EOC
Port $port
ListenAddress 127.0.0.1
HostKey $home/$([[ $which == gate ]] && echo gate_key || echo host_key)
PidFile none
AuthorizedKeysFile $home/keys/%u
StrictModes no
UsePAM yes
PasswordAuthentication yes
KbdInteractiveAuthentication yes
PermitRootLogin no
UseDNS no
MaxStartups 100
LoginGraceTime 60
MaxAuthTries 6
ClientAliveInterval 0
PrintMotd no
PrintLastLog no
LogLevel VERBOSE
Subsystem sftp internal-sftp
Match User ${prefix}key,${prefix}csh,${prefix}noisy,${prefix}forced,${prefix}full,${prefix}nofwd,${prefix}nologin
    AuthenticationMethods publickey
Match User ${prefix}pass
    AuthenticationMethods password keyboard-interactive
Match User ${prefix}otp
    AuthenticationMethods keyboard-interactive
Match User ${prefix}both
    AuthenticationMethods publickey,keyboard-interactive
Match User ${prefix}forced
    ForceCommand echo "this account is for data transfer only"
Match User ${prefix}nofwd
    DisableForwarding yes
EOC
}

sshd_make() {
    local home=$1 prefix=$2 key
    for key in host_key gate_key user_key; do
        [[ -s $home/$key ]] || ssh-keygen -q -t ed25519 -N '' -C "$key" -f "$home/$key"
    done
    [[ -s $home/passphrase_key ]] || {
        cp "$home/user_key" "$home/passphrase_key"
        chmod 0600 "$home/passphrase_key"
        ssh-keygen -q -p -P '' -N "$sshd_password" -f "$home/passphrase_key"
    }
    getent group "${prefix}code" >/dev/null || groupadd "${prefix}code"
    sshd_make_users "$home" "$prefix"
    usermod -aG "${prefix}code" "${prefix}otp"
    usermod -aG "${prefix}code" "${prefix}both"
    printf 'HOTP %s - %s\n' "${prefix}otp" "$sshd_secret" "${prefix}both" "$sshd_secret" >"$home/oath"
    chmod 0600 "$home/oath"
    # sshd takes the name of its program as the name of its PAM service.
    ln -sf /usr/sbin/sshd "$home/$prefix"
    cat >"/etc/pam.d/$prefix" <<EOC
auth required pam_unix.so
auth [success=ignore default=1] pam_succeed_if.so quiet user ingroup ${prefix}code
auth required pam_oath.so usersfile=$home/oath window=20 digits=6
account required pam_unix.so
session required pam_permit.so
EOC
    local which
    for which in login login2 gate; do
        [[ -s $home/$which.port ]] || sshd_free_port >"$home/$which.port"
        sshd_make_config "$home" "$prefix" "$which" "$(cat "$home/$which.port")" >"$home/$which.conf"
    done
    {
        local port
        for which in login login2; do
            port=$(cat "$home/$which.port")
            echo "[127.0.0.1]:$port $(cut -d' ' -f1,2 "$home/host_key.pub")"
        done
        echo "[127.0.0.1]:$(cat "$home/gate.port") $(cut -d' ' -f1,2 "$home/gate_key.pub")"
    } >"$home/known_hosts"
}

sshd_boot() {
    local home=$1 prefix=$2 which
    mkdir -p /run/sshd
    for which in login login2 gate; do
        if ! sshd_alive "$home/$which.pid" "$home/$which.conf"; then
            local inside=()
            # Another node: its own host name and processes, the same homes.
            [[ $which != login2 ]] || inside=(unshare --uts --pid --fork --kill-child --mount-proc
                sh -c 'hostname login2 && exec "$@"' sh)
            setsid "${inside[@]}" "$home/$prefix" -D -f "$home/$which.conf" -E "$home/$which.log" \
                </dev/null >>"$home/boot.log" 2>&1 9>&- &
            # inside a name space the pid file holds another number than out here
            echo $! >"$home/$which.pid"
        fi
    done
    for which in login login2 gate; do
        "${PYTHON:-python3}" - "$(cat "$home/$which.port")" <<'EOP' || return 1
import socket, sys, time
end = time.monotonic() + 20
while True:
    try:
        with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 1) as s:
            sys.exit(not s.recv(4).startswith(b"SSH"))
    except OSError:
        if time.monotonic() > end:
            sys.exit(1)
        time.sleep(0.05)
EOP
    done
}

sshd_lines() {
    local home=$1
    printf '%s\n' host=127.0.0.1 "port=$(cat "$home/login.port")" "port2=$(cat "$home/login2.port")" \
        "gate_port=$(cat "$home/gate.port")" "known_hosts=$home/known_hosts" "key_file=$home/user_key" \
        "passphrase_key_file=$home/passphrase_key" "password=$sshd_password" "otp_secret=$sshd_secret" \
        "otp_file=$home/oath" "prefix=$2" "homes=$home/homes" "log=$home/login.log" "home=$home"
}

sshd_start() {
    local dir=$1 home prefix
    [[ $(id -u) == 0 ]] || die "sshd with real users needs root"
    sshd_is_installed || sshd_install
    home=$(sshd_home "$dir")
    prefix=$(sshd_prefix "$dir")
    if ! { sshd_make "$home" "$prefix" && sshd_boot "$home" "$prefix"; } </dev/null >"$dir/start.log" 2>&1; then
        tail -n 20 "$dir/start.log" "$home"/*.log >&2
        die "sshd did not start in $home"
    fi
    sshd_lines "$home" "$prefix"
}

sshd_stop() {
    local home which pid
    home=$(cat "$1/home" 2>/dev/null) || return 0
    for which in login login2 gate; do
        if sshd_alive "$home/$which.pid" "$home/$which.conf"; then
            pid=$(cat "$home/$which.pid")
            # the server and the sessions that it serves
            kill -- "-$pid" 2>/dev/null || kill "$pid" 2>/dev/null || true
        fi
        rm -f "$home/$which.pid"
    done
    # what users left behind, sessions too: nobody but these users' own
    local prefix name
    prefix=$(sshd_prefix "$1")
    for name in "${sshd_names[@]}"; do
        if getent passwd "$prefix$name" >/dev/null; then
            for pid in $(pgrep -u "$prefix$name" || true); do kill -KILL "$pid" 2>/dev/null || true; done
        fi
    done
}

sshd_status() {
    local home which
    home=$(cat "$1/home" 2>/dev/null) || exit 3
    for which in login login2 gate; do
        sshd_alive "$home/$which.pid" "$home/$which.conf" || exit 3
    done
    sshd_lines "$home" "$(sshd_prefix "$1")"
}

sshd_remove() {
    local home prefix name
    sshd_stop "$1"
    home=$(cat "$1/home" 2>/dev/null) || return 0
    prefix=$(sshd_prefix "$1")
    if mountpoint -q "$home/homes/${prefix}full"; then umount -l "$home/homes/${prefix}full"; fi
    for name in "${sshd_names[@]}"; do
        userdel "$prefix$name" 2>/dev/null || true
    done
    groupdel "${prefix}code" 2>/dev/null || true
    rm -f "/etc/pam.d/$prefix"
    rm -rf "$home"
    rm -f "$1/home" "$1/start.log"
}
