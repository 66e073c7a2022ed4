//! The same attacks on the stored bytes of volumes of every kind, and what their readers then get: LUKS as we, QEMU
//! and nbdkit read it, and sealed volumes. docs/attacks.md is the matrix of it.

use std::path::Path;

use crate::form::Form;
use crate::harness::{MIB, Run, Scratch, Volume, noise, peer};
use crate::luks1;

const SIZE: u64 = 4 * MIB;
const BLOCK: usize = 4096;

/// A store at two times: the guest has written all of its disk in between.
struct Stores {
    old: Vec<u8>,
    new: Vec<u8>,
    /// Blocks that differ.
    written: Vec<usize>,
}

impl Stores {
    /// What a volume's store becomes when the guest's disk becomes `old` and then `new`.
    fn of(volume: &Volume, old: &Path, new: &Path) -> Self {
        let [old, new] = [old, new].map(|data| {
            let server = volume.serve().start();
            peer("nbdcopy").arg("--flush").arg(data).arg(server.uri()).run();
            server.stop();
            std::fs::read(&volume.disk).unwrap()
        });
        let blocks = old.chunks(BLOCK).zip(new.chunks(BLOCK)).enumerate();
        let written = blocks.filter(|(_, (old, new))| old != new).map(|(block, _)| block).collect();
        Self { old, new, written }
    }
}

/// Every attack by its name: the new store, altered.
fn attacks(stores: &Stores) -> Vec<(&'static str, Vec<u8>)> {
    let (one, two) = (stores.written[stores.written.len() / 3], stores.written[stores.written.len() / 2]);
    let bytes = |block: usize| block * BLOCK..(block + 1) * BLOCK;
    let altered = |alter: &dyn Fn(&mut Vec<u8>)| {
        let mut store = stores.new.clone();
        alter(&mut store);
        store
    };
    vec![
        ("a changed bit", altered(&|store| store[one * BLOCK + 100] ^= 4)),
        (
            "two blocks swapped",
            altered(&|store| {
                let first = store[bytes(one)].to_vec();
                store.copy_within(bytes(two), one * BLOCK);
                store[bytes(two)].copy_from_slice(&first);
            }),
        ),
        ("a block copied elsewhere", altered(&|store| store.copy_within(bytes(two), one * BLOCK))),
        ("zeroes for a block", altered(&|store| store[bytes(one)].fill(0))),
        ("a block from elsewhere", altered(&|store| store[bytes(one)].copy_from_slice(&noise(4096, 3)))),
        ("a block as it was", altered(&|store| store[bytes(one)].copy_from_slice(&stores.old[bytes(one)]))),
        ("the whole store as it was", stores.old.clone()),
    ]
}

/// What a reader of an attacked volume got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Got {
    /// An error, or a refusal.
    Error,
    /// Something that was never the disk's content as a whole, without a word.
    WrongData,
    /// What the disk was before, without a word.
    OldData,
    /// The disk as it is.
    Data,
}

/// Whether `read` succeeded, and what is in its file.
fn got(read: bool, file: &Path, old: &Path, new: &Path) -> Got {
    if !read {
        return Got::Error;
    }
    let data = std::fs::read(file).unwrap();
    match () {
        () if data == std::fs::read(new).unwrap() => Got::Data,
        () if data == std::fs::read(old).unwrap() => Got::OldData,
        () => Got::WrongData,
    }
}

/// The guest's disk at two times.
fn disks(place: &Scratch) -> [std::path::PathBuf; 2] {
    [("old", 1), ("new", 2)].map(|(name, seed)| place.file(name, &noise(SIZE, seed)))
}

/// XTS is without authentication, whoever reads it: each of these is data, as long as the reader looks at nothing
/// else.
#[test]
fn nobody_who_reads_luks_sees_what_was_done_to_it() {
    let place = Scratch::new();
    let [old, new] = disks(&place);
    let volume = Volume::named(place.path(), "disk.img");
    luks1::create(&volume, SIZE, "key-secret=key,iter-time=10");
    let read = place.join("read");
    let stores = Stores::of(&volume, &old, &new);
    for (name, attacked) in attacks(&stores) {
        std::fs::write(&volume.disk, attacked).unwrap();
        let expected = if name == "the whole store as it was" { Got::OldData } else { Got::WrongData };

        let server = volume.serve().arg("--read-only").start();
        let ours = peer("nbdcopy").arg(server.uri()).arg(&read).status().unwrap().success();
        assert_eq!(got(ours, &read, &old, &new), expected, "ours, {name}");
        server.stop();

        let convert = ["convert", "-O", "raw"];
        let mut qemu = peer("qemu-img");
        qemu.args(convert)
            .args(luks1::secret(&volume))
            .arg("--image-opts")
            .arg(luks1::image(&volume))
            .arg(&read);
        assert_eq!(got(qemu.status().unwrap().success(), &read, &old, &new), expected, "QEMU, {name}");

        luks1::nbdkit(&volume, &format!("nbdcopy \"$uri\" {}", read.display()));
        assert_eq!(got(true, &read, &old, &new), expected, "nbdkit, {name}");
    }
}

#[test]
fn sealed_volumes_answer_with_errors_and_with_an_anchor_to_all_of_it() {
    for form in [Form::Sealed, Form::Anchored] {
        let place = Scratch::new();
        let [old, new] = disks(&place);
        let volume = form.make(place.path(), SIZE);
        let stores = Stores::of(&volume, &old, &new);
        let read = place.join("read");
        for (name, attacked) in attacks(&stores) {
            std::fs::write(&volume.disk, attacked).unwrap();
            let expected = match form {
                Form::Sealed if name == "the whole store as it was" => Got::OldData,
                _ => Got::Error,
            };
            if form == Form::Anchored && name == "the whole store as it was" {
                let refused = volume.serve().arg("--read-only").refused();
                assert!(refused.text.contains("an earlier state"), "{refused:?}");
                continue;
            }
            let server = volume.serve().arg("--read-only").start();
            let copied = peer("nbdcopy").arg(server.uri()).arg(&read).output().unwrap().status.success();
            assert_eq!(got(copied, &read, &old, &new), expected, "{form:?}, {name}");
            server.stop();
        }
        std::fs::write(&volume.disk, &stores.new).unwrap();
        let server = volume.serve().arg("--read-only").start();
        let copied = peer("nbdcopy").arg(server.uri()).arg(&read).status().unwrap().success();
        assert_eq!(got(copied, &read, &old, &new), Got::Data, "{form:?}, left alone");
    }
}
