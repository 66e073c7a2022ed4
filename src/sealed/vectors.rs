//! The test vectors of tests/vectors/sealed, a small volume block by block: what we write is what stands in
//! the files, and what we read from the files is what the volume was made of.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use uuid::Uuid;

use crate::anchor::{AnchorMode, FileAnchor, Record, SignedRecord};
use crate::backing::{Backing, MemoryBacking};
use crate::block::Disk;
use crate::crypto::Suite;
use crate::env::{Entropy, OsEntropy, Silent};
use crate::error::Result;
use crate::secret::{SecretBytes, VolumeKey};
use crate::units::ByteOffset;

use super::header::fields::{CopyPlace, Header, HeaderPin, SLOTS};
use super::header::fixtures::{CHEAP, limits, passphrase};
use super::header::slot::Slot;
use super::header::unlock::Unlocked;
use super::journal::blocks::{self, Entry, Record as Block, Stamp};
use super::keys::epoch::Binding;
use super::keys::keyring::Keyring;
use super::keys::salts;
use super::keys::schedule::{FreshSalt, KeySchedule, VolumeId};
use super::layout::{BLOCK, Layout, PageId, Parameters, Tree, offset_of};
use super::pointer::{BlkPtr, Target};
use super::store::Store;
use super::superblock::choose::superblock;
use super::superblock::fields::{Link, Superblock};
use super::trees::pages::{Page, binding, pointer_at, set_pointer};
use super::{Device, MountOptions, RawHeader, SlotSecret, check, pinned, pinned_header};

const PARAMETERS: Parameters =
    Parameters { logical_blocks: 128, group_shift: 7, group_spare: 8, journal_blocks: 16, epochs: 64 };
const VOLUME: VolumeId =
    VolumeId { uuid: Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff), suite: Suite::Aes256Gcm };
const MAP: PageId = PageId { tree: Tree::Map, level: 0, index: 0 };
const BITMAP: PageId = PageId { tree: Tree::Bitmap, level: 0, index: 0 };
/// Of the table's epoch, which sealed the trees, and of the superblock's, which sealed the journal.
const SALTS: [[u8; 32]; 2] = [counting(0xc0), counting(0x20)];

/// Every file, and the place in the store of what it holds; the anchor has none.
const FILES: [(&str, &str, &[u64]); 11] = [
    ("anchor", include_str!("../../tests/vectors/sealed/anchor.hex"), &[]),
    ("bitmap-page", include_str!("../../tests/vectors/sealed/bitmap-page.hex"), &[394]),
    ("data-5", include_str!("../../tests/vectors/sealed/data-5.hex"), &[403]),
    ("data-7", include_str!("../../tests/vectors/sealed/data-7.hex"), &[402]),
    ("epoch-table", include_str!("../../tests/vectors/sealed/epoch-table.hex"), &[256, 273]),
    ("header", include_str!("../../tests/vectors/sealed/header.hex"), &[0, 128]),
    ("journal-3", include_str!("../../tests/vectors/sealed/journal-3.hex"), &[260]),
    ("journal-4", include_str!("../../tests/vectors/sealed/journal-4.hex"), &[261]),
    ("journal-5", include_str!("../../tests/vectors/sealed/journal-5.hex"), &[262]),
    ("map-page", include_str!("../../tests/vectors/sealed/map-page.hex"), &[385]),
    ("superblock", include_str!("../../tests/vectors/sealed/superblock.hex"), &[48, 64]),
];

const fn counting<const N: usize>(first: u8) -> [u8; N] {
    let mut bytes = [first; N];
    let mut at = 1;
    while at < N {
        bytes[at] = bytes[at - 1] + 1;
        at += 1;
    }
    bytes
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

/// Byte `n` of block 7 is `n mod 251`, of block 5 `7 n mod 251`.
fn content(factor: usize) -> [u8; BLOCK] {
    std::array::from_fn(|n| u8::try_from(n * factor % 251).unwrap())
}

fn schedule() -> KeySchedule {
    KeySchedule::new(VOLUME, &volume_key()).unwrap()
}

fn volume_key() -> VolumeKey {
    VolumeKey::new(SecretBytes::copy_of(&counting::<32>(0)).unwrap())
}

/// Gives out 40, 41, .. as the salts of the key slot.
struct Salts(AtomicU8);

impl Entropy for Salts {
    fn fill(&self, into: &mut [u8]) -> Result<()> {
        into.fill_with(|| self.0.fetch_add(1, Ordering::Relaxed));
        Ok(())
    }
}

fn header() -> Header {
    let secret = passphrase("correct horse");
    let secret = (SlotSecret::Passphrase(&secret), CHEAP);
    let slot = Slot::wrap((&VOLUME, 0), &volume_key(), secret, &limits(), &Salts(0x40.into()));
    let mut slots = [const { None }; SLOTS];
    slots[0] = Some(slot.unwrap());
    Header { volume: VOLUME, sequence: 1, key_generation: 1, anchor: AnchorMode::Strict, slots }
}

/// The volume as our own code makes it.
struct Made {
    files: BTreeMap<&'static str, Vec<u8>>,
    superblock: Superblock,
    map: Box<Page>,
    /// Tag of the block before, and what each journal block says.
    journal: Vec<([u8; 16], Block)>,
    anchored: Record,
}

/// Seals what lies in a store's block; the pointer to it.
fn seal(keys: &Keyring, pba: u64, binding: &Binding, block: &mut [u8]) -> BlkPtr {
    let (ver, tag) = keys.seal(keys.version().unwrap(), binding, block).unwrap();
    BlkPtr { ver, pba, tag }
}

/// The keys at the beginning of an epoch.
fn sealing(epoch: u32, salt: [u8; 32]) -> Keyring {
    let layout = Layout::new(PARAMETERS).unwrap();
    let store: Arc<dyn Backing> = Arc::new(MemoryBacking::new(layout.store_size()));
    let found = Keyring::found(schedule(), Arc::new(Store::new(store)), layout, epoch - 1, [0; 32]).unwrap();
    found.advance(FreshSalt::for_tests(salt)).unwrap()
}

impl Made {
    fn new() -> Self {
        let mut files = BTreeMap::new();
        let bytes = header().encode(&schedule().header_mac().unwrap()).unwrap();
        let pin = HeaderPin::of(&header(), &bytes);
        files.insert("header", bytes.to_vec());
        let (map, [map_root, bitmap_root]) = make_trees(&mut files);
        let journal = make_journal(&mut files);
        let cut = Link { seq: 2, tag: counting(0xb0) };
        let superblock = Superblock {
            uuid: *VOLUME.uuid.as_bytes(),
            generation: 9,
            header: pin,
            parameters: PARAMETERS,
            map_root,
            bitmap_root,
            cut,
            fence: cut,
            epoch: 5,
            salt: SALTS[1],
        };
        let mac = schedule().superblock_mac().unwrap();
        files.insert("superblock", superblock.encode(&mac).unwrap().to_vec());
        files.insert("epoch-table", epoch_table());
        let anchored = Record { uuid: VOLUME.uuid, generation: 9, sequence: 3, tag: journal[0].1.tag };
        let signed = anchored.sign(&schedule().anchor_mac().unwrap()).unwrap();
        files.insert("anchor", signed.bytes().to_vec());
        Self { files, superblock, map, journal, anchored }
    }
}

fn make_trees(files: &mut BTreeMap<&'static str, Vec<u8>>) -> (Box<Page>, [BlkPtr; 2]) {
    let (keys, layout) = (sealing(4, SALTS[0]), Layout::new(PARAMETERS).unwrap());
    let mut data = content(1);
    let pointer = seal(&keys, 402, &Binding::data(&VOLUME, 7), &mut data);
    let mut map = Box::new([0; BLOCK]);
    set_pointer(&mut map, 7, &pointer);
    let (plain, mut bitmap) = (map.clone(), [0; BLOCK]);
    bitmap[0] = 1;
    let map_root = seal(&keys, layout.home(MAP, true), &binding(&VOLUME, MAP), map.as_mut_slice());
    let bitmap_root = seal(&keys, layout.home(BITMAP, false), &binding(&VOLUME, BITMAP), &mut bitmap);
    files.extend([("data-7", data.to_vec()), ("map-page", map.to_vec()), ("bitmap-page", bitmap.to_vec())]);
    (plain, [map_root, bitmap_root])
}

/// A group of one block, and one of two.
fn make_journal(files: &mut BTreeMap<&'static str, Vec<u8>>) -> Vec<([u8; 16], Block)> {
    let keys = sealing(5, SALTS[1]);
    let mut data = content(7);
    let pointer = seal(&keys, 403, &Binding::data(&VOLUME, 5), &mut data);
    files.insert("data-5", data.to_vec());
    let run = |lba, len| Entry { lba, target: Target::Run(len) };
    let first = vec![Entry { lba: 5, target: Target::Block(pointer) }, run(120, 8)];
    let second: Vec<Entry> = (11..111).map(|lba| run(lba, 1)).collect();
    let mut journal = Vec::new();
    let mut previous = counting(0xb0);
    for (name, (seq, synced, commit), entries) in [
        ("journal-3", (3, 2, true), first),
        ("journal-4", (4, 3, false), second),
        ("journal-5", (5, 3, true), vec![run(112, 2)]),
    ] {
        let (stamp, mut block) = (Stamp { seq, previous, synced, commit }, [0; BLOCK]);
        let tag = blocks::seal(&keys, keys.version().unwrap(), &stamp, &entries, &mut block).unwrap();
        files.insert(name, block.to_vec());
        journal.push((previous, Block { commit, synced, entries, tag }));
        previous = tag;
    }
    journal
}

fn epoch_table() -> Vec<u8> {
    let layout = Layout::new(PARAMETERS).unwrap();
    let backing: Arc<dyn Backing> = Arc::new(MemoryBacking::new(layout.store_size()));
    let store = Store::new(Arc::clone(&backing));
    salts::write(&store, &layout, &schedule().superblock_mac().unwrap(), 4, &SALTS[0]).unwrap();
    let mut copies = [[0; BLOCK]; 2];
    for (copy, bytes) in (0..).zip(&mut copies) {
        backing.read_at(offset_of(layout.table_start(copy)), bytes).unwrap();
    }
    assert_eq!(copies[0], copies[1]);
    copies[0].to_vec()
}

/// The files as a store.
fn store() -> Arc<dyn Backing> {
    let store = MemoryBacking::new(PARAMETERS.store_size().unwrap());
    for (_, text, places) in FILES {
        places.iter().for_each(|place| store.write_at(offset_of(*place), &from_hex(text)).unwrap());
    }
    Arc::new(store)
}

fn file(name: &str) -> Vec<u8> {
    from_hex(FILES.iter().find(|(file, ..)| *file == name).unwrap().1)
}

fn unlock(store: &dyn Backing) -> Unlocked {
    let pin = |keys: &KeySchedule| Ok((pinned_header(store, keys)?, ()));
    let text = passphrase("correct horse");
    let header = RawHeader::read(store).check(&limits()).unwrap();
    header.unlock(SlotSecret::Passphrase(&text), None, pin).unwrap().0
}

#[test]
fn what_we_write_is_what_stands_in_the_files() {
    let made = Made::new().files;
    assert_eq!(made.len(), FILES.len());
    for (name, text, _) in FILES {
        assert!(made[name] == from_hex(text), "{name}");
    }
}

#[test]
fn header_superblock_and_anchor_are_read_from_the_files() {
    let (store, made) = (store(), Made::new());
    let bytes: Box<[u8; BLOCK]> = file("header").try_into().unwrap();
    assert_eq!(Header::parse(&bytes, &limits()).unwrap(), header());
    let unlocked = unlock(&*store);
    assert_eq!((unlocked.key_slot(), unlocked.stale_copy()), (0, None));
    assert_eq!((unlocked.volume(), unlocked.anchor_mode()), (VOLUME, AnchorMode::Strict));
    assert_eq!(pinned(&*store, unlocked.keys()).unwrap(), (made.superblock.header, PARAMETERS));
    let mac = schedule().superblock_mac().unwrap();
    assert_eq!(superblock(&*store, &mac, VOLUME.uuid).unwrap(), made.superblock);
    let signed = SignedRecord::from_bytes(file("anchor").try_into().unwrap());
    let record = signed.verify(VOLUME.uuid, &schedule().anchor_mac().unwrap()).unwrap();
    assert_eq!(record, made.anchored);
}

#[test]
fn epochs_pages_journal_and_data_are_read_from_the_files() {
    let (layout, made) = (Layout::new(PARAMETERS).unwrap(), Made::new());
    let blocks = Arc::new(Store::new(store()));
    let salt = salts::read(&blocks, &layout, &schedule().superblock_mac().unwrap(), 4);
    assert_eq!(salt.unwrap(), SALTS[0]);
    let keys = Keyring::found(schedule(), blocks, layout, 5, SALTS[1]).unwrap();
    let open = |name: &str, pointer: &BlkPtr, binding: &Binding| {
        let mut block: Page = file(name).try_into().unwrap();
        keys.open(pointer.ver, &pointer.tag, binding, &mut block).unwrap();
        block
    };
    let map = open("map-page", &made.superblock.map_root, &binding(&VOLUME, MAP));
    assert!(map == *made.map);
    let bitmap = open("bitmap-page", &made.superblock.bitmap_root, &binding(&VOLUME, BITMAP));
    assert!(bitmap[0] == 1 && bitmap[1..] == [0; BLOCK - 1]);
    let data = open("data-7", &pointer_at(&map, 7).unwrap(), &Binding::data(&VOLUME, 7));
    assert!(data == content(1));
    for ((seq, name), (previous, block)) in
        (3..).zip(["journal-3", "journal-4", "journal-5"]).zip(&made.journal)
    {
        let opened = blocks::open(&keys, &mut file(name), seq, previous).unwrap();
        assert_eq!(opened.as_ref(), Some(block), "{name}");
    }
    let Target::Block(pointer) = made.journal[0].1.entries[0].target else { panic!("a block") };
    let data = open("data-5", &pointer, &Binding::data(&VOLUME, 5));
    assert!(data == content(7));
}

/// The files together are a volume: it mounts with its anchor, has what the tree and the journal say, can
/// be written, and is whole.
#[test]
fn the_files_are_a_volume() {
    let (store, directory) = (store(), tempfile::tempdir().unwrap());
    let path = directory.path().join("anchor");
    std::fs::write(&path, file("anchor")).unwrap();
    for read_only in [true, false, true] {
        let unlocked = unlock(&*store);
        let anchor = Arc::new(FileAnchor::at(&path).unwrap());
        let options = MountOptions {
            read_only,
            header: unlocked.pin(),
            anchor: Some((anchor, AnchorMode::Strict)),
            limits: None,
            clocks: (1, 2),
        };
        let device = Device::mount(&store, unlocked.derive_keys().unwrap(), &options, &OsEntropy).unwrap();
        assert_eq!(device.usage().seq, 5);
        let disk = Disk::new(device.clone());
        for lba in 0..PARAMETERS.logical_blocks {
            let mut block = [1; BLOCK];
            disk.read(ByteOffset(lba * BLOCK as u64), &mut block).unwrap();
            let expected = match lba {
                5 => content(7),
                7 => content(1),
                _ => [0; BLOCK],
            };
            assert!(block == expected, "block {lba}");
        }
        device.close().unwrap();
        if read_only {
            let checked = check(&store, unlocked.into_keys(), &options, true, &Silent).unwrap();
            assert_eq!((checked.problems, checked.data_blocks), (0, 2), "{:?}", checked.told);
        }
    }
    assert!(CopyPlace::BOTH.iter().all(|copy| {
        let mut bytes = [0; BLOCK];
        store.read_at(copy.offset(), &mut bytes).unwrap();
        bytes[..] == file("header")
    }));
}
