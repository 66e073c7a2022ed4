//! What the tests of headers and key slots share: a store with a volume, and crashes of what lies before
//! its journal.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use uuid::Uuid;

use crate::anchor::AnchorMode;
use crate::backing::{Backing, MemoryBacking, Run};
use crate::crypto::{CostLimits, KdfAlgorithm, Suite};
use crate::env::{Entropy, OsEntropy, Progress, Silent, random};
use crate::error::{Error, ErrorKind, Result};
use crate::sealed::keys::schedule::{KeySchedule, VolumeId};
use crate::sealed::layout::{Parameters, offset_of};
use crate::sealed::maintain::amend::pin_header;
use crate::sealed::maintain::format::format_volume;
use crate::sealed::superblock::choose::pinned_header;
use crate::sealed::superblock::fields::SLOTS as SUPERBLOCKS;
use crate::secret::{Passphrase, SecretBytes, VolumeKey};
use crate::units::{ByteCount, ByteOffset};

use super::fields::{CopyPlace, HEADER_LEN, Header, HeaderPin, SLOTS};
use super::slot::{Slot, SlotSecret};
use super::slots::{NewHeader, NewSlot, create};
use super::unlock::{RawHeader, Unlocked};

/// The cheapest that Argon2id can do.
pub(in crate::sealed) const CHEAP: KdfAlgorithm = KdfAlgorithm::Argon2id { time: 1, memory_kib: 8, lanes: 1 };
const SECTOR: usize = 512;
const PARAMETERS: Parameters =
    Parameters { logical_blocks: 128, group_shift: 7, group_spare: 32, journal_blocks: 4, epochs: 64 };
const ENV: (&dyn Entropy, &dyn Progress) = (&OsEntropy, &Silent);

pub(in crate::sealed) fn limits() -> CostLimits {
    CostLimits { memory_kib: 1 << 16, kib_passes: 1 << 20, lanes: 16, iterations: 1 }
}

pub(in crate::sealed) fn passphrase(text: &str) -> Passphrase {
    Passphrase::new(SecretBytes::copy_of(text.as_bytes()).unwrap())
}

/// A header with a slot of each kind.
pub(in crate::sealed) fn header() -> Header {
    let volume = VolumeId { uuid: Uuid::from_bytes([0xab; 16]), suite: Suite::Aes256GcmSiv };
    let key = VolumeKey::new(SecretBytes::copy_of(&[3; 32]).unwrap());
    let (text, raw) = (passphrase("secret"), SecretBytes::copy_of(&[9; 32]).unwrap());
    let slot = |number, secret| {
        Some(Slot::wrap((&volume, number), &key, (secret, CHEAP), &limits(), &OsEntropy).unwrap())
    };
    let mut slots = [const { None }; SLOTS];
    slots[0] = slot(0, SlotSecret::Passphrase(&text));
    slots[2] = slot(2, SlotSecret::Key(&raw));
    Header { volume, sequence: 7, key_generation: 3, anchor: AnchorMode::Lazy, slots }
}

/// What reached a store, in order: sectors, which are atomic, and syncs.
enum Event {
    Sector(u64, Vec<u8>),
    Sync,
}

/// A store that remembers what was done to it.
pub(in crate::sealed) struct Recorder {
    store: MemoryBacking,
    events: Mutex<Vec<Event>>,
    /// Where reads and writes fail.
    bad: Mutex<Option<ByteOffset>>,
}

impl Recorder {
    /// From now on nothing can be read or written there.
    pub(in crate::sealed) fn fail_at(&self, at: ByteOffset) {
        *self.bad.lock().unwrap() = Some(at);
    }

    fn check(&self, at: ByteOffset) -> Result<()> {
        match *self.bad.lock().unwrap() == Some(at) {
            true => Err(Error::new(ErrorKind::Io, "a bad sector")),
            false => Ok(()),
        }
    }
}

impl Backing for Recorder {
    fn len(&self) -> Result<ByteCount> {
        self.store.len()
    }
    fn read_at(&self, at: ByteOffset, into: &mut [u8]) -> Result<()> {
        self.check(at)?;
        self.store.read_at(at, into)
    }
    fn write_at(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        self.check(at)?;
        let sectors = (at.0..).step_by(SECTOR).zip(data.chunks(SECTOR));
        let sectors = sectors.map(|(at, sector)| Event::Sector(at, sector.to_vec()));
        self.events.lock().unwrap().extend(sectors);
        self.store.write_at(at, data)
    }
    fn sync(&self) -> Result<()> {
        self.events.lock().unwrap().push(Event::Sync);
        Ok(())
    }
    fn punch(&self, at: ByteOffset, len: ByteCount) -> Result<()> {
        self.store.punch(at, len)
    }
    fn run_at(&self, at: ByteOffset) -> Result<Run> {
        self.store.run_at(at)
    }
}

/// A store with a sealed volume.
pub(in crate::sealed) struct Store {
    pub(in crate::sealed) backing: Arc<Recorder>,
    pub(in crate::sealed) id: VolumeId,
}

/// A new volume that opens with each of the secrets.
pub(in crate::sealed) fn volume(secrets: &[&str]) -> Store {
    let id = VolumeId { uuid: Uuid::from_bytes(random(&OsEntropy).unwrap()), suite: Suite::Aes256Gcm };
    let store = Store::over(MemoryBacking::new(PARAMETERS.store_size().unwrap()), id);
    let first = passphrase(secrets[0]);
    let slot = NewSlot { secret: SlotSecret::Passphrase(&first), kdf: CHEAP, number: None };
    let new = NewHeader { volume: id, anchor: AnchorMode::None, slot, limits: limits() };
    let unlocked = create(&new, &OsEntropy, &Silent).unwrap();
    let (backing, keys) = (Arc::clone(&store.backing) as Arc<dyn Backing>, unlocked.derive_keys().unwrap());
    format_volume(&backing, keys, unlocked.pin(), PARAMETERS, None, &OsEntropy).unwrap();
    unlocked.store(&*store.backing).unwrap();
    for more in &secrets[1..] {
        store.add(secrets[0], more, None).unwrap();
    }
    Store::over(store.snapshot(), id)
}

impl Store {
    /// What trying a slot costs.
    pub(in crate::sealed) const COST: u64 = 8;

    fn over(store: MemoryBacking, id: VolumeId) -> Self {
        Self { backing: Arc::new(Recorder { store, events: Mutex::default(), bad: Mutex::default() }), id }
    }

    pub(in crate::sealed) fn pin(&self, keys: &KeySchedule) -> Result<HeaderPin> {
        pinned_header(&*self.backing, keys)
    }

    fn write_pin(&self, keys: &KeySchedule, pin: &HeaderPin) -> Result<()> {
        pin_header(&*self.backing, keys, None, pin)
    }

    pub(in crate::sealed) fn copies(&self) -> [[u8; HEADER_LEN]; 2] {
        CopyPlace::BOTH.map(|place| {
            let mut bytes = [0; HEADER_LEN];
            self.backing.store.read_at(place.offset(), &mut bytes).unwrap();
            bytes
        })
    }

    pub(in crate::sealed) fn unlock(&self, text: &str) -> Result<Unlocked> {
        let [a, b] = self.copies();
        self.unlock_copies(&a, &b, text)
    }

    /// Unlocks with other copies of the header than those in the store.
    pub(in crate::sealed) fn unlock_copies(
        &self,
        a: &[u8; HEADER_LEN],
        b: &[u8; HEADER_LEN],
        text: &str,
    ) -> Result<Unlocked> {
        let checked = RawHeader::from_copies(a, b).check(&limits())?;
        let text = passphrase(text);
        let pin = |keys: &KeySchedule| Ok((self.pin(keys)?, ()));
        checked.unlock(SlotSecret::Passphrase(&text), None, pin).map(|(unlocked, ())| unlocked)
    }

    pub(in crate::sealed) fn slot_of(&self, text: &str) -> Result<u32, ErrorKind> {
        self.unlock(text).map(|unlocked| unlocked.key_slot()).map_err(|e| e.kind())
    }

    pub(in crate::sealed) fn add(
        &self,
        existing: &str,
        text: &str,
        number: Option<u32>,
    ) -> Result<u32, ErrorKind> {
        let mut unlocked = self.unlock(existing).map_err(|e| e.kind())?;
        let keys = self.unlock(existing).unwrap().into_keys();
        let text = passphrase(text);
        let new = NewSlot { secret: SlotSecret::Passphrase(&text), kdf: CHEAP, number };
        let pin = &mut |pin: &HeaderPin| self.write_pin(&keys, pin);
        unlocked.add(&*self.backing, &new, pin, ENV).map_err(|e| e.kind())
    }

    pub(in crate::sealed) fn change(&self, old: &str, text: &str) -> Result<(), ErrorKind> {
        let mut unlocked = self.unlock(old).map_err(|e| e.kind())?;
        let keys = self.unlock(old).unwrap().into_keys();
        let text = passphrase(text);
        let new = NewSlot { secret: SlotSecret::Passphrase(&text), kdf: CHEAP, number: None };
        let pin = &mut |pin: &HeaderPin| self.write_pin(&keys, pin);
        unlocked.change(&*self.backing, &new, pin, ENV).map_err(|e| e.kind())
    }

    /// Removes a slot, with whichever of the usual secrets opens.
    pub(in crate::sealed) fn remove(&self, number: u32) -> Result<(), ErrorKind> {
        let opens = |text: &&str| self.unlock(text).ok();
        let mut unlocked = ["third", "other", "secret"].iter().find_map(opens).unwrap();
        let keys = ["third", "other", "secret"].iter().find_map(opens).unwrap().into_keys();
        let pin = &mut |pin: &HeaderPin| self.write_pin(&keys, pin);
        unlocked.remove(&*self.backing, number, pin).map_err(|e| e.kind())
    }

    /// A copy of the parts of the store that these tests use.
    fn snapshot(&self) -> MemoryBacking {
        let copy = MemoryBacking::new(PARAMETERS.store_size().unwrap());
        let superblocks = SUPERBLOCKS.map(|block| offset_of(block).0);
        for at in superblocks.into_iter().chain(CopyPlace::BOTH.map(|place| place.offset().0)) {
            let mut bytes = [0; 4096];
            self.backing.read_at(ByteOffset(at), &mut bytes).unwrap();
            copy.write_at(ByteOffset(at), &bytes).unwrap();
        }
        copy
    }

    /// Every state that a crash during `act` can leave: each prefix of its sectors, and each sector lost
    /// or come first among the unsynced ones around it.
    pub(in crate::sealed) fn crashes_of(&self, act: impl Fn(&Self)) -> Vec<Self> {
        let recorded = Self::over(self.snapshot(), self.id);
        act(&recorded);
        let events = std::mem::take(&mut *recorded.backing.events.lock().unwrap());
        let apply = |store: &MemoryBacking, event: &Event| {
            if let Event::Sector(at, sector) = event {
                store.write_at(ByteOffset(*at), sector).unwrap();
            }
        };
        let mut crashes = vec![Self::over(self.snapshot(), self.id)];
        let synced = Self::over(self.snapshot(), self.id);
        for epoch in events.split_inclusive(|event| matches!(event, Event::Sync)) {
            for (number, event) in epoch.iter().enumerate() {
                let prefix = synced.snapshot();
                epoch[..=number].iter().for_each(|event| apply(&prefix, event));
                let without = synced.snapshot();
                let others = epoch.iter().enumerate().filter(|(other, _)| *other != number);
                others.for_each(|(_, event)| apply(&without, event));
                let alone = synced.snapshot();
                apply(&alone, event);
                crashes.extend([prefix, without, alone].map(|store| Self::over(store, self.id)));
            }
            epoch.iter().for_each(|event| apply(&synced.backing.store, event));
        }
        crashes.push(synced);
        crashes
    }
}

/// Lets `act` crash everywhere: what opens a store is one of the sets in `allowed`, always with the same
/// volume key, and all of them are met.
pub(in crate::sealed) fn crash_everywhere(
    before: &Store,
    act: impl Fn(&Store),
    secrets: &[&str],
    allowed: &[&[&str]],
) {
    let mut key: Option<Vec<u8>> = None;
    let mut met = BTreeSet::new();
    for crashed in before.crashes_of(act) {
        let mut open = Vec::new();
        for secret in secrets {
            if let Ok(unlocked) = crashed.unlock(secret) {
                let opened = unlocked.key.expose().to_vec();
                assert!(*key.get_or_insert(opened.clone()) == opened, "another volume key");
                open.push(*secret);
            }
        }
        let state = allowed.iter().position(|allowed| *allowed == open);
        met.insert(state.unwrap_or_else(|| panic!("opens with {open:?}; only {allowed:?} are allowed")));
    }
    assert_eq!(met.len(), allowed.len());
}
