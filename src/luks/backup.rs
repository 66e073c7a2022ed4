//! Header backup, restore and repair.
//!
//! A backup is what `cryptsetup luksHeaderBackup` makes: the bytes of the store from its start to the
//! end of the room for key slots, both copies of the header included. Either program restores the
//! other's. It holds the key slots as they were: whoever has it and a passphrase of that time can
//! open the volume, also after the passphrase was revoked.
//!
//! Guarantees of a restore: the whole backup is checked, in memory, before the first write. Where the
//! store has a header of the same layout that can be used, the store opens with the secrets of before
//! or with those of the backup at every moment: the backup's key material goes to places that the old
//! header does not use, and only then is the header switched; so slots may lie elsewhere than in the
//! backup. Where the store has no usable header nothing can be kept, and an interrupted restore is
//! simply done again.

use std::collections::BTreeMap;

use crate::backing::Backing;
use crate::crypto::CostLimits;
use crate::env::{Entropy, Progress};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{ByteCount, ByteOffset};

use super::areas::{Span, find_room, wipe};
use super::binary_header::{BinaryHeader, Place, text};
use super::layout::CheckedHeader;
use super::metadata::Metadata;
use super::read::{CopyState, RawHeader};
use super::text::printable;
use super::update::{Update, assemble, place_of, successor, unused_copy};

/// The largest backup, as in cryptsetup: two copies of the largest header, and 128 MiB of key slots.
pub const LARGEST_BACKUP: u64 = (8 + 128) * ByteCount::MIB;

/// cryptsetup rounds a backup's length up to its machine's page size.
const LARGEST_PAGE: u64 = 64 << 10;

/// How a backup is to be restored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestoreOptions {
    /// Also over another volume's header, one of another layout, or none at all.
    pub force: bool,
    /// The store holds the header alone; the data lies elsewhere.
    pub apart: bool,
}

/// What a repair has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repaired {
    /// Nothing: both copies are whole and alike.
    Nothing,
    /// The first copy was rewritten from the second.
    First,
    /// The second copy was rewritten from the first.
    Second,
}

/// The header's backup: `hostveil` and cryptsetup can restore it. A new file for it belongs to its
/// owner alone (mode 0600).
///
/// # Errors
/// [`ErrorKind::Unsupported`] when it would be larger than [`LARGEST_BACKUP`].
pub fn take(backing: &dyn Backing, header: &CheckedHeader) -> Result<Vec<u8>> {
    let size = backup_size(header.luks2()?)?;
    let mut bytes = vec![0; ByteCount(size).to_usize().unwrap_or(0)];
    backing.read_at(ByteOffset(0), &mut bytes)?;
    Ok(bytes)
}

fn backup_size(raw: &RawHeader) -> Result<u64> {
    match Span::for_areas(raw.binary.hdr_size, &raw.metadata).end {
        size if size <= LARGEST_BACKUP => Ok(size),
        size => Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "config.keyslots_size makes a header of {}; a backup has at most 136 MiB",
                ByteCount(size)
            ),
        )),
    }
}

/// Puts a backup's header and key slots onto the store; answers with the header that holds now.
/// `force` is needed where the store has another volume's header, one of another layout, or none at
/// all: the restore destroys what lies there.
///
/// # Errors
/// All before anything is written: [`ErrorKind::CorruptHeader`] and [`ErrorKind::Unsupported`] for a
/// backup that is damaged, cut off or asks for what is refused, [`ErrorKind::WrongDevice`] without
/// `force` where it is needed, and for a store that is too small for the volume,
/// [`ErrorKind::NoSpace`] when the header has no room to keep old and new key slots side by side.
pub fn restore(
    backing: &dyn Backing,
    backup: &[u8],
    options: RestoreOptions,
    limits: &CostLimits,
    entropy: &dyn Entropy,
    progress: &dyn Progress,
) -> Result<CheckedHeader> {
    let store = backing.len()?;
    let backup = Backup::check(backup, store, options.apart, limits)?;
    let plan = match existing(backing, &backup, options.force)? {
        Existing::Usable(old) => backup.beside(backing, &old, entropy)?,
        Existing::Unusable(seqid) => backup.in_place(seqid, limits, entropy)?,
    };
    progress.check()?;
    progress.begin("restoring the header", 1);
    for (at, material) in &plan.material {
        backing.write_at(ByteOffset(*at), material)?;
    }
    backing.sync()?;
    let header = plan.update.write(backing)?;
    progress.advance(1);
    for span in plan.wipe {
        wipe(backing, span, entropy, progress)?;
    }
    tracing::info!(uuid = %header.uuid(), "restored the LUKS2 header");
    Ok(header)
}

/// A backup that is whole and acceptable.
struct Backup<'a> {
    bytes: &'a [u8],
    header: CheckedHeader,
}

/// What a restore will write, in this order, and wipe.
struct Plan<'a> {
    material: Vec<(u64, &'a [u8])>,
    update: Update,
    wipe: Vec<Span>,
}

/// What a restore finds on the store.
enum Existing {
    /// A header whose secrets must go on opening the volume until the switch.
    Usable(Box<CheckedHeader>),
    /// Nothing that opens; a sequence number that must be exceeded.
    Unusable(u64),
}

/// Looks at what will be overwritten, and refuses what only `force` allows.
fn existing(backing: &dyn Backing, backup: &Backup<'_>, force: bool) -> Result<Existing> {
    let old = match RawHeader::read(backing) {
        Ok(old) => RawHeader { apart: backup.header.luks2()?.apart, ..old },
        Err(e) if e.kind() == ErrorKind::CorruptHeader => return Ok(Existing::Unusable(0)),
        Err(e) if e.kind() == ErrorKind::WrongDevice && force => return Ok(Existing::Unusable(0)),
        Err(e) if e.kind() == ErrorKind::WrongDevice => {
            return Err(e.hint("force the restore if this is the right store"));
        }
        Err(e) => return Err(e),
    };
    let new = backup.header.luks2()?;
    let differs = if text(&old.binary.uuid) != text(&new.binary.uuid) {
        Some(format!("the store holds the volume {}", printable(&text(&old.binary.uuid))))
    } else if data_offset(&old) != data_offset(new) {
        Some("the store's segment offset is another one".to_owned())
    } else {
        None
    };
    if let Some(what) = differs.as_ref().filter(|_| !force) {
        let what = format!("{what}; the backup is of the volume {}", backup.header.uuid());
        return Err(Error::new(ErrorKind::WrongDevice, what).hint("force the restore if that is meant"));
    }
    let layout = |raw: &RawHeader| (raw.binary.hdr_size, raw.metadata.config.keyslots_size, data_offset(raw));
    let same = layout(&old) == layout(new);
    // A host may have written any number; of a header that is refused it need not be respected.
    let seqid = if old.binary.seqid == u64::MAX { 0 } else { old.binary.seqid };
    match old.check(&backup.header.limits) {
        Ok(old) if same => Ok(Existing::Usable(Box::new(old))),
        _ => Ok(Existing::Unusable(seqid)),
    }
}

fn too_small(store: ByteCount) -> Error {
    let what = format!("the store has {store}, which is too small for the volume of the backup");
    Error::new(ErrorKind::WrongDevice, what)
}

fn data_offset(raw: &RawHeader) -> Option<u64> {
    raw.metadata.segments.values().next().map(|segment| segment.offset.0)
}

impl<'a> Backup<'a> {
    fn check(bytes: &'a [u8], store: ByteCount, apart: bool, limits: &CostLimits) -> Result<Self> {
        let raw = RawHeader { apart: apart.then_some(store), ..RawHeader::from_start(bytes)? };
        let size = backup_size(&raw)?;
        let len = ByteCount::of(bytes).0;
        if len < size || len - size >= LARGEST_PAGE {
            let what = format!("the backup has {len} bytes, and a whole one of this header has {size}");
            return Err(Error::new(ErrorKind::CorruptHeader, what));
        }
        let header = raw.check(limits)?;
        if apart {
            return if size <= store.0 { Ok(Self { bytes, header }) } else { Err(too_small(store)) };
        }
        let segment = &header.layout.segment;
        let data = segment.size.unwrap_or(ByteCount(segment.sector_size.bytes().into()));
        match segment.offset.checked_add(data) {
            Some(end) if end.0 <= store.0 => Ok(Self { bytes, header }),
            _ => Err(too_small(store)),
        }
    }

    fn bytes_of(&self, span: Span) -> &'a [u8] {
        let index = |at| ByteCount(at).to_usize().unwrap_or(usize::MAX);
        self.bytes.get(index(span.start)..index(span.end)).unwrap_or_default()
    }

    /// The backup's binary header as the successor of both.
    fn binary(&self, old_seqid: u64) -> Result<BinaryHeader> {
        let binary = &self.header.luks2()?.binary;
        Ok(BinaryHeader { seqid: successor(binary.seqid.max(old_seqid))?, ..binary.clone() })
    }

    /// Key slots to where they were, then the header.
    fn in_place(&self, seqid: u64, limits: &CostLimits, entropy: &dyn Entropy) -> Result<Plan<'a>> {
        let metadata = self.header.luks2()?.metadata.clone();
        let spans = metadata.keyslots.values().map(|slot| Span::of(&slot.area));
        let material = spans.map(|span| (span.start, self.bytes_of(span))).collect();
        // The primary copy is found without the other one, so it comes last.
        let update = Update::of(
            (self.binary(seqid)?, metadata, self.header.luks2()?.apart),
            Place::Secondary,
            limits,
            entropy,
        )?;
        Ok(Plan { material, update, wipe: Vec::new() })
    }

    /// Key slots to where they disturb none of the old header's.
    fn beside(&self, backing: &dyn Backing, old: &CheckedHeader, entropy: &dyn Entropy) -> Result<Plan<'a>> {
        let mut metadata = self.header.luks2()?.metadata.clone();
        let in_use: Vec<Span> =
            old.luks2()?.metadata.keyslots.values().map(|slot| Span::of(&slot.area)).collect();
        let places = self.places(backing, &in_use, &metadata)?;
        let mut material = Vec::new();
        for (number, place) in &places {
            let Some(slot) = metadata.keyslots.get_mut(number) else { continue };
            if let Some(at) = place.written_to {
                material.push((at.start, self.bytes_of(Span::of(&slot.area))));
                slot.area.offset.0 = at.start;
            }
        }
        let new: Vec<Span> = metadata.keyslots.values().map(|slot| Span::of(&slot.area)).collect();
        let wipe = in_use.into_iter().filter(|span| !new.iter().any(|new| new.overlaps(*span))).collect();
        let first = unused_copy(old.luks2()?);
        let binary = self.binary(old.luks2()?.binary.seqid)?;
        let update = Update::of((binary, metadata, old.luks2()?.apart), first, &old.limits, entropy)?;
        Ok(Plan { material, update, wipe })
    }

    /// Where each slot's material shall lie.
    fn places(
        &self,
        backing: &dyn Backing,
        in_use: &[Span],
        metadata: &Metadata,
    ) -> Result<BTreeMap<u32, PlaceOfSlot>> {
        let mut places = BTreeMap::new();
        let mut taken = in_use.to_vec();
        let mut homeless = Vec::new();
        for (number, slot) in &metadata.keyslots {
            let span = Span::of(&slot.area);
            let free = !in_use.iter().any(|used| used.overlaps(span));
            if free || self.is_there_already(backing, span)? {
                places.insert(*number, PlaceOfSlot { written_to: free.then_some(span) });
                taken.push(span);
            } else {
                homeless.push((*number, span));
            }
        }
        let room = Span::for_areas(self.header.luks2()?.binary.hdr_size, metadata);
        for (number, span) in homeless {
            let found = find_room(room, &taken, span.len()).ok_or_else(|| {
                let what = "the header has no room to keep the old key slots until the new ones are in place";
                Error::new(ErrorKind::NoSpace, what)
            })?;
            taken.push(found);
            places.insert(number, PlaceOfSlot { written_to: Some(found) });
        }
        Ok(places)
    }

    fn is_there_already(&self, backing: &dyn Backing, span: Span) -> Result<bool> {
        let wanted = self.bytes_of(span);
        let mut there = vec![0; wanted.len()];
        backing.read_at(ByteOffset(span.start), &mut there)?;
        Ok(there == wanted)
    }
}

/// What becomes of one slot's material.
struct PlaceOfSlot {
    /// Where it is written to; [`None`] when it is in its place already.
    written_to: Option<Span>,
}

/// Rewrites a damaged, missing or outdated copy of the header from the other one, and nothing else.
/// `header` should have been unlocked before: that shows that the copy which is believed is genuine.
pub fn repair(backing: &dyn Backing, header: &mut CheckedHeader, entropy: &dyn Entropy) -> Result<Repaired> {
    let raw = header.luks2_mut()?;
    if raw.primary == raw.secondary {
        return Ok(Repaired::Nothing);
    }
    let place = unused_copy(raw);
    let copy = assemble(&raw.binary, &raw.metadata, place, entropy)?;
    backing.write_at(place_of(place, &raw.binary), &copy)?;
    backing.sync()?;
    let state = CopyState::Valid(raw.binary.seqid);
    (raw.primary, raw.secondary) = (state.clone(), state);
    tracing::info!(?place, "repaired a copy of the LUKS2 header");
    Ok(if place == Place::Primary { Repaired::First } else { Repaired::Second })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::MemoryBacking;
    use crate::env::{OsEntropy, Silent};
    use crate::luks::fixtures::{
        CHEAP, Recorder, crash_everywhere, forge, fresh_volume, passphrase, snapshot, volume,
    };
    use crate::luks::slots;
    use crate::luks::{Pbkdf, UnlockPolicy};
    use crate::units::BlockSize;
    use serde_json::json;

    fn limits() -> CostLimits {
        CostLimits::of_this_machine()
    }

    fn header(backing: &dyn Backing) -> CheckedHeader {
        RawHeader::read(backing).unwrap().check(&limits()).unwrap()
    }

    fn opens(backing: &dyn Backing, text: &str) -> bool {
        let policy = UnlockPolicy { require_authenticated_header: true, ..UnlockPolicy::default() };
        header(backing).unlock_with(backing, &passphrase(text), &policy).is_ok()
    }

    /// A volume whose only secret was changed from "secret" to "new" after its backup was taken.
    fn changed() -> (MemoryBacking, Vec<u8>) {
        let backing = volume(BlockSize::B4096);
        let backup = take(&backing, &header(&backing)).unwrap();
        let mut held = header(&backing);
        let unlocked = held.unlock(&backing, &passphrase("secret"), None).unwrap();
        let new = (&passphrase("new"), Pbkdf::Exactly(CHEAP));
        slots::change(&backing, &mut held, &unlocked, new, &OsEntropy, &Silent).unwrap();
        // A further change brings new material to where the backup's lies.
        let unlocked = held.unlock(&backing, &passphrase("new"), None).unwrap();
        slots::change(&backing, &mut held, &unlocked, new, &OsEntropy, &Silent).unwrap();
        assert!(opens(&backing, "new") && !opens(&backing, "secret"));
        (backing, backup)
    }

    fn put_back(backing: &dyn Backing, backup: &[u8], force: bool) -> Result<CheckedHeader> {
        restore(backing, backup, RestoreOptions { force, apart: false }, &limits(), &OsEntropy, &Silent)
    }

    fn zero_headers(backing: &dyn Backing) {
        backing.write_at(ByteOffset(0), &vec![0; 32768]).unwrap();
    }

    #[test]
    fn a_backup_is_the_header_and_all_room_for_slots() {
        let backing = volume(BlockSize::B4096);
        let backup = take(&backing, &header(&backing)).unwrap();
        let mut expected = vec![0; 16 << 20];
        backing.read_at(ByteOffset(0), &mut expected).unwrap();
        assert_eq!(backup.len(), 16 << 20);
        assert!(backup == expected);
    }

    #[test]
    fn a_backup_brings_back_what_was_lost() {
        let (backing, backup) = changed();
        put_back(&backing, &backup, false).unwrap();
        assert!(opens(&backing, "secret") && !opens(&backing, "new"), "the revoked passphrase is back");
        assert!(header(&backing).luks2().unwrap().binary.seqid > 3);
        backing.write_at(ByteOffset(0), &vec![0xff; 300_000]).unwrap();
        assert!(RawHeader::read(&backing).is_err());
        put_back(&backing, &backup, true).unwrap();
        assert!(opens(&backing, "secret"));
    }

    #[test]
    fn damaged_copies_are_no_reason_to_force() {
        let (backing, backup) = changed();
        for at in [1000, 16384 + 1000] {
            backing.write_at(ByteOffset(at), &[1]).unwrap();
        }
        assert!(RawHeader::read(&backing).is_err());
        put_back(&backing, &backup, false).unwrap();
        assert!(opens(&backing, "secret"));
    }

    #[test]
    fn what_is_there_is_only_overwritten_by_force() {
        let (_, backup) = changed();
        let other = fresh_volume(BlockSize::B4096);
        assert_eq!(put_back(&other, &backup, false).unwrap_err().kind(), ErrorKind::WrongDevice);
        let empty = MemoryBacking::new(ByteCount(17 << 20));
        assert_eq!(put_back(&empty, &backup, false).unwrap_err().kind(), ErrorKind::WrongDevice);
        put_back(&empty, &backup, true).unwrap();
        put_back(&other, &backup, true).unwrap();
        assert!(opens(&empty, "secret") && opens(&other, "secret"));
        let (moved, backup) = changed();
        forge(&moved, |json| json["segments"]["0"]["offset"] = json!("16781312"));
        let error = put_back(&moved, &backup, false).unwrap_err();
        assert!(error.to_string().contains("segment offset"), "{error}");
        put_back(&moved, &backup, true).unwrap();
        assert!(opens(&moved, "secret"));
    }

    #[test]
    fn a_backup_is_checked_before_anything_is_written() {
        let (backing, backup) = changed();
        let recorder = Recorder::over(backing);
        let kind = |backup: &[u8]| put_back(&recorder, backup, true).unwrap_err().kind();
        assert_eq!(kind(&[]), ErrorKind::WrongDevice);
        assert_eq!(kind(&backup[..100_000]), ErrorKind::CorruptHeader);
        assert_eq!(kind(&backup[..backup.len() - 1]), ErrorKind::CorruptHeader);
        assert_eq!(kind(&[&backup[..], &vec![0; 65536]].concat()), ErrorKind::CorruptHeader);
        let mut broken = backup.clone();
        (broken[5000], broken[20000]) = (1, 1);
        assert_eq!(kind(&broken), ErrorKind::CorruptHeader);
        let forged = volume(BlockSize::B4096);
        forge(&forged, |json| json["segments"]["0"]["encryption"] = json!("cipher_null-ecb"));
        let mut forged_backup = vec![0; 16 << 20];
        forged.read_at(ByteOffset(0), &mut forged_backup).unwrap();
        assert_eq!(kind(&forged_backup), ErrorKind::Unsupported);
        assert!(recorder.finish().1.is_empty());
        let small = MemoryBacking::new(ByteCount((17 << 20) - 512));
        assert_eq!(put_back(&small, &backup, true).unwrap_err().kind(), ErrorKind::WrongDevice);
        let header_only = volume(BlockSize::B4096);
        forge(&header_only, |json| {
            json["segments"]["0"]["offset"] = json!((1_u64 << 40).to_string());
            json["config"]["keyslots_size"] = json!((1_u64 << 39).to_string());
        });
        assert_eq!(take(&header_only, &header(&header_only)).unwrap_err().kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn restoring_may_crash_anywhere() {
        let (before, backup) = changed();
        let recorder = Recorder::over(snapshot(&before));
        put_back(&recorder, &backup, false).unwrap();
        let (_, events) = recorder.finish();
        let seen = crash_everywhere(&before, &events, &["new", "secret"], &[&["new"], &["secret"]]);
        assert_eq!(seen, [0, 1]);
        // The same backup onto the volume that it is of: nothing changes at any moment.
        let before = volume(BlockSize::B4096);
        let recorder = Recorder::over(snapshot(&before));
        put_back(&recorder, &take(&before, &header(&before)).unwrap(), false).unwrap();
        let (_, events) = recorder.finish();
        assert_eq!(crash_everywhere(&before, &events, &["new", "secret"], &[&["secret"]]), [0]);
    }

    #[test]
    fn restoring_over_a_damaged_header_may_crash_anywhere() {
        let (before, backup) = changed();
        zero_headers(&before);
        let recorder = Recorder::over(snapshot(&before));
        put_back(&recorder, &backup, true).unwrap();
        let (_, events) = recorder.finish();
        let seen = crash_everywhere(&before, &events, &["new", "secret"], &[&[], &["secret"]]);
        assert_eq!(seen, [0, 1]);
    }

    #[test]
    fn repair_rewrites_the_damaged_copy_and_nothing_else() {
        for (damage, repaired) in [(100, Repaired::First), (16384 + 100, Repaired::Second)] {
            let backing = volume(BlockSize::B4096);
            assert_eq!(repair(&backing, &mut header(&backing), &OsEntropy).unwrap(), Repaired::Nothing);
            let whole = header(&backing).luks2().unwrap().metadata.clone();
            backing.write_at(ByteOffset(damage), &[0xff; 600]).unwrap();
            let before = snapshot(&backing);
            let recorder = Recorder::over(backing);
            let mut held = header(&recorder);
            assert_eq!(repair(&recorder, &mut held, &OsEntropy).unwrap(), repaired);
            assert_eq!(repair(&recorder, &mut held, &OsEntropy).unwrap(), Repaired::Nothing);
            let (backing, events) = recorder.finish();
            let start = if repaired == Repaired::First { 0 } else { 16384 };
            let sectors: Vec<u64> = events.iter().filter_map(crate::luks::fixtures::Event::sector).collect();
            assert_eq!(sectors, (0..32).map(|n| start + 512 * n).collect::<Vec<_>>());
            let seen = crash_everywhere(&before, &events, &["new", "secret"], &[&["secret"]]);
            assert_eq!(seen, [0]);
            let held = header(&backing);
            let raw = held.luks2().unwrap();
            assert_eq!((&raw.primary, &raw.secondary), (&CopyState::Valid(1), &CopyState::Valid(1)));
            assert_eq!(raw.metadata, whole);
        }
    }

    #[test]
    fn copies_that_contradict_each_other_are_told_and_repaired() {
        let backing = volume(BlockSize::B4096);
        let other = fresh_volume(BlockSize::B4096);
        let mut copy = vec![0; 16384];
        other.read_at(ByteOffset(16384), &mut copy).unwrap();
        backing.write_at(ByteOffset(16384), &copy).unwrap();
        let mut held = header(&backing);
        assert!(held.luks2().unwrap().secondary.to_string().contains("contradicts"));
        assert!(opens(&backing, "secret"), "the first copy is used");
        assert_eq!(repair(&backing, &mut held, &OsEntropy).unwrap(), Repaired::Second);
        assert_eq!(header(&backing).luks2().unwrap().secondary, CopyState::Valid(1));
    }
}
