//! Changing what a superblock says of a volume that is not mounted: which header belongs to it, and that
//! a restored state is accepted. The caller has the store to itself.

use std::sync::Arc;

use crate::anchor::{Anchor, Record, Session};
use crate::backing::Backing;
use crate::env::Entropy;
use crate::error::{Error, ErrorKind, Result};
use crate::sealed::engine::mount::{MountOptions, accept, found};
use crate::sealed::header::fields::HeaderPin;
use crate::sealed::keys::schedule::KeySchedule;
use crate::sealed::layout::{BLOCK, offset_of};
use crate::sealed::superblock::choose::superblock;
use crate::sealed::superblock::fields::Superblock;

/// How far an accepted state's generation is above all that the anchor or the store have seen: no server
/// that went on from the other state comes near.
const GENERATIONS_ABOVE: u64 = 1 << 32;

/// Pins a header: the superblock's next generation names it. Durable, also at the anchor, on return. This
/// is the step between the two copies of a header that changes.
///
/// # Errors
/// [`ErrorKind::StaleVolume`] when the superblock is older than the anchor remembers, before anything is
/// written; those of reading and writing.
pub fn pin_header(
    backing: &dyn Backing,
    keys: &KeySchedule,
    anchor: Option<Arc<dyn Anchor>>,
    pin: &HeaderPin,
) -> Result<()> {
    let (uuid, key) = (keys.volume().uuid, keys.superblock_mac()?);
    let old = superblock(backing, &key, uuid)?;
    let session = anchor.map(|anchor| Session::open(anchor, keys.anchor_mac()?, uuid)).transpose()?;
    if let Some(session) = &session {
        session.last().check_generation(old.generation)?;
    }
    let generation = old.generation + 1;
    let new = Superblock { generation, header: *pin, ..old };
    let bytes: Box<[u8; BLOCK]> = new.encode(&key)?;
    for slot in Superblock::slots_of(generation) {
        backing.write_at(offset_of(slot), bytes.as_slice())?;
    }
    backing.sync()?;
    // The journal is as it was: only the generation moves.
    session.map_or(Ok(()), |session| session.advance_with(|last| Record { generation, ..last }))
}

/// The state that is in the store, as an anchor would remember it. Writes nothing.
///
/// # Errors
/// Those of a mount, but that the state may be an old one.
pub fn found_state(backing: &Arc<dyn Backing>, keys: KeySchedule, header: HeaderPin) -> Result<Record> {
    found(backing, keys, &options(header, true, (0, 0)))
}

/// Accepts the state that is in the store, though the anchor remembers another: the volume goes on from
/// it, and everything that was written in between is given up. `expected` is what [`found_state`] said.
/// Answers with the anchor's new record.
///
/// # Errors
/// [`ErrorKind::StaleVolume`] when the state is not `expected`, before anything is written; those of a
/// mount, and of moving the anchor.
pub fn accept_state(
    backing: &Arc<dyn Backing>,
    (keys, anchor_keys): (KeySchedule, &KeySchedule),
    header: HeaderPin,
    anchor: Arc<dyn Anchor>,
    expected: &Record,
    (clocks, entropy): ((u64, u64), &dyn Entropy),
) -> Result<Record> {
    let session = Session::open(anchor, anchor_keys.anchor_mac()?, keys.volume().uuid)?;
    let last = session.last();
    let generation_of = |found: &Record| {
        if found != expected {
            let what = format!("the state in the store is {found}, not {expected}");
            return Err(Error::new(ErrorKind::StaleVolume, what));
        }
        let highest = found.generation.max(last.generation);
        highest
            .checked_add(GENERATIONS_ABOVE)
            .ok_or_else(|| Error::new(ErrorKind::CorruptHeader, "the superblock's generation cannot grow"))
    };
    let accepted = accept(backing, keys, &options(header, false, clocks), generation_of, entropy)?;
    session.accept(accepted)?;
    Ok(accepted)
}

fn options(header: HeaderPin, read_only: bool, clocks: (u64, u64)) -> MountOptions {
    MountOptions { read_only, header, anchor: None, limits: None, clocks }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::anchor::{AnchorMode, FileAnchor};
    use crate::backing::MemoryBacking;
    use crate::block::{BufferPool, Disk, Durability};
    use crate::crypto::Suite;
    use crate::env::{OsEntropy, Silent};
    use crate::sealed::header::fixtures::{CHEAP, limits, passphrase};
    use crate::sealed::{
        CheckedHeader, Device, NewHeader, NewSlot, Parameters, RawHeader, SlotSecret, Unlocked, VolumeId,
        create, format_volume, pinned_header,
    };
    use crate::units::ByteOffset;
    use uuid::Uuid;

    const PARAMETERS: Parameters =
        Parameters { logical_blocks: 128, group_shift: 7, group_spare: 32, journal_blocks: 16, epochs: 64 };

    /// A volume with an anchor in a file.
    struct Volume {
        store: Arc<MemoryBacking>,
        anchor: Arc<FileAnchor>,
        _directory: tempfile::TempDir,
    }

    impl Volume {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let anchor = Arc::new(FileAnchor::at(&directory.path().join("anchor")).unwrap());
            let store = Arc::new(MemoryBacking::new(PARAMETERS.store_size().unwrap()));
            let text = passphrase("secret");
            let volume = VolumeId { uuid: Uuid::from_bytes([4; 16]), suite: Suite::Aes256Gcm };
            let slot = NewSlot { secret: SlotSecret::Passphrase(&text), kdf: CHEAP, number: None };
            let new = NewHeader { volume, anchor: AnchorMode::Strict, slot, limits: limits() };
            let unlocked = create(&new, &OsEntropy, &Silent).unwrap();
            let this = Self { store, anchor, _directory: directory };
            let (keys, pin) = (unlocked.derive_keys().unwrap(), unlocked.pin());
            format_volume(&this.backing(), keys, pin, PARAMETERS, Some(this.anchor()), &OsEntropy).unwrap();
            unlocked.store(&*this.store).unwrap();
            this
        }

        fn backing(&self) -> Arc<dyn Backing> {
            Arc::clone(&self.store) as _
        }

        fn anchor(&self) -> Arc<dyn Anchor> {
            Arc::clone(&self.anchor) as _
        }

        fn header(&self) -> CheckedHeader {
            RawHeader::read(&*self.store).check(&limits()).unwrap()
        }

        fn unlock(&self, text: &str) -> Result<Unlocked> {
            let text = passphrase(text);
            let pin = |keys: &KeySchedule| Ok((pinned_header(&*self.store, keys)?, ()));
            self.header().unlock(SlotSecret::Passphrase(&text), None, pin).map(|(unlocked, ())| unlocked)
        }

        fn mount(&self) -> Result<Device> {
            let unlocked = self.unlock("secret")?;
            let anchor = Some((self.anchor(), AnchorMode::Strict));
            let options = MountOptions { anchor, ..options(unlocked.pin(), false, (1, 2)) };
            Device::mount(&self.backing(), unlocked.into_keys(), &options, &OsEntropy)
        }

        /// Mounts, writes a block of `byte`, flushes, and lets the power go out.
        fn write(&self, byte: u8) {
            let (disk, pool) = (Disk::new(self.mount().unwrap()), BufferPool::new(1 << 20));
            let mut buffer = pool.take(BLOCK).unwrap();
            buffer.fill(byte);
            disk.write(ByteOffset(0), buffer, Durability::Fua).unwrap();
        }

        fn first_byte(&self) -> u8 {
            let device = self.mount().unwrap();
            let disk = Disk::new(device);
            let mut block = [0; BLOCK];
            disk.read(ByteOffset(0), &mut block).unwrap();
            block[0]
        }

        fn snapshot(&self) -> Vec<u8> {
            let mut bytes = vec![0; PARAMETERS.store_size().unwrap().to_usize().unwrap()];
            self.store.read_at(ByteOffset(0), &mut bytes).unwrap();
            bytes
        }

        fn state(&self) -> Record {
            let unlocked = self.unlock("secret").unwrap();
            let pin = unlocked.pin();
            found_state(&self.backing(), unlocked.into_keys(), pin).unwrap()
        }

        fn accept(&self, expected: &Record) -> Result<Record> {
            let unlocked = self.unlock("secret").unwrap();
            let (pin, keys) = (unlocked.pin(), unlocked.derive_keys().unwrap());
            let env: ((u64, u64), &dyn Entropy) = ((1, 2), &OsEntropy);
            accept_state(&self.backing(), (keys, unlocked.keys()), pin, self.anchor(), expected, env)
        }
    }

    #[test]
    fn a_header_changes_under_its_superblock_and_anchor() {
        let volume = Volume::new();
        volume.write(7);
        let before = Session::open(
            volume.anchor(),
            volume.unlock("secret").unwrap().keys().anchor_mac().unwrap(),
            Uuid::from_bytes([4; 16]),
        );
        let mut unlocked = volume.unlock("secret").unwrap();
        let keys = unlocked.derive_keys().unwrap();
        let text = passphrase("second");
        let new = NewSlot { secret: SlotSecret::Passphrase(&text), kdf: CHEAP, number: None };
        let pin = &mut |pin: &HeaderPin| pin_header(&*volume.store, &keys, Some(volume.anchor()), pin);
        unlocked.add(&*volume.store, &new, pin, (&OsEntropy, &Silent)).unwrap();
        assert_eq!(volume.unlock("second").unwrap().key_slot(), 1);
        assert_eq!(volume.first_byte(), 7);
        let after = volume.state();
        assert!(after.generation > before.unwrap().last().generation);
    }

    /// A store that was put back is not made younger by a change of its header.
    #[test]
    fn the_header_of_a_stale_volume_does_not_change() {
        let volume = Volume::new();
        let old = volume.snapshot();
        volume.write(7);
        volume.store.write_at(ByteOffset(0), &old).unwrap();
        let unlocked = volume.unlock("secret").unwrap();
        let pin = HeaderPin { sequence: 9, digest: [0; 32] };
        let error = pin_header(&*volume.store, unlocked.keys(), Some(volume.anchor()), &pin).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StaleVolume);
        assert_eq!(volume.snapshot(), old);
    }

    #[test]
    fn a_restored_state_goes_on_only_when_it_is_accepted() {
        let volume = Volume::new();
        volume.write(1);
        let (backup, state) = (volume.snapshot(), volume.state());
        volume.write(2);
        volume.store.write_at(ByteOffset(0), &backup).unwrap();
        assert_eq!(volume.mount().err().unwrap().kind(), ErrorKind::StaleVolume);
        let wrong = Record { sequence: state.sequence + 1, ..state };
        assert_eq!(volume.accept(&wrong).unwrap_err().kind(), ErrorKind::StaleVolume);
        assert_eq!(volume.snapshot(), backup, "nothing was written");
        let accepted = volume.accept(&state).unwrap();
        assert!(accepted.generation >= state.generation + GENERATIONS_ABOVE);
        assert_eq!((accepted.sequence, accepted.tag), (state.sequence, state.tag));
        assert_eq!(volume.first_byte(), 1);
        volume.write(3);
        // The state that was given up is refused from now on, like any old one.
        let present = volume.snapshot();
        volume.store.write_at(ByteOffset(0), &backup).unwrap();
        assert_eq!(volume.mount().err().unwrap().kind(), ErrorKind::StaleVolume);
        volume.store.write_at(ByteOffset(0), &present).unwrap();
        assert_eq!(volume.first_byte(), 3);
    }

    /// What is accepted must outlive a crash: its superblock's slots are those that the new one leaves
    /// alone, wherever the anchor was.
    #[test]
    fn accepting_leaves_the_superblock_that_it_accepts() {
        let mut differences = std::collections::BTreeSet::new();
        for writes in 1..=3 {
            let volume = Volume::new();
            volume.write(1);
            let (backup, state) = (volume.snapshot(), volume.state());
            (0..writes).for_each(|_| volume.write(2));
            differences.insert((volume.state().generation - state.generation) % 2);
            volume.store.write_at(ByteOffset(0), &backup).unwrap();
            volume.accept(&state).unwrap();
            let now = volume.snapshot();
            for slot in Superblock::slots_of(state.generation) {
                let slot: usize = offset_of(slot).0.try_into().unwrap();
                assert!(now[slot..slot + BLOCK] == backup[slot..slot + BLOCK], "after {writes} writes");
            }
        }
        assert_eq!(differences.len(), 2, "an odd and an even distance");
    }

    /// The superblock was written and the anchor was not: it is stale as before, and accepting again helps.
    #[test]
    fn accepting_may_be_cut_short() {
        let volume = Volume::new();
        volume.write(1);
        let (backup, state) = (volume.snapshot(), volume.state());
        volume.write(2);
        let kept = volume.anchor.read().unwrap();
        volume.store.write_at(ByteOffset(0), &backup).unwrap();
        let accepted = volume.accept(&state).unwrap();
        let now = volume.anchor.read().unwrap();
        volume.anchor.compare_and_swap(&now, &kept).unwrap();
        assert_eq!(volume.mount().err().unwrap().kind(), ErrorKind::StaleVolume);
        let again = volume.state();
        assert_eq!(again.generation, accepted.generation);
        volume.accept(&again).unwrap();
        assert_eq!(volume.first_byte(), 1);
    }
}
