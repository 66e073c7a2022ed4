//! Key slots' areas on the store: finding room for one, and wiping one.
//!
//! Wiping overwrites with random bytes, syncs, and then gives the space back. On media that remap
//! what is overwritten (flash, copy-on-write, a host that keeps snapshots) the old bytes may survive
//! all of this; only a new volume key helps against somebody who has them and the passphrase.

use crate::backing::Backing;
use crate::env::{Entropy, Progress};
use crate::error::Result;
use crate::units::{BlockSize, ByteCount, ByteOffset};

use super::metadata::{Area, Metadata};

/// Size of the areas that we make: key material rounded up to 4 KiB, as cryptsetup does.
pub(super) const AREA_SIZE: u64 = 258_048;

/// Random bytes are written in pieces of this size.
const PIECE: u64 = 256 << 10;

/// A part of the store: first byte, and the byte behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Span {
    /// Where an area lies; its header was checked, so the sum fits.
    pub(super) fn of(area: &Area) -> Self {
        Self { start: area.offset.0, end: area.offset.0.saturating_add(area.size.0) }
    }

    /// Where a header has room for areas.
    pub(super) fn for_areas(hdr_size: u64, metadata: &Metadata) -> Self {
        let start = 2 * hdr_size;
        Self { start, end: start.saturating_add(metadata.config.keyslots_size.0) }
    }

    pub(super) fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    pub(super) fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// The first `len` bytes of `room` that touch none of `taken`, beginning at a multiple of 4 KiB.
pub(super) fn find_room(room: Span, taken: &[Span], len: u64) -> Option<Span> {
    let mut taken = taken.to_vec();
    taken.sort_unstable();
    let mut start = BlockSize::B4096.round_up(room.start)?;
    for span in taken {
        if span.start >= start.checked_add(len)? {
            break;
        }
        start = start.max(BlockSize::B4096.round_up(span.end)?);
    }
    let found = Span { start, end: start.checked_add(len)? };
    (found.end <= room.end).then_some(found)
}

/// Makes what lies in `span` unreadable, as far as the store lets us.
pub(super) fn wipe(
    backing: &dyn Backing,
    span: Span,
    entropy: &dyn Entropy,
    progress: &dyn Progress,
) -> Result<()> {
    progress.begin("wiping old key material", span.len());
    let mut random = vec![0; ByteCount(PIECE.min(span.len())).to_usize().unwrap_or(0)];
    let mut at = span.start;
    while at < span.end {
        let run = backing.run_at(ByteOffset(at))?;
        let rest = run.end.0.min(span.end).saturating_sub(at).max(1);
        let len = if run.allocated { rest.min(PIECE) } else { rest };
        if run.allocated {
            let piece = &mut random[..ByteCount(len).to_usize().unwrap_or(0)];
            entropy.fill(piece)?;
            backing.write_at(ByteOffset(at), piece)?;
        }
        progress.advance(len);
        at += len;
    }
    backing.sync()?;
    backing.punch(ByteOffset(span.start), ByteCount(span.len()))?;
    backing.sync()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::MemoryBacking;
    use crate::env::{OsEntropy, Silent};

    #[test]
    fn room_is_found_between_and_behind_areas() {
        let room = Span { start: 32768, end: 32768 + 3 * AREA_SIZE };
        let area =
            |number: u64| Span { start: 32768 + number * AREA_SIZE, end: 32768 + (number + 1) * AREA_SIZE };
        assert_eq!(find_room(room, &[], AREA_SIZE), Some(area(0)));
        assert_eq!(find_room(room, &[area(0)], AREA_SIZE), Some(area(1)));
        assert_eq!(find_room(room, &[area(2), area(0)], AREA_SIZE), Some(area(1)));
        assert_eq!(find_room(room, &[area(2), area(0), area(1)], AREA_SIZE), None);
        let odd = Span { start: 32768, end: 32768 + 512 };
        assert_eq!(find_room(room, &[odd], AREA_SIZE).unwrap().start, 36864);
        assert_eq!(find_room(Span { start: 0, end: u64::MAX }, &[], u64::MAX).unwrap().start, 0);
        assert_eq!(find_room(Span { start: 4096, end: u64::MAX }, &[], u64::MAX), None);
    }

    #[test]
    fn nothing_is_left_and_nothing_else_is_touched() {
        let store = MemoryBacking::new(ByteCount(1 << 20));
        store.write_at(ByteOffset(0), &vec![7; 1 << 20]).unwrap();
        wipe(&store, Span { start: 4096, end: 600_000 }, &OsEntropy, &Silent).unwrap();
        let mut bytes = vec![1; 1 << 20];
        store.read_at(ByteOffset(0), &mut bytes).unwrap();
        assert!(bytes[..4096].iter().chain(&bytes[600_000..]).all(|b| *b == 7));
        assert!(bytes[4096..600_000].iter().all(|b| *b == 0));
    }
}
