//! LUKS1: volumes that cryptsetup and QEMU made, which we serve and never make ourselves. What we
//! read is what QEMU's own LUKS driver and nbdkit's wrote, and they read what we wrote.

use serde_json::Value;

use crate::harness::{KIB, MIB, Run, Scratch, Volume, assert_same, hostveil, peer};

/// The data of every volume here.
const SIZE: u64 = 3 * MIB;
/// The hashes that are accepted, and the key lengths in bits: AES-128 and AES-256.
const HASHES: [&str; 3] = ["sha1", "sha256", "sha512"];
const KEYS: [&str; 2] = ["256", "512"];

#[test]
fn we_and_others_serve_what_cryptsetup_formats() {
    for hash in HASHES {
        for key_size in KEYS {
            let place = Scratch::new();
            let volume = luks_format(&place, &["--hash", hash, "--key-size", key_size]);
            let uuid = peer("cryptsetup").arg("luksUUID").arg(&volume.disk).run();
            let described = inspect(&volume);
            assert_eq!((&described["version"], &described["uuid"]), (&1.into(), &uuid.trim().into()));
            assert_eq!(described["digest"], format!("pbkdf2 ({hash}, 1000 iterations)"));
            assert_eq!(described["data_offset"], 2 * MIB);
            assert_eq!(described["refused"], Value::Null);
            all_read_alike(&place, &volume, uuid.trim());
        }
    }
}

#[test]
fn we_and_others_serve_what_qemu_creates() {
    for (hash, cipher, ivgen) in
        [("sha256", "aes-256", "plain64"), ("sha1", "aes-128", "plain64"), ("sha512", "aes-256", "plain")]
    {
        let place = Scratch::new();
        let volume = Volume::named(place.path(), "theirs.img");
        let options =
            format!("key-secret=key,iter-time=10,hash-alg={hash},cipher-alg={cipher},ivgen-alg={ivgen}");
        create(&volume, SIZE, &options);
        let uuid = peer("cryptsetup").arg("luksUUID").arg(&volume.disk).run();
        // Eight areas behind sector 8, each rounded up to 4096 bytes, and the data right behind.
        let area: u64 = if cipher == "aes-256" { 504 } else { 256 };
        let described = inspect(&volume);
        assert_eq!(described["data_offset"], (8 + 8 * area) * 512);
        assert_eq!(described["cipher"], format!("aes-xts-{ivgen}"));
        all_read_alike(&place, &volume, uuid.trim());
    }
}

/// What QEMU writes we read; what we write QEMU reads, and nbdkit.
fn all_read_alike(place: &Scratch, volume: &Volume, uuid: &str) {
    let (data, read) = (place.noise("data", SIZE), place.join("read"));
    peer("qemu-img")
        .args(["convert", "-n", "-f", "raw"])
        .args(secret(volume))
        .arg("--target-image-opts")
        .args([data.as_os_str(), image(volume).as_ref()])
        .run();
    let header = header(volume);
    let server = volume.serve().start();
    assert_eq!((server.size(), &server.ready()["uuid"]), (SIZE, &uuid.into()));
    assert_eq!(server.log().matches("not authenticated").count(), 1, "{}", server.log());
    peer("nbdcopy").arg(server.uri()).arg(&read).run();
    assert_same(&data, &read);

    let mut bytes = std::fs::read(&data).unwrap();
    bytes.reverse();
    let ours = place.file("ours", &bytes);
    peer("nbdcopy").arg(&ours).arg(server.uri()).run();
    io(&["-f", "raw", server.uri()], &["write -P 0x22 512 1536", "write -f -P 0x33 1M 4k", "write -z 2M 1k"]);
    server.stop();
    assert!(header == self::header(volume), "serving changed the header");

    bytes[512..2048].fill(0x22);
    bytes[1 << 20..][..4096].fill(0x33);
    bytes[2 << 20..][..1024].fill(0);
    let expected = place.file("expected", &bytes);
    peer("qemu-img")
        .args(["convert", "-O", "raw"])
        .args(secret(volume))
        .arg("--image-opts")
        .args([image(volume).as_ref(), read.as_os_str()])
        .run();
    assert_same(&expected, &read);
    let mut options = secret(volume);
    options.extend(["--image-opts".into(), image(volume)]);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    io(&options, &["read -P 0x22 512 1536", "read -P 0x33 1M 4k", "read -P 0 2M 1k"]);
    nbdkit(volume, &format!("nbdcopy \"$uri\" {}", read.display()));
    assert_same(&expected, &read);

    // And back: what nbdkit writes we read.
    nbdkit(volume, &format!("nbdcopy {} \"$uri\"", data.display()));
    let server = volume.serve().arg("--read-only").start();
    peer("nbdcopy").arg(server.uri()).arg(&read).run();
    assert_same(&data, &read);
    server.stop();
}

#[test]
fn each_of_several_passphrases_opens() {
    let place = Scratch::new();
    let volume = luks_format(&place, &["--hash", "sha256", "--key-size", "512"]);
    let added = place.file("added", b"a second passphrase\n");
    peer("cryptsetup")
        .args(["luksAddKey", "--batch-mode", "--pbkdf-force-iterations", "1000", "--key-slot", "5"])
        .arg("--key-file")
        .args([&volume.key, &volume.disk, &added])
        .run();
    let second = Volume { disk: volume.disk.clone(), key: added, anchor: None };
    volume.serve().start().stop();
    second.serve().start().stop();
    let slots = inspect(&volume)["keyslots"].clone();
    let numbers: Vec<_> = slots.as_array().unwrap().iter().map(|slot| slot["number"].clone()).collect();
    assert_eq!(numbers, [0, 5]);
    // Its first passphrase gone, a volume opens by the second alone.
    peer("cryptsetup").args(["luksKillSlot", "--batch-mode"]).arg(&volume.disk).arg("0").run();
    assert_eq!(volume.serve().refused().code, 2);
    second.serve().start().stop();
}

#[test]
fn what_luks1_has_and_we_refuse_is_named() {
    let place = Scratch::new();
    for (options, names) in [
        (&["--cipher", "aes-cbc-essiv:sha256", "--key-size", "256"][..], "cipher-mode 'cbc-essiv:sha256'"),
        (&["--cipher", "aes-cbc-plain64", "--key-size", "256"], "cipher-mode 'cbc-plain64'"),
        (&["--hash", "sha384"], "hash-spec 'sha384'"),
    ] {
        let volume = luks_format(&place, options);
        let refused = volume.serve().refused();
        assert!(refused.text.contains(names), "{refused:?}");
        assert!(inspect(&volume)["refused"].as_str().is_some_and(|reason| reason.contains(names)));
    }
    let volume = Volume::named(place.path(), "theirs.img");
    for (option, names) in [
        ("cipher-alg=serpent-256", "cipher-name 'serpent'"),
        ("cipher-mode=ecb", "cipher-mode 'ecb-plain64'"),
        ("hash-alg=ripemd160", "hash-spec 'ripemd160'"),
    ] {
        create(&volume, SIZE, &format!("key-secret=key,iter-time=10,{option}"));
        let refused = volume.serve().refused();
        assert!(refused.text.contains(names), "{refused:?}");
    }
}

#[test]
fn we_never_make_luks1() {
    let place = Scratch::new();
    let volume = Volume::format(place.path(), 16 * MIB, &[]);
    let dump = peer("cryptsetup").arg("luksDump").arg(&volume.disk).run();
    assert!(dump.lines().any(|line| line.split_whitespace().eq(["Version:", "2"])), "{dump}");
}

/// A volume of [`SIZE`] that cryptsetup formats, its key derivation a cheap one.
fn luks_format(place: &Scratch, options: &[&str]) -> Volume {
    let volume = Volume::named(place.path(), "theirs.img");
    std::fs::File::create(&volume.disk).unwrap().set_len(2 * MIB + SIZE).unwrap();
    peer("cryptsetup")
        .args(["luksFormat", "--batch-mode", "--type", "luks1", "--pbkdf-force-iterations", "1000"])
        .args(options)
        .args([&volume.disk, &volume.key])
        .run();
    volume
}

/// Has QEMU create a volume of `size` bytes.
pub(crate) fn create(volume: &Volume, size: u64, options: &str) {
    peer("qemu-img")
        .args(["create", "-q", "-f", "luks"])
        .args(secret(volume))
        .args(["-o", options])
        .arg(&volume.disk)
        .arg(size.to_string())
        .run();
}

/// The key file, as QEMU's options name it.
pub(crate) fn secret(volume: &Volume) -> Vec<String> {
    vec!["--object".to_owned(), format!("secret,id=key,file={}", volume.key.display())]
}

/// The disk under QEMU's LUKS driver.
pub(crate) fn image(volume: &Volume) -> String {
    format!("driver=luks,key-secret=key,file.filename={}", volume.disk.display())
}

/// Runs qemu-io's commands on an image, which `options` name.
fn io(options: &[&str], commands: &[&str]) {
    let mut command = peer("qemu-io");
    command.args(commands.iter().flat_map(|c| ["-c", c])).args(options);
    let text = command.run();
    assert!(!text.contains("failed"), "{text}");
}

/// Runs a shell's command on an export of nbdkit's, which decrypts the disk.
pub(crate) fn nbdkit(volume: &Volume, script: &str) {
    let mut command = peer("nbdkit");
    let passphrase = format!("passphrase=+{}", volume.key.display());
    command
        .args(["-U", "-", "--filter=luks", "file"])
        .arg(&volume.disk)
        .args([&passphrase, "--run", script])
        .run();
}

fn inspect(volume: &Volume) -> Value {
    let text = hostveil().args(["inspect", "--json"]).arg(&volume.disk).run();
    serde_json::from_str(&text).unwrap()
}

/// Everything before the data.
fn header(volume: &Volume) -> Vec<u8> {
    let mut bytes = std::fs::read(&volume.disk).unwrap();
    bytes.truncate(bytes.len() - usize::try_from(SIZE).unwrap());
    assert!(bytes.len() as u64 > 512 * KIB);
    bytes
}
