//! What the tests of this room share: small volumes, and headers changed as a hostile host would.

use std::collections::{BTreeSet, HashMap};
use std::sync::{LazyLock, Mutex};

use serde_json::Value;

use super::binary_header::{BinaryHeader, Place};
use super::format::{FormatOptions, Pbkdf, format};
use super::luks1_header::PartitionHeader;
use super::metadata::Metadata;
use super::read::RawHeader;
use crate::backing::{Backing, MemoryBacking, Run};
use crate::crypto::{CostLimits, Hash, KdfAlgorithm};
use crate::env::{OsEntropy, Silent};
use crate::error::{ErrorKind, Result};
use crate::secret::{Passphrase, SecretBytes};
use crate::units::{BlockSize, ByteCount, ByteOffset};

pub(super) const UUID: &str = "0e2c6d5c-3f0e-4b5a-9d1c-2f6a8c1b7e44";
pub(super) const CHEAP: KdfAlgorithm = KdfAlgorithm::Pbkdf2 { hash: Hash::Sha256, iterations: 1000 };
pub(super) const MIB: u64 = ByteCount::MIB;

pub(super) fn passphrase(text: &str) -> Passphrase {
    Passphrase::new(SecretBytes::copy_of(text.as_bytes()).unwrap())
}

pub(super) fn options(sector_size: BlockSize) -> FormatOptions {
    FormatOptions {
        data_size: ByteCount(MIB),
        sector_size,
        label: "a disk".to_owned(),
        pbkdf: Pbkdf::Exactly(CHEAP),
        apart: false,
    }
}

/// A new store of 17 MiB with a new volume of 1 MiB that opens with "secret".
pub(super) fn fresh_volume(sector_size: BlockSize) -> MemoryBacking {
    let backing = MemoryBacking::new(ByteCount(17 * MIB));
    format(&backing, &options(sector_size), &passphrase("secret"), &OsEntropy, &Silent).unwrap();
    backing
}

/// Such a store, faster: a copy of one that is made once.
pub(super) fn volume(sector_size: BlockSize) -> MemoryBacking {
    static B512: LazyLock<MemoryBacking> = LazyLock::new(|| fresh_volume(BlockSize::B512));
    static B4096: LazyLock<MemoryBacking> = LazyLock::new(|| fresh_volume(BlockSize::B4096));
    let original = if sector_size == BlockSize::B512 { &B512 } else { &B4096 };
    copy_of(original, ByteCount(17 * MIB))
}

/// A store of `size` bytes with a copy of what lies before the data in another, as far as it is used.
pub(super) fn copy_of(original: &MemoryBacking, size: ByteCount) -> MemoryBacking {
    let mut start = vec![0; 290_816];
    original.read_at(ByteOffset(0), &mut start).unwrap();
    let copy = MemoryBacking::new(size);
    copy.write_at(ByteOffset(0), &start).unwrap();
    copy
}

/// The metadata of such a volume.
pub(super) fn metadata() -> Metadata {
    RawHeader::read(&volume(BlockSize::B4096)).unwrap().metadata
}

/// A header whose JSON was changed and whose checksum is right all the same, as a host can make it.
pub(super) fn forged(change: impl FnOnce(&mut Value)) -> RawHeader {
    let backing = volume(BlockSize::B4096);
    forge(&backing, change);
    RawHeader::read(&backing).unwrap()
}

/// Changes the JSON of both copies of the header in a store.
pub(super) fn forge(backing: &dyn Backing, change: impl FnOnce(&mut Value)) {
    let header = RawHeader::read(backing).unwrap();
    let mut json = serde_json::to_value(&header.metadata).unwrap();
    change(&mut json);
    let binary = BinaryHeader { seqid: header.binary.seqid + 1, ..header.binary };
    for (place, at) in [(Place::Primary, 0), (Place::Secondary, binary.hdr_size)] {
        let copy = binary.assemble(place, &[1; 64], &serde_json::to_vec(&json).unwrap()).unwrap();
        backing.write_at(ByteOffset(at), &copy).unwrap();
    }
}

/// A LUKS1 volume that another program made, cut down: its first bytes, and the first 2048 of its data.
pub(super) struct Golden {
    pub(super) file: &'static [u8],
    /// How many of the first bytes: those of the header, or up to the end of key slot 0's material.
    pub(super) start: usize,
    pub(super) uuid: &'static str,
    /// As cryptsetup tells it (`luksDump --dump-volume-key`).
    pub(super) key: &'static [u8],
    /// Where the data begins, in sectors, as cryptsetup tells it.
    pub(super) payload: u64,
}

/// By `cryptsetup luksFormat --type luks1 --pbkdf-force-iterations 1000` 2.6.1 and `qemu-img create -f
/// luks` 10.0.2, with the data written by QEMU: sectors that say their number. They open with
/// "secret". Key material has 4000 stripes that cannot be compressed, so only two bring theirs.
pub(super) const LUKS1: [Golden; 4] = [
    Golden {
        file: include_bytes!("../../tests/data/luks1-cryptsetup-2.6.1-sha1-256.img"),
        start: 132_096,
        uuid: "7cdb497b-5daa-4464-a9a5-9664ebba2152",
        key: &[
            0x3e, 0xed, 0x53, 0x97, 0x14, 0x8b, 0xa4, 0x1b, 0xaf, 0x0d, 0xea, 0x68, 0xb4, 0x97, 0x96,
            0x95, //
            0xaf, 0x82, 0x01, 0x14, 0x34, 0x9b, 0x7a, 0x31, 0x57, 0xe2, 0xa6, 0x02, 0x53, 0x59, 0x13,
            0x6c, //
        ],
        payload: 4096,
    },
    Golden {
        file: include_bytes!("../../tests/data/luks1-cryptsetup-2.6.1-sha512-256.img"),
        start: 132_096,
        uuid: "0b0d5cdb-96ac-490b-a80e-e58837e518aa",
        key: &[
            0x61, 0xa3, 0x14, 0x87, 0xfd, 0x13, 0x39, 0x49, 0x9e, 0xa9, 0x80, 0xd1, 0x47, 0xe6, 0xfd,
            0xc9, //
            0x9f, 0x3f, 0x76, 0x83, 0xdd, 0xf8, 0x9b, 0xb1, 0x4f, 0x79, 0x69, 0xe0, 0x3a, 0x4c, 0x64,
            0x46, //
        ],
        payload: 4096,
    },
    Golden {
        file: include_bytes!("../../tests/data/luks1-cryptsetup-2.6.1-sha256-512.img"),
        start: 592,
        uuid: "595b4e53-c186-4ff5-af62-19d160c6b97d",
        key: &[
            0x1c, 0x61, 0x7d, 0xfd, 0xb6, 0x3c, 0xdd, 0xe9, 0xd2, 0x1d, 0x85, 0x94, 0x80, 0x01, 0x2f,
            0x17, //
            0xaf, 0x99, 0xd0, 0xb2, 0x82, 0x94, 0x96, 0x6b, 0x1f, 0x8a, 0x7a, 0x7a, 0x9c, 0xbd, 0x96,
            0xc2, //
            0xcb, 0x96, 0xe0, 0x31, 0xdc, 0x20, 0xe7, 0x22, 0x06, 0x65, 0xac, 0xa1, 0xf6, 0x04, 0x64,
            0xbc, //
            0xfc, 0x26, 0x36, 0x17, 0x50, 0x23, 0x0c, 0xa1, 0x9b, 0xd0, 0x9d, 0x8a, 0xfe, 0xea, 0x11,
            0x34, //
        ],
        payload: 4096,
    },
    Golden {
        file: include_bytes!("../../tests/data/luks1-qemu-10.0.2-sha256-512.img"),
        start: 592,
        uuid: "a747f868-cb42-4be4-9676-39224cccbef8",
        key: &[
            0x3e, 0x19, 0x79, 0xea, 0x6d, 0xec, 0xa8, 0xf0, 0xc6, 0x19, 0x8c, 0xd2, 0xef, 0x63, 0xff,
            0xf1, //
            0x93, 0x84, 0xbe, 0x7e, 0xab, 0x4a, 0x99, 0xa7, 0xfb, 0xc6, 0x67, 0x69, 0x87, 0x56, 0xd4,
            0x14, //
            0xcc, 0x91, 0xb4, 0xa2, 0xfb, 0xa7, 0x30, 0x13, 0x45, 0x7f, 0x82, 0x1c, 0x7a, 0x67, 0x96,
            0x27, //
            0x69, 0x17, 0x6c, 0x92, 0x84, 0x1d, 0x63, 0xd6, 0xb2, 0xb0, 0xab, 0x3e, 0xc1, 0x49, 0x97,
            0x3d, //
        ],
        payload: 4040,
    },
];

impl Golden {
    /// Whether its key slot came with it.
    pub(super) fn opens_with_secret(&self) -> bool {
        self.start > 592
    }

    /// Its first bytes and data, each at its place, in a store of its own.
    pub(super) fn store(&self) -> MemoryBacking {
        let store = MemoryBacking::new(ByteCount(self.payload * 512 + 2048));
        let (start, data) = self.file.split_at(self.start);
        store.write_at(ByteOffset(0), start).unwrap();
        store.write_at(ByteOffset(self.payload * 512), data).unwrap();
        store
    }

    /// Its header.
    pub(super) fn header(&self) -> PartitionHeader {
        PartitionHeader::parse(self.file).unwrap()
    }
}

/// A copy of a store's first 3 MiB, which hold all that these tests write, in a store of 17 MiB.
pub(super) fn snapshot(original: &MemoryBacking) -> MemoryBacking {
    let mut start = vec![0; 4096];
    let copy = MemoryBacking::new(ByteCount(17 * MIB));
    for at in (0..3 * MIB).step_by(4096).map(ByteOffset) {
        if original.run_at(at).unwrap().allocated {
            original.read_at(at, &mut start).unwrap();
            copy.write_at(at, &start).unwrap();
        }
    }
    copy
}

/// What reached a store, in order: writes in sectors of 512 bytes, which are atomic, and syncs.
pub(super) enum Event {
    Sector(u64, Vec<u8>),
    Punch(u64, u64),
    Sync,
}

impl Event {
    /// Where a sector was written.
    pub(super) fn sector(&self) -> Option<u64> {
        if let Self::Sector(at, _) = self { Some(*at) } else { None }
    }

    /// Does it again.
    pub(super) fn apply(&self, store: &MemoryBacking) {
        match self {
            Self::Sector(at, sector) => store.write_at(ByteOffset(*at), sector).unwrap(),
            Self::Punch(at, len) => store.punch(ByteOffset(*at), ByteCount(*len)).unwrap(),
            Self::Sync => (),
        }
    }
}

/// A store that remembers what was done to it.
pub(super) struct Recorder {
    store: MemoryBacking,
    events: Mutex<Vec<Event>>,
}

impl Recorder {
    pub(super) fn over(store: MemoryBacking) -> Self {
        Self { store, events: Mutex::default() }
    }

    /// The store as it is now, and what was done to it.
    pub(super) fn finish(self) -> (MemoryBacking, Vec<Event>) {
        (self.store, self.events.into_inner().unwrap())
    }
}

impl Backing for Recorder {
    fn len(&self) -> Result<ByteCount> {
        self.store.len()
    }
    fn read_at(&self, at: ByteOffset, into: &mut [u8]) -> Result<()> {
        self.store.read_at(at, into)
    }
    fn write_at(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        let mut events = self.events.lock().unwrap();
        for (number, sector) in (0..).zip(data.chunks(512)) {
            events.push(Event::Sector(at.0 + 512 * number, sector.to_vec()));
        }
        self.store.write_at(at, data)
    }
    fn sync(&self) -> Result<()> {
        self.events.lock().unwrap().push(Event::Sync);
        Ok(())
    }
    fn punch(&self, at: ByteOffset, len: ByteCount) -> Result<()> {
        self.events.lock().unwrap().push(Event::Punch(at.0, len.0));
        self.store.punch(at, len)
    }
    fn run_at(&self, at: ByteOffset) -> Result<Run> {
        self.store.run_at(at)
    }
}

/// Which of some secrets open a store, and with which volume key.
pub(super) struct Openings<'a> {
    secrets: &'a [&'a str],
    /// Key derivation takes its time, and most crashed stores are alike in all that it depends on.
    known: HashMap<Vec<u8>, BTreeSet<String>>,
    key: Option<Vec<u8>>,
}

impl<'a> Openings<'a> {
    pub(super) fn of(secrets: &'a [&'a str]) -> Self {
        Self { secrets, known: HashMap::new(), key: None }
    }

    /// The secrets that open the store; it must always be with the same volume key. Empty when there
    /// is no usable header.
    pub(super) fn now(&mut self, store: &MemoryBacking) -> BTreeSet<String> {
        let limits = CostLimits::of_this_machine();
        // Enough for both copies of a header of ours, and much faster than all places of one.
        let mut start = vec![0; 65536];
        store.read_at(ByteOffset(0), &mut start).unwrap();
        let header = match RawHeader::from_start(&start).and_then(|header| header.check(&limits)) {
            Ok(header) => header,
            Err(e) => {
                assert!([ErrorKind::WrongDevice, ErrorKind::CorruptHeader].contains(&e.kind()), "{e}");
                return BTreeSet::new();
            }
        };
        let mut depends_on = header.luks2().unwrap().metadata.to_json().unwrap();
        depends_on.extend(header.luks2().unwrap().binary.uuid);
        for slot in header.luks2().unwrap().metadata.keyslots.values() {
            let mut area = vec![0; usize::try_from(slot.area.size.0).unwrap()];
            store.read_at(ByteOffset(slot.area.offset.0), &mut area).unwrap();
            let mut digest = [0; 32];
            Hash::Sha256.digest_into(&[&area], &mut digest);
            depends_on.extend(digest);
        }
        if let Some(known) = self.known.get(&depends_on) {
            return known.clone();
        }
        let mut open = BTreeSet::new();
        for secret in self.secrets {
            match header.unlock(store, &passphrase(secret), None) {
                Ok(unlocked) => {
                    let key = unlocked.volume_key().expose().to_vec();
                    assert!(*self.key.get_or_insert(key.clone()) == key, "another volume key");
                    assert!(unlocked.header_is_authenticated());
                    open.insert((*secret).to_owned());
                }
                Err(e) => assert_eq!(e.kind(), ErrorKind::WrongKey, "{e}"),
            }
        }
        let slots = header.layout.slots.len();
        assert_eq!(open.len(), slots, "a slot of the header opens with nothing: its material is gone");
        self.known.insert(depends_on, open.clone());
        open
    }
}

/// Replays `events` on `before` and lets it crash at every sector boundary of every write, and with
/// random subsets of each unsynced epoch lost. `secrets` are tried; the states that may be found are
/// `allowed`, by number, and their numbers never fall along the prefixes. Answers with the states that were
/// seen.
pub(super) fn crash_everywhere(
    before: &MemoryBacking,
    events: &[Event],
    secrets: &[&str],
    allowed: &[&[&str]],
) -> Vec<usize> {
    let mut openings = Openings::of(secrets);
    let mut state = |store: &MemoryBacking, when: &str| {
        let open = openings.now(store);
        let found =
            allowed.iter().position(|secrets| secrets.iter().map(|s| (*s).to_owned()).eq(open.clone()));
        found.unwrap_or_else(|| panic!("{when}: opens with {open:?}, and only {allowed:?} are allowed"))
    };
    let mut seen = vec![state(before, "at first")];
    let store = snapshot(before);
    for (number, event) in events.iter().enumerate() {
        event.apply(&store);
        let now = state(&store, &format!("after event {number} of {}", events.len()));
        assert!(now >= *seen.last().unwrap(), "event {number} went back to state {now}");
        if now != *seen.last().unwrap() {
            seen.push(now);
        }
    }
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let synced = snapshot(before);
    for epoch in events.split_inclusive(|event| matches!(event, Event::Sync)) {
        for round in 0..10 {
            let crashed = snapshot(&synced);
            let keep_of_256 = next() % 257;
            epoch.iter().filter(|_| next() % 256 < keep_of_256).for_each(|event| event.apply(&crashed));
            state(&crashed, &format!("round {round} of a random crash"));
        }
        epoch.iter().for_each(|event| event.apply(&synced));
    }
    seen
}
