# shellcheck shell=bash
# A private Slurm cluster of several nodes on this machine, without systemd: own munged, own ports, own state. Sourced by
# bin/dev-services. Lines of DIR/options are settings of slurm.conf (MinJobAge=4), or one of
#     nodes=3  accounting=yes

slurm_install() {
    local packages=(slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins)
    if [[ $1 == yes ]]; then
        packages+=(slurmdbd slurm-wlm-mysql-plugin mariadb-server-core mariadb-client-core)
    fi
    local program missing=
    for program in slurmctld slurmd sbatch munged; do
        command -v "$program" >/dev/null || missing=1
    done
    if [[ $1 == yes ]] && ! { command -v slurmdbd && command -v mariadbd && command -v my_print_defaults; } >/dev/null; then missing=1; fi
    if [[ $missing ]]; then
        apt_install_programs "${packages[@]}" || die "Slurm is missing (Debian: apt-get install ${packages[*]})"
    fi
}

slurm_option() { # DIR NAME DEFAULT
    local value
    value=$(sed -n "s/^$2=//p" "$1/options" 2>/dev/null | tail -n 1)
    echo "${value:-$3}"
}

# Where everything lies: every user must get at the configuration and at munged's socket, so not in a private DIR.
slurm_home() {
    local dir=$1 home
    if [[ ! -s $dir/home ]]; then
        home=$(mktemp -d /tmp/dev-slurm.XXXXXX)
        chmod 0755 "$home"
        echo "$home" >"$dir/home"
    fi
    cat "$dir/home"
}

# The first of COUNT free ports in a row. Another one that starts at the same time looks elsewhere: the choice is random.
slurm_ports() {
    local count=$1 base port busy
    while :; do
        base=$((20000 + RANDOM % 12000))
        busy=
        for ((port = base; port < base + count; port++)); do
            if grep -qi ":$(printf %04X "$port") " /proc/net/tcp; then busy=1; fi
        done
        [[ $busy ]] || break
    done
    echo "$base"
}

slurm_alive() { # a pid file of ours whose process lives
    [[ -s $1 ]] && kill -0 "$(cat "$1")" 2>/dev/null
}

slurm_conf() {
    local home=$1 dir=$2 nodes=$3 accounting=$4 base=$5 user host gpus=
    user=$(id -un)
    host=$(hostname -s)
    # Slurm takes character devices only for GPUs; where none can be made there are none.
    if mknod -m 666 "$home/gpu0" c 1 3 2>/dev/null && mknod -m 666 "$home/gpu1" c 1 3 2>/dev/null; then
        gpus="Gres=gpu:2"
        echo "NodeName=n[1-$nodes] Name=gpu File=$home/gpu[0-1]" >"$home/gres.conf"
    fi
    printf '%s\n' CgroupPlugin=cgroup/v1 CgroupAutomount=no ConstrainCores=no ConstrainRAMSpace=no >"$home/cgroup.conf"
    # Programs name things of the whole machine after the job (MPICH its shared memory): another cluster's leftovers, which
    # may be another user's, must not meet them. So each cluster begins to count elsewhere.
    {
        cat <<CONF
ClusterName=dev
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$base
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$home/munge.sock
StateSaveLocation=$home/state
SlurmdSpoolDir=$home/spool/%n
SlurmctldPidFile=$home/slurmctld.pid
SlurmdPidFile=$home/slurmd-%n.pid
SlurmctldLogFile=$home/log/slurmctld.log
SlurmdLogFile=$home/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_min_interval=100000,batch_sched_delay=1,bf_resolution=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
MinJobAge=300
FirstJobId=$((RANDOM * 16 + 1000))
MaxArraySize=1001
MaxJobCount=20000
KillWait=5
InactiveLimit=0
MpiDefault=none
JobCompType=jobcomp/none
PropagateResourceLimits=NONE
MailProg=/bin/true
NodeName=n[1-$nodes] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((base + 1))-$((base + nodes))] CPUs=8 Boards=1 Sockets=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=4000 $gpus State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES DefMemPerCPU=100 MaxTime=INFINITE State=UP
PartitionName=short Nodes=n1 DefMemPerCPU=100 MaxTime=00:02:00 State=UP PriorityTier=10
CONF
        if [[ $accounting == yes ]]; then
            echo "AccountingStorageType=accounting_storage/slurmdbd"
            echo "AccountingStorageHost=127.0.0.1"
            echo "AccountingStoragePort=$((base + nodes + 1))"
            echo "AccountingStoragePass=$home/munge.sock"
            echo "AccountingStoreFlags=job_comment"
        else
            echo "AccountingStorageType=accounting_storage/none"
        fi
    } >"$home/slurm.conf"
    # Settings of the caller's replace ours of that name.
    local line
    while IFS= read -r line; do
        [[ $line =~ ^[A-Z][A-Za-z]*= ]] || continue
        sed -i "/^${line%%=*}=/d" "$home/slurm.conf"
        echo "$line" >>"$home/slurm.conf"
    done < <(cat "$dir/options" 2>/dev/null)
}

slurm_munged() {
    local home=$1
    if [[ ! -s $home/munge.key ]]; then
        dd if=/dev/urandom of="$home/munge.key" bs=32 count=1 status=none
        chmod 0400 "$home/munge.key"
    fi
    # --force: it dislikes that /tmp belongs to everybody.
    slurm_alive "$home/munged.pid" || munged --force --key-file="$home/munge.key" --socket="$home/munge.sock" \
        --pid-file="$home/munged.pid" --log-file="$home/log/munged.log" --seed-file="$home/munged.seed"
}

slurm_database() {
    local home=$1 port=$2 base=(--no-defaults)
    local user=()
    if [[ $(id -u) == 0 ]]; then user=(--user=root); fi
    if [[ ! -d $home/db/mysql ]]; then
        mariadb-install-db "${base[@]}" "${user[@]}" --datadir="$home/db" --auth-root-authentication-method=normal --skip-test-db
        # Without the client program: the server itself reads this at its first start.
        printf '%s\n' "create database slurm_acct_db;" \
            "create user 'slurm'@'localhost' identified by 'x';" "grant all on slurm_acct_db.* to 'slurm'@'localhost';" \
            "create user 'slurm'@'127.0.0.1' identified by 'x';" "grant all on slurm_acct_db.* to 'slurm'@'127.0.0.1';" >"$home/init.sql"
        base+=(--init-file="$home/init.sql")
    fi
    slurm_alive "$home/mariadbd.pid" || {
        mariadbd "${base[@]}" "${user[@]}" --datadir="$home/db" --socket="$home/db.sock" --pid-file="$home/mariadbd.pid" \
            --port="$port" --bind-address=127.0.0.1 --innodb-buffer-pool-size=64M --innodb-flush-log-at-trx-commit=0 \
            --log-error="$home/log/mariadbd.log" </dev/null >/dev/null 2>&1 &
        disown
    }
    slurm_wait 30 test -S "$home/db.sock"
}

slurm_dbd() {
    local home=$1 port=$2 user
    user=$(id -un)
    printf '%s\n' AuthType=auth/munge "AuthInfo=socket=$home/munge.sock" "DbdHost=$(hostname -s)" DbdAddr=127.0.0.1 \
        "DbdPort=$port" "SlurmUser=$user" StorageType=accounting_storage/mysql StorageHost=127.0.0.1 \
        "StoragePort=$((port + 1))" StorageUser=slurm StoragePass=x StorageLoc=slurm_acct_db \
        "PidFile=$home/slurmdbd.pid" "LogFile=$home/log/slurmdbd.log" >"$home/slurmdbd.conf"
    chmod 0600 "$home/slurmdbd.conf"
    slurm_alive "$home/slurmdbd.pid" || slurmdbd
    slurm_wait 30 sacctmgr -n -i list cluster
    if [[ -z $(sacctmgr -n -P list cluster format=cluster) ]]; then
        sacctmgr -i add cluster dev
        sacctmgr -i add account users Cluster=dev
        # Whoever is known to the machine may have jobs on record.
        local name
        while IFS=: read -r name _; do
            if [[ $name == root || $name == "$user" || $name == sj* ]]; then sacctmgr -i add user "$name" Account=users; fi
        done < <(getent passwd)
    fi
}

slurm_wait() { # SECS COMMAND...: until it succeeds
    local until=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < until)) || return 1
        sleep 0.1
    done
}

slurm_idle() { [[ $(sinfo -h -N -o '%N %t' | grep -c ' \(idle\|mix\|alloc\)') -ge $1 ]]; }

# One chain: `set -e` sleeps inside `if`.
slurm_boot() {
    local home=$1 nodes=$2 accounting=$3 base=$4 node
    export SLURM_CONF=$home/slurm.conf
    slurm_munged "$home" || return 1
    if [[ $accounting == yes ]]; then
        slurm_database "$home" $((base + nodes + 2)) && slurm_dbd "$home" $((base + nodes + 1)) || return 1
    fi
    slurm_alive "$home/slurmctld.pid" || slurmctld -f "$SLURM_CONF" || return 1
    for ((node = 1; node <= nodes; node++)); do
        slurm_alive "$home/slurmd-n$node.pid" || slurmd -f "$SLURM_CONF" -N "n$node" || return 1
    done
    slurm_wait 30 slurm_idle "$nodes"
}

slurm_start() {
    local dir=$1 home nodes accounting base
    accounting=$(slurm_option "$dir" accounting no)
    nodes=$(slurm_option "$dir" nodes 2)
    slurm_install "$accounting"
    home=$(slurm_home "$dir")
    if [[ ! -s $home/slurm.conf ]]; then
        base=$(slurm_ports $((nodes + 3)))
        echo "$base" >"$home/base"
        mkdir -p "$home/state" "$home/spool" "$home/log"
        slurm_conf "$home" "$dir" "$nodes" "$accounting" "$base"
    fi
    base=$(cat "$home/base")
    if ! slurm_boot "$home" "$nodes" "$accounting" "$base" </dev/null >"$dir/start.log" 2>&1; then
        tail -n 20 "$dir/start.log" >&2
        tail -n 20 "$home"/log/slurmctld.log >&2 2>/dev/null || true
        die "Slurm did not start in $home"
    fi
    echo "conf=$home/slurm.conf"
}

slurm_end() {
    local home=$1 file pid pids=()
    for file in "$home"/slurmd-*.pid "$home"/slurmctld.pid "$home"/slurmdbd.pid "$home"/mariadbd.pid "$home"/munged.pid; do
        if slurm_alive "$file"; then
            pid=$(cat "$file")
            kill "$pid" && pids+=("$pid")
        fi
    done
    for pid in "${pids[@]}"; do
        slurm_wait 15 eval "! kill -0 $pid" || kill -9 "$pid" 2>/dev/null || true
    done
}

slurm_stop() {
    local home
    home=$(cat "$1/home" 2>/dev/null) || return 0
    slurm_end "$home"
}

slurm_status() {
    local home
    if home=$(cat "$1/home" 2>/dev/null) && slurm_alive "$home/slurmctld.pid"; then
        echo "conf=$home/slurm.conf"
    else
        exit 3
    fi
}

slurm_remove() {
    local home job pid
    if home=$(cat "$1/home" 2>/dev/null) && [[ $home == /tmp/dev-slurm.* ]]; then
        slurm_end "$home"
        # Steps outlive their slurmd; what still runs from our spool directory is ours.
        for pid in /proc/[0-9]*; do
            job=$({ tr '\0' '\n' <"$pid/environ" | grep -m1 "^SLURM_CONF=$home/"; } 2>/dev/null || true)
            if [[ $job && ${pid##*/} != "$$" ]]; then kill -9 "${pid##*/}" 2>/dev/null || true; fi
        done
        rm -rf "$home"
    fi
    rm -f "$1/home" "$1/start.log"
}
