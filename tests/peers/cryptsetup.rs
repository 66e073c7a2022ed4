//! cryptsetup, LUKS2's own program: it opens what we format, and we serve what it formats.

use std::path::{Path, PathBuf};

use crate::client::Client;
use crate::harness::{MIB, Run, Scratch, Volume, assert_same, noise, peer};
use crate::reference;

#[test]
fn it_reads_the_headers_that_we_write() {
    for (sector_size, pbkdf) in [("512", "pbkdf2"), ("4096", "argon2id")] {
        let place = Scratch::new();
        let volume = Volume::named(place.path(), "disk.img");
        crate::harness::hostveil()
            .args([
                "format",
                "--type",
                "luks",
                "--size",
                "32M",
                "--sector-size",
                sector_size,
                "--pbkdf",
                pbkdf,
            ])
            .args(["--label", "our-label", "--key-file"])
            .args([&volume.key, &volume.disk])
            .run();
        let dump = peer("cryptsetup").arg("luksDump").arg(&volume.disk).run();
        for line in ["Version: 2", "Label: our-label", "cipher: aes-xts-plain64", "Key: 512 bits"] {
            let (field, value) = line.split_once(": ").unwrap();
            let found = dump
                .lines()
                .any(|l| l.trim().split_once(':') == Some((field, l)) || matches(l, field, value));
            assert!(found, "no {line:?} in\n{dump}");
        }
        assert!(dump.lines().any(|l| matches(l, "sector", &format!("{sector_size} [bytes]"))), "{dump}");
        assert!(dump.lines().any(|l| matches(l, "PBKDF", pbkdf)), "{dump}");

        let uuid = peer("cryptsetup").arg("luksUUID").arg(&volume.disk).run();
        assert_eq!(volume.serve().start().ready()["uuid"], uuid.trim());
        open_with(&volume.disk, &volume.key).run();
        let wrong = place.file("wrong", b"incorrect horse");
        assert_eq!(open_with(&volume.disk, &wrong).fail().code, 2);
    }
}

/// Whether a line of `luksDump` gives `field` the value `value`.
fn matches(line: &str, field: &str, value: &str) -> bool {
    line.split_once(':').is_some_and(|(f, v)| f.trim() == field && v.trim() == value)
}

fn open_with(disk: &Path, key: &Path) -> std::process::Command {
    let mut command = peer("cryptsetup");
    command.args(["open", "--test-passphrase", "--key-file"]).args([key, disk]);
    command
}

#[test]
fn what_we_store_decrypts_by_its_key() {
    for sector_size in ["512", "4096"] {
        let place = Scratch::new();
        let volume = Volume::format(place.path(), 24 * MIB, &["--sector-size", sector_size]);
        let data = place.noise("data", 24 * MIB);
        let server = volume.serve().start();
        assert_eq!(server.size(), 24 * MIB);
        peer("nbdcopy").arg(&data).arg(server.uri()).run();
        server.stop();
        let decrypted = place.file("decrypted", &reference::decrypt(&volume));
        assert_same(&data, &decrypted);
    }
}

#[test]
fn we_serve_what_it_formats() {
    for sector_size in ["512", "4096"] {
        for pbkdf in ["pbkdf2", "argon2id"] {
            let place = Scratch::new();
            let volume = Volume::named(place.path(), "theirs.img");
            std::fs::File::create(&volume.disk).unwrap().set_len(40 * MIB).unwrap();
            luks_format(&volume, &["--sector-size", sector_size, "--pbkdf", pbkdf]);
            serves_right(&place, &volume);
        }
    }
}

/// Writes by NBD, and compares with what the disk holds then.
fn serves_right(place: &Scratch, volume: &Volume) {
    let offset = reference::layout(&volume.disk).offset;
    let size = std::fs::metadata(&volume.disk).unwrap().len() - offset;
    let data = place.noise("data", size);
    let server = volume.serve().start();
    assert_eq!(server.size(), size);
    peer("nbdcopy").arg(&data).arg(server.uri()).run();
    server.stop();
    assert_same(&data, &place.file("decrypted", &reference::decrypt(volume)));
}

fn luks_format(volume: &Volume, options: &[&str]) {
    let cheap = if options.contains(&"argon2id") {
        vec!["--pbkdf-force-iterations", "4", "--pbkdf-memory", "65536"]
    } else {
        vec!["--pbkdf-force-iterations", "1000"]
    };
    peer("cryptsetup")
        .args(["luksFormat", "--batch-mode", "--type", "luks2", "--key-size", "512"])
        .args(options)
        .args(cheap)
        .arg(&volume.disk)
        .arg(&volume.key)
        .run();
}

#[test]
fn each_of_several_passphrases_opens() {
    let place = Scratch::new();
    let volume = Volume::format(place.path(), 16 * MIB, &[]);
    let added = place.file("added", b"a second passphrase\n");
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
        .args([&volume.key, &volume.disk, &added])
        .run();
    let server = volume.serve().start();
    Client::connect(&server).write(0, &noise(4096, 1), 0).unwrap();
    server.stop();
    let second = Volume { disk: volume.disk.clone(), key: added, anchor: None };
    let server = second.serve().start();
    assert_eq!(Client::connect(&server).read(0, 4096).unwrap(), noise(4096, 1));
    server.stop();
    // Its first passphrase gone, a volume opens by the second alone.
    peer("cryptsetup").args(["luksKillSlot", "--batch-mode"]).arg(&volume.disk).arg("0").run();
    assert_eq!(volume.serve().refused().code, 2);
    second.serve().start().stop();
}

#[test]
fn we_serve_what_it_encrypted_in_place() {
    let place = Scratch::new();
    let plain: PathBuf = place.noise("plain", 64 * MIB);
    let volume = Volume::named(place.path(), "theirs.img");
    std::fs::copy(&plain, &volume.disk).unwrap();
    // The header takes the disk's tail away: 32 MiB, of which LUKS2 keeps one half in reserve.
    peer("cryptsetup")
        .args(["reencrypt", "--encrypt", "--batch-mode", "--type", "luks2", "--reduce-device-size", "32M"])
        .args(["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file"])
        .args([&volume.key, &volume.disk])
        .run();
    let server = volume.serve().start();
    assert!(server.size() >= 32 * MIB, "{}", server.size());
    let read = place.join("read");
    peer("nbdcopy").arg(server.uri()).arg(&read).run();
    server.stop();
    let (read, plain) = (std::fs::read(read).unwrap(), std::fs::read(plain).unwrap());
    let kept = 32 * usize::try_from(MIB).unwrap();
    assert!(read[..kept] == plain[..kept], "what it encrypted reads differently");
}
