# shellcheck shell=bash
# Sourced by the scripts in bin/. `env_ready EXTRA...` makes .venv and installs this checkout with those extras.
# Says what it does on stderr, in one line each, and nothing when there is nothing to do.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
venv=$repo/.venv

say() { printf '%s\n' "$*" >&2; }

die() {
    say "error: $*"
    exit 1
}

# One at a time, whoever calls: apt does not wait for its own lock on the lists.
with_apt_lock() {
    local lock status=0
    exec {lock}>/var/lock/sirepo-jobs-apt.lock
    ! command -v flock >/dev/null || flock "$lock"
    "$@" {lock}>&- || status=$?
    exec {lock}>&-
    return $status
}

# Debian only, and only as root: everybody else is told what to install.
apt_install() {
    if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
        return 1
    fi
    say "installing $* with apt-get"
    with_apt_lock apt_install_now "$@"
}

apt_install_now() {
    local log status=0
    log=$(mktemp)
    {
        DEBIAN_FRONTEND=noninteractive apt-get update -q &&
            DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"
    } </dev/null >"$log" 2>&1 || status=1
    if ((status)); then tail -n 20 "$log" >&2; fi
    rm -f "$log"
    return $status
}

# Programs of services, without Debian's own instance of the service being started.
apt_install_programs() {
    if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
        return 1
    fi
    say "installing $* with apt-get"
    with_apt_lock apt_install_programs_now "$@"
}

apt_install_programs_now() {
    local policy=/usr/sbin/policy-rc.d mine= status=0
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 0755 "$policy"
        mine=1
    fi
    apt_install_now "$@" || status=1
    if [[ $mine ]]; then rm -f "$policy"; fi
    return $status
}

python_is_fit() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.11 python3.12 python3.13 python3.14; do
        if command -v "$candidate" >/dev/null && python_is_fit "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

make_venv() {
    local python
    if ! python=$(find_python); then
        apt_install python3 python3-venv || true
        python=$(find_python) ||
            die "Python 3.11 or newer is needed: put it on PATH or name it in PYTHON (Debian 12: apt-get install python3 python3-venv)"
    fi
    # Debian splits ensurepip off: `venv` imports but cannot make an environment.
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        apt_install python3-venv || true
        "$python" -c 'import ensurepip, venv' 2>/dev/null ||
            die "$python cannot make virtual environments: apt-get install python3-venv"
    fi
    say "making .venv with $("$python" --version)"
    # Keeps .venv itself, which holds the lock.
    find "$venv" -mindepth 1 -maxdepth 1 ! -name .lock -exec rm -rf {} +
    "$python" -m venv "$venv"
    # Scripts inside name their interpreter by absolute path: a moved checkout needs a new environment.
    echo "$repo" >"$venv/.made-for"
}

# One stamp per extra: `bin/demo` after `bin/test` installs only what the latter did not.
install_extras() {
    local hash extra missing=() log
    hash=$(cat "$repo/setup.py" "$repo/pyproject.toml" | sha256sum)
    for extra in "$@"; do
        [[ $(cat "$venv/.installed-$extra" 2>/dev/null) == "$hash" ]] || missing+=("$extra")
    done
    if ((${#missing[@]} == 0)); then
        return
    fi
    local names
    names=$(IFS=,; echo "${missing[*]}")
    say "installing sirepo_jobs[$names] into .venv (the first time takes a minute or two)"
    log=$venv/install.log
    # PYTHONWARNINGS and friends belong to whoever called us, not to pip's build.
    if ! (cd "$repo" && env -u PYTHONPATH -u PYTHONWARNINGS PIP_ROOT_USER_ACTION=ignore \
        "$venv/bin/python" -m pip install --disable-pip-version-check --no-input -e ".[$names]") \
        </dev/null >"$log" 2>&1; then
        tail -n 30 "$log" >&2
        die "pip could not install sirepo_jobs[$names]; the whole log is .venv/install.log"
    fi
    for extra in "${missing[@]}"; do
        echo "$hash" >"$venv/.installed-$extra"
    done
}

env_ready() {
    mkdir -p "$venv"
    # Two scripts at once must not install into the same place; util-linux brings flock, other systems go without.
    exec 9>"$venv/.lock"
    if command -v flock >/dev/null && ! flock --nonblock 9; then
        say "waiting for another script to finish with .venv"
        flock 9
    fi
    if ! python_is_fit "$venv/bin/python" || [[ $(cat "$venv/.made-for" 2>/dev/null) != "$repo" ]]; then
        make_venv
    fi
    install_extras "$@"
    exec 9>&-
}
