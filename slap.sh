#!/bin/bash
# Makes a Debian OpenLDAP ready for Nova; `./slap.sh --help` explains.  May be run again at any time.
set -u
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SCHEMA=$ROOT/nova/auth/ldap_schema
STANDARD_SCHEMA=/etc/ldap/schema
export PATH="$PATH:/usr/sbin:/sbin"

help() {
    cat <<'END'
./slap.sh [OPTION...]            make slapd ready: schema, database, tree, indexes, access rules, Nova's password
./slap.sh --purge [OPTION...]    remove every user, project and role, the database and the password, after asking

It works on the slapd of this machine, as root, through ldapi:/// (and installs and starts slapd where it is missing).
Nothing that other software keeps in it is touched: Nova gets a database of its own.  On success it prints the flags
to put into nova.conf.

    --suffix=DN             root of Nova's tree (default dc=nova)
    --password-file=FILE    where Nova's password is kept; made when there is none (default /etc/nova/ldap.password)
    --tls-cert=FILE --tls-key=FILE --tls-ca=FILE
                            serve TLS with this certificate and its key; --tls-ca: who vouches for it
    --yes                   --purge: do not ask

With a slapd of its own, which needs no root and touches nothing outside one directory:

    --config-dir=DIR        keep configuration, data, socket and password in DIR, and run slapd in the background
    --port=N                where it listens on 127.0.0.1
    --tls-port=N            where it listens for ldaps:// (with --tls-cert)
    --stop                  end the slapd of --config-dir, and leave its data
END
}

die() {
    printf 'slap.sh: %s\n' "$*" >&2
    exit 1
}

say() { printf '  %s\n' "$*"; }

# -- arguments --------------------------------------------------------------------------------------------------------
SUFFIX=dc=nova PASSWORD_FILE= TLS_CERT= TLS_KEY= TLS_CA= YES= MODE=ready DIR= PORT= TLS_PORT=
while [ $# -gt 0 ]; do
    case $1 in
        --suffix | --password-file | --tls-cert | --tls-key | --tls-ca | --config-dir | --port | --tls-port)
            [ $# -ge 2 ] || die "$1 needs a value"
            set -- "$1=$2" "${@:3}"
            continue
            ;;
        --suffix=*) SUFFIX=${1#*=} ;;
        --password-file=*) PASSWORD_FILE=${1#*=} ;;
        --tls-cert=*) TLS_CERT=${1#*=} ;;
        --tls-key=*) TLS_KEY=${1#*=} ;;
        --tls-ca=*) TLS_CA=${1#*=} ;;
        --config-dir=*) DIR=${1#*=} ;;
        --port=*) PORT=${1#*=} ;;
        --tls-port=*) TLS_PORT=${1#*=} ;;
        --yes) YES=1 ;;
        --purge) MODE=purge ;;
        --stop) MODE=stop ;;
        -h | --help) help; exit 0 ;;
        *) die "I do not know '$1' (--help explains)" ;;
    esac
    shift
done
[[ $SUFFIX =~ ^(dc|o|ou)=[A-Za-z0-9-]+(,(dc|o|ou)=[A-Za-z0-9-]+)*$ ]] ||
    die "--suffix=$SUFFIX is not like dc=nova or dc=cloud,dc=example,dc=com"
for file in "$TLS_CERT" "$TLS_KEY" "$TLS_CA"; do
    [ -z "$file" ] || [ -r "$file" ] || die "$file cannot be read"
done
[ -z "$TLS_CERT" ] || [ -n "$TLS_KEY" ] || die "--tls-cert needs --tls-key"
[ -z "$TLS_PORT" ] || [ -n "$TLS_CERT" ] || die "--tls-port needs --tls-cert"
for number in "$PORT" "$TLS_PORT"; do
    [[ $number =~ ^[0-9]*$ ]] || die "'$number' is no port"
done
BIND_DN=cn=nova,$SUFFIX
ROOT_DN=cn=slapd,$SUFFIX # nobody can bind as it: it has no password and no entry; slapo-unique searches as it

if [ -n "$DIR" ]; then
    case $DIR in /*) ;; *) DIR=$PWD/$DIR ;; esac
    [[ $DIR =~ ^[A-Za-z0-9/._-]+$ ]] || die "--config-dir=$DIR: only letters, digits and / . _ - may be in it"
    [ ${#DIR} -le 90 ] || die "--config-dir=$DIR is too long for the path of a socket in it"
    SOCKET=$DIR/ldapi DATA=$DIR/data
    PASSWORD_FILE=${PASSWORD_FILE:-$DIR/nova.password}
    LDAPI=ldapi://${SOCKET//\//%2F}
    AUTHORITY="gidNumber=$(id -g)+uidNumber=$(id -u),cn=peercred,cn=external,cn=auth"
    URL=ldap://127.0.0.1:$PORT
else
    [ "$MODE" != stop ] && [ -z "$PORT$TLS_PORT" ] || die "--stop, --port and --tls-port go with --config-dir"
    [ "$(id -u)" -eq 0 ] || die "the slapd of the machine needs root: sudo ./slap.sh (or --config-dir=DIR --port=N)"
    SOCKET=/var/run/slapd/ldapi DATA=/var/lib/ldap/nova
    PASSWORD_FILE=${PASSWORD_FILE:-/etc/nova/ldap.password}
    LDAPI=ldapi:///
    AUTHORITY="gidNumber=0+uidNumber=0,cn=peercred,cn=external,cn=auth"
    URL=ldap://127.0.0.1
fi

# -- slapd ------------------------------------------------------------------------------------------------------------
install_slapd() {
    local missing=
    command -v slapd >/dev/null || missing=slapd
    command -v ldapsearch >/dev/null || missing="$missing ldap-utils"
    [ -n "$missing" ] || return 0
    [ "$(id -u)" -eq 0 ] || die "apt-get install$([ "${missing# }" = "$missing" ] && echo ' ')$missing is needed first"
    say "installing $missing"
    # shellcheck disable=SC2086 # one or two words
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing >/dev/null 2>&1 ||
        die "apt-get install $missing failed; run it to see why"
}

answers() { ldapwhoami -Q -Y EXTERNAL -H "$LDAPI" -o nettimeout=2 >/dev/null 2>&1; }

wait_for_answer() {
    local n
    for ((n = 0; n < 100; n++)); do
        answers && return
        sleep 0.1
    done
    die "slapd does not answer at $LDAPI within 10 s"
}

# the pid of the slapd of --config-dir, if it runs
private_pid() {
    local pid
    read -r pid 2>/dev/null <"$DIR/slapd.pid" || return 1
    [ "$(readlink "/proc/$pid/exe" 2>/dev/null)" = "$(readlink -f "$(command -v slapd)")" ] || return 1
    tr '\0' ' ' <"/proc/$pid/cmdline" | grep -qF -- "-F $DIR/slapd.d " && echo "$pid"
}

stop_private() {
    local pid n
    pid=$(private_pid) || return 0
    kill -TERM "$pid"
    for ((n = 0; n < 100; n++)); do
        kill -0 "$pid" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -KILL "$pid"
}

start_private() {
    local urls
    [ -n "$PORT" ] || die "--config-dir needs --port"
    if [ ! -e "$DIR/slapd.d/.complete" ]; then
        rm -rf "$DIR/slapd.d"
        mkdir -p -m 700 "$DIR" && mkdir -p -m 700 "$DIR/slapd.d" || die "cannot make $DIR"
        slapadd -n 0 -F "$DIR/slapd.d" >"$DIR/slapadd.log" 2>&1 <<END || die "slapadd failed; $DIR/slapadd.log has why"
dn: cn=config
objectClass: olcGlobal
cn: config
olcPidFile: $DIR/slapd.pid
olcArgsFile: $DIR/slapd.args
olcLogLevel: none

dn: cn=module,cn=config
objectClass: olcModuleList
cn: module
olcModulePath: /usr/lib/ldap
olcModuleLoad: back_mdb

dn: cn=schema,cn=config
objectClass: olcSchemaConfig
cn: schema

include: file://$STANDARD_SCHEMA/core.ldif

dn: olcDatabase={0}config,cn=config
objectClass: olcDatabaseConfig
olcDatabase: {0}config
olcAccess: {0}to * by dn.exact="$AUTHORITY" manage by * none

END
        touch "$DIR/slapd.d/.complete"
    fi
    answers && return
    urls="$URL/ $LDAPI"
    [ -z "$TLS_PORT" ] || urls="$urls ldaps://127.0.0.1:$TLS_PORT/"
    # its output would keep a caller's pipe open
    slapd -h "$urls" -F "$DIR/slapd.d" >"$DIR/slapd.log" 2>&1 </dev/null ||
        die "slapd does not start (is port $PORT taken?); try: slapd -d 1 -h '$urls' -F $DIR/slapd.d"
    wait_for_answer
    say "slapd runs on $URL"
}

start_system() {
    answers && return
    say "starting slapd"
    if [ -d /run/systemd/system ]; then
        systemctl start slapd >/dev/null 2>&1
    else
        service slapd start >/dev/null 2>&1
    fi
    wait_for_answer
}

# -- the configuration ------------------------------------------------------------------------------------------------
search() { ldapsearch -Q -LLL -o ldif-wrap=no -Y EXTERNAL -H "$LDAPI" "$@" 2>/dev/null; }
present() { search -b "$1" -s base dn >/dev/null; }

# apply WHAT: send the LDIF on standard input; additions unless it says otherwise
apply() {
    local output
    output=$(ldapmodify -Q -a -Y EXTERNAL -H "$LDAPI" 2>&1) || die "$1: $(grep -v '^\(adding\|modifying\)' <<<"$output" | grep . | head -n 2 | tr '\n' ' ')"
    say "$1"
}

load_schemas() {
    local name
    for name in core cosine inetorgperson; do
        search -b cn=schema,cn=config "(cn={*}$name)" dn | grep -q . ||
            apply "schema $name" <"$STANDARD_SCHEMA/$name.ldif"
    done
    search -b cn=schema,cn=config -s sub olcAttributeTypes | grep -qi "NAME 'sshPublicKey'" ||
        apply "schema sshkey" <"$SCHEMA/sshkey.ldif"
    search -b cn=schema,cn=config "(cn={*}nova)" dn | grep -q . ||
        apply "schema nova" <"$SCHEMA/nova.ldif"
}

load_modules() {
    local name module
    module=$(search -b cn=config '(objectClass=olcModuleList)' dn | sed -n 's/^dn: //p' | head -n 1)
    for name in back_mdb unique; do
        search -b cn=config '(objectClass=olcModuleList)' olcModuleLoad | grep -q "[} ]$name\(\.la\|\.so\)\?\$" && continue
        if [ -z "$module" ]; then
            module='cn=module{0},cn=config'
            printf 'dn: cn=module,cn=config\nobjectClass: olcModuleList\ncn: module\nolcModulePath: /usr/lib/ldap\nolcModuleLoad: %s\n' \
                "$name" | apply "module $name"
        else
            printf 'dn: %s\nchangetype: modify\nadd: olcModuleLoad\nolcModuleLoad: %s\n' "$module" "$name" |
                apply "module $name"
        fi
    done
}

database_dn() { search -b cn=config "(olcSuffix=$SUFFIX)" dn | sed -n 's/^dn: //p'; }

make_database() {
    local database
    database=$(database_dn)
    if [ -z "$database" ]; then
        mkdir -p -m 700 "$DATA" || die "cannot make $DATA"
        [ -n "$DIR" ] || chown openldap:openldap "$DATA"
        apply "database $SUFFIX in $DATA" <<END
dn: olcDatabase=mdb,cn=config
objectClass: olcDatabaseConfig
objectClass: olcMdbConfig
olcDatabase: mdb
olcSuffix: $SUFFIX
olcRootDN: $ROOT_DN
olcDbDirectory: $DATA
olcDbMaxSize: 4294967296
END
        database=$(database_dn)
    fi
    # Access: {0} Nova changes anybody's password, nobody reads one; {1} the two halves of an access key are Nova's alone
    apply "access rules, limits and indexes" <<END
dn: $database
changetype: modify
replace: olcAccess
olcAccess: {0}to attrs=userPassword by dn.exact="$AUTHORITY" write by dn.exact="$BIND_DN" write by anonymous auth by * none
olcAccess: {1}to attrs=secretKey,accessKey by dn.exact="$BIND_DN" write by * none
olcAccess: {2}to dn.exact="$BIND_DN" by dn.exact="$AUTHORITY" manage by dn.exact="$BIND_DN" read by * none
olcAccess: {3}to * by dn.exact="$AUTHORITY" manage by dn.exact="$BIND_DN" write by users read by * none
-
replace: olcLimits
olcLimits: {0}dn.exact="$BIND_DN" size=unlimited time=unlimited
-
replace: olcDbIndex
olcDbIndex: objectClass,entryCSN,entryUUID eq
olcDbIndex: uid,cn,accessKey,member,projectManager,keyName eq
END
    search -b "$database" '(olcOverlay=unique)' dn | grep -q . || apply "unique access keys" <<END
dn: olcOverlay=unique,$database
objectClass: olcOverlayConfig
objectClass: olcUniqueConfig
olcOverlay: unique
olcUniqueURI: ldap:///?accessKey?sub
END
}

set_tls() {
    [ -n "$TLS_CERT" ] || return 0
    local have want
    have=$(search -b cn=config -s base olcTLSCertificateFile olcTLSCertificateKeyFile olcTLSCACertificateFile |
        sed -n 's/^olcTLS[A-Za-z]*: //p' | sort)
    want=$(printf '%s\n' "$TLS_CERT" "$TLS_KEY" ${TLS_CA:+"$TLS_CA"} | sort)
    [ "$have" != "$want" ] || return 0
    apply "TLS" <<END
dn: cn=config
changetype: modify
${TLS_CA:+replace: olcTLSCACertificateFile
olcTLSCACertificateFile: $TLS_CA
-
}replace: olcTLSCertificateFile
olcTLSCertificateFile: $TLS_CERT
-
replace: olcTLSCertificateKeyFile
olcTLSCertificateKeyFile: $TLS_KEY
END
}

# entry DN NAME: the entry with the attributes on standard input, unless it is there
entry() {
    if present "$1"; then
        cat >/dev/null
    else
        { printf 'dn: %s\n' "$1" && cat; } | apply "entry $1"
    fi
}

make_tree() {
    local unit rdn=${SUFFIX%%,*}
    case $rdn in
        dc=*) printf 'objectClass: dcObject\nobjectClass: organization\no: Nova\ndc: %s\n' "${rdn#*=}" ;;
        o=*) printf 'objectClass: organization\no: %s\n' "${rdn#*=}" ;;
        *) printf 'objectClass: organizationalUnit\nou: %s\n' "${rdn#*=}" ;;
    esac | entry "$SUFFIX"
    for unit in Users Groups Roles; do
        printf 'objectClass: organizationalUnit\nou: %s\n' "$unit" | entry "ou=$unit,$SUFFIX"
    done
}

# Nova's own entry; its password is the file's, whoever changed either
set_password() {
    local hash
    if [ ! -s "$PASSWORD_FILE" ]; then
        mkdir -p "$(dirname "$PASSWORD_FILE")" || die "cannot make the directory of $PASSWORD_FILE"
        (umask 077 && head -c 24 /dev/urandom | base64 | tr '+/' '-_' | tr -d '\n' >"$PASSWORD_FILE") ||
            die "cannot write $PASSWORD_FILE"
        say "made a password in $PASSWORD_FILE"
    fi
    ldapwhoami -x -H "$LDAPI" -D "$BIND_DN" -y "$PASSWORD_FILE" >/dev/null 2>&1 && return
    hash=$(slappasswd -n -T "$PASSWORD_FILE") || die "slappasswd cannot read $PASSWORD_FILE"
    if present "$BIND_DN"; then
        printf 'dn: %s\nchangetype: modify\nreplace: userPassword\nuserPassword: %s\n' "$BIND_DN" "$hash" |
            apply "password of $BIND_DN"
    else
        printf 'objectClass: organizationalRole\nobjectClass: simpleSecurityObject\ncn: nova\nuserPassword: %s\n' \
            "$hash" | entry "$BIND_DN"
    fi
    ldapwhoami -x -H "$LDAPI" -D "$BIND_DN" -y "$PASSWORD_FILE" >/dev/null 2>&1 ||
        die "$BIND_DN cannot bind with the password in $PASSWORD_FILE"
}

print_flags() {
    printf '\nFor nova.conf:\n--ldap_driver=ldap\n--ldap_url=%s\n--ldap_user_dn=%s\n--ldap_password_file=%s\n' \
        "$URL" "$BIND_DN" "$PASSWORD_FILE"
    local unit
    for unit in user:Users project:Groups role:Roles; do
        printf -- '--ldap_%s_subtree=ou=%s,%s\n' "${unit%%:*}" "${unit#*:}" "$SUFFIX"
    done
    [ -z "$TLS_CERT" ] || printf -- '--ldap_start_tls\n'
    [ -z "$TLS_CA" ] || printf -- '--ldap_ca_file=%s\n' "$TLS_CA"
}

# -- purging ----------------------------------------------------------------------------------------------------------
ask() {
    local answer
    [ -z "$YES" ] || return 0
    [ -t 0 ] || die "--purge asks first, and there is nobody to answer; --yes answers"
    printf 'This removes every user, project and role of Nova below %s for good.  Type yes to go on: ' "$SUFFIX"
    read -r answer
    [ "$answer" = yes ] || die "nothing was removed"
}

purge() {
    local database
    ask
    if [ -n "$DIR" ]; then
        stop_private
        [ -d "$DIR" ] || { say "there is nothing in $DIR"; return; }
        rm -rf "$DIR/slapd.d" "$DATA" "$DIR/slapd.pid" "$DIR/slapd.args" "$DIR/slapd.log" "$DIR/slapadd.log" "$SOCKET"
        rm -f "$PASSWORD_FILE"
        rmdir "$DIR" 2>/dev/null || say "left $DIR: there is something in it that is not slapd's"
        say "removed the directory in $DIR"
        return
    fi
    command -v slapd >/dev/null && command -v ldapdelete >/dev/null || die "there is no slapd here"
    start_system
    database=$(database_dn)
    if [ -z "$database" ]; then
        say "there is no database $SUFFIX"
    else
        ldapdelete -Q -r -Y EXTERNAL -H "$LDAPI" "$database" || die "cannot remove the database $database"
        rm -rf "$DATA"
        say "removed the database $SUFFIX (the schema stays: slapd cannot forget one)"
    fi
    rm -f "$PASSWORD_FILE"
}

case $MODE in
    stop) stop_private ;;
    purge) purge ;;
    ready)
        install_slapd
        if [ -n "$DIR" ]; then start_private; else start_system; fi
        load_modules
        load_schemas
        make_database
        set_tls
        make_tree
        set_password
        print_flags
        ;;
esac
