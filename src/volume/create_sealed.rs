//! Making a sealed volume.
//!
//! An existing file is emptied first, and of a device everything goes that could be taken for a header; then
//! the inside is made, then the anchor is reserved, and the header comes last: what is half made has none.
//! The anchor counts once all that is durable, so that a format which was cut off can be tried again.

use std::sync::Arc;

use uuid::Uuid;

use crate::anchor::{AnchorAddress, AnchorMode, Record, Session};
use crate::backing::{Backing, FileBacking, Kind};
use crate::crypto::{CostLimits, KdfAlgorithm, Suite, calibrate_argon2id};
use crate::env::{Entropy, Progress, random};
use crate::error::{Error, ErrorKind, Result};
use crate::luks::Pbkdf;
use crate::sealed::{self, NewHeader, NewSlot, Parameters, SlotSecret, VolumeId};
use crate::secret::Passphrase;
use crate::units::{ByteCount, ByteOffset};

use super::Place;
use super::spot::Spot;

/// The most data in bytes that the format has room for.
pub(super) const MOST_DATA: u64 = 128 * ByteCount::TIB;
/// Everything that any program could take for a volume's header lies within so many bytes: LUKS2's
/// secondary header at 4 MiB is the last.
const HEADERS: u64 = 8 * ByteCount::MIB;
/// Zeroes are written in pieces of this size.
const PIECE: u64 = ByteCount::MIB;
const BLOCK: u64 = 4096;

/// What is particular to a new sealed volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedFormat {
    /// What its blocks are sealed with.
    pub suite: Suite,
    /// How much more room for data it has than the guest sees, in percent: the less, the more often
    /// blocks must be made free.
    pub spare_percent: u32,
    /// What guards it against its own past, and how.
    pub anchor: Option<(AnchorAddress, AnchorMode)>,
}

impl Default for SealedFormat {
    /// AEGIS-256X4, the fastest of the suites; 8 % more room, no anchor.
    fn default() -> Self {
        Self { suite: Suite::Aegis256x4, spare_percent: 8, anchor: None }
    }
}

impl SealedFormat {
    fn parameters(&self, data_size: ByteCount) -> Parameters {
        Parameters::for_volume(data_size.0 / BLOCK, self.spare_percent)
    }

    fn mode(&self) -> AnchorMode {
        self.anchor.as_ref().map_or(AnchorMode::None, |(_, mode)| *mode)
    }
}

/// Refuses what the format does not have, and an anchor that is in use, before anybody is asked for a
/// passphrase.
pub(super) fn check(format: &SealedFormat, place: &Place, pbkdf: Pbkdf) -> Result<()> {
    if place.header.is_some() {
        let what = "a sealed volume keeps its header with its data";
        return Err(Error::new(ErrorKind::Unsupported, what).hint("leave --header out, or pass --type luks"));
    }
    if matches!(pbkdf, Pbkdf::Pbkdf2) {
        let what = "key slots of sealed volumes use Argon2id, not PBKDF2";
        return Err(Error::new(ErrorKind::Unsupported, what).hint("leave --pbkdf out, or pass --type luks"));
    }
    if !(1..=100).contains(&format.spare_percent) {
        let what = format!("{} % of spare room; it can be 1 to 100", format.spare_percent);
        return Err(Error::new(ErrorKind::InvalidInput, what));
    }
    let Some((address, _)) = &format.anchor else { return Ok(()) };
    if *address == AnchorAddress::File(place.disk.clone()) {
        let what = format!("{address} is the volume itself, and cannot be its anchor");
        return Err(Error::new(ErrorKind::InvalidInput, what)
            .hint("keep it where the volume's host cannot put it back"));
    }
    match address.open()?.read() {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Ok(kept) if kept.is_reservation() => Ok(()),
        Ok(_) => {
            Err(Error::new(ErrorKind::AlreadyExists, format!("there is an anchor at {address} already"))
                .hint("every volume needs an anchor of its own; choose another name"))
        }
        Err(error) => Err(error),
    }
}

/// The size of the largest volume that fits into a device.
pub(super) fn room_in(device: ByteCount, format: &SealedFormat) -> Result<ByteCount> {
    let fits = |blocks: u64| {
        let needed = format.parameters(ByteCount(blocks * BLOCK)).store_size();
        needed.is_ok_and(|needed| needed <= device)
    };
    let (mut fitting, mut beyond) = (0, (device.0.min(MOST_DATA)) / BLOCK + 1);
    while beyond - fitting > 1 {
        let middle = fitting.midpoint(beyond);
        if fits(middle) { fitting = middle } else { beyond = middle }
    }
    match fitting {
        0 => {
            let what = format!("a sealed volume does not fit into {device}");
            Err(Error::new(ErrorKind::WrongDevice, what))
        }
        blocks => Ok(ByteCount(blocks * BLOCK)),
    }
}

/// A sealed volume to be made.
pub(super) struct New<'a> {
    pub(super) format: &'a SealedFormat,
    pub(super) data_size: ByteCount,
    pub(super) pbkdf: Pbkdf,
}

impl New<'_> {
    /// Makes it, and gives its UUID.
    pub(super) fn create(
        &self,
        spot: &Spot,
        preallocate: bool,
        passphrase: &Passphrase,
        (entropy, progress): (&dyn Entropy, &dyn Progress),
    ) -> Result<Uuid> {
        let parameters = self.format.parameters(self.data_size);
        let size = parameters.store_size()?;
        let (uuid, anchor) = spot.fill(size, preallocate, progress, |store| {
            if preallocate {
                write_zeroes(store, size, "writing the disk once", progress)?;
            } else if store.kind() == Kind::BlockDevice {
                write_zeroes(store, ByteCount(size.0.min(HEADERS)), "clearing old headers", progress)?;
            }
            store.sync()?;
            self.fill(store, parameters, passphrase, (entropy, progress))
        })?;
        let finished = |anchor: Session| anchor.advance_with(|last| Record { generation: 1, ..last });
        anchor.map_or(Ok(()), finished)?;
        tracing::info!(%uuid, size = %self.data_size, suite = %self.format.suite, "formatted a sealed volume");
        Ok(uuid)
    }

    fn fill(
        &self,
        store: &Arc<FileBacking>,
        parameters: Parameters,
        passphrase: &Passphrase,
        (entropy, progress): (&dyn Entropy, &dyn Progress),
    ) -> Result<(Uuid, Option<Session>)> {
        let uuid = uuid::Builder::from_random_bytes(random(entropy)?).into_uuid();
        let slot =
            NewSlot { secret: SlotSecret::Passphrase(passphrase), kdf: argon2id(self.pbkdf)?, number: None };
        let new = NewHeader {
            volume: VolumeId { uuid, suite: self.format.suite },
            anchor: self.format.mode(),
            slot,
            limits: CostLimits::of_this_machine(),
        };
        let header = sealed::create(&new, entropy, progress)?;
        progress.check()?;
        let backing: Arc<dyn Backing> = Arc::clone(store) as _;
        let anchor = self.format.anchor.as_ref().map(|(address, _)| address.open()).transpose()?;
        let keys = header.derive_keys()?;
        let anchor = sealed::format_volume(&backing, keys, header.pin(), parameters, anchor, entropy)?;
        header.store(&*backing)?;
        backing.sync()?;
        Ok((uuid, anchor))
    }
}

/// The key derivation for a slot of a sealed volume.
pub(super) fn argon2id(pbkdf: Pbkdf) -> Result<KdfAlgorithm> {
    match pbkdf {
        Pbkdf::Argon2id => calibrate_argon2id(),
        Pbkdf::Exactly(algorithm) => Ok(algorithm),
        Pbkdf::Pbkdf2 => {
            let what = "key slots of sealed volumes use Argon2id, not PBKDF2";
            Err(Error::new(ErrorKind::Unsupported, what).hint("leave --pbkdf out"))
        }
    }
}

/// Really writes: space that is only reserved costs a change of the file system's own records when it
/// is first written.
fn write_zeroes(store: &FileBacking, size: ByteCount, step: &str, progress: &dyn Progress) -> Result<()> {
    progress.begin(step, size.0);
    let zeroes = vec![0; 1 << 20];
    for at in (0..size.0).step_by(1 << 20) {
        progress.check()?;
        let piece = (size.0 - at).min(PIECE);
        store.write_at(ByteOffset(at), &zeroes[..usize::try_from(piece).unwrap_or(0)])?;
        progress.advance(piece);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::{OsEntropy, Silent};
    use crate::secret::SecretBytes;
    use std::path::PathBuf;

    /// Puts a file where the new volume is to get its name, once that has begun.
    struct InTheWay(PathBuf);

    impl Progress for InTheWay {
        fn begin(&self, _step: &str, _units: u64) {}
        fn advance(&self, _units: u64) {}
        fn cancelled(&self) -> bool {
            std::fs::write(&self.0, b"in the way").unwrap();
            false
        }
    }

    /// What a format leaves at the anchor that ends before its volume has a name is in nobody's way, and
    /// what one leaves that did not end is.
    #[test]
    fn a_format_that_was_cut_off_can_be_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        let address = AnchorAddress::File(directory.path().join("anchor"));
        let kept = || address.open().unwrap().read().unwrap();
        let format =
            SealedFormat { anchor: Some((address.clone(), AnchorMode::Strict)), ..SealedFormat::default() };
        let cheap = KdfAlgorithm::Argon2id { time: 1, memory_kib: 8, lanes: 1 };
        let new = New { format: &format, data_size: ByteCount(1 << 20), pbkdf: Pbkdf::Exactly(cheap) };
        let passphrase = Passphrase::new(SecretBytes::copy_of(b"secret").unwrap());
        let place = Place { disk: path.clone(), header: None };
        let attempt = |progress: &dyn Progress| {
            check(&format, &place, new.pbkdf)?;
            new.create(&Spot::examine(&path, false)?, false, &passphrase, (&OsEntropy, progress))
        };
        assert_eq!(attempt(&InTheWay(path.clone())).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert!(kept().is_reservation(), "the anchor came before the name");
        std::fs::remove_file(&path).unwrap();
        attempt(&Silent).unwrap();
        assert!(!kept().is_reservation());
        std::fs::remove_file(&path).unwrap();
        assert_eq!(attempt(&Silent).unwrap_err().kind(), ErrorKind::AlreadyExists);
    }

    #[test]
    fn the_largest_volume_of_a_device_fits_and_one_block_more_does_not() {
        let format = SealedFormat::default();
        for device in [20 << 20, 100 << 20, 1 << 30, (5 << 30) + 4096, 1 << 40, 1 << 45] {
            let room = room_in(ByteCount(device), &format).unwrap();
            let needed = |data: u64| format.parameters(ByteCount(data)).store_size().unwrap().0;
            assert!(needed(room.0) <= device && needed(room.0 + BLOCK) > device, "{device}: {room}");
        }
        assert_eq!(room_in(ByteCount(1 << 20), &format).unwrap_err().kind(), ErrorKind::WrongDevice);
    }
}
