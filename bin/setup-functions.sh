# Set-up steps that run.sh and run_tests.sh share; sourced by both, never run.
#
# The caller sets ROOT (the tree) and NAME (its own name, for messages) and calls, in this order: begin, find_python,
# ensure_packages, ensure_python, and end_setup before it becomes something else.  What apt, pip and npm say goes to files
# in .cache and is shown only when they fail.  Whatever was cut short is recognised and mended by the next run.

VENV=$ROOT/.venv
CACHE=$ROOT/.cache
STEP=0
CHILD=

# Debian package : what shows that it is there (a command, or an absolute path) when dpkg does not know it.  Without the
# second part only dpkg counts, where there is one.
PACKAGES_REDIS="redis-server:redis-server"
PACKAGES_CLOUD="libvirt-daemon:/usr/sbin/libvirtd libvirt-daemon-system: libvirt-daemon-driver-qemu:
    qemu-system-x86:qemu-system-x86_64 qemu-utils:qemu-img dnsmasq-base:dnsmasq dnsmasq-utils:dhcp_release
    iptables:iptables-restore iproute2:ip busybox-static: dropbear-bin:/usr/sbin/dropbear e2fsprogs:mkfs.ext4
    openssh-client:ssh gzip:gzip xz-utils:xz zstd:zstd bzip2:bzip2"
PACKAGES_BUILD="gcc:gcc libc6-dev:/usr/include/stdio.h swig:swig libssl-dev:/usr/include/openssl/ssl.h"
PACKAGES_BUILD_LIBVIRT="pkg-config:pkg-config libvirt-dev:/usr/include/libvirt/libvirt.h"
PACKAGES_TESTS="rabbitmq-server:/usr/lib/rabbitmq/bin/rabbitmq-server slapd:/usr/sbin/slapd ldap-utils:ldapsearch
    python3-boto:/usr/lib/python3/dist-packages/boto s3cmd:s3cmd zsh:zsh unzip:unzip
    fdisk:sfdisk extlinux:extlinux syslinux-common:
    nginx-light:nginx libnginx-mod-http-lua:/usr/lib/nginx/modules/ngx_http_lua_module.so
    mmdebstrap:mmdebstrap grub-pc-bin:/usr/lib/grub/i386-pc/boot.img grub-common:grub-mkimage"
# clients that the object store is tried with: rclone and s3fs as they are; nodejs runs Amazon's SDK for JavaScript, npm
# fetches it
PACKAGES_TESTS_S3="rclone:rclone s3fs:s3fs nodejs:node npm:npm"
# a Ceph of one node, whose S3 the object store is tried on (docs/objectstore-s3.rst)
PACKAGES_TESTS_CEPH="ceph-mon:ceph-mon ceph-osd:ceph-osd radosgw:radosgw ceph-common:ceph"
# services of those packages; Nova starts servers of its own and needs none of these to run
SERVICES="redis-server.service slapd.service rabbitmq-server.service libvirtd.service libvirtd.socket
    libvirtd-ro.socket libvirtd-admin.socket virtlogd.service virtlogd.socket virtlogd-admin.socket virtlockd.service
    virtlockd.socket virtlockd-admin.socket libvirt-guests.service nginx.service ceph.target
    ceph-mon.target ceph-osd.target ceph-radosgw.target ceph-crash.service"
POLICY=/usr/sbin/policy-rc.d
POLICY_MARK="Made by Nova's run.sh while it installs packages; may be removed."

# -- what the user sees ----------------------------------------------------------------------------------------------

# seconds since begin, as 12.3
elapsed() {
    local now=${EPOCHREALTIME/[.,]/}
    local tenths=$(((now - STARTED) / 100000))
    printf '%d.%d' $((tenths / 10)) $((tenths % 10))
}

# step TEXT: the next numbered step
step() {
    STEP=$((STEP + 1))
    printf '%6s s  %d. %s\n' "$(elapsed)" "$STEP" "$*"
}

# say TEXT: more about the step
say() { printf '%6s s     %s\n' "$(elapsed)" "$*"; }

# die TEXT: one line, and the end
die() {
    printf '%s: %s\n' "$NAME" "$*" >&2
    exit 1
}

# quietly LOG WHAT COMMAND...: run a command that may take a while.  Its output goes to .cache/LOG; on a terminal one
# line tells how long it has been at it, elsewhere a line every 15 seconds.  Its exit code is returned.
quietly() {
    local log=$CACHE/$1 what=$2 begun=$SECONDS told=$SECONDS code=0 last
    shift 2
    printf '+ %s\n' "$*" >>"$log"
    setsid "$@" >>"$log" 2>&1 </dev/null & # a group of its own: Ctrl-C ends all of it, in end_of_child
    CHILD=$!
    while kill -0 "$CHILD" 2>/dev/null; do
        if [ -t 1 ]; then
            last=$(tail -n 1 "$log" | tr -cd '[:print:]')
            printf '\r\033[K%6s s     %s, %d s  %.60s' "$(elapsed)" "$what" $((SECONDS - begun)) "$last"
        elif [ $((SECONDS - told)) -ge 15 ]; then
            told=$SECONDS
            say "$what, $((SECONDS - begun)) s so far"
        fi
        sleep 0.3
    done
    [ -t 1 ] && printf '\r\033[K'
    wait "$CHILD" || code=$?
    CHILD=
    return "$code"
}

# tail_of LOG: the end of a log in .cache, for a failure
tail_of() {
    echo "-- the last lines of $CACHE/$1:" >&2
    tail -n 20 "$CACHE/$1" >&2
    echo "--" >&2
}

# -- begin and end ---------------------------------------------------------------------------------------------------

begin() {
    STARTED=${EPOCHREALTIME/[.,]/}
    export NOVA_STARTED=${EPOCHREALTIME/,/.} # what is started later counts its seconds from here
    export PATH=$PATH:/usr/sbin:/sbin
    mkdir -p "$CACHE" 2>/dev/null
    [ -w "$CACHE" ] || die "$CACHE cannot be written: run it as the user that owns the tree, or work on a copy of your own"
    trap end_of_child EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    exec 9>"$CACHE/setup.lock"
    flock -n 9 || { say "another set-up of this tree is under way; waiting for it"; flock 9; }
}

# before the caller becomes something else
end_setup() {
    trap - EXIT INT TERM HUP
    exec 9>&-
}

end_of_child() {
    if [ -n "$CHILD" ]; then
        kill -- "-$CHILD" 2>/dev/null && wait "$CHILD" 2>/dev/null
        echo >&2
        echo "$NAME: cut short; the next run goes on from here" >&2
    fi
    remove_policy
}

# -- Python ----------------------------------------------------------------------------------------------------------

# Sets PYTHON to a Python of version 3.11 or later: $PYTHON if set, else 3.11 where there is one.
find_python() {
    local candidate found
    for candidate in "${PYTHON:-}" python3.11 /usr/bin/python3.11 python3 /usr/bin/python3; do
        [ -n "$candidate" ] || continue
        found=$("$candidate" -c 'import sys; print(sys.executable if sys.version_info >= (3, 11) else "")' 2>/dev/null)
        if [ -n "$found" ]; then
            PYTHON=$found
            return
        fi
    done
    die "Python 3.11 is missing: apt-get install python3 (Debian 12), or set PYTHON to one"
}

python_has_headers() {
    "$PYTHON" -c 'import os, sysconfig; raise SystemExit(
        not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'
}

python_has_venv() { "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; }

# What the stamp says when these extras are installed: the requirements, the Python, and the extras after it.
requirements_digest() {
    {
        cat "$ROOT/setup.py"
        "$PYTHON" -c 'import sys; print(sys.version)'
    } | sha256sum | cut -d ' ' -f 1
}

# venv_is_ready EXTRA...
venv_is_ready() {
    local digest installed extra
    [ -x "$VENV/bin/python" ] && [ ! -e "$VENV/.nova-unfinished" ] && [ -r "$VENV/.nova-installed" ] || return 1
    read -r digest installed <"$VENV/.nova-installed"
    [ "$digest" = "$(requirements_digest)" ] || return 1
    for extra in "$@"; do
        case " $installed " in *" $extra "*) ;; *) return 1 ;; esac
    done
}

# ensure_python EXTRA...: the virtual environment with Nova's requirements and these extras
ensure_python() {
    local digest installed="" extras
    if venv_is_ready "$@"; then
        step "Python: .venv is ready"
        return
    fi
    digest=$(requirements_digest)
    if [ -e "$VENV/.nova-unfinished" ] || ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        step "Python: making .venv with $PYTHON"
        rm -rf "$VENV"
        quietly venv.log "making .venv" "$PYTHON" -m venv "$VENV" || {
            tail_of venv.log
            rm -rf "$VENV"
            die "the virtual environment cannot be made with $PYTHON; $CACHE/venv.log has all of it"
        }
    elif [ -r "$VENV/.nova-installed" ]; then
        read -r _ installed <"$VENV/.nova-installed"
    fi
    extras=$(printf '%s\n' "$@" $installed | sort -u | tr '\n' ' ')
    step "Python: installing what setup.py asks for (with: ${extras% })"
    : >"$VENV/.nova-unfinished"
    rm -f "$VENV/.nova-installed"
    (cd "$ROOT" && "$VENV/bin/python" -c '
import sys, setup
print("\n".join(setup.requirements(*sys.argv[1:])))' $extras) >"$CACHE/requirements.txt" || die "setup.py cannot be read"
    quietly pip.log "installing Python packages" "$VENV/bin/python" -m pip install --disable-pip-version-check \
        --no-input -r "$CACHE/requirements.txt" || {
        tail_of pip.log
        die "Python packages cannot be installed (no network?); $CACHE/pip.log has all of it. Then run it again"
    }
    echo "$digest $extras" >"$VENV/.nova-installed"
    rm -f "$VENV/.nova-unfinished"
    say "done"
}

# -- JavaScript ------------------------------------------------------------------------------------------------------

# ensure_javascript DIRECTORY: what the package-lock.json there names, in .cache/javascript/node_modules
ensure_javascript() {
    local place=$CACHE/javascript
    if cmp -s "$1/package-lock.json" "$place/installed"; then
        step "JavaScript: .cache/javascript is ready"
        return
    fi
    step "JavaScript: installing what $1/package-lock.json names"
    mkdir -p "$place"
    rm -f "$place/installed"
    cp "$1/package.json" "$1/package-lock.json" "$place/"
    quietly npm.log "installing JavaScript packages" env -C "$place" \
        npm ci --ignore-scripts --no-audit --no-fund || {
        tail_of npm.log
        die "JavaScript packages cannot be installed (no network?); $CACHE/npm.log has all of it. Then run it again"
    }
    cp "$place/package-lock.json" "$place/installed"
    say "done"
}

# -- Debian packages -------------------------------------------------------------------------------------------------

# Sets MISSING to those of the given package:probe pairs that are not there.
find_missing() {
    local pair package probe status
    local -A statuses=()
    local dpkg=
    MISSING=()
    if command -v dpkg-query >/dev/null; then
        dpkg=yes
        while read -r package status; do
            statuses[$package]=$status
        done < <(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${@%%:*}" 2>/dev/null)
    fi
    for pair in "$@"; do
        package=${pair%%:*} probe=${pair#*:}
        case ${statuses[$package]:-none} in
            installed | triggers-*) continue ;;
            none | not-installed | config-files) ;;
            *) # unpacked, half-installed...: an earlier installation was cut short
                MISSING+=("$package")
                continue
                ;;
        esac
        case $probe in
            "") [ -z "$dpkg" ] && continue ;;
            /*) [ -e "$probe" ] && continue ;;
            *) command -v "$probe" >/dev/null && continue ;;
        esac
        MISSING+=("$package")
    done
}

# ensure_packages WANTED LIST...: have the packages of these lists; WANTED is what may be done instead (or empty)
ensure_packages() {
    local instead=$1 command
    shift
    find_missing $*
    if [ ${#MISSING[@]} -eq 0 ]; then
        step "Debian packages: all are there"
        return
    fi
    command="apt-get install --no-install-recommends ${MISSING[*]}"
    if [ "$(id -u)" -ne 0 ]; then
        die "missing: ${MISSING[*]}. As root: $command$instead"
    elif ! command -v apt-get >/dev/null; then
        die "missing: ${MISSING[*]}, and there is no apt-get here. On Debian 12: $command$instead"
    fi
    step "Debian packages: ${#MISSING[@]} missing: ${MISSING[*]}"
    install_packages || {
        tail_of apt.log
        die "missing, and apt-get cannot install: ${MISSING[*]}. When the cause above is mended: apt-get update && $command$instead"
    }
    say "installed"
}

install_packages() {
    local options=(-y -q --no-install-recommends -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0
        -o Dpkg::Options::=--force-confold)
    local before=$CACHE/services.before
    export DEBIAN_FRONTEND=noninteractive
    services_enabled >"$before"
    remove_policy
    if [ ! -e "$POLICY" ]; then
        printf '#!/bin/sh\n# %s\nexit 101\n' "$POLICY_MARK" >"$POLICY"
        chmod 755 "$POLICY"
    fi
    if [ -n "$(dpkg --audit 2>/dev/null)" ]; then
        quietly apt.log "finishing what an earlier installation left half done" dpkg --configure -a --force-confold
        quietly apt.log "mending dependencies" apt-get "${options[@]}" -f install
    fi
    # a list that cannot be fetched (of some other source) need not matter: the installation decides
    quietly apt.log "apt-get update" apt-get -q update || say "apt-get update had errors; going on"
    quietly apt.log "apt-get install" apt-get "${options[@]}" install "${MISSING[@]}" || return 1
    remove_policy
    disable_services "$before"
    find_missing "${MISSING[@]/%/:}"
    [ ${#MISSING[@]} -eq 0 ]
}

remove_policy() {
    if [ "$(id -u)" -eq 0 ] && [ -e "$POLICY" ] && grep -qsF "$POLICY_MARK" "$POLICY"; then
        rm -f "$POLICY"
    fi
}

services_enabled() {
    local unit
    for unit in $SERVICES; do
        find /etc/systemd/system -name "$unit" 2>/dev/null
    done | sort
}

# The packages come with services that start at every boot.  Those that were not enabled before are not wanted: Nova
# starts servers of its own.
disable_services() {
    local fresh
    command -v systemctl >/dev/null || return 0
    fresh=$(services_enabled | comm -13 "$1" - | sed 's|.*/||' | sort -u | tr '\n' ' ')
    [ -n "$fresh" ] || return 0
    # shellcheck disable=SC2086
    quietly apt.log "disabling services" systemctl disable $fresh || true
    say "not started at boot, because Nova needs none of them: ${fresh% }"
}
