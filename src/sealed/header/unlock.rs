//! From the two copies of a header to an unlocked volume.
//!
//! ```text
//! RawHeader::read(store)        both copies, read once; nothing is believed
//!     .check(limits)            CheckedHeader: at least one copy asks for nothing that we do not do
//!     .unlock(secret, .., pin)  Unlocked: holds the keys, and the copy that the superblock pins
//! ```
//!
//! A copy is accepted only if the secret opens a slot of it, the key from that slot vouches for every
//! bit of it, and the superblock, which that key vouches for too, pins its digest. So a copy that a
//! crash tore or left behind, and one that a host put back, is passed over for its twin, and where the
//! twin is no better, refused. Key derivation may cost, over both copies, what is allowed for one slot
//! (`crypto::Budget`).

use uuid::Uuid;

use crate::anchor::AnchorMode;
use crate::backing::Backing;
use crate::crypto::{Budget, CostLimits};
use crate::error::{Error, ErrorKind, Result};
use crate::sealed::keys::schedule::{KeySchedule, VolumeId};
use crate::secret::VolumeKey;

use super::fields::{CopyPlace, HEADER_LEN, Header, HeaderBytes, HeaderPin, is_authentic, looks_like_sealed};
use super::slot::SlotSecret;

/// Both copies of a header as they were read.
pub struct RawHeader {
    copies: [(CopyPlace, Result<HeaderBytes>); 2],
}

/// One copy that could be read.
pub(in crate::sealed) struct HeaderCopy {
    pub(in crate::sealed) place: CopyPlace,
    pub(in crate::sealed) bytes: HeaderBytes,
    pub(in crate::sealed) header: Header,
}

/// A header of which at least one copy can be made sense of.
pub struct CheckedHeader {
    pub(in crate::sealed) copies: Vec<HeaderCopy>,
    /// The copy that could not be read, and why.
    pub(in crate::sealed) damaged: Option<(CopyPlace, Error)>,
    pub(in crate::sealed) limits: CostLimits,
}

/// An unlocked volume: its keys, and the header that holds.
pub struct Unlocked {
    pub(in crate::sealed) header: Header,
    pub(in crate::sealed) bytes: HeaderBytes,
    pub(in crate::sealed) keys: KeySchedule,
    pub(in crate::sealed) key: VolumeKey,
    pub(in crate::sealed) slot: u8,
    /// The copy that is not the one that holds, and must be made so before any change.
    pub(in crate::sealed) stale: Option<CopyPlace>,
    pub(in crate::sealed) limits: CostLimits,
}

impl RawHeader {
    /// Reads both copies. What cannot be read of one is told when both are checked.
    pub fn read(backing: &dyn Backing) -> Self {
        let copies = CopyPlace::BOTH.map(|place| {
            let mut bytes = Box::new([0; HEADER_LEN]);
            let read = backing.read_at(place.offset(), &mut bytes[..]);
            (place, read.map(|()| bytes))
        });
        Self { copies }
    }

    /// Two copies from memory.
    pub fn from_copies(a: &[u8; HEADER_LEN], b: &[u8; HEADER_LEN]) -> Self {
        Self { copies: [(CopyPlace::A, Ok(Box::new(*a))), (CopyPlace::B, Ok(Box::new(*b)))] }
    }

    /// Whether one of the copies begins as that of a sealed volume does.
    pub fn looks_like_sealed(&self) -> bool {
        self.copies.iter().any(|(_, copy)| copy.as_ref().is_ok_and(|bytes| looks_like_sealed(&bytes[..])))
    }

    /// Makes sense of the copies.
    ///
    /// # Errors
    /// When that is possible with neither: what is wrong with A, unless only B looks like a header;
    /// [`ErrorKind::WrongDevice`] when neither does.
    pub fn check(self, limits: &CostLimits) -> Result<CheckedHeader> {
        let (mut copies, mut errors) = (Vec::new(), Vec::new());
        for (place, bytes) in self.copies {
            let parsed = bytes.and_then(|bytes| Ok((Header::parse(&bytes, limits)?, bytes)));
            match parsed {
                Ok((header, bytes)) => copies.push(HeaderCopy { place, bytes, header }),
                Err(error) => errors.push((place, error)),
            }
        }
        if !copies.is_empty() {
            return Ok(CheckedHeader { copies, damaged: errors.pop(), limits: *limits });
        }
        let tells_most = errors
            .iter()
            .position(|(_, e)| !matches!(e.kind(), ErrorKind::WrongDevice | ErrorKind::OutOfRange));
        Err(match errors.into_iter().nth(tells_most.unwrap_or(0)) {
            Some((_, error)) if tells_most.is_some() => error,
            _ => Error::new(ErrorKind::WrongDevice, "no sealed volume is here"),
        })
    }
}

impl CheckedHeader {
    /// The volume's UUID, as the first copy says; nobody vouches for it before the unlock.
    pub fn uuid(&self) -> Uuid {
        self.first().volume.uuid
    }

    /// How an anchor guards the volume, as the first copy says.
    pub fn anchor_mode(&self) -> AnchorMode {
        self.first().anchor
    }

    /// There is always one: `check` saw to it, and nothing takes the last one out.
    pub(in crate::sealed) fn first(&self) -> &Header {
        &self.copies[0].header
    }

    /// Passes over copies that belong to another volume.
    ///
    /// # Errors
    /// [`ErrorKind::WrongDevice`] when both do.
    pub fn expect_uuid(mut self, uuid: Uuid) -> Result<Self> {
        if self.copies.iter().all(|copy| copy.header.volume.uuid != uuid) {
            let what = format!("this is the volume {}, not {uuid}", self.uuid());
            return Err(Error::new(ErrorKind::WrongDevice, what));
        }
        self.copies.retain(|copy| copy.header.volume.uuid == uuid);
        Ok(self)
    }

    /// Unlocks the volume; with `only`, by that slot. `superblock` reads the superblock with the keys
    /// that it is given, and answers with the header that it pins and whatever the caller needs of it;
    /// it may be called once for each copy.
    ///
    /// # Errors
    /// [`ErrorKind::WrongKey`] when no slot opens, [`ErrorKind::CorruptHeader`] when the key does not
    /// vouch for the header or the superblock pins another, [`ErrorKind::InvalidInput`] when there is no
    /// slot `only`, [`ErrorKind::Unsupported`] when trying all slots costs too much; and those of
    /// `superblock`.
    pub fn unlock<S>(
        &self,
        secret: SlotSecret<'_>,
        only: Option<u32>,
        mut superblock: impl FnMut(&KeySchedule) -> Result<(HeaderPin, S)>,
    ) -> Result<(Unlocked, S)> {
        self.check_slot_exists(only)?;
        let mut budget = Budget::new(&self.limits);
        let mut refusal = Refusal::default();
        for copy in &self.copies {
            if refusal.knows(copy, &self.copies) {
                continue;
            }
            match self.try_copy(copy, (secret, only), &mut superblock, &mut budget) {
                Ok(unlocked) => return Ok(unlocked),
                Err(because) => refusal.add(because),
            }
        }
        Err(refusal.into_error())
    }

    fn try_copy<S>(
        &self,
        copy: &HeaderCopy,
        (secret, only): (SlotSecret<'_>, Option<u32>),
        superblock: &mut impl FnMut(&KeySchedule) -> Result<(HeaderPin, S)>,
        budget: &mut Budget,
    ) -> Result<(Unlocked, S), Because> {
        let (slot, key) = copy.open(secret, only, budget)?;
        let keys = KeySchedule::new(copy.header.volume, &key)?;
        if !is_authentic(&copy.bytes, &keys.header_mac()?)? {
            return Err(Because::NotAuthentic(copy.place));
        }
        let (pin, found) = superblock(&keys).map_err(Because::Superblock)?;
        if pin != HeaderPin::of(&copy.header, &copy.bytes) {
            return Err(Because::NotPinned(copy.place));
        }
        let twin = self.copies.iter().find(|other| other.place == copy.place.other());
        let stale = twin.is_none_or(|twin| twin.bytes != copy.bytes).then_some(copy.place.other());
        let (header, bytes) = (copy.header.clone(), copy.bytes.clone());
        Ok((Unlocked { header, bytes, keys, key, slot, stale, limits: self.limits }, found))
    }

    fn check_slot_exists(&self, only: Option<u32>) -> Result<()> {
        let Some(only) = only else { return Ok(()) };
        let exists =
            |copy: &HeaderCopy| copy.header.used_slots().any(|(number, _)| u32::from(number) == only);
        match self.copies.iter().any(exists) {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::InvalidInput, format!("there is no key slot {only}"))),
        }
    }
}

impl HeaderCopy {
    /// The first slot that opens, and what is in it.
    fn open(
        &self,
        secret: SlotSecret<'_>,
        only: Option<u32>,
        budget: &mut Budget,
    ) -> Result<(u8, VolumeKey), Because> {
        for (number, slot) in self.header.used_slots() {
            if only.is_some_and(|only| only != u32::from(number)) {
                continue;
            }
            if let Some(key) = slot.open((&self.header.volume, number), secret, budget)? {
                return Ok((number, key));
            }
        }
        Err(Because::WrongKey)
    }
}

/// Why a copy was not accepted.
enum Because {
    WrongKey,
    NotAuthentic(CopyPlace),
    NotPinned(CopyPlace),
    Superblock(Error),
    Failed(Error),
}

impl From<Error> for Because {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Why no copy was accepted: of two reasons the one that tells more.
#[derive(Default)]
struct Refusal {
    worst: Option<Because>,
    tried: usize,
}

impl Refusal {
    /// Whether a copy is byte by byte one that was refused already.
    fn knows(&self, copy: &HeaderCopy, copies: &[HeaderCopy]) -> bool {
        copies.iter().take(self.tried).any(|tried| tried.place != copy.place && tried.bytes == copy.bytes)
    }

    fn add(&mut self, because: Because) {
        let weight = |because: &Because| match because {
            Because::NotPinned(_) => 1,
            Because::WrongKey => 2,
            Because::NotAuthentic(_) => 3,
            Because::Superblock(_) => 4,
            Because::Failed(_) => 5,
        };
        self.tried += 1;
        if self.worst.as_ref().is_none_or(|worst| weight(&because) > weight(worst)) {
            self.worst = Some(because);
        }
    }

    fn into_error(self) -> Error {
        let hint = "put the volume back from a backup";
        match self.worst {
            None | Some(Because::WrongKey) => {
                Error::new(ErrorKind::WrongKey, "no key slot opens with this passphrase or key file")
            }
            Some(Because::NotAuthentic(place)) => {
                let what = format!(
                    "copy {place:?} of the sealed header was changed by somebody without the volume key, \
                     and the other copy is no better"
                );
                Error::new(ErrorKind::CorruptHeader, what).hint(hint)
            }
            Some(Because::NotPinned(place)) => {
                let what = format!(
                    "copy {place:?} of the sealed header is not the one that the superblock pins, and the \
                     other copy is no better"
                );
                Error::new(ErrorKind::CorruptHeader, what).hint(hint)
            }
            Some(Because::Superblock(error) | Because::Failed(error)) => error,
        }
    }
}

impl Unlocked {
    /// What the keys are for.
    pub fn volume(&self) -> VolumeId {
        self.header.volume
    }

    /// The keys.
    pub fn keys(&self) -> &KeySchedule {
        &self.keys
    }

    /// The same keys once more, for a mount that leaves the header changeable.
    pub fn derive_keys(&self) -> Result<KeySchedule> {
        KeySchedule::new(self.header.volume, &self.key)
    }

    /// The keys alone; the volume key itself, which only changes of key slots need, is zeroed.
    pub fn into_keys(self) -> KeySchedule {
        self.keys
    }

    /// The slot that was opened.
    pub fn key_slot(&self) -> u32 {
        self.slot.into()
    }

    /// How an anchor guards the volume.
    pub fn anchor_mode(&self) -> AnchorMode {
        self.header.anchor
    }

    /// What a superblock must pin for this header to hold.
    pub fn pin(&self) -> HeaderPin {
        HeaderPin::of(&self.header, &self.bytes)
    }

    /// The copy that is not the one that holds: damaged, torn or out of date.
    pub fn stale_copy(&self) -> Option<CopyPlace> {
        self.stale
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::MemoryBacking;
    use crate::error::ErrorKind;
    use crate::sealed::header::fixtures::{Store, limits, passphrase, volume};
    use crate::units::ByteCount;

    #[test]
    fn each_copy_alone_is_enough() {
        for broken in CopyPlace::BOTH {
            let store = volume(&["secret"]);
            store.backing.write_at(broken.offset(), &[0; HEADER_LEN]).unwrap();
            let unlocked = store.unlock("secret").unwrap();
            assert_eq!(unlocked.stale_copy(), Some(broken));
        }
        let store = volume(&["secret"]);
        assert_eq!(store.unlock("secret").unwrap().stale_copy(), None);
        assert_eq!(store.unlock("other").err().unwrap().kind(), ErrorKind::WrongKey);
    }

    /// Any bit of one copy: the twin is used. The same bit of both: refused, whatever it is. Of bytes that
    /// must be zero, which are all refused alike, one bit each is tried on one copy alone.
    #[test]
    fn every_bit_flip_is_refused_or_the_twin_is_used() {
        let store = volume(&["secret"]);
        let [a, _] = store.copies();
        for bit in 0..8 * HEADER_LEN {
            let mut forged = a;
            forged[bit / 8] ^= 1 << (bit % 8);
            let alone = [(&forged, &a, CopyPlace::A), (&a, &forged, CopyPlace::B)];
            for (one, two, stale) in alone.into_iter().filter(|_| a[bit / 8] != 0 || bit % 8 == bit / 8 % 8) {
                let unlocked = store.unlock_copies(one, two, "secret").unwrap();
                assert_eq!(unlocked.stale_copy(), Some(stale), "bit {bit}");
            }
            let error = store.unlock_copies(&forged, &forged, "secret").err().unwrap();
            let kinds = [
                ErrorKind::WrongDevice,
                ErrorKind::CorruptHeader,
                ErrorKind::Unsupported,
                ErrorKind::WrongKey,
            ];
            assert!(kinds.contains(&error.kind()), "bit {bit}: {error}");
        }
    }

    /// A header that was genuine once is refused when the superblock has moved on.
    #[test]
    fn an_old_header_is_refused() {
        let store = volume(&["secret", "revoked"]);
        let [old, _] = store.copies();
        store.remove(1).unwrap();
        assert_eq!(store.unlock("revoked").err().unwrap().kind(), ErrorKind::WrongKey);
        let [new, _] = store.copies();
        // One copy put back: the twin says that the passphrase is wrong, and that the other is right.
        for (a, b) in [(&old, &new), (&new, &old)] {
            assert_eq!(store.unlock_copies(a, b, "revoked").err().unwrap().kind(), ErrorKind::WrongKey);
            assert!(store.unlock_copies(a, b, "secret").is_ok());
        }
        for secret in ["revoked", "secret"] {
            let error = store.unlock_copies(&old, &old, secret).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::CorruptHeader);
            assert!(error.to_string().contains("pins"), "{error}");
        }
    }

    /// Two volumes with one passphrase: neither header opens the other's superblock.
    #[test]
    fn a_header_of_another_volume_is_passed_over() {
        let (one, two) = (volume(&["secret"]), volume(&["secret"]));
        let ([own, _], [foreign, _]) = (one.copies(), two.copies());
        let error = one.unlock_copies(&foreign, &foreign, "secret").err().unwrap();
        assert_eq!(error.kind(), ErrorKind::CorruptHeader);
        assert_eq!(one.unlock_copies(&foreign, &own, "secret").unwrap().volume(), one.id);
        let checked = RawHeader::from_copies(&foreign, &own).check(&limits()).unwrap();
        assert_eq!(checked.uuid(), two.id.uuid);
        assert_eq!(checked.expect_uuid(one.id.uuid).unwrap().uuid(), one.id.uuid);
        let checked = RawHeader::from_copies(&own, &own).check(&limits()).unwrap();
        let error = checked.expect_uuid(two.id.uuid).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::WrongDevice);
    }

    #[test]
    fn a_named_slot_is_tried_alone() {
        let store = volume(&["one", "two"]);
        let open = |only, text| {
            let checked = RawHeader::read(&*store.backing).check(&limits()).unwrap();
            let (text, pin) = (passphrase(text), |keys: &KeySchedule| Ok((store.pin(keys)?, ())));
            let unlocked = checked.unlock(SlotSecret::Passphrase(&text), only, pin);
            unlocked.map(|(unlocked, ())| unlocked.key_slot()).map_err(|e| e.kind())
        };
        assert_eq!(open(None, "two"), Ok(1));
        assert_eq!(open(Some(1), "two"), Ok(1));
        assert_eq!(open(Some(0), "two"), Err(ErrorKind::WrongKey));
        assert_eq!(open(Some(5), "two"), Err(ErrorKind::InvalidInput));
    }

    #[test]
    fn stores_without_a_header_are_something_else() {
        for size in [0, 100, 4096, 1 << 20] {
            let store = MemoryBacking::new(ByteCount(size));
            let raw = RawHeader::read(&store);
            assert!(!raw.looks_like_sealed());
            assert_eq!(raw.check(&limits()).err().unwrap().kind(), ErrorKind::WrongDevice);
        }
    }

    /// All slots of both copies together may cost what one may.
    #[test]
    fn the_cost_of_both_copies_is_limited() {
        let store = volume(&["one", "two", "three"]);
        let costs = |kib_passes| {
            let limits = CostLimits { kib_passes, ..limits() };
            let [a, mut b] = store.copies();
            b[HEADER_LEN - 1] ^= 1;
            let checked = RawHeader::from_copies(&a, &b).check(&limits).unwrap();
            let (text, pin) = (passphrase("none"), |keys: &KeySchedule| Ok((store.pin(keys)?, ())));
            checked.unlock(SlotSecret::Passphrase(&text), None, pin).err().unwrap().kind()
        };
        let one = Store::COST;
        assert_eq!(costs(6 * one), ErrorKind::WrongKey);
        assert_eq!(costs(6 * one - 1), ErrorKind::Unsupported);
    }
}
