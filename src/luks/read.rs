//! Finding a LUKS2 volume's header: one read into memory, both copies, the newest that is whole.
//!
//! Guarantees: the store is read once, and everything that is checked later is checked on the bytes
//! of that one read, so the host cannot show one header to the check and another to the use. A copy
//! counts only if magic, size, place, checksum and JSON text are right. Not guaranteed: that the
//! host's copy is the newest that ever was; the checksum has no key.

use std::fmt;

use crate::backing::Backing;
use crate::crypto::CostLimits;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{ByteCount, ByteOffset};

use super::binary_header::{BinaryHeader, HEADER_SIZES, version_at_start};
use super::check::luks2::check;
use super::header::Header;
use super::layout::CheckedHeader;
use super::metadata::Metadata;

/// The largest header: two copies of the largest size.
const LARGEST: u64 = 2 * HEADER_SIZES[HEADER_SIZES.len() - 1];

/// A LUKS2 header that is whole, of which nothing is known to be acceptable yet.
#[derive(Debug)]
pub struct RawHeader {
    pub(super) binary: BinaryHeader,
    pub(super) metadata: Metadata,
    pub(super) primary: CopyState,
    pub(super) secondary: CopyState,
    /// The size of the header's own store, where it is kept apart from the data.
    pub(super) apart: Option<ByteCount>,
}

/// What became of one copy of the header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CopyState {
    /// It is whole; its sequence number.
    Valid(u64),
    /// Nothing at its place claims to be a header.
    Absent,
    /// What is wrong with it.
    Damaged(String),
}

impl fmt::Display for CopyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Valid(seqid) => write!(f, "valid, sequence number {seqid}"),
            Self::Absent => f.write_str("absent"),
            Self::Damaged(reason) => write!(f, "damaged: {reason}"),
        }
    }
}

impl RawHeader {
    /// Reads the header at the start of `backing`.
    ///
    /// # Errors
    /// [`ErrorKind::WrongDevice`] where nothing looks like LUKS, [`ErrorKind::Unsupported`] for LUKS1,
    /// [`ErrorKind::CorruptHeader`] when neither copy is whole.
    pub fn read(backing: &dyn Backing) -> Result<Self> {
        Self::from_start(&read_start(backing)?)
    }

    /// Finds the header in a store's first bytes, of which 8 MiB are enough.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn from_start(bytes: &[u8]) -> Result<Self> {
        if version_at_start(bytes) == Some(1) {
            return Err(Error::new(ErrorKind::Unsupported, "this is a LUKS1 volume; LUKS2 is needed here"));
        }
        let primary = copy_at(bytes, 0);
        let secondary = match &primary {
            Ok(copy) => copy_at(bytes, copy.binary.hdr_size),
            Err(_) => find_secondary(bytes),
        };
        Self::newest(primary, secondary)
    }

    /// The copy that holds: the one with the higher sequence number (2.3), the primary one of equals.
    fn newest(
        primary: Result<HeaderCopy, CopyState>,
        secondary: Result<HeaderCopy, CopyState>,
    ) -> Result<Self> {
        let (states, copy) = match (primary, secondary) {
            (Ok(one), Ok(two)) => {
                let agree = one.binary.seqid != two.binary.seqid
                    || (one.binary == two.binary && one.metadata == two.metadata);
                // No crash makes this; only one of them can be what was written last.
                let contradiction = || CopyState::Damaged("it contradicts the first copy".to_owned());
                let state = if agree { CopyState::Valid(two.binary.seqid) } else { contradiction() };
                let states = (CopyState::Valid(one.binary.seqid), state);
                (states, if two.binary.seqid > one.binary.seqid { two } else { one })
            }
            (Ok(one), Err(bad)) => ((CopyState::Valid(one.binary.seqid), bad), one),
            (Err(bad), Ok(two)) => ((bad, CopyState::Valid(two.binary.seqid)), two),
            (Err(CopyState::Absent), Err(CopyState::Absent)) => {
                return Err(Error::new(ErrorKind::WrongDevice, "there is no LUKS header"));
            }
            (Err(one), Err(two)) => {
                let what = format!(
                    "neither copy of the LUKS2 header is usable (first copy {one}; second copy {two})"
                );
                return Err(Error::new(ErrorKind::CorruptHeader, what)
                    .hint("restore the header from a backup of it (cryptsetup luksHeaderRestore)"));
            }
        };
        let (primary, secondary) = states;
        if primary != secondary {
            tracing::warn!(%primary, %secondary, "the two copies of the LUKS2 header differ; the newest whole one is used");
        }
        Ok(Self { binary: copy.binary, metadata: copy.metadata, primary, secondary, apart: None })
    }

    /// Checks that the header asks for nothing but what this program does, and for nothing dangerous.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] or [`ErrorKind::CorruptHeader`], naming the field.
    pub fn check(self, limits: &CostLimits) -> Result<CheckedHeader> {
        check(&self, limits).map(|layout| CheckedHeader::new(Header::V2(self), layout, *limits))
    }
}

/// The first bytes of a store, as many as a header can have.
pub(super) fn read_start(backing: &dyn Backing) -> Result<Vec<u8>> {
    let len = ByteCount(backing.len()?.0.min(LARGEST)).to_usize().unwrap_or(0);
    let mut bytes = vec![0; len];
    backing.read_at(ByteOffset(0), &mut bytes)?;
    Ok(bytes)
}

/// One whole copy.
struct HeaderCopy {
    binary: BinaryHeader,
    metadata: Metadata,
}

fn copy_at(bytes: &[u8], at: u64) -> Result<HeaderCopy, CopyState> {
    let rest = usize::try_from(at).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
    let (binary, json) =
        BinaryHeader::parse(rest, at).map_err(|e| e.map_or(CopyState::Absent, CopyState::Damaged))?;
    let metadata = Metadata::parse(json).map_err(CopyState::Damaged)?;
    Ok(HeaderCopy { binary, metadata })
}

/// Looks for the secondary copy at every place where one may lie (2.2), as its place is known from
/// the primary one only. The first whole one counts; failing that, the first that claims to be one.
fn find_secondary(bytes: &[u8]) -> Result<HeaderCopy, CopyState> {
    let mut state = CopyState::Absent;
    for at in HEADER_SIZES {
        match copy_at(bytes, at) {
            Ok(copy) => return Ok(copy),
            Err(damaged) if state == CopyState::Absent => state = damaged,
            Err(_) => {}
        }
    }
    Err(state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::luks::binary_header::{MAGIC_PRIMARY, Place, looks_like_luks, text_field};
    use crate::luks::fixtures;
    use crate::luks::{Header, describe};

    /// The first 64 KiB of a store with two copies of a header of 16 KiB, of these sequence numbers.
    fn start(primary: u64, secondary: u64) -> Vec<u8> {
        let mut bytes = vec![0; 65536];
        for (place, at, salt, seqid) in
            [(Place::Primary, 0, 1, primary), (Place::Secondary, 16384, 2, secondary)]
        {
            let binary = BinaryHeader {
                hdr_size: 16384,
                seqid,
                label: text_field(&format!("label {seqid}")).unwrap(),
                uuid: text_field(fixtures::UUID).unwrap(),
                subsystem: text_field("").unwrap(),
            };
            let json = fixtures::metadata().to_json().unwrap();
            let copy = binary.assemble(place, &[salt; 64], &json).unwrap();
            bytes[at..at + copy.len()].copy_from_slice(&copy);
        }
        bytes
    }

    fn seqid(bytes: &[u8]) -> Result<u64, ErrorKind> {
        RawHeader::from_start(bytes).map(|header| header.binary.seqid).map_err(|e| e.kind())
    }

    #[test]
    fn the_newest_copy_holds() {
        assert_eq!(seqid(&start(5, 5)), Ok(5));
        assert_eq!(seqid(&start(6, 5)), Ok(6));
        assert_eq!(seqid(&start(5, 6)), Ok(6));
    }

    #[test]
    fn a_damaged_copy_leaves_the_other() {
        let mut bytes = start(5, 4);
        bytes[5000] ^= 1;
        assert_eq!(seqid(&bytes), Ok(4));
        let header = RawHeader::from_start(&bytes).unwrap();
        assert_eq!(header.primary, CopyState::Damaged("its checksum is wrong".to_owned()));
        bytes[20000] ^= 1;
        assert_eq!(seqid(&bytes), Err(ErrorKind::CorruptHeader));
        let message = RawHeader::from_start(&bytes).unwrap_err().to_string();
        assert!(message.contains("neither copy") && message.contains("checksum"), "{message}");
    }

    #[test]
    fn the_secondary_copy_is_found_where_it_may_lie() {
        for at in HEADER_SIZES {
            let mut bytes = vec![0x55; usize::try_from(2 * at).unwrap()];
            assert_eq!(seqid(&bytes), Err(ErrorKind::WrongDevice));
            let binary = BinaryHeader { hdr_size: at, ..RawHeader::from_start(&start(9, 9)).unwrap().binary };
            let copy = binary
                .assemble(Place::Secondary, &[1; 64], &fixtures::metadata().to_json().unwrap())
                .unwrap();
            bytes[usize::try_from(at).unwrap()..].copy_from_slice(&copy);
            assert_eq!(seqid(&bytes), Ok(9), "at {at}");
        }
    }

    #[test]
    fn what_is_not_luks2_is_named() {
        assert_eq!(seqid(&[]), Err(ErrorKind::WrongDevice));
        assert_eq!(seqid(&vec![0; 100_000]), Err(ErrorKind::WrongDevice));
        let mut luks1 = start(1, 1);
        luks1[7] = 1;
        assert_eq!(seqid(&luks1), Err(ErrorKind::Unsupported));
        assert!(RawHeader::from_start(&luks1).unwrap_err().to_string().contains("LUKS1"));
        let mut future = start(1, 1);
        future[7] = 3;
        assert_eq!(seqid(&future), Ok(1), "the second copy");
        assert_eq!(seqid(&start(1, 1)[..6]), Err(ErrorKind::CorruptHeader));
        assert!(looks_like_luks(&start(1, 1)) && looks_like_luks(&start(1, 1)[16384..]));
        assert!(!looks_like_luks(&[]) && !looks_like_luks(&MAGIC_PRIMARY[..5]));
    }

    proptest::proptest! {
        /// Whatever a host writes, with a right checksum: an answer, never a panic.
        #[test]
        fn mangled_headers_get_an_answer(
            changes in proptest::collection::vec((0_usize..900, proptest::sample::select(b"0129\"{}[],:x-\0\xff".to_vec())), 0..6),
            hdr_size in proptest::sample::select(HEADER_SIZES[..2].to_vec()),
            cut in 0_usize..80_000,
        ) {
            let mut json = fixtures::metadata().to_json().unwrap();
            for (at, byte) in changes {
                let at = at % json.len();
                json[at] = byte;
            }
            let binary = BinaryHeader { hdr_size, ..RawHeader::from_start(&start(1, 1)).unwrap().binary };
            let copy = binary.assemble(Place::Primary, &[1; 64], &json).unwrap();
            let _ = RawHeader::from_start(&copy[..cut.min(copy.len())]);
            if let Ok(header) = Header::from_start(&copy) {
                let _ = describe(&header);
                let _ = header.check(&CostLimits::of_this_machine());
            }
        }
    }
}
