//! Rewriting a header so that a whole copy of it exists at every moment.
//!
//! Guarantees: everything that can be refused is refused before the first write, and the new header
//! passes the same checks as one that is read. Its sequence number is one higher, and each copy has a
//! fresh salt. The copy that is not in use is written first and synced, then the other one: until the
//! first is whole the old header holds, from then on the new one does, because it has the higher
//! number. Both are durable when the write returns.
//!
//! A damaged copy is not overwritten in passing: it is evidence, and its repair is a decision
//! (`backup.rs`). The caller has the store to itself.

use crate::backing::Backing;
use crate::crypto::CostLimits;
use crate::env::{Entropy, random};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{ByteCount, ByteOffset};

use super::binary_header::{BinaryHeader, Place};
use super::layout::CheckedHeader;
use super::metadata::Metadata;
use super::read::{CopyState, RawHeader};

/// A header that is ready to be written.
pub(super) struct Update {
    header: CheckedHeader,
    /// Place and bytes of both copies, in the order of writing.
    copies: [(ByteOffset, Vec<u8>); 2],
}

impl Update {
    /// The successor of `old` with `metadata`.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptHeader`] when a copy of the old one is damaged, [`ErrorKind::NoSpace`] when
    /// the JSON text is longer than its area, and what the checks refuse.
    pub(super) fn plan(old: &CheckedHeader, metadata: Metadata, entropy: &dyn Entropy) -> Result<Self> {
        let raw = old.luks2()?;
        for (name, state) in [("first", &raw.primary), ("second", &raw.secondary)] {
            if !matches!(state, CopyState::Valid(_)) {
                let what = format!("the {name} copy of the LUKS2 header is {state}; nothing is changed");
                return Err(Error::new(ErrorKind::CorruptHeader, what).hint("repair the header first"));
            }
        }
        let binary = BinaryHeader { seqid: successor(raw.binary.seqid)?, ..raw.binary.clone() };
        Self::of((binary, metadata, raw.apart), unused_copy(raw), &old.limits, entropy)
    }

    /// A header for both places, `first` written first.
    pub(super) fn of(
        (binary, metadata, apart): (BinaryHeader, Metadata, Option<ByteCount>),
        first: Place,
        limits: &CostLimits,
        entropy: &dyn Entropy,
    ) -> Result<Self> {
        let second = if first == Place::Primary { Place::Secondary } else { Place::Primary };
        let copies = [
            (place_of(first, &binary), assemble(&binary, &metadata, first, entropy)?),
            (place_of(second, &binary), assemble(&binary, &metadata, second, entropy)?),
        ];
        let state = CopyState::Valid(binary.seqid);
        let raw = RawHeader { binary, metadata, primary: state.clone(), secondary: state, apart };
        Ok(Self { header: raw.check(limits)?, copies })
    }

    /// Writes both copies; answers with the header that holds now.
    pub(super) fn write(self, backing: &dyn Backing) -> Result<CheckedHeader> {
        for (at, copy) in &self.copies {
            backing.write_at(*at, copy)?;
            backing.sync()?;
        }
        let seqid = self.header.luks2()?.binary.seqid;
        tracing::info!(seqid, uuid = %self.header.uuid(), "wrote the LUKS2 header");
        Ok(self.header)
    }
}

/// The sequence number after `seqid`.
pub(super) fn successor(seqid: u64) -> Result<u64> {
    seqid
        .checked_add(1)
        .ok_or_else(|| Error::new(ErrorKind::CorruptHeader, "the header's sequence number cannot grow"))
}

/// The copy that may be overwritten without losing the header: the older or damaged one, the
/// secondary of equals.
pub(super) fn unused_copy(raw: &RawHeader) -> Place {
    match (&raw.primary, &raw.secondary) {
        (CopyState::Valid(one), CopyState::Valid(two)) if two > one => Place::Primary,
        (CopyState::Valid(_), _) => Place::Secondary,
        _ => Place::Primary,
    }
}

/// Where a copy lies.
pub(super) fn place_of(place: Place, binary: &BinaryHeader) -> ByteOffset {
    ByteOffset(if place == Place::Primary { 0 } else { binary.hdr_size })
}

/// The bytes of one copy, with a fresh salt.
pub(super) fn assemble(
    binary: &BinaryHeader,
    metadata: &Metadata,
    place: Place,
    entropy: &dyn Entropy,
) -> Result<Vec<u8>> {
    let json = metadata.to_json().map_err(|e| {
        Error::new(ErrorKind::InvalidInput, "the header cannot be written as JSON").because(e)
    })?;
    binary.assemble(place, &random(entropy)?, &json).ok_or_else(|| {
        let what = format!(
            "the header's {} bytes of JSON do not fit into its area of {}",
            json.len(),
            metadata.config.json_size.0
        );
        Error::new(ErrorKind::NoSpace, what)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::MemoryBacking;
    use crate::env::OsEntropy;
    use crate::luks::fixtures::{self, Recorder, forge, volume};
    use crate::units::BlockSize;
    use serde_json::json;

    fn header(backing: &dyn Backing) -> CheckedHeader {
        RawHeader::read(backing).unwrap().check(&CostLimits::of_this_machine()).unwrap()
    }

    fn with_token(header: &CheckedHeader, text: &str) -> Metadata {
        let mut metadata = header.luks2().unwrap().metadata.clone();
        metadata.tokens.insert(20, json!({"type": "note", "keyslots": [], "text": text}));
        metadata
    }

    #[test]
    fn both_copies_are_new_and_differ_in_their_salt() {
        let backing = volume(BlockSize::B4096);
        let old = header(&backing);
        let new = Update::plan(&old, with_token(&old, "x"), &OsEntropy).unwrap().write(&backing).unwrap();
        let read = header(&backing);
        assert_eq!(
            (read.luks2().unwrap().binary.seqid, &read.luks2().unwrap().primary),
            (2, &CopyState::Valid(2))
        );
        assert_eq!(
            (&read.luks2().unwrap().metadata, &read.luks2().unwrap().secondary),
            (&new.luks2().unwrap().metadata, &new.luks2().unwrap().secondary)
        );
        let mut bytes = vec![0; 32768];
        backing.read_at(ByteOffset(0), &mut bytes).unwrap();
        assert_ne!(bytes[104..168], bytes[16384 + 104..16384 + 168]);
    }

    #[test]
    fn the_copy_in_use_is_written_last() {
        for (newest, first) in [(0, 16384), (16384, 0)] {
            let backing = volume(BlockSize::B4096);
            let before = fixtures::snapshot(&backing);
            forge(&backing, |_| ());
            // One copy is of the last update, the other one of that before.
            let mut stale = vec![0; 16384];
            before.read_at(ByteOffset(first), &mut stale).unwrap();
            backing.write_at(ByteOffset(first), &stale).unwrap();
            let old = header(&backing);
            assert_eq!(old.luks2().unwrap().binary.seqid, 2);
            let recorder = Recorder::over(backing);
            Update::plan(&old, with_token(&old, "x"), &OsEntropy).unwrap().write(&recorder).unwrap();
            let (_, events) = recorder.finish();
            let places: Vec<u64> = events.iter().filter_map(fixtures::Event::sector).collect();
            assert_eq!((places[0], places[32]), (first, newest));
        }
    }

    #[test]
    fn a_damaged_copy_stops_everything() {
        for at in [100, 16384 + 100] {
            let backing = volume(BlockSize::B4096);
            backing.write_at(ByteOffset(at), &[0xff]).unwrap();
            let old = header(&backing);
            let error = Update::plan(&old, with_token(&old, "x"), &OsEntropy).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::CorruptHeader);
            assert!(error.to_string().contains("copy of the LUKS2 header is damaged"), "{error}");
        }
    }

    #[test]
    fn text_that_does_not_fit_is_refused() {
        let backing: MemoryBacking = volume(BlockSize::B4096);
        let old = header(&backing);
        let error = Update::plan(&old, with_token(&old, &"x".repeat(12_000)), &OsEntropy).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        forge(&backing, |_| ());
        let mut old = header(&backing);
        old.luks2_mut().unwrap().binary.seqid = u64::MAX;
        let metadata = old.luks2().unwrap().metadata.clone();
        assert_eq!(Update::plan(&old, metadata, &OsEntropy).err().unwrap().kind(), ErrorKind::CorruptHeader);
    }
}
