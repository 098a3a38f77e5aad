#!/bin/bash
# From a fresh clone to a running guest; `./run.sh --help` explains.
set -u
CALLED_FROM=$PWD
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
NAME=run.sh
. "$ROOT/bin/setup-functions.sh"

INSTEAD=". Without root and guests: ./run.sh --compute_driver=fake"

help() {
    cat <<'END'
./run.sh [--no-demo] [FLAG...]   set up what is missing, start a cloud, boot a first instance in it
./run.sh clean [FLAG...]         remove every trace of the cloud: guests, bridges, rules, files
./run.sh --help                  this text

On Debian 12, as root, with nothing but git and Python 3.11 (another Python: PYTHON=/path/to/python ./run.sh).
It installs the Debian packages that are missing, makes a virtual environment in .venv, and becomes bin/nova-all, which
stays in the foreground.  Ctrl-C stops the daemons and leaves guests running; the next ./run.sh finds them again.

    --no-demo                  start the cloud without a first instance
    --compute_driver=fake      no guests, no networks: only their records.  Needs no root
    --state_path=DIRECTORY     where everything of the cloud is kept (default ./state)
    --ec2_port=N --s3_port=N   where it listens (default 8773 and 3333)

Every flag of nova-all may be given; nova.conf.sample lists them with their defaults.
END
}

# -- arguments: a few are for this script, the rest goes to nova-all --------------------------------------------------
MODE=demo DRIVER=libvirt NETWORK=
ARGUMENTS=()
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help | help) help; exit 0 ;;
        --no-demo) MODE=no-demo ;;
        --demo) MODE=demo ;;
        clean | --clean) MODE=clean ;;
        # "--flag value" is "--flag=value"
        --compute_driver | -compute_driver | --network_driver | -network_driver | --state_path | -state_path)
            [ $# -ge 2 ] || die "$1 needs a value"
            set -- "$1=$2" "${@:3}"
            continue
            ;;
        --compute_driver=* | -compute_driver=*) DRIVER=${1#*=} ARGUMENTS+=("$1") ;;
        --network_driver=* | -network_driver=*) NETWORK=${1#*=} ARGUMENTS+=("$1") ;;
        --state_path=[!/]* | -state_path=[!/]*) ARGUMENTS+=("--state_path=$CALLED_FROM/${1#*=}") ;;
        -*) ARGUMENTS+=("$1") ;;
        *) die "I do not know '$1' (./run.sh --help explains)" ;;
    esac
    shift
done
if [ "$DRIVER" = fake ] && [ -z "$NETWORK" ]; then
    ARGUMENTS+=(--network_driver=fake)
fi

# -- what is needed ---------------------------------------------------------------------------------------------------
EXTRAS=(client)
WANTED=$PACKAGES_REDIS
if [ "$DRIVER" = fake ]; then
    INSTEAD=
elif [ "$MODE" != clean ] || [ "$(id -u)" -eq 0 ]; then
    [ "$(id -u)" -eq 0 ] || die "guests and networks need root: sudo ./run.sh$INSTEAD"
    [ "$(uname -m)" = x86_64 ] || die "guests need an x86_64 machine, and this is $(uname -m)$INSTEAD"
    EXTRAS+=(libvirt)
    WANTED="$WANTED $PACKAGES_CLOUD"
fi

cd "$ROOT" || exit 1
begin
find_python

if [ "$MODE" = clean ] && venv_is_ready; then # even when packages are gone or were never all there
    end_setup
    exec "$VENV/bin/python" bin/nova-all --clean ${ARGUMENTS[@]+"${ARGUMENTS[@]}"}
fi

if ! venv_is_ready "${EXTRAS[@]}"; then
    WANTED="$WANTED $PACKAGES_BUILD"
    [ "$DRIVER" = fake ] || WANTED="$WANTED $PACKAGES_BUILD_LIBVIRT"
    python_has_headers || WANTED="$WANTED python3-dev:"
    [ -x "$VENV/bin/pip" ] || python_has_venv || WANTED="$WANTED python3-venv:"
fi

ensure_packages "$INSTEAD" $WANTED
ensure_python "${EXTRAS[@]}"
case $MODE in
    demo) ARGUMENTS=(--demo ${ARGUMENTS[@]+"${ARGUMENTS[@]}"}) ;;
    clean) ARGUMENTS=(--clean ${ARGUMENTS[@]+"${ARGUMENTS[@]}"}) ;;
esac
step "Nova: starting bin/nova-all${ARGUMENTS[*]:+ ${ARGUMENTS[*]}}"
end_setup
exec "$VENV/bin/python" bin/nova-all ${ARGUMENTS[@]+"${ARGUMENTS[@]}"}
