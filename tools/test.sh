#!/usr/bin/env bash
# test.sh - runs every test of this repository, those against real peers included:
# QEMU, libnbd, fio, cryptsetup, a Debian kernel booted in QEMU, and a browser.
#
#   tools/test.sh [--no-install | --install-only]
#
#   --no-install     install nothing; fail when a peer is missing
#   --install-only   install what is missing, and run no test
#
# On a new Debian machine it installs the peers by apt-get, as root or by sudo; it
# adds no sources and removes no package. The tests themselves want root (or sudo)
# too: they set up a loop device and mount small file systems.
#
# It fails when a test fails, when a peer is missing, and when a test did not run.
set -euo pipefail

cd "$(dirname "$0")/.."
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export LC_ALL=C.UTF-8

# Which package brings each program that the tests start.
peers="
  nbdinfo:libnbd-bin nbdcopy:libnbd-bin nbdkit:nbdkit fio:fio cryptsetup:cryptsetup-bin socat:socat
  qemu-img:qemu-utils qemu-io:qemu-utils qemu-nbd:qemu-utils qemu-system-x86_64:qemu-system-x86
  certtool:gnutls-bin chromium:chromium losetup:mount mount:mount setpriv:util-linux prlimit:util-linux strace:strace
"

say() { printf '\n== %s\n' "$*"; }
die() { printf 'tools/test.sh: %s\n' "$*" >&2; exit 1; }
usage() { sed -n '2,/^set -e/p' "$0" | sed '$d; s/^# \{0,1\}//'; }

main() {
  local install=yes run=yes
  while [ $# -gt 0 ]; do
    case $1 in
      --no-install) install='' ;;
      --install-only) run='' ;;
      -h | --help) usage; exit 0 ;;
      *) die "unknown option $1 (see --help)" ;;
    esac
    shift
  done
  work=$(mktemp -d "${TMPDIR:-/tmp}/hostveil-test.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  # APT downloads as a user of its own, who must be able to read its sources.
  chmod 755 "$work"

  local missing
  missing=$(missing_packages)
  if [ -n "$missing" ] && [ -n "$install" ]; then install_packages "$missing"; fi
  missing=$(missing_packages)
  [ -z "$missing" ] || die "peers are missing; install the packages: $missing"
  say "the guest that tests boot"
  # What apt remembers of its sources may be too old to download from.
  tests/guest/boot.sh --build || { [ -n "$install" ] && apt_get update && tests/guest/boot.sh --build; } ||
    die "the guest could not be built"
  [ -z "$run" ] || run_tests
}

missing_packages() {
  local peer
  for peer in $peers; do
    command -v "${peer%%:*}" >/dev/null || echo "${peer##*:}"
  done | sort -u | paste -sd ' '
}

# ------------------------------------------------------------------- installation

install_packages() {
  command -v apt-get >/dev/null ||
    die "this is no Debian system; install these yourself, then use --no-install: $1"
  say "installing $1"
  apt_get update
  # shellcheck disable=SC2086
  if apt_install $1; then return; fi
  local qemu rest
  qemu=$(tr ' ' '\n' <<<"$1" | grep '^qemu-' | paste -sd ' ') || true
  rest=$(tr ' ' '\n' <<<"$1" | grep -v '^qemu-' | paste -sd ' ') || true
  # shellcheck disable=SC2086
  [ -z "$rest" ] || apt_install $rest || die "apt-get could not install: $rest"
  [ -z "$qemu" ] || install_from_backports "$qemu"
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else
    command -v sudo >/dev/null || die "installing needs root or sudo; install the packages yourself: $(missing_packages)"
    sudo "$@"
  fi
}

apt_get() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y "$@"; }
# Each index that apt's sources name: where it comes from, its release, its component.
apt_indexes() { apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages'; }
apt_install() { apt_get install --no-remove --no-install-recommends "$@"; }

# A QEMU tool that came from backports allows no other part of QEMU but those of
# the same release, and backports need not be among apt's sources. So ask there,
# with sources and lists of our own, which vanish with this script.
install_from_backports() {
  local suite private=$work/apt parts list uri signed='' packages=() package
  local key=/usr/share/keyrings/debian-archive-keyring.gpg
  suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")-backports
  say "the parts of QEMU do not fit together with those installed; trying $suite"
  mkdir -p "$private/sources.d" "$private/lists/partial" "$private/cache/archives/partial"
  eval "$(apt-config shell list Dir::Etc::sourcelist/f parts Dir::Etc::sourceparts/d)"
  [ ! -d "$parts" ] || find "$parts" -maxdepth 1 \( -name '*.list' -o -name '*.sources' \) \
    -exec cp {} "$private/sources.d/" \;
  if ! apt_indexes | grep -q " $suite main$"; then
    # Wherever the release itself comes from, its backports do too.
    uri=$(apt_indexes | awk -v codename="${suite%-backports}" '$2 == codename && $3 == "main" { print $1; exit }')
    [ -n "$uri" ] || die "apt's sources do not say where ${suite%-backports} comes from"
    [ ! -e "$key" ] || signed=" [signed-by=$key]"
    echo "deb$signed $uri $suite main" >"$private/sources.d/hostveil-backports.list"
  fi

  local options=(-o Dir::Etc::sourceparts="$private/sources.d" -o Dir::Etc::sourcelist="$list"
    -o Dir::State::lists="$private/lists" -o Dir::Cache="$private/cache")
  apt_get "${options[@]}" update
  # Those that QEMU's packages want of exactly their own release, and those asked for.
  for package in $1 qemu-utils qemu-system-x86 qemu-system-common qemu-system-data seabios; do
    packages+=("$package/$suite")
  done
  apt_install "${options[@]}" "${packages[@]}" || die "apt-get could not install $1, not even from $suite"
}

# -------------------------------------------------------------------------- tests

run_tests() {
  # One build for all: with every feature on, the tests against peers are in it.
  say "cargo test --workspace --all-features"
  cargo test --workspace --all-features --no-fail-fast 2>&1 | tee "$work/log" || die "tests failed"

  say "whether every test ran"
  local listed passed
  listed=$(cargo test -q --workspace --all-features --test peers -- --list 2>/dev/null | grep -c ': test$') || true
  # Two packages have such tests.
  passed=$(awk '/Running tests\/peers\/main.rs/ { here = 1 } here && /^test result:/ { n += $4; here = 0 } END { print n + 0 }' "$work/log")
  [ "$listed" -gt 0 ] || die "there are no tests against peers"
  [ "${passed:-0}" -eq "$listed" ] || die "${passed:-0} of $listed tests against peers passed"
  if grep '^test result:' "$work/log" | grep -vE ' 0 failed; 0 ignored; .* 0 filtered out'; then
    die "a test was not run (above)"
  fi
  echo "$listed tests against peers, and $(awk '/^test result:/ { n += $4 } END { print n }' "$work/log") in all, passed; none was left out"
}

main "$@"
