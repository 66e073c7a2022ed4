//! Opening a sealed volume.
//!
//! In this order: the store is locked, what is cached of it dropped, and the header read, once; its
//! UUID and anchor are checked as far as that needs no key; a key slot is opened, the header accepted only
//! if the key vouches for it and the superblock pins it; what was checked before is checked again, now
//! that it is authentic; the volume is mounted, and held against its anchor.

use std::path::PathBuf;
use std::sync::Arc;

use rustix::time::{ClockId, clock_gettime};

use crate::anchor::{AnchorAddress, AnchorMode};
use crate::backing::{Backing, FileBacking};
use crate::block::{BufferPool, ByteGranular, Disk};
use crate::env::{OsEntropy, in_threads_of_its_own};
use crate::error::{Error, ErrorKind, Result};
use crate::sealed::{self, KeySchedule, Limits, MountOptions, Parameters, RawHeader, SlotSecret};
use crate::secret::Passphrase;
use crate::units::ByteCount;

use super::open::{OpenOptions, Volume};
use super::upkeep::Upkeep;
use super::{DiscardPolicy, VolumeType};

/// Trimmed runs of so many blocks, 1 MiB, are given back to the host. A hole costs the same whatever its size,
/// half a millisecond where that was measured (ext4), and a checkpoint punches them one after the other; a
/// flush of writes into holes takes half as long again. So what is shorter stays for the next writes.
const PUNCHED: u64 = 256;

/// A sealed volume that has been found, locked and read, and is not unlocked yet.
pub(super) struct LocatedSealed {
    path: PathBuf,
    store: Arc<FileBacking>,
    header: sealed::CheckedHeader,
    options: OpenOptions,
}

impl LocatedSealed {
    pub(super) fn at(path: PathBuf, store: FileBacking, options: &OpenOptions) -> Result<Self> {
        check_memory(options)?;
        if !options.read_only {
            // After a failed write-back the cache may go on showing what the medium does not have.
            store.sync()?;
            store.drop_cache()?;
        }
        let header = RawHeader::read(&store).check(&options.limits)?;
        let header = match options.uuid {
            Some(uuid) => header.expect_uuid(uuid).map_err(|e| at(&path, e))?,
            None => header,
        };
        check_anchor(header.anchor_mode(), options)?;
        Ok(Self { path, store: Arc::new(store), header, options: options.clone() })
    }

    pub(super) fn unlock(self, passphrase: &Passphrase, pool: BufferPool) -> Result<Volume> {
        let backing: Arc<dyn Backing> = Arc::clone(&self.store) as _;
        let (mut unlocked, parameters) = unlock(&self.header, &*backing, passphrase, None)?;
        let (mode, uuid) = (unlocked.anchor_mode(), unlocked.volume().uuid);
        check_anchor(mode, &self.options)?;
        let anchor = self.options.anchor.as_ref().map(AnchorAddress::open).transpose()?;
        let options = MountOptions {
            read_only: self.options.read_only,
            header: unlocked.pin(),
            anchor: anchor.map(|anchor| (anchor, mode)),
            limits: Some(limits_for(parameters.logical_blocks, &self.options)),
            clocks: clocks(),
        };
        let keys = unlocked.derive_keys()?;
        let mount = || sealed::Device::mount(&backing, keys, &options, &OsEntropy);
        let device = in_threads_of_its_own(usize::MAX, mount).map_err(|e| at(&self.path, e))?;
        if !self.options.read_only {
            unlocked.repair(&*backing)?;
        }
        let upkeep = (!self.options.read_only).then(|| Upkeep::of(device.clone(), mode));
        let blocks = upkeep.as_ref().map_or_else(|| Disk::new(device), Upkeep::disk);
        let disk = Disk::new(ByteGranular::new(blocks, pool));
        Ok(Volume::new(disk, VolumeType::Sealed, uuid, upkeep))
    }
}

/// Unlocks a header with the superblock that lies beside it.
pub(super) fn unlock(
    header: &sealed::CheckedHeader,
    store: &dyn Backing,
    passphrase: &Passphrase,
    only: Option<u32>,
) -> Result<(sealed::Unlocked, Parameters)> {
    let superblock = |keys: &KeySchedule| sealed::pinned(store, keys);
    header.unlock(SlotSecret::Passphrase(passphrase), only, superblock)
}

/// What is known of the anchor must be what the header says: a host that could do without it would.
fn check_anchor(mode: AnchorMode, options: &OpenOptions) -> Result<()> {
    if let Some(wanted) = options.anchor_mode
        && wanted != mode
    {
        let what = format!("the volume's anchor mode is {mode}, not {wanted}");
        return Err(Error::new(ErrorKind::WrongDevice, what));
    }
    expect_anchor(mode, options.anchor.as_ref())
}

/// That an anchor is named if the volume has one, and none if it has none.
pub(super) fn expect_anchor(mode: AnchorMode, anchor: Option<&AnchorAddress>) -> Result<()> {
    match (mode, anchor) {
        (AnchorMode::None, Some(address)) => {
            let what = format!("the volume was made without an anchor, and {address} was given");
            Err(Error::new(ErrorKind::WrongDevice, what).hint("is it the right volume?"))
        }
        (AnchorMode::Strict | AnchorMode::Lazy, None) => {
            let what = format!("the volume has an anchor ({mode}), which was not given");
            Err(Error::new(ErrorKind::InvalidInput, what)
                .hint("name it, for example --anchor file:vm.anchor"))
        }
        _ => Ok(()),
    }
}

/// CLOCK_REALTIME and CLOCK_BOOTTIME in nanoseconds.
pub(super) fn clocks() -> (u64, u64) {
    let now = |clock| {
        let time = clock_gettime(clock);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
    };
    (now(ClockId::Realtime), now(ClockId::Boottime))
}

/// Says which volume an error is about.
fn at(path: &std::path::Path, error: Error) -> Error {
    let hint = error.hint_text().map(ToOwned::to_owned);
    let wrapped = Error::new(error.kind(), path.display().to_string()).because(error);
    match hint {
        Some(hint) => wrapped.hint(hint),
        None => wrapped,
    }
}

/// What options mean for the engine. Of discards: a hole is authentic whatever the policy is, and by one of them
/// the host gets its space back, and sees where the holes are.
fn limits_for(blocks: u64, options: &OpenOptions) -> Limits {
    let punch = if options.discard == DiscardPolicy::Unmap { PUNCHED } else { 0 };
    let limits =
        options.sealed_memory.map_or_else(|| Limits::for_volume(blocks), |size| Limits::within(size.0));
    Limits { punch, ..limits }
}

/// That a sealed volume can do with so much memory.
fn check_memory(options: &OpenOptions) -> Result<()> {
    match options.sealed_memory {
        Some(size) if size.0 < Limits::LEAST_MEMORY => {
            let what = format!("{size} of memory are too few for a sealed volume");
            Err(Error::new(ErrorKind::InvalidInput, what)
                .hint(format!("allow {} or more", ByteCount(Limits::LEAST_MEMORY))))
        }
        _ => Ok(()),
    }
}
