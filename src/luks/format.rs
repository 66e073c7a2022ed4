//! Making a new volume.
//!
//! Guarantees: interrupted at any point, even with any part of the unsynced writes lost, the store
//! holds either a whole volume or none that opens: first every place where a header could lie is
//! zeroed, then the key slot is written, then the secondary header, then the primary one, with a sync
//! behind each. Everything that can be refused is refused, and everything slow computed, before the
//! first write. Not guaranteed: anything about the data; what lay there before decrypts to noise.

use uuid::Uuid;

use crate::backing::Backing;
use crate::crypto::{
    Backend, CostLimits, Hash, Kdf, KdfAlgorithm, calibrate_argon2id, calibrate_pbkdf2, xts,
};
use crate::env::{Entropy, Progress, random};
use crate::error::{Error, ErrorKind, Result};
use crate::secret::{Passphrase, SecretBytes, VolumeKey};
use crate::units::{BlockSize, ByteCount, ByteOffset};

use super::binary_header::{BinaryHeader, LABEL_MAX, Place};
use super::check::luks2_keys::KEY_LEN;
use super::compose::{AREA_OFFSET, DATA_OFFSET, DIGEST_ITERATIONS, HDR_SIZE, binary_header, metadata};
use super::keyslot::seal;
use super::layout::KeyDigest;
use super::metadata::Metadata;
use super::read::{CopyState, RawHeader};
use super::update::assemble;

pub(super) const SALT_LEN: usize = 32;
const DIGEST_LEN: usize = 32;

/// The most data in bytes that one XTS key may encrypt (IEEE 1619-2025).
pub const MOST_DATA: u64 = 256 * ByteCount::TIB;
/// The most that it advises.
pub(super) const ADVISED_DATA: u64 = ByteCount::TIB;

/// Zeroes are written in pieces of this size.
const PIECE: usize = 256 << 10;

/// What a new volume shall be like.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// Size of the data; a multiple of `sector_size`. Stored in the header, so that a store that was
    /// cut off later is noticed.
    pub data_size: ByteCount,
    /// Unit of encryption: 512 or 4096 bytes.
    pub sector_size: BlockSize,
    /// Text that people recognise the volume by, not secret; less than 48 bytes.
    pub label: String,
    /// How the passphrase becomes a key.
    pub pbkdf: Pbkdf,
    /// The store holds the header alone; the data begins at the start of another one.
    pub apart: bool,
}

/// How a new slot's passphrase becomes a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pbkdf {
    /// Argon2id, about a second on this machine.
    Argon2id,
    /// PBKDF2 with SHA-256, about a second on this machine; for readers without Argon2.
    Pbkdf2,
    /// With these costs.
    Exactly(KdfAlgorithm),
}

/// A new volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Formatted {
    /// Its identity.
    pub uuid: Uuid,
    /// Size of its data.
    pub data_size: ByteCount,
    /// How its passphrase becomes a key.
    pub kdf: KdfAlgorithm,
}

/// Makes the first `DATA_OFFSET` bytes of `backing` the header of a new volume with one key slot.
/// Whatever volume was there before is gone.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for options that cannot be, [`ErrorKind::NoSpace`] for a store that is
/// too small, both before anything is written; [`ErrorKind::Cancelled`] between two steps.
pub fn format(
    backing: &dyn Backing,
    options: &FormatOptions,
    passphrase: &Passphrase,
    entropy: &dyn Entropy,
    progress: &dyn Progress,
) -> Result<Formatted> {
    check_options(backing, options, passphrase)?;
    progress.begin("deriving the key", 1);
    let plan = plan(options, passphrase, entropy)?;
    progress.advance(1);
    progress.check()?;
    write(backing, &plan, progress)?;
    tracing::info!(uuid = %plan.formatted.uuid, size = %options.data_size, "formatted a LUKS2 volume");
    Ok(plan.formatted)
}

fn check_options(backing: &dyn Backing, options: &FormatOptions, passphrase: &Passphrase) -> Result<()> {
    let refuse = |what: String| Err(Error::new(ErrorKind::InvalidInput, what));
    let size = options.data_size;
    if ![BlockSize::B512, BlockSize::B4096].contains(&options.sector_size) {
        return refuse(format!(
            "sectors of {} bytes; they can have 512 or 4096",
            options.sector_size.bytes()
        ));
    }
    if size.0 == 0 || !options.sector_size.aligns(ByteOffset(0), size) {
        return refuse(format!("{} bytes of data are not one sector or more", size.0));
    }
    if size.0 > MOST_DATA {
        return refuse(format!(
            "{size} of data; one AES-XTS key must not encrypt more than {}",
            ByteCount(MOST_DATA)
        ));
    }
    if options.label.len() > LABEL_MAX || options.label.chars().any(char::is_control) {
        return refuse(format!("the label has control characters or more than {LABEL_MAX} bytes"));
    }
    if passphrase.expose().is_empty() {
        return refuse("the passphrase is empty".to_owned());
    }
    if size.0 > ADVISED_DATA {
        tracing::warn!(%size, "IEEE 1619 advises not to encrypt more than 1 TiB with one AES-XTS key");
    }
    let data = if options.apart { ByteCount(0) } else { size };
    let needed = DATA_OFFSET.checked_add(data).unwrap_or(size);
    match backing.len()? {
        len if len < needed => {
            let what = format!("the store has {} bytes; header and data need {}", len.0, needed.0);
            Err(Error::new(ErrorKind::NoSpace, what))
        }
        _ => Ok(()),
    }
}

/// All that will be written.
struct Plan {
    formatted: Formatted,
    key_material: SecretBytes,
    secondary: Vec<u8>,
    primary: Vec<u8>,
}

fn plan(options: &FormatOptions, passphrase: &Passphrase, entropy: &dyn Entropy) -> Result<Plan> {
    let key = VolumeKey::new(SecretBytes::random(KEY_LEN, entropy)?);
    // Refuses a key that cannot be used, before it is relied on.
    xts(key.expose(), Backend::Reference)?;
    let kdf = Kdf { algorithm: choose(options.pbkdf)?, salt: random::<SALT_LEN>(entropy)?.to_vec() };
    kdf.algorithm.check_cost(&CostLimits::of_this_machine())?;
    kdf.algorithm.warn_if_cheap();
    let key_material = seal(&key, passphrase, &kdf, Hash::Sha256, entropy)?;
    let algorithm = KdfAlgorithm::Pbkdf2 { hash: Hash::Sha256, iterations: DIGEST_ITERATIONS };
    let digest_kdf = Kdf { algorithm, salt: random::<SALT_LEN>(entropy)?.to_vec() };
    let digest = KeyDigest::of(&key, digest_kdf, DIGEST_LEN)?;
    let uuid = uuid::Builder::from_random_bytes(random(entropy)?).into_uuid();
    let binary = binary_header(uuid, &options.label)?;
    let (offset, apart) = if options.apart { (0, Some(DATA_OFFSET)) } else { (DATA_OFFSET.0, None) };
    let data = (ByteOffset(offset), options.data_size);
    let metadata = authenticated(&binary, apart, metadata(data, options.sector_size, &kdf, &digest), &key)?;
    let copy = |place| assemble(&binary, &metadata, place, entropy);
    let formatted = Formatted { uuid, data_size: options.data_size, kdf: kdf.algorithm };
    Ok(Plan { formatted, key_material, secondary: copy(Place::Secondary)?, primary: copy(Place::Primary)? })
}

/// The metadata with the token that authenticates it; on the way the header passes the checks that it
/// will have to pass when it is read.
fn authenticated(
    binary: &BinaryHeader,
    apart: Option<ByteCount>,
    metadata: Metadata,
    key: &VolumeKey,
) -> Result<Metadata> {
    let state = CopyState::Valid(binary.seqid);
    let raw = RawHeader {
        binary: binary.clone(),
        metadata: metadata.clone(),
        primary: state.clone(),
        secondary: state,
        apart,
    };
    let header = raw.check(&CostLimits::of_this_machine())?;
    let token = header.token(key)?;
    let mut metadata = metadata;
    metadata.tokens.insert(0, token);
    Ok(metadata)
}

pub(super) fn choose(pbkdf: Pbkdf) -> Result<KdfAlgorithm> {
    match pbkdf {
        Pbkdf::Argon2id => calibrate_argon2id(),
        Pbkdf::Pbkdf2 => calibrate_pbkdf2(),
        Pbkdf::Exactly(algorithm) => Ok(algorithm),
    }
}

/// The object of a slot of ours whose area begins at `offset`.
/// The order that the module's guarantee rests on.
fn write(backing: &dyn Backing, plan: &Plan, progress: &dyn Progress) -> Result<()> {
    progress.begin("writing the header", DATA_OFFSET.0);
    destroy_headers(backing, progress)?;
    for (at, bytes) in
        [(AREA_OFFSET, plan.key_material.expose()), (HDR_SIZE, &plan.secondary[..]), (0, &plan.primary[..])]
    {
        progress.check()?;
        backing.write_at(ByteOffset(at), bytes)?;
        backing.sync()?;
    }
    Ok(())
}

/// Zeroes everything before the data: every place of a secondary header lies there, and so do the key
/// slots of the volume that may have been there. What the store has no data for is zero already.
fn destroy_headers(backing: &dyn Backing, progress: &dyn Progress) -> Result<()> {
    let zeroes = vec![0; PIECE];
    let mut at = 0;
    while at < DATA_OFFSET.0 {
        progress.check()?;
        let run = backing.run_at(ByteOffset(at))?;
        let len = run.end.0.min(DATA_OFFSET.0).saturating_sub(at);
        let len = if run.allocated { len.clamp(1, PIECE as u64) } else { len.max(1) };
        if run.allocated {
            backing.write_at(ByteOffset(at), &zeroes[..ByteCount(len).to_usize().unwrap_or(PIECE)])?;
        }
        progress.advance(len);
        at += len;
    }
    backing.sync()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::MemoryBacking;
    use crate::env::{OsEntropy, Silent};
    use crate::luks::RawHeader;
    use crate::luks::fixtures::{
        CHEAP, Event, MIB, Recorder, copy_of, fresh_volume, options, passphrase, volume,
    };
    use std::sync::Mutex;

    const LIMITS: CostLimits =
        CostLimits { memory_kib: 1 << 20, kib_passes: 1 << 25, lanes: 16, iterations: 1 << 20 };

    fn opens(backing: &dyn Backing, passphrase: &Passphrase) -> Result<Uuid> {
        let header = RawHeader::read(backing)?.check(&LIMITS)?;
        header.unlock(backing, passphrase, None).map(|unlocked| unlocked.uuid())
    }

    #[test]
    fn a_new_volume_opens() {
        for sector_size in [BlockSize::B512, BlockSize::B4096] {
            let backing = MemoryBacking::new(ByteCount(17 * MIB));
            let formatted =
                format(&backing, &options(sector_size), &passphrase("secret"), &OsEntropy, &Silent).unwrap();
            assert_eq!(formatted.kdf, CHEAP);
            assert_eq!(opens(&backing, &passphrase("secret")).unwrap(), formatted.uuid);
            assert_eq!(opens(&backing, &passphrase("Secret")).unwrap_err().kind(), ErrorKind::WrongKey);
        }
    }

    #[test]
    fn argon2id_volumes_open() {
        let algorithm = KdfAlgorithm::Argon2id { time: 4, memory_kib: 1024, lanes: 4 };
        let options = FormatOptions { pbkdf: Pbkdf::Exactly(algorithm), ..options(BlockSize::B4096) };
        let backing = MemoryBacking::new(ByteCount(17 * MIB));
        format(&backing, &options, &passphrase("secret"), &OsEntropy, &Silent).unwrap();
        assert!(opens(&backing, &passphrase("secret")).is_ok());
    }

    #[test]
    fn no_two_volumes_are_alike() {
        let (one, two) = (fresh_volume(BlockSize::B512), fresh_volume(BlockSize::B512));
        let start = |backing: &MemoryBacking, at| {
            let mut bytes = vec![0; 4096];
            backing.read_at(ByteOffset(at), &mut bytes).unwrap();
            bytes
        };
        for at in [0, 16384, 32768, 100_000, 280_000] {
            assert_ne!(start(&one, at), start(&two, at), "at {at}");
        }
        assert_ne!(start(&one, 0)[104..168], start(&one, 16384)[104..168], "the two copies' salts");
    }

    #[test]
    fn impossible_options_are_refused_before_anything_is_written() {
        let good = options(BlockSize::B4096);
        let store = volume(BlockSize::B4096);
        let with = |change: &dyn Fn(&mut FormatOptions)| {
            let mut options = good.clone();
            change(&mut options);
            format(&store, &options, &passphrase("other"), &OsEntropy, &Silent).unwrap_err().kind()
        };
        assert_eq!(with(&|o| o.sector_size = BlockSize::BYTE), ErrorKind::InvalidInput);
        assert_eq!(with(&|o| o.sector_size = BlockSize::new(2048).unwrap()), ErrorKind::InvalidInput);
        assert_eq!(with(&|o| o.data_size = ByteCount(0)), ErrorKind::InvalidInput);
        assert_eq!(with(&|o| o.data_size = ByteCount(4097)), ErrorKind::InvalidInput);
        assert_eq!(with(&|o| o.data_size = ByteCount(MOST_DATA + 4096)), ErrorKind::InvalidInput);
        assert_eq!(with(&|o| o.data_size = ByteCount(u64::MAX - 4095)), ErrorKind::InvalidInput);
        assert_eq!(with(&|o| o.data_size = ByteCount(MIB + 4096)), ErrorKind::NoSpace);
        assert_eq!(with(&|o| o.label = "x".repeat(48)), ErrorKind::InvalidInput);
        assert_eq!(with(&|o| o.label = "a\nb".to_owned()), ErrorKind::InvalidInput);
        let costly = KdfAlgorithm::Pbkdf2 { hash: Hash::Sha256, iterations: u32::MAX };
        assert_eq!(with(&|o| o.pbkdf = Pbkdf::Exactly(costly)), ErrorKind::Unsupported);
        let empty = format(&store, &good, &passphrase(""), &OsEntropy, &Silent).unwrap_err();
        assert_eq!(empty.kind(), ErrorKind::InvalidInput);
        assert!(opens(&store, &passphrase("secret")).is_ok(), "the volume that was there is untouched");
    }

    /// A source of randomness that is broken in the way that XTS cannot bear.
    struct Constant;

    impl Entropy for Constant {
        fn fill(&self, into: &mut [u8]) -> Result<()> {
            into.fill(7);
            Ok(())
        }
    }

    #[test]
    fn a_key_with_equal_halves_is_never_used() {
        let store = volume(BlockSize::B4096);
        let result = format(&store, &options(BlockSize::B4096), &passphrase("x"), &Constant, &Silent);
        assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput);
        assert!(opens(&store, &passphrase("secret")).is_ok());
    }

    #[test]
    fn what_was_there_before_is_gone() {
        // A volume whose secondary header lies where no secondary header of ours does.
        let store = MemoryBacking::new(ByteCount(17 * MIB));
        let mut old = BinaryHeader { hdr_size: 4 * MIB, ..binary_header(Uuid::nil(), "old").unwrap() };
        old.seqid = u64::MAX;
        let json = crate::luks::fixtures::metadata().to_json().unwrap();
        store
            .write_at(ByteOffset(4 * MIB), &old.assemble(Place::Secondary, &[1; 64], &json).unwrap())
            .unwrap();
        store.write_at(ByteOffset(16 * MIB), &[9; 4096]).unwrap();
        assert!(RawHeader::read(&store).is_ok());
        format(&store, &options(BlockSize::B4096), &passphrase("new"), &OsEntropy, &Silent).unwrap();
        let mut start = vec![0; 16 * 1024 * 1024];
        store.read_at(ByteOffset(0), &mut start).unwrap();
        assert!(start[290_816..].iter().all(|b| *b == 0));
        let mut data = [0; 4096];
        store.read_at(ByteOffset(16 * MIB), &mut data).unwrap();
        assert_eq!(data, [9; 4096], "the data is nobody's business");
    }

    /// Formats a store that held a volume of ours, and answers with what was written and the
    /// store as it was before.
    fn recorded() -> (Vec<Event>, MemoryBacking, Uuid) {
        let old = volume(BlockSize::B512);
        let before = copy_of(&old, ByteCount(17 * MIB));
        let recorder = Recorder::over(old);
        let new =
            format(&recorder, &options(BlockSize::B4096), &passphrase("new"), &OsEntropy, &Silent).unwrap();
        (recorder.finish().1, before, new.uuid)
    }

    /// After a crash the new passphrase opens the new volume or nothing.
    fn whole_or_nothing(store: &dyn Backing, uuid: Uuid) -> bool {
        match opens(store, &passphrase("new")) {
            Ok(found) => {
                assert_eq!(found, uuid);
                true
            }
            Err(error) => {
                let expected = [ErrorKind::WrongDevice, ErrorKind::CorruptHeader, ErrorKind::WrongKey];
                assert!(expected.contains(&error.kind()), "{error}");
                // The old volume may still be whole; the new one's header must not be there.
                let found = RawHeader::read(store).and_then(|header| header.check(&LIMITS)).ok();
                assert!(
                    found.is_none_or(|header| header.uuid() != uuid),
                    "a header without its key: {error}"
                );
                false
            }
        }
    }

    #[test]
    fn every_prefix_of_the_writes_is_a_whole_volume_or_none() {
        let (events, store, uuid) = recorded();
        let mut opened = false;
        let mut syncs = 0;
        for event in &events {
            event.apply(&store);
            syncs += u32::from(matches!(event, Event::Sync));
            // Sectors of zeroes and of key material are many and alike: look at every 40th state.
            if syncs >= 2 || matches!(event, Event::Sector(at, _) if at % 20480 == 0) {
                let now = whole_or_nothing(&store, uuid);
                assert!(now || !opened, "a volume that was whole is not any more");
                opened |= now;
            }
        }
        assert!(opened && syncs == 4);
    }

    /// Between two syncs a store may keep any part of the writes. Cases from a fixed seed.
    #[test]
    fn any_subset_of_the_unsynced_writes_is_a_whole_volume_or_none() {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = move || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        let (events, synced, uuid) = recorded();
        for epoch in events.split_inclusive(|event| matches!(event, Event::Sync)) {
            for _ in 0..12 {
                let crashed = copy_of(&synced, ByteCount(17 * MIB));
                let keep_of_256 = next() % 257;
                for event in epoch {
                    if next() % 256 < keep_of_256 {
                        event.apply(&crashed);
                    }
                }
                whole_or_nothing(&crashed, uuid);
            }
            epoch.iter().for_each(|event| event.apply(&synced));
        }
        assert!(whole_or_nothing(&synced, uuid));
    }

    /// Stops at the nth question.
    struct StopAfter(Mutex<u32>);

    impl Progress for StopAfter {
        fn begin(&self, _step: &str, _units: u64) {}
        fn advance(&self, _units: u64) {}
        fn cancelled(&self) -> bool {
            let mut left = self.0.lock().unwrap();
            *left = left.saturating_sub(1);
            *left == 0
        }
    }

    #[test]
    fn it_can_be_cancelled() {
        let mut cancelled = 0;
        for after in 1.. {
            let store = MemoryBacking::new(ByteCount(17 * MIB));
            let stop = StopAfter(Mutex::new(after));
            match format(&store, &options(BlockSize::B512), &passphrase("new"), &OsEntropy, &stop) {
                Ok(_) => break,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Cancelled),
            }
            cancelled += 1;
            let opened = opens(&store, &passphrase("new"));
            assert!(opened.is_ok() || after < 6, "after {after}");
        }
        assert!(cancelled >= 4, "{cancelled}");
    }
}
