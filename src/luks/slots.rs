//! Changing who can open a volume: listing, adding, removing, changing and testing key slots, in the
//! way that cryptsetup does, so that either program can continue the other's work.
//!
//! Guarantees: interrupted at any write, with any part of the unsynced writes lost, the volume opens
//! with the secrets of before the change or with those of after it, never with neither, and the
//! volume key stays the same. New key material goes into an unused area and is synced before the
//! header names it; old material is wiped only after both copies of the header have ceased to name
//! it, so no slot ever points to wiped material. The last slot is only removed on explicit demand.
//!
//! Not guaranteed: that a removed secret is useless to somebody who kept a copy of the header with its
//! key slots. Against that only a new volume key helps.
//!
//! Every function that changes something takes the header that was read, and leaves the new one in
//! its place. After an error the header must be read anew. The caller has the store to itself.

use serde_json::Value;

use crate::backing::Backing;
use crate::crypto::{Hash, Kdf};
use crate::env::{Entropy, Progress, random};
use crate::error::{Error, ErrorKind, Result};
use crate::secret::Passphrase;
use crate::units::ByteOffset;

use super::areas::{AREA_SIZE, Span, find_room, wipe};
use super::check::luks2::MOST_OBJECTS;
use super::compose::keyslot;
use super::describe::{KeyslotDescription, describe_slot};
use super::format::{Pbkdf, SALT_LEN, choose};
use super::keyslot::{Unlocked, seal};
use super::layout::CheckedHeader;
use super::metadata::{Decimal, Metadata};
use super::update::Update;

/// A key slot as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct SlotEntry {
    /// Number, key derivation, priority.
    #[serde(flatten)]
    pub description: KeyslotDescription,
    /// Whether it holds the volume key; cryptsetup can put other keys into slots ("unbound").
    pub holds_volume_key: bool,
}

/// A secret that is to open a volume.
#[derive(Debug)]
pub struct NewSlot<'a> {
    /// The passphrase, or all bytes of the key file.
    pub passphrase: &'a Passphrase,
    /// How it becomes the slot's key.
    pub pbkdf: Pbkdf,
    /// The slot's number, 0 to 31; the first free one if none is asked for.
    pub number: Option<u32>,
}

/// The key slots, by number.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a LUKS1 volume.
pub fn list(header: &CheckedHeader) -> Result<Vec<SlotEntry>> {
    let slots = header.luks2()?.metadata.keyslots.iter();
    let entry = |(number, slot): (&u32, &_)| SlotEntry {
        description: describe_slot(*number, slot),
        holds_volume_key: header.layout.slots.contains_key(number),
    };
    Ok(slots.map(entry).collect())
}

/// Which slot the passphrase opens, of all or of the one named; it opens nothing.
///
/// # Errors
/// Those of [`CheckedHeader::unlock`].
pub fn test(
    backing: &dyn Backing,
    header: &CheckedHeader,
    passphrase: &Passphrase,
    only: Option<u32>,
) -> Result<u32> {
    let unlocked = header.unlock(backing, passphrase, only)?;
    unlocked.key_slot().ok_or_else(|| Error::new(ErrorKind::WrongKey, "no key slot was opened"))
}

/// Puts the volume key into another slot, which `new` opens; answers with the slot's number.
///
/// # Errors
/// All before anything is written: [`ErrorKind::AlreadyExists`] when the slot is in use,
/// [`ErrorKind::NoSpace`] without a free slot, room for its material or for the header's text,
/// [`ErrorKind::InvalidInput`] for a number or passphrase that cannot be, [`ErrorKind::WrongKey`] when
/// `existing` is another volume's, [`ErrorKind::CorruptHeader`] when a copy of the header is damaged.
pub fn add(
    backing: &dyn Backing,
    header: &mut CheckedHeader,
    existing: &Unlocked,
    new: &NewSlot<'_>,
    entropy: &dyn Entropy,
    progress: &dyn Progress,
) -> Result<u32> {
    header.expect_key_of(existing)?;
    let number = free_number(&header.luks2()?.metadata, new.number)?;
    let made = Made::new(header, existing, (new.passphrase, new.pbkdf), entropy, progress)?;
    let mut metadata = header.luks2()?.metadata.clone();
    metadata.keyslots.insert(number, keyslot(&made.kdf, made.area.start));
    for digest in metadata.digests.values_mut().filter(|digest| !digest.segments.is_empty()) {
        digest.keyslots.push(Decimal(number.into()));
    }
    made.store(backing, header, metadata, entropy, progress)?;
    tracing::info!(slot = number, "added a key slot");
    Ok(number)
}

/// Replaces the secret of the slot that `existing` was unlocked with; the slot keeps its number. Until
/// the header is switched the old secret opens it, afterwards the new one.
///
/// # Errors
/// As [`add`]; [`ErrorKind::InvalidInput`] too when `existing` was not unlocked by a slot.
pub fn change(
    backing: &dyn Backing,
    header: &mut CheckedHeader,
    existing: &Unlocked,
    new: (&Passphrase, Pbkdf),
    entropy: &dyn Entropy,
    progress: &dyn Progress,
) -> Result<()> {
    header.expect_key_of(existing)?;
    let slot = existing.key_slot().filter(|number| header.layout.slots.contains_key(number));
    let number =
        slot.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "no passphrase's key slot was unlocked"))?;
    let made = Made::new(header, existing, new, entropy, progress)?;
    let mut metadata = header.luks2()?.metadata.clone();
    let slot = metadata.keyslots.get_mut(&number);
    let slot = slot.ok_or_else(|| no_such_slot(number))?;
    let old = Span::of(&slot.area);
    *slot = super::metadata::Keyslot {
        priority: slot.priority,
        others: std::mem::take(&mut slot.others),
        ..keyslot(&made.kdf, made.area.start)
    };
    made.store(backing, header, metadata, entropy, progress)?;
    tracing::info!(slot = number, "changed a key slot");
    wipe_after_removal(backing, old, entropy, progress)
}

/// Removes a slot: first from the header, then its key material.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] when there is no such slot, or when it is the last one that holds the
/// volume key and `allow_last` is not set; [`ErrorKind::CorruptHeader`] when a copy of the header is
/// damaged; all before anything is written.
pub fn remove(
    backing: &dyn Backing,
    header: &mut CheckedHeader,
    number: u32,
    allow_last: bool,
    entropy: &dyn Entropy,
    progress: &dyn Progress,
) -> Result<()> {
    let mut metadata = header.luks2()?.metadata.clone();
    let slot = metadata.keyslots.remove(&number).ok_or_else(|| no_such_slot(number))?;
    let bound = &header.layout.slots;
    if bound.len() == 1 && bound.contains_key(&number) && !allow_last {
        let what = format!(
            "key slot {number} is the last one that holds the volume key; without it the data is lost"
        );
        return Err(Error::new(ErrorKind::InvalidInput, what)
            .hint("add another key slot first, or erase all of them if the data shall be lost"));
    }
    forget(&mut metadata, number);
    progress.check()?;
    *header = Update::plan(header, metadata, entropy)?.write(backing)?;
    tracing::info!(slot = number, "removed a key slot");
    wipe_after_removal(backing, Span::of(&slot.area), entropy, progress)
}

/// Removes all slots and wipes all of the room for key material, used or not: the data is lost, unless
/// somebody has a copy of the header or the volume key.
///
/// # Errors
/// [`ErrorKind::CorruptHeader`] when a copy of the header is damaged, before anything is written.
pub fn erase_all(
    backing: &dyn Backing,
    header: &mut CheckedHeader,
    entropy: &dyn Entropy,
    progress: &dyn Progress,
) -> Result<()> {
    let mut metadata = header.luks2()?.metadata.clone();
    let numbers: Vec<u32> = metadata.keyslots.keys().copied().collect();
    metadata.keyslots.clear();
    numbers.iter().for_each(|number| forget(&mut metadata, *number));
    let room = Span::for_areas(header.luks2()?.binary.hdr_size, &metadata);
    progress.check()?;
    *header = Update::plan(header, metadata, entropy)?.write(backing)?;
    tracing::info!("removed all key slots");
    wipe_after_removal(backing, room, entropy, progress)
}

/// A new slot's material, and where it shall lie.
struct Made {
    kdf: Kdf,
    area: Span,
    material: crate::secret::SecretBytes,
}

impl Made {
    /// Everything that is slow or can be refused.
    fn new(
        header: &CheckedHeader,
        existing: &Unlocked,
        (passphrase, pbkdf): (&Passphrase, Pbkdf),
        entropy: &dyn Entropy,
        progress: &dyn Progress,
    ) -> Result<Self> {
        if passphrase.expose().is_empty() {
            return Err(Error::new(ErrorKind::InvalidInput, "the passphrase is empty"));
        }
        let metadata = &header.luks2()?.metadata;
        let taken: Vec<Span> = metadata.keyslots.values().map(|slot| Span::of(&slot.area)).collect();
        let room = Span::for_areas(header.luks2()?.binary.hdr_size, metadata);
        let area = find_room(room, &taken, AREA_SIZE).ok_or_else(|| {
            Error::new(ErrorKind::NoSpace, "the header has no room for another slot's key material")
                .hint("remove a key slot that is not needed")
        })?;
        progress.begin("deriving the key", 1);
        let kdf = Kdf { algorithm: choose(pbkdf)?, salt: random::<SALT_LEN>(entropy)?.to_vec() };
        kdf.algorithm.check_cost(&header.limits)?;
        kdf.algorithm.warn_if_cheap();
        let material = seal(existing.volume_key(), passphrase, &kdf, Hash::Sha256, entropy)?;
        progress.advance(1);
        Ok(Self { kdf, area, material })
    }

    /// Writes the material, and then the header that names it.
    fn store(
        &self,
        backing: &dyn Backing,
        header: &mut CheckedHeader,
        metadata: Metadata,
        entropy: &dyn Entropy,
        progress: &dyn Progress,
    ) -> Result<()> {
        let update = Update::plan(header, metadata, entropy)?;
        progress.check()?;
        backing.write_at(ByteOffset(self.area.start), self.material.expose())?;
        backing.sync()?;
        *header = update.write(backing)?;
        Ok(())
    }
}

fn free_number(metadata: &Metadata, wanted: Option<u32>) -> Result<u32> {
    let most = u32::try_from(MOST_OBJECTS).unwrap_or(u32::MAX);
    let is_free = |number: &u32| !metadata.keyslots.contains_key(number);
    match wanted {
        Some(number) if number >= most => {
            let what = format!("key slot {number}; they are numbered from 0 to {}", most - 1);
            Err(Error::new(ErrorKind::InvalidInput, what))
        }
        Some(number) if !is_free(&number) => {
            Err(Error::new(ErrorKind::AlreadyExists, format!("key slot {number} is in use")))
        }
        Some(number) => Ok(number),
        None => (0..most).find(is_free).ok_or_else(|| {
            Error::new(ErrorKind::NoSpace, format!("all {most} key slots are in use"))
                .hint("remove a key slot that is not needed")
        }),
    }
}

/// Removes a slot's number wherever it stands: cryptsetup refuses a header that names a slot which
/// does not exist, and digests without slots and segments.
fn forget(metadata: &mut Metadata, number: u32) {
    for digest in metadata.digests.values_mut() {
        digest.keyslots.retain(|slot| slot.0 != u64::from(number));
    }
    metadata.digests.retain(|_, digest| !(digest.keyslots.is_empty() && digest.segments.is_empty()));
    let text = number.to_string();
    for token in metadata.tokens.values_mut() {
        if let Some(slots) = token.get_mut("keyslots").and_then(Value::as_array_mut) {
            slots.retain(|slot| slot.as_str() != Some(&text));
        }
    }
}

fn no_such_slot(number: u32) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("there is no key slot {number}"))
}

/// The header has changed already, which an error must not hide.
fn wipe_after_removal(
    backing: &dyn Backing,
    span: Span,
    entropy: &dyn Entropy,
    progress: &dyn Progress,
) -> Result<()> {
    wipe(backing, span, entropy, progress).map_err(|e| {
        let what = "the header was changed, but the old key material could not be wiped";
        Error::new(e.kind(), what).because(e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::MemoryBacking;
    use crate::crypto::{CostLimits, KdfAlgorithm};
    use crate::env::{OsEntropy, Silent};
    use crate::luks::fixtures::{CHEAP, Recorder, crash_everywhere, forge, passphrase, snapshot, volume};
    use crate::luks::{RawHeader, UnlockPolicy};
    use crate::units::BlockSize;
    use serde_json::json;

    fn header(backing: &dyn Backing) -> CheckedHeader {
        RawHeader::read(backing).unwrap().check(&CostLimits::of_this_machine()).unwrap()
    }

    fn unlock(backing: &dyn Backing, text: &str) -> Unlocked {
        header(backing).unlock(backing, &passphrase(text), None).unwrap()
    }

    fn opened_slot(backing: &dyn Backing, text: &str) -> Result<u32, ErrorKind> {
        test(backing, &header(backing), &passphrase(text), None).map_err(|e| e.kind())
    }

    fn add_slot(
        backing: &dyn Backing,
        existing: &str,
        text: &str,
        number: Option<u32>,
    ) -> Result<u32, ErrorKind> {
        let unlocked = unlock(backing, existing);
        let (text, pbkdf) = (passphrase(text), Pbkdf::Exactly(CHEAP));
        let new = NewSlot { passphrase: &text, pbkdf, number };
        add(backing, &mut header(backing), &unlocked, &new, &OsEntropy, &Silent).map_err(|e| e.kind())
    }

    fn change_slot(backing: &dyn Backing, old: &str, new: &str) -> Result<()> {
        let new = (&passphrase(new), Pbkdf::Exactly(CHEAP));
        change(backing, &mut header(backing), &unlock(backing, old), new, &OsEntropy, &Silent)
    }

    fn remove_slot(backing: &dyn Backing, number: u32, allow_last: bool) -> Result<(), ErrorKind> {
        remove(backing, &mut header(backing), number, allow_last, &OsEntropy, &Silent).map_err(|e| e.kind())
    }

    fn area_is_zero(backing: &dyn Backing, number: u64) -> bool {
        let mut area = vec![1; usize::try_from(AREA_SIZE).unwrap()];
        backing.read_at(ByteOffset(32768 + number * AREA_SIZE), &mut area).unwrap();
        area.iter().all(|b| *b == 0)
    }

    #[test]
    fn slots_are_added_listed_changed_tested_and_removed() {
        let backing = volume(BlockSize::B4096);
        assert_eq!(add_slot(&backing, "secret", "second", None), Ok(1));
        assert_eq!(add_slot(&backing, "second", "last", Some(31)), Ok(31));
        assert_eq!(opened_slot(&backing, "last"), Ok(31));
        let numbers = |backing: &dyn Backing| {
            let all = list(&header(backing)).unwrap();
            assert!(all.iter().all(|slot| slot.holds_volume_key));
            all.iter().map(|slot| slot.description.number).collect::<Vec<_>>()
        };
        assert_eq!(numbers(&backing), [0, 1, 31]);
        change_slot(&backing, "second", "other").unwrap();
        assert_eq!(opened_slot(&backing, "other"), Ok(1));
        assert_eq!(opened_slot(&backing, "second"), Err(ErrorKind::WrongKey));
        assert!(area_is_zero(&backing, 1) && !area_is_zero(&backing, 3), "the slot's material has moved");
        assert_eq!(remove_slot(&backing, 0, false), Ok(()));
        assert!(area_is_zero(&backing, 0));
        assert_eq!(opened_slot(&backing, "secret"), Err(ErrorKind::WrongKey));
        assert_eq!(numbers(&backing), [1, 31]);
        assert_eq!(add_slot(&backing, "other", "again", None), Ok(0), "number and area are free again");
        assert!(!area_is_zero(&backing, 0));
        let policy = UnlockPolicy { require_authenticated_header: true, ..UnlockPolicy::default() };
        assert!(header(&backing).unlock_with(&backing, &passphrase("again"), &policy).is_ok());
    }

    #[test]
    fn the_last_slot_stays_unless_that_is_meant() {
        let backing = volume(BlockSize::B4096);
        assert_eq!(remove_slot(&backing, 0, false), Err(ErrorKind::InvalidInput));
        assert_eq!(opened_slot(&backing, "secret"), Ok(0));
        // A slot that does not hold the volume key does not count.
        forge(&backing, |json| {
            let mut slot = json["keyslots"]["0"].clone();
            slot["area"]["offset"] = json!("290816");
            json["keyslots"]["1"] = slot;
            let mut digest = json["digests"]["0"].clone();
            (digest["keyslots"], digest["segments"]) = (json!(["1"]), json!([]));
            json["digests"]["1"] = digest;
        });
        assert!(!list(&header(&backing)).unwrap()[1].holds_volume_key);
        assert_eq!(remove_slot(&backing, 0, false), Err(ErrorKind::InvalidInput));
        assert_eq!(remove_slot(&backing, 1, false), Ok(()));
        assert_eq!(
            header(&backing).luks2().unwrap().metadata.digests.len(),
            1,
            "the unbound key's digest went with it"
        );
        assert_eq!(remove_slot(&backing, 7, true), Err(ErrorKind::InvalidInput));
        assert_eq!(remove_slot(&backing, 0, true), Ok(()));
        assert_eq!(opened_slot(&backing, "secret"), Err(ErrorKind::WrongKey));
    }

    #[test]
    fn erasing_leaves_no_slot_and_no_material() {
        let backing = volume(BlockSize::B4096);
        add_slot(&backing, "secret", "second", None).unwrap();
        // Left behind by a removal that a crash cut short.
        backing.write_at(ByteOffset(5 << 20), &[7; 4096]).unwrap();
        erase_all(&backing, &mut header(&backing), &OsEntropy, &Silent).unwrap();
        assert!(list(&header(&backing)).unwrap().is_empty());
        assert_eq!(opened_slot(&backing, "secret"), Err(ErrorKind::WrongKey));
        assert!((0..60).all(|number| area_is_zero(&backing, number)));
    }

    #[test]
    fn tokens_lose_the_slots_that_are_removed() {
        let backing = volume(BlockSize::B4096);
        add_slot(&backing, "secret", "second", None).unwrap();
        forge(&backing, |json| json["tokens"]["5"] = json!({"type": "clevis", "keyslots": ["0", "1"]}));
        remove_slot(&backing, 1, false).unwrap();
        assert_eq!(header(&backing).luks2().unwrap().metadata.tokens[&5]["keyslots"], json!(["0"]));
    }

    #[test]
    fn a_changed_slot_keeps_its_number_and_priority() {
        let backing = volume(BlockSize::B4096);
        forge(&backing, |json| json["keyslots"]["0"]["priority"] = json!(2));
        change_slot(&backing, "secret", "new").unwrap();
        let slots = list(&header(&backing)).unwrap();
        assert_eq!((slots.len(), slots[0].description.priority.as_str()), (1, "high"));
        assert_eq!(opened_slot(&backing, "new"), Ok(0));
    }

    #[test]
    fn what_cannot_be_done_is_refused_before_anything_is_written() {
        let backing = volume(BlockSize::B4096);
        let recorder = Recorder::over(backing);
        assert_eq!(add_slot(&recorder, "secret", "x", Some(0)), Err(ErrorKind::AlreadyExists));
        assert_eq!(add_slot(&recorder, "secret", "x", Some(32)), Err(ErrorKind::InvalidInput));
        assert_eq!(add_slot(&recorder, "secret", "", None), Err(ErrorKind::InvalidInput));
        let other = unlock(&crate::luks::fixtures::fresh_volume(BlockSize::B4096), "secret");
        let text = passphrase("x");
        let mut held = header(&recorder);
        let costly = KdfAlgorithm::Pbkdf2 { hash: Hash::Sha256, iterations: u32::MAX };
        let own = unlock(&recorder, "secret");
        let with_key = own.volume_key();
        let by_key = held.unlock_with_volume_key(with_key).unwrap();
        for (unlocked, algorithm, kind) in
            [(&other, CHEAP, ErrorKind::WrongKey), (&own, costly, ErrorKind::Unsupported)]
        {
            let new = NewSlot { passphrase: &text, pbkdf: Pbkdf::Exactly(algorithm), number: None };
            let error = add(&recorder, &mut held, unlocked, &new, &OsEntropy, &Silent).unwrap_err();
            assert_eq!(error.kind(), kind);
        }
        let new = (&text, Pbkdf::Exactly(CHEAP));
        let error = change(&recorder, &mut held, &by_key, new, &OsEntropy, &Silent).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "which slot?");
        assert!(recorder.finish().1.is_empty());
    }

    #[test]
    fn a_damaged_copy_of_the_header_stops_every_change() {
        let backing = volume(BlockSize::B4096);
        add_slot(&backing, "secret", "second", None).unwrap();
        backing.write_at(ByteOffset(16384 + 200), &[0xee; 8]).unwrap();
        let recorder = Recorder::over(backing);
        assert_eq!(add_slot(&recorder, "secret", "x", None), Err(ErrorKind::CorruptHeader));
        assert_eq!(remove_slot(&recorder, 0, false), Err(ErrorKind::CorruptHeader));
        assert_eq!(change_slot(&recorder, "secret", "x").unwrap_err().kind(), ErrorKind::CorruptHeader);
        let erased = erase_all(&recorder, &mut header(&recorder), &OsEntropy, &Silent);
        assert_eq!(erased.unwrap_err().kind(), ErrorKind::CorruptHeader);
        assert!(recorder.finish().1.is_empty());
    }

    #[test]
    fn slots_are_refused_when_there_is_no_room() {
        let backing = volume(BlockSize::B4096);
        forge(&backing, |json| json["config"]["keyslots_size"] = json!((2 * AREA_SIZE - 512).to_string()));
        forge(&backing, |json| json["tokens"] = json!({}));
        assert_eq!(add_slot(&backing, "secret", "x", None), Err(ErrorKind::NoSpace));
        assert_eq!(change_slot(&backing, "secret", "x").unwrap_err().kind(), ErrorKind::NoSpace);
        forge(&backing, |json| json["config"]["keyslots_size"] = json!((2 * AREA_SIZE).to_string()));
        assert_eq!(add_slot(&backing, "secret", "x", None), Ok(1));
        assert_eq!(change_slot(&backing, "x", "y").unwrap_err().kind(), ErrorKind::NoSpace);
        assert_eq!(opened_slot(&backing, "x"), Ok(1));
    }

    #[test]
    fn there_are_32_slots_and_not_one_more() {
        let backing = volume(BlockSize::B4096);
        let unlocked = unlock(&backing, "secret");
        let mut held = header(&backing);
        let text = passphrase("more");
        let new = NewSlot { passphrase: &text, pbkdf: Pbkdf::Exactly(CHEAP), number: None };
        for number in 1..32 {
            assert_eq!(add(&backing, &mut held, &unlocked, &new, &OsEntropy, &Silent).unwrap(), number);
        }
        let full = add(&backing, &mut held, &unlocked, &new, &OsEntropy, &Silent).unwrap_err();
        assert_eq!(full.kind(), ErrorKind::NoSpace);
        assert_eq!(list(&header(&backing)).unwrap().len(), 32);
        assert_eq!(opened_slot(&backing, "secret"), Ok(0));
    }

    /// Does something to a copy of `before`, and lets it crash everywhere.
    fn crash(before: &MemoryBacking, allowed: &[&[&str]], act: impl FnOnce(&dyn Backing)) -> Vec<usize> {
        let recorder = Recorder::over(snapshot(before));
        act(&recorder);
        let (_, events) = recorder.finish();
        crash_everywhere(before, &events, &["new", "secret", "third"], allowed)
    }

    #[test]
    fn adding_may_crash_anywhere() {
        let seen = crash(&volume(BlockSize::B4096), &[&["secret"], &["new", "secret"]], |backing| {
            add_slot(backing, "secret", "new", None).unwrap();
        });
        assert_eq!(seen, [0, 1]);
    }

    #[test]
    fn changing_may_crash_anywhere() {
        let seen = crash(&volume(BlockSize::B4096), &[&["secret"], &["new"]], |backing| {
            change_slot(backing, "secret", "new").unwrap();
        });
        assert_eq!(seen, [0, 1]);
    }

    #[test]
    fn removing_and_erasing_may_crash_anywhere() {
        let before = volume(BlockSize::B4096);
        add_slot(&before, "secret", "third", None).unwrap();
        let seen = crash(&before, &[&["secret", "third"], &["third"]], |backing| {
            remove_slot(backing, 0, false).unwrap();
        });
        assert_eq!(seen, [0, 1]);
        let seen = crash(&before, &[&["secret", "third"], &[]], |backing| {
            erase_all(backing, &mut header(backing), &OsEntropy, &Silent).unwrap();
        });
        assert_eq!(seen, [0, 1]);
    }

    /// One copy of the header is of an earlier crash: it must not come back.
    #[test]
    fn a_crash_after_a_crash() {
        let stale = volume(BlockSize::B4096);
        for old_copy in [0, 16384] {
            let before = snapshot(&stale);
            add_slot(&before, "secret", "third", None).unwrap();
            let mut copy = vec![0; 16384];
            stale.read_at(ByteOffset(old_copy), &mut copy).unwrap();
            before.write_at(ByteOffset(old_copy), &copy).unwrap();
            let seen = crash(&before, &[&["secret", "third"], &["third"]], |backing| {
                remove_slot(backing, 0, false).unwrap();
            });
            assert_eq!(seen, [0, 1]);
        }
    }
}
