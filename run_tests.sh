#!/bin/bash
# Sets up what is missing and runs every test: ./run_tests.sh [ARGUMENT OF PYTEST...]
#
# --directory=ldap has every cloud keep its users in a slapd of its own; without it, only a part of the tests do.
#
# As root, the tests run in namespaces of their own (network, mounts, processes): bridges, rules, servers and guests that
# they make are not seen outside and are gone with the last process.  Without root, only the tests that need no servers run.
set -u
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
NAME=run_tests.sh
. "$ROOT/bin/setup-functions.sh"

cd "$ROOT" || exit 1
exec </dev/null
begin
find_python

EXTRAS=(client tests)
WANTED=
if [ "$(id -u)" -eq 0 ]; then
    EXTRAS+=(libvirt)
    WANTED="$PACKAGES_REDIS $PACKAGES_CLOUD $PACKAGES_TESTS $PACKAGES_TESTS_S3 $PACKAGES_TESTS_CEPH"
fi
if ! venv_is_ready "${EXTRAS[@]}"; then
    WANTED="$WANTED $PACKAGES_BUILD"
    [ "$(id -u)" -ne 0 ] || WANTED="$WANTED $PACKAGES_BUILD_LIBVIRT"
    python_has_headers || WANTED="$WANTED python3-dev:"
    [ -x "$VENV/bin/pip" ] || python_has_venv || WANTED="$WANTED python3-venv:"
fi
ensure_packages "" $WANTED
ensure_python "${EXTRAS[@]}"
[ "$(id -u)" -ne 0 ] || ensure_javascript tests/clients/s3

# paths on the command line replace the default order: what needs least first, so that failures show early
TESTS=(tests/unit tests/functional tests/clients)
for argument in "$@"; do
    [ -e "${argument%%::*}" ] && TESTS=()
done
NAMESPACES=() WORKERS=()
if [ "$(id -u)" -eq 0 ]; then
    step "starter images"
    export NOVA_STARTER_PATH=$CACHE/starter
    quietly starter.log "building the starter images" "$VENV/bin/python" -m nova.image.starter "$NOVA_STARTER_PATH" || {
        tail_of starter.log
        die "the starter images cannot be built; ${CACHE}/starter.log has all of it"
    }
    if [ ${#TESTS[@]} -gt 0 ] || [[ "$* " == *test_debian* || "$* " == *"tests/functional "* ]]; then
        step "Debian image"
        export NOVA_DEBIAN_PATH=$CACHE/debian
        quietly debian.log "building the Debian image" "$VENV/bin/python" -m nova.image.debian "$NOVA_DEBIAN_PATH" || {
            tail_of debian.log
            die "the Debian image cannot be built; ${CACHE}/debian.log has all of it"
        }
    fi
    if [ ${#TESTS[@]} -gt 0 ]; then
        # two workers, each in namespaces of its own, so that the clouds of the one are not seen by the other
        export NOVA_TESTS_PYTHON=$VENV/bin/python
        # in the order above: a cloud with real networks that the client tests share lives until the end, and would
        # fight over bridges with one of another file in the same namespaces
        WORKERS=(--dist loadfile --no-loadscope-reorder --tx "2*popen//python=$ROOT/tests/isolated-python")
    else
        NAMESPACES=("$ROOT/tests/isolate")
    fi
elif [ ${#TESTS[@]} -gt 0 ]; then
    TESTS=(tests/unit)
    say "not root: only tests/unit; the others make bridges, rules and guests"
fi
step "pytest"
end_setup
export PYTHONDONTWRITEBYTECODE=1
exec ${NAMESPACES[@]+"${NAMESPACES[@]}"} "$VENV/bin/python" -m pytest \
    ${WORKERS[@]+"${WORKERS[@]}"} ${TESTS[@]+"${TESTS[@]}"} "$@"
