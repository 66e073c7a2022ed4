//! A Debian kernel, booted in QEMU: it lives on our export, and its own dm-crypt reads what we
//! stored.

use std::path::{Path, PathBuf};

use crate::form::Form;
use crate::harness::{MIB, Run, Scratch, Server, Volume, allocated, contains, find_peer, peer};

/// What the guest writes over and over, and what must then be nowhere in the stored image.
const MARKER: &str = "hostveil-marker-7d3f9c1e5b2a8046";
/// The same, for what the guest writes through its own dm-crypt.
const OTHER_MARKER: &str = "another-marker-0f1e2d3c4b5a6978";

/// A script of the guest's, and what it may use.
struct Guest {
    place: Scratch,
    options: Vec<String>,
}

impl Guest {
    fn new() -> Self {
        Self { place: Scratch::new(), options: vec![] }
    }

    /// Gives it the export as its next disk.
    fn export(self, server: &Server) -> Self {
        self.option("-d", &format!("file={},format=raw,discard=unmap", server.uri()))
    }

    /// Gives it an image as its next disk, ciphertext and all.
    fn image(self, disk: &Path) -> Self {
        self.option("-d", &format!("driver=raw,file.driver=file,file.filename={}", disk.display()))
    }

    fn option(mut self, name: &str, value: &str) -> Self {
        self.options.extend([name.to_owned(), value.to_owned()]);
        self
    }

    /// Boots it; what its script prints. Fails the test when the script fails.
    fn run(self, script: &str) -> String {
        find_peer("qemu-system-x86_64");
        let script = self.place.file("script", format!("set -eu\n{script}").as_bytes());
        let boot = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/guest/boot.sh");
        std::process::Command::new(boot).args(self.options).arg(script).run()
    }
}

/// The lines of a guest's output that give files' checksums.
fn sums(output: &str) -> Vec<&str> {
    let lines: Vec<&str> = output.lines().filter(|line| line.contains("  /mnt/")).collect();
    assert_eq!(lines.len(), 3, "{output}");
    lines
}

#[test]
fn an_ext4_survives_reboots_and_is_what_dm_crypt_reads() {
    let place = Scratch::new();
    let volume = Volume::format(place.path(), 160 * MIB, &[]);

    // Blocks of 4096 bytes: a kernel mounts no file system whose blocks are smaller than the device's,
    // and dm-crypt's device has the volume's sectors.
    let server = volume.serve().arg("--discard").arg("unmap").start();
    let written = Guest::new().export(&server).run(&format!(
        "mkfs.ext4 -q -b 4096 /dev/vda
         mount /dev/vda /mnt
         yes {MARKER} | head -c 16000000 >/mnt/marked
         dd if=/dev/urandom of=/mnt/random bs=64k count=200 2>/dev/null
         mkdir /mnt/directory; seq 100000 >/mnt/directory/numbers
         sync; rm -f /mnt/none; fstrim -v /mnt
         sha256sum /mnt/marked /mnt/random /mnt/directory/numbers
         umount /mnt"
    ));
    server.stop();

    // A new server, a new boot.
    let server = volume.serve().start();
    let read = Guest::new().export(&server).run(
        "e2fsck -fn /dev/vda
         mount -o ro /dev/vda /mnt
         sha256sum /mnt/marked /mnt/random /mnt/directory/numbers
         umount /mnt",
    );
    assert_eq!(sums(&written), sums(&read));
    let plain = place.join("plain");
    peer("nbdcopy").arg(server.uri()).arg(&plain).run();
    server.stop();
    assert!(contains(&plain, MARKER.as_bytes()), "the export does not hold what the guest wrote");
    assert!(!contains(&volume.disk, MARKER.as_bytes()), "the stored image holds what the guest wrote");

    the_guests_own_dm_crypt_agrees(&place, &volume, &sums(&written));
}

/// The guest opens the stored image by itself, reads, and writes something that we then export.
fn the_guests_own_dm_crypt_agrees(place: &Scratch, volume: &Volume, written: &[&str]) {
    // An emulated processor would take a minute to derive our slot's key; this one is cheap.
    let cheap = place.file("cheap", b"a passphrase for the guest");
    peer("cryptsetup")
        .args([
            "luksAddKey",
            "--batch-mode",
            "--pbkdf",
            "pbkdf2",
            "--pbkdf-force-iterations",
            "1000",
            "--key-file",
        ])
        .args([&volume.key, &volume.disk, &cheap])
        .run();
    let read =
        Guest::new().image(&volume.disk).option("-f", &format!("{}:key", cheap.display())).run(&format!(
            "modprobe dm-crypt
         cryptsetup open --key-file /key /dev/vda plain
         e2fsck -fn /dev/mapper/plain
         mount /dev/mapper/plain /mnt
         sha256sum /mnt/marked /mnt/random /mnt/directory/numbers
         yes {OTHER_MARKER} | head -c 4000000 >/mnt/others
         umount /mnt
         cryptsetup close plain"
        ));
    assert_eq!(written, sums(&read));

    let server = volume.serve().start();
    let plain = place.join("plain");
    peer("nbdcopy").arg(server.uri()).arg(&plain).run();
    server.stop();
    assert!(contains(&plain, OTHER_MARKER.as_bytes()), "we do not read what the guest's dm-crypt wrote");
    assert!(contains(&plain, MARKER.as_bytes()));
    assert!(!contains(&volume.disk, OTHER_MARKER.as_bytes()));
}

/// What a guest's file systems on sealed volumes go through until the servers are killed under them. Each
/// line of its output that begins with a path and a sum is about a file that was fsync'ed.
const UNTIL_THE_KILL: &str = "
    modprobe xfs
    mkdir /mnt/ext4 /mnt/xfs
    mkfs.ext4 -q -b 4096 /dev/vda
    mkfs.xfs -q /dev/vdb
    mount -t ext4 /dev/vda /mnt/ext4
    mount -t xfs /dev/vdb /mnt/xfs
    for fs in /mnt/ext4 /mnt/xfs; do
      dd if=/dev/urandom of=$fs/large bs=64k count=512 conv=fsync 2>/dev/null
      sha256sum $fs/large
    done
    for number in $(seq 200); do
      for fs in /mnt/ext4 /mnt/xfs; do
        dd if=/dev/urandom of=$fs/$number bs=64k count=8 conv=fsync 2>/dev/null || { echo cut off; exit 0; }
        sha256sum $fs/$number
      done
    done";

/// And what they go through after that.
const AFTER_THE_KILL: &str = "
    modprobe xfs
    mkdir /mnt/ext4 /mnt/xfs
    up() { mount -t ext4 /dev/vda /mnt/ext4; mount -t xfs /dev/vdb /mnt/xfs; }
    down() { umount /mnt/ext4; umount /mnt/xfs; e2fsck -fn /dev/vda; xfs_repair -n /dev/vdb; }
    up
    sha256sum -c /sums
    down
    up
    rm /mnt/ext4/large /mnt/xfs/large
    sync
    fstrim -v /mnt/ext4
    fstrim -v /mnt/xfs
    down
    up
    grep -v large /sums | sha256sum -c
    down
    echo all is well";

#[test]
fn ext4_and_xfs_on_sealed_volumes_survive_a_kill_and_give_space_back() {
    let (one, other) = (Scratch::new(), Scratch::new());
    // mkfs.xfs makes none that is smaller than 300 MiB.
    let volumes = [Form::Sealed.make(one.path(), 160 * MIB), Form::Anchored.make(other.path(), 320 * MIB)];
    let start = || volumes.each_ref().map(|volume| volume.serve().arg("--discard").arg("unmap").start());
    let attach = |servers: &[Server; 2]| servers.iter().fold(Guest::new(), Guest::export);

    let servers = start();
    let guest = attach(&servers);
    let disks = volumes.each_ref().map(|volume| volume.disk.clone());
    let killer = std::thread::spawn(move || {
        // Behind the first files, amid the small ones.
        while disks.iter().any(|disk| allocated(disk) < 48 * MIB) {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        servers.iter().for_each(|server| server.signal("KILL"));
    });
    let output = guest.run(UNTIL_THE_KILL);
    killer.join().unwrap();
    assert!(output.contains("cut off"), "{output}");
    let flushed: Vec<&str> = output.lines().filter(|line| line.contains("  /mnt/")).collect();
    assert!(flushed.len() > 6, "{output}");

    volumes.iter().for_each(Volume::check);
    start().into_iter().for_each(Server::stop);
    let before = volumes.each_ref().map(|volume| allocated(&volume.disk));
    let servers = start();
    let sums = one.file("sums", (flushed.join("\n") + "\n").as_bytes());
    let guest = attach(&servers).option("-f", &format!("{}:sums", sums.display()));
    let output = guest.run(AFTER_THE_KILL);
    servers.into_iter().for_each(Server::stop);
    assert!(output.contains("all is well"), "{output}");
    for (volume, before) in volumes.iter().zip(before) {
        let after = allocated(&volume.disk);
        // Not all of the large file's 32 MiB: short runs of free blocks stay with the volume.
        assert!(after + 16 * MIB < before, "{before} bytes, and after an fstrim {after}\n{output}");
        volume.check();
    }
}

#[test]
fn the_kernels_nbd_client_attaches() {
    find_peer("socat");
    let place = Scratch::new();
    let volume = Volume::format(place.path(), 96 * MIB, &["--sector-size", "4096"]);
    let server = volume.serve().arg("--discard").arg("unmap").start();
    let output = Guest::new().option("-n", server.socket().to_str().unwrap()).run(&format!(
        "modprobe nbd
         nbd-client 10.0.2.100 10809 /dev/nbd0 -N '{}' >/dev/null
         test $(blockdev --getsize64 /dev/nbd0) = {}
         mkfs.ext4 -q /dev/nbd0
         mount -o discard /dev/nbd0 /mnt
         fio --name=v --directory=/mnt --rw=randwrite --bsrange=512-64k --size=12m --verify=crc32c \
             --do_verify=1 --verify_fatal=1 --fsync=32 --minimal >/dev/null
         fstrim /mnt
         umount /mnt
         e2fsck -fn /dev/nbd0
         nbd-client -d /dev/nbd0
         echo the-end-was-reached",
        server.name(),
        server.size(),
    ));
    assert!(output.contains("the-end-was-reached"), "{output}");
    server.stop();
}
