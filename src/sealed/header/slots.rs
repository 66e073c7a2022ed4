//! Making a header, and changing who can open a volume: adding, removing and changing key slots.
//!
//! Guarantees: interrupted at any write, with any part of the unsynced writes lost, the volume opens
//! with the secrets of before the change or with those of after it, and the volume key stays the same.
//! The order is that of docs/sealed-keys.md, "Changing a header": a copy that differs is first made
//! the same as the one that holds; then the new header goes to copy B, the superblock pins it, and it
//! goes to copy A, with a sync behind each step. So the header that is pinned is whole in one copy at
//! every moment. The last slot goes only with [`erase_all`].
//!
//! Not guaranteed: that a removed secret is useless to somebody who kept a copy of the whole volume with
//! its old header. Against that only a new volume key, or an anchor, helps.
//!
//! The caller has the store to itself. After an error the header must be read anew.

use crate::anchor::AnchorMode;
use crate::backing::Backing;
use crate::crypto::{CostLimits, KdfAlgorithm};
use crate::env::{Entropy, Progress};
use crate::error::{Error, ErrorKind, Result};
use crate::sealed::keys::schedule::{KEY_LEN, KeySchedule, VolumeId};
use crate::secret::{SecretBytes, VolumeKey};

use super::fields::{CopyPlace, HEADER_LEN, Header, HeaderPin, SLOTS, erase_slots, looks_like_sealed};
use super::slot::{Slot, SlotSecret};
use super::unlock::Unlocked;

/// A secret that is to open a volume.
#[derive(Clone, Copy, Debug)]
pub struct NewSlot<'a> {
    /// The secret.
    pub secret: SlotSecret<'a>,
    /// How a passphrase becomes the slot's key: Argon2id, with costs.
    pub kdf: KdfAlgorithm,
    /// The slot's number, 0 to 7; the first free one if none is asked for.
    pub number: Option<u32>,
}

/// What a new header shall say.
#[derive(Clone, Copy, Debug)]
pub struct NewHeader<'a> {
    /// The volume that it is for.
    pub volume: VolumeId,
    /// How an anchor guards it.
    pub anchor: AnchorMode,
    /// The first secret that opens it.
    pub slot: NewSlot<'a>,
    /// What reading it may cost.
    pub limits: CostLimits,
}

/// Writes a superblock that pins a header, and makes it durable, with whatever the anchor needs, before
/// it returns.
pub type WritePin<'a> = &'a mut dyn FnMut(&HeaderPin) -> Result<()>;

/// Makes the header of a new volume, with a fresh volume key, in memory: [`Unlocked::store`] writes it.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for a secret, costs or a slot number that cannot be; the random source's.
pub fn create(new: &NewHeader<'_>, entropy: &dyn Entropy, progress: &dyn Progress) -> Result<Unlocked> {
    let key = VolumeKey::new(SecretBytes::random(KEY_LEN, entropy)?);
    let keys = KeySchedule::new(new.volume, &key)?;
    let mut slots = [const { None }; SLOTS];
    let number = free_number(&slots, new.slot.number)?;
    let place = (&new.volume, number);
    slots[usize::from(number)] = Some(wrap(place, &key, &new.slot, &new.limits, (entropy, progress))?);
    let header = Header { volume: new.volume, sequence: 1, key_generation: 1, anchor: new.anchor, slots };
    let bytes = header.encode(&keys.header_mac()?)?;
    Ok(Unlocked { header, bytes, keys, key, slot: number, stale: None, limits: new.limits })
}

/// Removes all key slots from both copies, for which no key is needed: the data is lost, unless somebody
/// has a copy of the header. The volume stays recognisable.
///
/// # Errors
/// [`ErrorKind::WrongDevice`] when neither copy is a sealed volume's, before anything is written.
pub fn erase_all(backing: &dyn Backing) -> Result<()> {
    let copies = CopyPlace::BOTH.map(|place| {
        let mut bytes = Box::new([0; HEADER_LEN]);
        if let Err(error) = backing.read_at(place.offset(), &mut bytes[..]) {
            tracing::warn!(%error, copy = ?place, "a copy of the header cannot be read; all of it goes");
            bytes.fill(0);
        }
        (place, bytes)
    });
    if !copies.iter().any(|(_, bytes)| looks_like_sealed(&bytes[..])) {
        return Err(Error::new(ErrorKind::WrongDevice, "no sealed volume is here"));
    }
    // An error with one is no reason to leave the other.
    let erased = copies.map(|(place, mut bytes)| {
        erase_slots(&mut bytes);
        backing.write_at(place.offset(), &bytes[..])
    });
    backing.sync()?;
    erased.into_iter().collect::<Result<()>>()?;
    tracing::info!("removed all key slots");
    Ok(())
}

impl Unlocked {
    /// Writes both copies of a new header. Nothing is durable before the caller has synced.
    pub fn store(&self, backing: &dyn Backing) -> Result<()> {
        CopyPlace::BOTH.into_iter().try_for_each(|place| backing.write_at(place.offset(), &self.bytes[..]))
    }

    /// Makes the copy that differs from the one that holds the same again, durably; says which it was.
    pub fn repair(&mut self, backing: &dyn Backing) -> Result<Option<CopyPlace>> {
        let Some(stale) = self.stale else { return Ok(None) };
        backing.write_at(stale.offset(), &self.bytes[..])?;
        backing.sync()?;
        self.stale = None;
        tracing::warn!(copy = ?stale, "repaired a copy of the header");
        Ok(Some(stale))
    }

    /// Puts the volume key into another slot; answers with its number.
    ///
    /// # Errors
    /// Before anything is written: [`ErrorKind::AlreadyExists`] when the slot is in use,
    /// [`ErrorKind::NoSpace`] without a free one, [`ErrorKind::InvalidInput`] for a number, a secret or
    /// costs that cannot be.
    pub fn add(
        &mut self,
        backing: &dyn Backing,
        new: &NewSlot<'_>,
        pin: WritePin<'_>,
        (entropy, progress): (&dyn Entropy, &dyn Progress),
    ) -> Result<u32> {
        let number = free_number(&self.header.slots, new.number)?;
        self.replace(backing, number, new, pin, (entropy, progress))?;
        tracing::info!(slot = number, "added a key slot");
        Ok(number.into())
    }

    /// Replaces the secret of the slot that was unlocked; it keeps its number. Until the superblock pins
    /// the new header the old secret opens it, afterwards the new one.
    ///
    /// # Errors
    /// As [`Self::add`]; `new.number` must be none or the slot's own.
    pub fn change(
        &mut self,
        backing: &dyn Backing,
        new: &NewSlot<'_>,
        pin: WritePin<'_>,
        (entropy, progress): (&dyn Entropy, &dyn Progress),
    ) -> Result<()> {
        if new.number.is_some_and(|number| number != u32::from(self.slot)) {
            return Err(Error::new(ErrorKind::InvalidInput, "a changed key slot keeps its number"));
        }
        self.replace(backing, self.slot, new, pin, (entropy, progress))?;
        tracing::info!(slot = self.slot, "changed a key slot");
        Ok(())
    }

    /// Removes a slot.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when there is no such slot, or when it is the last one; before
    /// anything is written.
    pub fn remove(&mut self, backing: &dyn Backing, number: u32, pin: WritePin<'_>) -> Result<()> {
        let mut slots = self.header.slots.clone();
        let slot = usize::try_from(number).ok().and_then(|number| slots.get_mut(number));
        if slot.and_then(Option::take).is_none() {
            return Err(Error::new(ErrorKind::InvalidInput, format!("there is no key slot {number}")));
        }
        if slots.iter().all(Option::is_none) {
            let what = format!("key slot {number} is the last one; without it the data is lost");
            return Err(Error::new(ErrorKind::InvalidInput, what)
                .hint("add another key slot first, or erase all of them if the data shall be lost"));
        }
        self.update(backing, slots, pin)?;
        tracing::info!(slot = number, "removed a key slot");
        Ok(())
    }

    fn replace(
        &mut self,
        backing: &dyn Backing,
        number: u8,
        new: &NewSlot<'_>,
        pin: WritePin<'_>,
        env: (&dyn Entropy, &dyn Progress),
    ) -> Result<()> {
        let slot = wrap((&self.header.volume, number), &self.key, new, &self.limits, env)?;
        let mut slots = self.header.slots.clone();
        slots[usize::from(number)] = Some(slot);
        env.1.check()?;
        self.update(backing, slots, pin)
    }

    /// The one way in which a header changes.
    pub(super) fn update(
        &mut self,
        backing: &dyn Backing,
        slots: [Option<Slot>; SLOTS],
        pin: WritePin<'_>,
    ) -> Result<()> {
        let sequence = self.header.sequence.checked_add(1);
        let sequence = sequence.ok_or_else(|| {
            Error::new(ErrorKind::CorruptHeader, "the sealed header's sequence number cannot grow")
        })?;
        let header = Header { sequence, slots, ..self.header };
        let bytes = header.encode(&self.keys.header_mac()?)?;
        self.repair(backing)?;
        backing.write_at(CopyPlace::B.offset(), &bytes[..])?;
        backing.sync()?;
        pin(&HeaderPin::of(&header, &bytes))?;
        backing.write_at(CopyPlace::A.offset(), &bytes[..])?;
        backing.sync()?;
        (self.header, self.bytes) = (header, bytes);
        Ok(())
    }
}

fn wrap(
    place: (&VolumeId, u8),
    key: &VolumeKey,
    new: &NewSlot<'_>,
    limits: &CostLimits,
    (entropy, progress): (&dyn Entropy, &dyn Progress),
) -> Result<Slot> {
    progress.begin("deriving the key", 1);
    let slot = Slot::wrap(place, key, (new.secret, new.kdf), limits, entropy)?;
    progress.advance(1);
    Ok(slot)
}

fn free_number(slots: &[Option<Slot>; SLOTS], wanted: Option<u32>) -> Result<u8> {
    let mut numbers = (0..).zip(slots);
    match wanted {
        Some(wanted) => match numbers.find(|(number, _)| u32::from(*number) == wanted) {
            Some((number, None)) => Ok(number),
            Some(_) => Err(Error::new(ErrorKind::AlreadyExists, format!("key slot {wanted} is in use"))),
            None => {
                let what = format!("key slot {wanted}; they are numbered from 0 to {}", SLOTS - 1);
                Err(Error::new(ErrorKind::InvalidInput, what))
            }
        },
        None => numbers.find(|(_, slot)| slot.is_none()).map(|(number, _)| number).ok_or_else(|| {
            Error::new(ErrorKind::NoSpace, format!("all {SLOTS} key slots are in use"))
                .hint("remove a key slot that is not needed")
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::{OsEntropy, Silent};
    use crate::sealed::header::fixtures::{CHEAP, Store, crash_everywhere, passphrase, volume};

    const ENV: (&dyn Entropy, &dyn Progress) = (&OsEntropy, &Silent);

    #[test]
    fn slots_are_added_changed_and_removed() {
        let store = volume(&["secret"]);
        assert_eq!(store.add("secret", "second", None), Ok(1));
        assert_eq!(store.add("second", "last", Some(7)), Ok(7));
        assert_eq!(store.slot_of("last"), Ok(7));
        store.change("second", "other").unwrap();
        assert_eq!(store.slot_of("other"), Ok(1));
        assert_eq!(store.slot_of("second"), Err(ErrorKind::WrongKey));
        store.remove(0).unwrap();
        assert_eq!(store.slot_of("secret"), Err(ErrorKind::WrongKey));
        assert_eq!(store.add("other", "again", None), Ok(0));
        let [a, b] = store.copies();
        assert_eq!(a, b, "both copies say the same");
    }

    #[test]
    fn what_cannot_be_done_is_refused_before_anything_is_written() {
        let store = volume(&["secret"]);
        let before = store.copies();
        assert_eq!(store.add("secret", "x", Some(0)), Err(ErrorKind::AlreadyExists));
        assert_eq!(store.add("secret", "x", Some(8)), Err(ErrorKind::InvalidInput));
        assert_eq!(store.add("secret", "", None), Err(ErrorKind::InvalidInput));
        assert_eq!(store.add("wrong", "x", None), Err(ErrorKind::WrongKey));
        assert_eq!(store.remove(0), Err(ErrorKind::InvalidInput), "the last one");
        assert_eq!(store.remove(3), Err(ErrorKind::InvalidInput));
        assert_eq!(store.remove(u32::MAX), Err(ErrorKind::InvalidInput));
        let mut unlocked = store.unlock("secret").unwrap();
        let text = passphrase("x");
        let new = NewSlot { secret: SlotSecret::Passphrase(&text), kdf: CHEAP, number: Some(4) };
        let never = &mut |_: &HeaderPin| panic!("nothing to pin");
        let error = unlocked.change(&*store.backing, &new, never, ENV).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert_eq!(store.copies(), before);
    }

    #[test]
    fn there_are_8_slots_and_not_one_more() {
        let store = volume(&["secret"]);
        for number in 1..8 {
            assert_eq!(store.add("secret", "more", None), Ok(number));
        }
        assert_eq!(store.add("secret", "more", None), Err(ErrorKind::NoSpace));
    }

    #[test]
    fn erasing_needs_no_key_and_leaves_none() {
        let store = volume(&["secret", "second"]);
        store.backing.write_at(CopyPlace::A.offset(), b"torn").unwrap();
        erase_all(&*store.backing).unwrap();
        for secret in ["secret", "second"] {
            assert_eq!(store.slot_of(secret), Err(ErrorKind::WrongKey));
        }
        assert!(store.copies().iter().all(|copy| copy[1024..3072].iter().all(|byte| *byte == 0)));
    }

    /// A medium that fails at one copy keeps no key slots in the other.
    #[test]
    fn erasing_does_not_end_at_an_error() {
        for place in CopyPlace::BOTH {
            let store = volume(&["secret"]);
            store.backing.fail_at(place.offset());
            assert_eq!(erase_all(&*store.backing).unwrap_err().kind(), ErrorKind::Io);
            let copy = &store.copies()[usize::from(place == CopyPlace::A)];
            assert!(copy[1024..3072].iter().all(|byte| *byte == 0), "the copy beside {place:?}");
        }
    }

    #[test]
    fn nothing_is_erased_where_no_volume_is() {
        let empty = crate::backing::MemoryBacking::new(crate::units::ByteCount(1 << 20));
        assert_eq!(erase_all(&empty).unwrap_err().kind(), ErrorKind::WrongDevice);
    }

    /// A copy that differs is mended before anything else happens: two crashes must not spoil both.
    #[test]
    fn a_stale_copy_is_repaired_first() {
        for stale in CopyPlace::BOTH {
            let store = volume(&["secret"]);
            store.backing.write_at(stale.offset(), &[7; HEADER_LEN]).unwrap();
            assert_eq!(store.unlock("secret").unwrap().repair(&*store.backing).unwrap(), Some(stale));
            let [a, b] = store.copies();
            assert_eq!(a, b);
            assert_eq!(store.unlock("secret").unwrap().repair(&*store.backing).unwrap(), None);
        }
    }

    /// The superblock could not be written: the old header holds, and the next change mends the rest.
    #[test]
    fn a_header_that_was_not_pinned_does_not_hold() {
        let store = volume(&["secret"]);
        let mut unlocked = store.unlock("secret").unwrap();
        let text = passphrase("new");
        let new = NewSlot { secret: SlotSecret::Passphrase(&text), kdf: CHEAP, number: None };
        let fails = &mut |_: &HeaderPin| Err(Error::new(ErrorKind::Io, "no"));
        assert_eq!(unlocked.add(&*store.backing, &new, fails, ENV).unwrap_err().kind(), ErrorKind::Io);
        assert_eq!(store.slot_of("new"), Err(ErrorKind::WrongKey));
        assert_eq!(store.unlock("secret").unwrap().stale_copy(), Some(CopyPlace::B));
        assert_eq!(store.add("secret", "other", None), Ok(1));
        assert_eq!(store.slot_of("new"), Err(ErrorKind::WrongKey));
        assert_eq!(store.unlock("other").unwrap().stale_copy(), None);
    }

    #[test]
    fn every_change_may_crash_anywhere() {
        type Case<'a> = (&'a [&'a str], fn(&Store), [&'a [&'a str]; 2]);
        let cases: [Case<'_>; 3] = [
            (
                &["secret"],
                |s| assert_eq!(s.add("secret", "new", None), Ok(1)),
                [&["secret"], &["new", "secret"]],
            ),
            (&["secret"], |s| s.change("secret", "new").unwrap(), [&["secret"], &["new"]]),
            (&["secret", "third"], |s| s.remove(0).unwrap(), [&["secret", "third"], &["third"]]),
        ];
        for (before, act, allowed) in cases {
            for stale in [None, Some(CopyPlace::A), Some(CopyPlace::B)] {
                let store = volume(before);
                if let Some(stale) = stale {
                    store.backing.write_at(stale.offset(), &[7; 1000]).unwrap();
                }
                crash_everywhere(&store, act, &["new", "secret", "third"], &allowed);
            }
        }
    }

    /// A crash in the middle of a change, and then one in the middle of the next.
    #[test]
    fn a_crash_after_a_crash() {
        let store = volume(&["secret"]);
        for first in store.crashes_of(|s| assert_eq!(s.add("secret", "third", None), Ok(1))) {
            let act = |s: &Store| s.change("secret", "new").unwrap();
            let third: &[&str] = if first.slot_of("third").is_ok() { &["third"] } else { &[] };
            let before = [&["secret"], third].concat();
            let after = [&["new"], third].concat();
            crash_everywhere(&first, act, &["new", "secret", "third"], &[&before, &after]);
        }
    }
}
