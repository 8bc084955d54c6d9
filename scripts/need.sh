#!/usr/bin/env bash
# need.sh COMMAND=PACKAGE …: sees to it that the commands are there. As root it installs Debian's packages, without
# starting their daemons now or at the next boot; otherwise it says what to run and fails. It never skips.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

commands=() packages=()
for pair in "$@"; do
  command -v "${pair%%=*}" >/dev/null && continue
  commands+=("${pair%%=*}")
  packages+=("${pair#*=}")
done
((${#packages[@]})) || exit 0

refuse() {
  echo "mcpmeter: this needs ${commands[*]}, which ${1}. Run as root: apt-get install ${packages[*]}" >&2
  exit 1
}
command -v apt-get >/dev/null || refuse "apt-get, missing here as well, would install"
((EUID == 0)) || refuse "only root may install"

# The one way that every init system honours to keep a package's daemon from starting.
guard=/usr/sbin/policy-rc.d
if [[ ! -e $guard ]]; then
  trap 'rm -f "$guard"' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$guard"
  chmod 755 "$guard"
fi

echo "mcpmeter: installing Debian's ${packages[*]}"
export DEBIAN_FRONTEND=noninteractive
apt=(apt-get -qq -o DPkg::Lock::Timeout=300)
log=$(mktemp)
# A stale list is no reason to stop: the package may be in it all the same.
"${apt[@]}" update >"$log" 2>&1 || true
if ! "${apt[@]}" install -y --no-install-recommends "${packages[@]}" >>"$log" 2>&1 </dev/null; then
  tail -n 5 "$log" >&2
  refuse "apt-get could not install (its log: $log)"
fi
rm -f "$log"
for name in "${commands[@]}" "${packages[@]}"; do
  if command -v systemctl >/dev/null; then systemctl disable --quiet "$name" 2>/dev/null || true; fi
done
for name in "${commands[@]}"; do
  command -v "$name" >/dev/null || refuse "is still not found after installing"
done
