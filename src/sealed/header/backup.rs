//! Backup and restore of a header (docs/sealed-keys.md, "Backups").
//!
//! A backup is one copy of the header, byte by byte. It is put back only onto a store whose superblock the
//! volume key in it vouches for, so never onto another volume's; and what the superblock pins stays the rule:
//! the header that is pinned is simply written again, and any other one becomes a change of key slots like
//! all others, with a sequence number and a superblock of its own. So a restore is as safe against a crash as
//! `slots.rs` is, and nothing that was refused before it is accepted after it.

use uuid::Uuid;

use crate::anchor::AnchorMode;
use crate::backing::Backing;
use crate::crypto::CostLimits;
use crate::error::{Error, ErrorKind, Result};
use crate::sealed::keys::schedule::KeySchedule;

use super::fields::{CopyPlace, HEADER_LEN, Header, HeaderBytes, HeaderPin, looks_like_sealed};
use super::slot::SlotSecret;
use super::unlock::{CheckedHeader, HeaderCopy, RawHeader, Unlocked};

/// A backup that makes sense; without a key nobody can say that it is genuine.
pub struct HeaderBackup(CheckedHeader);

/// What a restore has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoredHeader {
    /// Nothing: both copies were as in the backup.
    Nothing,
    /// The header that the superblock pins is back.
    Present,
    /// The key slots of another time are back, in a new header.
    Slots,
}

impl CheckedHeader {
    /// The backup of this header.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptHeader`] when the copies differ: which of them holds, only a key can tell.
    pub fn backup(&self) -> Result<Vec<u8>> {
        match &self.copies[..] {
            [a, b] if a.bytes == b.bytes => Ok(a.bytes.to_vec()),
            _ => {
                let what = "the two copies of the sealed header differ, and only one can be the present one";
                Err(Error::new(ErrorKind::CorruptHeader, what).hint("run `hostveil header repair` first"))
            }
        }
    }
}

impl HeaderBackup {
    /// Whether a file begins as such a backup does.
    pub fn looks_like_one(bytes: &[u8]) -> bool {
        looks_like_sealed(bytes)
    }

    /// Makes sense of a backup.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptHeader`] for one of another length, and those of [`RawHeader::check`].
    pub fn check(bytes: &[u8], limits: &CostLimits) -> Result<Self> {
        let bytes: &[u8; HEADER_LEN] = bytes.try_into().map_err(|_| {
            let what = format!("a sealed header's backup has {HEADER_LEN} bytes, and this {}", bytes.len());
            Error::new(ErrorKind::CorruptHeader, what)
        })?;
        let header = Header::parse(bytes, limits)?;
        let copy = HeaderCopy { place: CopyPlace::A, bytes: Box::new(*bytes), header };
        Ok(Self(CheckedHeader { copies: vec![copy], damaged: None, limits: *limits }))
    }

    /// The volume that it is of.
    pub fn uuid(&self) -> Uuid {
        self.0.uuid()
    }

    /// That no other sealed volume's header is in a store.
    ///
    /// # Errors
    /// [`ErrorKind::WrongDevice`] if one is.
    pub fn check_place(&self, backing: &dyn Backing) -> Result<()> {
        match RawHeader::read(backing).check(&self.0.limits) {
            Ok(found) => found.expect_uuid(self.uuid()).map(drop),
            Err(_) => Ok(()),
        }
    }

    /// Puts the backup back. A header that the superblock does not pin is one of another time: its key slots
    /// come back only with `other_time`, in a header that `pin` has the superblock name; and never where an
    /// anchor stands for it that a key slot which was removed stays so. `superblock` reads what is pinned.
    ///
    /// # Errors
    /// All before anything is written: [`ErrorKind::WrongKey`] and [`ErrorKind::CorruptHeader`] as of an
    /// unlock, with the store's superblock; [`ErrorKind::StaleVolume`] for a header of another time.
    pub fn restore(
        &self,
        backing: &dyn Backing,
        (secret, other_time): (SlotSecret<'_>, bool),
        superblock: impl Fn(&KeySchedule) -> Result<HeaderPin>,
        pin: impl Fn(&KeySchedule, &HeaderPin) -> Result<()>,
    ) -> Result<RestoredHeader> {
        let own = HeaderPin::of(self.0.first(), &self.0.copies[0].bytes);
        let (unlocked, pinned) = self.0.unlock(secret, None, |keys| Ok((own, superblock(keys)?)))?;
        if own == pinned {
            return put_back(backing, &unlocked.bytes);
        }
        if unlocked.anchor_mode() != AnchorMode::None {
            return Err(of_another_time(&own, &pinned)
                .hint("with an anchor no removed key comes back: take a later backup, or one of all of it"));
        }
        if !other_time {
            return Err(of_another_time(&own, &pinned)
                .hint("pass --force to bring its key slots back, also those that were removed since"));
        }
        let keys = unlocked.derive_keys()?;
        revive(unlocked, backing, &pinned, &mut |new: &HeaderPin| pin(&keys, new))?;
        Ok(RestoredHeader::Slots)
    }
}

fn of_another_time(own: &HeaderPin, pinned: &HeaderPin) -> Error {
    let what = format!(
        "the backup is of the header's change number {}, and the superblock pins number {}",
        own.sequence, pinned.sequence
    );
    Error::new(ErrorKind::StaleVolume, what)
}

/// Writes the pinned header where it is not: whichever copy still has it stays.
fn put_back(backing: &dyn Backing, bytes: &HeaderBytes) -> Result<RestoredHeader> {
    let mut done = RestoredHeader::Nothing;
    for place in CopyPlace::BOTH {
        if read_copy(backing, place).as_ref() != Some(bytes) {
            backing.write_at(place.offset(), &bytes[..])?;
            backing.sync()?;
            tracing::warn!(copy = ?place, "restored a copy of the header");
            done = RestoredHeader::Present;
        }
    }
    Ok(done)
}

/// Changes the header that holds, if one is left, into one with the backup's slots.
fn revive(
    mut backup: Unlocked,
    backing: &dyn Backing,
    pinned: &HeaderPin,
    pin: super::slots::WritePin<'_>,
) -> Result<()> {
    let slots = backup.header.slots.clone();
    backup.stale = None;
    backup.header.sequence = backup.header.sequence.max(pinned.sequence);
    let limits = backup.limits;
    let holds = |bytes: &HeaderBytes| {
        Header::parse(bytes, &limits).is_ok_and(|header| HeaderPin::of(&header, bytes) == *pinned)
    };
    for place in CopyPlace::BOTH {
        if let Some(bytes) = read_copy(backing, place).filter(holds) {
            let twin = read_copy(backing, place.other());
            backup.stale = (twin.as_ref() != Some(&bytes)).then_some(place.other());
            backup.bytes = bytes;
            break;
        }
    }
    backup.update(backing, slots, pin)?;
    tracing::warn!("restored key slots of another time");
    Ok(())
}

fn read_copy(backing: &dyn Backing, place: CopyPlace) -> Option<HeaderBytes> {
    let mut bytes = Box::new([0; HEADER_LEN]);
    backing.read_at(place.offset(), &mut bytes[..]).ok().map(|()| bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sealed::header::fixtures::{Store, crash_everywhere, limits, passphrase, volume};
    use crate::sealed::maintain::amend::pin_header;

    fn take(store: &Store) -> Vec<u8> {
        RawHeader::read(&*store.backing).check(&limits()).unwrap().backup().unwrap()
    }

    fn restore(store: &Store, backup: &[u8], text: &str, force: bool) -> Result<RestoredHeader> {
        let (backup, text) = (HeaderBackup::check(backup, &limits())?, passphrase(text));
        let pin = |keys: &KeySchedule, pin: &HeaderPin| pin_header(&*store.backing, keys, None, pin);
        let secret = (SlotSecret::Passphrase(&text), force);
        backup.restore(&*store.backing, secret, |keys| store.pin(keys), pin)
    }

    fn kind<T>(result: Result<T>) -> ErrorKind {
        result.err().expect("an error").kind()
    }

    fn destroy(store: &Store, places: &[CopyPlace]) {
        places.iter().for_each(|place| store.backing.write_at(place.offset(), &[7; HEADER_LEN]).unwrap());
    }

    #[test]
    fn a_lost_header_comes_back_byte_by_byte() {
        for lost in [&CopyPlace::BOTH[..], &[CopyPlace::A], &[CopyPlace::B]] {
            let store = volume(&["secret"]);
            let (backup, before) = (take(&store), store.copies());
            destroy(&store, lost);
            assert_eq!(kind(restore(&store, &backup, "wrong", false)), ErrorKind::WrongKey);
            assert_eq!(restore(&store, &backup, "secret", false).unwrap(), RestoredHeader::Present);
            assert_eq!(store.copies(), before);
            assert_eq!(restore(&store, &backup, "secret", false).unwrap(), RestoredHeader::Nothing);
        }
        let store = volume(&["secret"]);
        destroy(&store, &[CopyPlace::B]);
        let checked = RawHeader::read(&*store.backing).check(&limits()).unwrap();
        assert_eq!(kind(checked.backup()), ErrorKind::CorruptHeader, "which of the two holds?");
    }

    /// What was removed comes back only on purpose, as a change that the superblock knows.
    #[test]
    fn key_slots_of_another_time_come_back_only_on_purpose() {
        for lost in [&[][..], &CopyPlace::BOTH, &[CopyPlace::A], &[CopyPlace::B]] {
            let store = volume(&["secret", "removed"]);
            let backup = take(&store);
            store.remove(1).unwrap();
            destroy(&store, lost);
            let before = store.copies();
            assert_eq!(kind(restore(&store, &backup, "removed", false)), ErrorKind::StaleVolume);
            assert_eq!(store.copies(), before);
            assert_eq!(restore(&store, &backup, "removed", true).unwrap(), RestoredHeader::Slots);
            assert_eq!((store.slot_of("secret"), store.slot_of("removed")), (Ok(0), Ok(1)));
            let [a, b] = store.copies();
            assert!(a == b && a[32] == 4, "both copies, and a sequence number above all");
        }
    }

    #[test]
    fn what_is_no_backup_of_this_volume_is_refused() {
        let (store, other) = (volume(&["secret"]), volume(&["secret"]));
        let before = store.copies();
        let foreign = take(&other);
        assert_eq!(kind(restore(&store, &foreign, "secret", true)), ErrorKind::CorruptHeader);
        let checked = HeaderBackup::check(&foreign, &limits()).unwrap();
        assert_eq!(kind(checked.check_place(&*store.backing)), ErrorKind::WrongDevice);
        checked.check_place(&*other.backing).unwrap();
        let mut forged = take(&store);
        assert_eq!(kind(restore(&store, &forged[..4095], "secret", true)), ErrorKind::CorruptHeader);
        forged[44] ^= 1;
        assert_eq!(kind(restore(&store, &forged, "secret", true)), ErrorKind::CorruptHeader);
        forged[0] ^= 1;
        assert_eq!(kind(restore(&store, &forged, "secret", true)), ErrorKind::WrongDevice);
        assert_eq!(store.copies(), before);
    }

    #[test]
    fn a_restore_may_crash_anywhere() {
        let store = volume(&["secret", "removed"]);
        let old = take(&store);
        store.remove(1).unwrap();
        let present = take(&store);
        let revive = |s: &Store| assert!(restore(s, &old, "secret", true).is_ok());
        for lost in [&[][..], &[CopyPlace::A], &[CopyPlace::B]] {
            destroy(&store, lost);
            crash_everywhere(&store, revive, &["removed", "secret"], &[&["secret"], &["removed", "secret"]]);
            let back = |s: &Store| assert!(restore(s, &present, "secret", false).is_ok());
            crash_everywhere(&store, back, &["removed", "secret"], &[&["secret"]]);
            restore(&store, &present, "secret", false).unwrap();
        }
        // With nothing left there is nothing to keep: what was cut off is done again.
        destroy(&store, &CopyPlace::BOTH);
        for crashed in store.crashes_of(revive) {
            restore(&crashed, &old, "secret", true).unwrap();
            assert_eq!(crashed.slot_of("removed"), Ok(1));
        }
    }
}
