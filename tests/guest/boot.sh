#!/usr/bin/env bash
# boot.sh - boots a Debian kernel under QEMU with the given disks, runs one shell
# script in it, and exits with that script's status. It is how the tests show that
# a real kernel can live on an exported disk, and that its dm-crypt reads what we
# stored. Needs Debian's apt-get (to download, not to install), dpkg-deb, and
# qemu-system-x86_64; for -n also socat. Neither root nor KVM is needed.
#
#   boot.sh [-d DRIVE]... [-f FILE[:GUESTPATH]]... [-n SOCKET] SCRIPT [ARG]...
#   boot.sh --build        only fill the cache and print its directory
#
#   -d DRIVE   options of QEMU's -drive, without if= and id=; the n-th is
#              /dev/vda, /dev/vdb and so on in the guest, for example
#                file=nbd+unix:///disk?socket=/tmp/x.sock,format=raw,discard=unmap
#   -f FILE    puts a file into the guest, at GUESTPATH (default: /NAME)
#   -n SOCKET  gives the guest a network in which 10.0.2.100:10809 is this Unix
#              socket, and nothing else is reachable
#
# In the guest: busybox, e2fsprogs, xfsprogs, cryptsetup, nbd-client, fio, and modules
# for ext4, xfs, dm-crypt and nbd. Output: the guest's serial console.
#
# Environment:
#   GUEST_CACHE    where packages and the initramfs are kept (target/guest)
#   GUEST_KERNEL   the kernel's Debian package (linux-image-cloud-amd64)
#   GUEST_MEM      MiB of memory (1024)
#   GUEST_TIMEOUT  seconds after which QEMU is ended (300)
#
# Exit status: the script's; 124 on a timeout; 125 when the guest ended without
# reporting one; 126 when it could not be built or started.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${GUEST_CACHE:-$here/../../target/guest}
kernel=${GUEST_KERNEL:-linux-image-cloud-amd64}
memory=${GUEST_MEM:-1024}
seconds=${GUEST_TIMEOUT:-300}

packages="busybox-static cryptsetup-bin e2fsprogs fio nbd-client xfsprogs"
programs="cryptsetup e2fsck fio mke2fs mkfs.ext4 mkfs.xfs nbd-client xfs_repair"
modules="virtio_pci virtio_blk virtio_net ext4 xfs crc32c_generic nbd dm-mod dm-crypt
  aesni-intel aes_generic xts sha256_generic hmac algif_skcipher algif_hash af_alg"

say() { printf 'boot.sh: %s\n' "$*" >&2; }
die() { say "$*"; exit 126; }
usage() { sed -n '2,/^set -e/p' "$0" | sed '$d; s/^# \{0,1\}//'; }

main() {
  local drives=() files=() socket='' build=''
  while [ $# -gt 0 ]; do
    case $1 in
      -d) drives+=("${2:?-d needs a drive}"); shift 2 ;;
      -f) files+=("${2:?-f needs a file}"); shift 2 ;;
      -n) socket=${2:?-n needs a socket}; shift 2 ;;
      --build) build=yes; shift ;;
      -h | --help) usage; exit 0 ;;
      -*) die "unknown option $1 (see --help)" ;;
      *) break ;;
    esac
  done
  need qemu-system-x86_64 qemu-system-x86
  need apt-get apt
  need dpkg-deb dpkg
  [ -z "$socket" ] || need socat socat
  mkdir -p "$cache"
  cache=$(cd "$cache" && pwd)
  build_once
  if [ -n "$build" ]; then echo "$image"; exit 0; fi
  [ $# -ge 1 ] || die "no script given (see --help)"
  run "$@"
}

need() { command -v "$1" >/dev/null || die "$1 is missing: install the package $2"; }

# ------------------------------------------------------------ kernel and initramfs

# Sets $image to a directory with vmlinuz, base.cpio and busybox in it.
build_once() {
  local recipe
  recipe=$(printf '%s|' "$kernel" "$packages" "$programs" "$modules" "$(sha256sum <"$0")" |
    sha256sum | cut -c1-16)
  image=$cache/$recipe
  # Tests run in parallel: the first one builds, the others wait for it.
  exec 9>"$cache/lock"
  flock 9
  if [ ! -e "$image/complete" ]; then
    say "building the guest in $image (once)"
    rm -rf "$image"
    mkdir -p "$image/packages"
    download
    assemble
    rm -rf "${image:?}/packages" "$image/root" "$image/kernel" "$image/initrd"
    touch "$image/complete"
  fi
  exec 9>&-
}

# apt-get with nothing taken as installed and no lock of the system's: all that
# the packages need is downloaded, and nothing is installed.
apt_get() {
  : >"$image/status"
  mkdir -p "$image/packages/partial"
  apt-get -q -y -o Dir::State::status="$image/status" -o Dir::Cache::archives="$image/packages" \
    -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o Debug::NoLocking=1 \
    -o APT::Sandbox::User="$(id -un)" -o APT::Keep-Downloaded-Packages=true "$@" >"$image/apt.log" 2>&1 || {
    tail -n 5 "$image/apt.log" >&2
    die "apt-get could not download what the guest consists of (is the network there? try apt-get update)"
  }
}

download() {
  local package=$kernel next
  # A package like linux-image-cloud-amd64 only names the one that holds the kernel.
  while next=$(apt-cache depends --no-recommends --no-suggests "$package" 2>/dev/null |
    sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1) && [ -n "$next" ]; do
    package=$next
  done
  apt-cache show "$package" >/dev/null 2>&1 ||
    die "apt knows no package $package: run apt-get update, or name a kernel by GUEST_KERNEL"
  # shellcheck disable=SC2086
  apt_get --no-install-recommends --download-only install $packages
  (cd "$image/packages" && apt_get download "$package")
}

assemble() {
  local root=$image/root initrd=$image/initrd deb
  mkdir -p "$root" "$image/kernel" \
    "$initrd"/{bin,dev,etc,guest,lib,lib64,mnt,proc,run,sys,tmp,usr,var}
  for deb in "$image"/packages/*.deb; do
    case ${deb##*/} in
      linux-image-*) dpkg-deb -x "$deb" "$image/kernel" ;;
      *) dpkg-deb -x "$deb" "$root" ;;
    esac
  done
  cp "$image"/kernel/boot/vmlinuz-* "$image/vmlinuz" || die "$kernel holds no kernel"
  cp "$(find "$root" -path '*/bin/busybox' | head -n 1)" "$image/busybox"
  cp "$image/busybox" "$initrd/bin/busybox"
  ln -s bin "$initrd/sbin"
  ln -s ../bin "$initrd/usr/bin"
  ln -s ../bin "$initrd/usr/sbin"
  ln -s ../lib "$initrd/usr/lib"
  add_programs "$root" "$initrd"
  add_modules "$image/kernel" "$initrd"
  write_init "$initrd/init"
  (cd "$initrd" && find . | "$image/busybox" cpio -o -H newc 2>/dev/null) >"$image/base.cpio"
}

# Copies each program, and the libraries that its loader finds for it.
add_programs() {
  local root=$1 initrd=$2 program path loader libraries library
  loader=$(find "$root" -name 'ld-linux-x86-64.so.2' ! -type l | head -n 1)
  [ -n "$loader" ] || loader=$(find "$root" -name 'ld-linux-x86-64.so.2' | head -n 1)
  libraries=$root/lib/x86_64-linux-gnu:$root/usr/lib/x86_64-linux-gnu
  for program in $programs; do
    path=$(find "$root" -path "*bin/$program" | head -n 1)
    [ -n "$path" ] || die "no package holds the program $program"
    cp -L "$path" "$initrd/bin/$program"
    "$loader" --inhibit-cache --library-path "$libraries" --list "$(readlink -f "$path")" |
      sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p' >>"$image/libraries"
  done
  # The C library opens this one by itself when a thread is cancelled.
  find "$root" -name 'libgcc_s.so.1' >>"$image/libraries"
  sort -u "$image/libraries" | while read -r library; do cp -nL "$library" "$initrd/lib/"; done
  cp -L "$loader" "$initrd/lib64/ld-linux-x86-64.so.2"
}

# Copies each module with those that it depends on; one that is built in has no file.
add_modules() {
  local kernel_root=$1 initrd=$2 tree version base module line file
  tree=$(find "$kernel_root" -path '*/lib/modules/*' -prune -type d | head -n 1)
  version=${tree##*/}
  base=${tree%/lib/modules/*}
  "$image/busybox" depmod -b "$base" "$version" 2>/dev/null || depmod -b "$base" "$version"
  for module in $modules; do
    line=$(grep -E "(^|/)$(sed 's/[-_]/[-_]/g' <<<"$module")\.ko[^:]*:" "$tree/modules.dep" | head -n 1) || continue
    for file in ${line/:/ }; do
      mkdir -p "$initrd/lib/modules/$version/$(dirname "$file")"
      cp -n "$tree/$file" "$initrd/lib/modules/$version/$file"
    done
  done
  find "$initrd/lib/modules" -name '*.ko.xz' -exec unxz {} +
  cp "$tree"/modules.{order,builtin} "$initrd/lib/modules/$version/"
  "$image/busybox" depmod -b "$initrd" "$version" 2>/dev/null || depmod -b "$initrd" "$version"
}

# The guest's first process. The nonce tells its lines from the script's.
write_init() {
  cat >"$1" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin 2>/dev/null
export PATH=/bin HOME=/ TERM=dumb
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs run /run
mkdir -p /run/cryptsetup /run/lock /dev/shm
ln -sf /proc/self/fd /dev/fd
ln -sf /proc/mounts /etc/mtab
echo /bin/modprobe >/proc/sys/kernel/modprobe
value() { sed -n "s/.*guest_$1=\([0-9a-f]*\).*/\1/p" /proc/cmdline; }
for module in virtio_pci virtio_blk ext4; do modprobe $module 2>/dev/null; done
tries=0
while [ "$(ls -d /sys/block/vd* 2>/dev/null | wc -l)" -lt "$(value disks)" ] && [ $tries -lt 100 ]; do
  sleep 0.1
  tries=$((tries + 1))
done
if [ "$(value net)" = 1 ]; then
  modprobe virtio_net
  ip link set lo up
  ip link set eth0 up
  ip addr add 10.0.2.15/24 dev eth0
fi
set --
if [ -e /guest/arguments ]; then
  while IFS= read -r argument; do set -- "$@" "$argument"; done </guest/arguments
fi
sh /guest/script "$@" </dev/null 2>&1
status=$?
sync
echo "@@$(value nonce) exit $status"
sleep 0.1
poweroff -f
INIT
  chmod 755 "$1"
}

# ------------------------------------------------------------------------ one run

run() {
  local script=$1 nonce work n=0 file source target status
  shift
  work=$(mktemp -d "${TMPDIR:-/tmp}/hostveil-guest.XXXXXX")
  qemu=
  # shellcheck disable=SC2064
  trap "[ -z \"\$qemu\" ] || kill \$qemu 2>/dev/null || :; rm -rf '$work'" EXIT
  trap 'exit 130' INT TERM

  mkdir -p "$work/added/guest"
  cp "$script" "$work/added/guest/script" || die "there is no script $script"
  [ $# -eq 0 ] || printf '%s\n' "$@" >"$work/added/guest/arguments"
  for file in "${files[@]}"; do
    source=${file%%:*} target=${file#*:}
    [ "$target" != "$file" ] || target=${source##*/}
    mkdir -p "$work/added/$(dirname "$target")"
    cp -L "$source" "$work/added/$target" || die "there is no file $source"
  done
  cp "$image/base.cpio" "$work/initrd"
  (cd "$work/added" && find . | "$image/busybox" cpio -o -H newc 2>/dev/null) >>"$work/initrd"
  nonce=$(od -An -tx1 -N8 /dev/urandom | tr -d ' \n')

  local arguments=(-M q35 -accel "tcg,thread=multi" -cpu max -smp 1 -m "$memory"
    -nodefaults -no-user-config -display none -no-reboot -serial stdio
    -kernel "$image/vmlinuz" -initrd "$work/initrd"
    -append "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable guest_nonce=$nonce guest_disks=${#drives[@]} guest_net=${socket:+1}")
  for file in "${drives[@]}"; do
    arguments+=(-drive "$file,if=none,id=disk$n" -device "virtio-blk-pci,drive=disk$n,serial=disk$n")
    n=$((n + 1))
  done
  if [ -n "$socket" ]; then
    arguments+=(-netdev "user,id=net,restrict=on,guestfwd=tcp:10.0.2.100:10809-cmd:socat - UNIX-CONNECT:$socket"
      -device virtio-net-pci,netdev=net)
  fi

  timeout "$seconds" qemu-system-x86_64 "${arguments[@]}" </dev/null >"$work/serial" 2>"$work/errors" &
  qemu=$!
  status=0
  wait $qemu || status=$?
  qemu=
  tr -d '\r' <"$work/serial" | grep -av "^@@$nonce" || :
  cat "$work/errors" >&2
  local reported
  reported=$(tr -d '\r' <"$work/serial" | sed -n "s/.*@@$nonce exit \([0-9]*\).*/\1/p" | tail -n 1)
  [ -z "$reported" ] || exit "$reported"
  [ "$status" -ne 124 ] || { say "the guest did not finish within $seconds seconds"; exit 124; }
  say "the guest ended without a status (QEMU exited with $status)"
  [ -s "$work/serial" ] || exit 126
  exit 125
}

main "$@"
