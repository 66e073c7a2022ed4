//! [`BlkPtr`]: where a block lies and what it must be (docs/sealed-format.md, "Block pointers").

use crate::error::{Error, ErrorKind, Result};

/// Bytes of a stored pointer.
pub(crate) const POINTER_LEN: usize = 32;
/// Bits of a version that count within an epoch.
pub(crate) const COUNTER_BITS: u32 = 44;
/// Bits of a location that are the block's number.
const PBA_BITS: u32 = 48;
/// Location type of a run without data, which only the journal has.
const TYPE_RUN: u64 = 1;

/// A pointer to a sealed block: its place, the version it was sealed with and the tag that it must
/// open with. All zero is a hole: a block, or all blocks below a page, that read as zeroes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BlkPtr {
    /// The epoch in the high 20 bits, a counter of that epoch below.
    pub(crate) ver: u64,
    /// The block's number in the store.
    pub(crate) pba: u64,
    /// The authentication tag.
    pub(crate) tag: [u8; 16],
}

impl BlkPtr {
    /// A block that reads as zeroes.
    pub(crate) const HOLE: Self = Self { ver: 0, pba: 0, tag: [0; 16] };

    /// Whether there is nothing stored. Block 0 holds the header, so no pointer of ours has it.
    pub(crate) fn is_hole(&self) -> bool {
        self.pba == 0
    }

    /// The pointer's 32 bytes.
    pub(crate) fn encode(&self) -> [u8; POINTER_LEN] {
        let mut bytes = [0; POINTER_LEN];
        bytes[..8].copy_from_slice(&self.ver.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.pba.to_le_bytes());
        bytes[16..].copy_from_slice(&self.tag);
        bytes
    }

    /// Reads a pointer from the start of `bytes`, which are at least 32.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for types and flags that this version does not know.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let loc = u64_at(bytes, 8);
        let mut tag = [0; 16];
        tag.copy_from_slice(&bytes[16..POINTER_LEN]);
        let pointer = Self { ver: u64_at(bytes, 0), pba: loc, tag };
        let hole_with_content = loc == 0 && pointer != Self::HOLE;
        if loc >> PBA_BITS != 0 || hole_with_content {
            let what = format!("a block pointer has the unknown location {loc:#x}");
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        Ok(pointer)
    }
}

/// What a journal entry's pointer field says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// One block of data.
    Block(BlkPtr),
    /// So many blocks, the entry's own included, read as zeroes.
    Run(u64),
}

impl Target {
    /// The field's 32 bytes.
    pub(crate) fn encode(&self) -> [u8; POINTER_LEN] {
        match self {
            Self::Block(pointer) => pointer.encode(),
            Self::Run(len) => {
                let mut bytes = [0; POINTER_LEN];
                bytes[8..16].copy_from_slice(&(TYPE_RUN << PBA_BITS).to_le_bytes());
                bytes[16..24].copy_from_slice(&len.to_le_bytes());
                bytes
            }
        }
    }

    /// Reads the field.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for what neither a block nor a run is.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        if u64_at(bytes, 8) == TYPE_RUN << PBA_BITS {
            let len = u64_at(bytes, 16);
            let zero = u64_at(bytes, 0) == 0 && u64_at(bytes, 24) == 0;
            return match len > 0 && zero {
                true => Ok(Self::Run(len)),
                false => Err(Error::new(ErrorKind::Unsupported, "a journal entry's run is malformed")),
            };
        }
        match BlkPtr::decode(bytes)? {
            BlkPtr::HOLE => Err(Error::new(ErrorKind::Unsupported, "a journal entry points nowhere")),
            pointer => Ok(Self::Block(pointer)),
        }
    }
}

/// The epoch of a version.
pub(crate) fn epoch_of(ver: u64) -> u32 {
    u32::try_from(ver >> COUNTER_BITS).unwrap_or(u32::MAX)
}

/// A little-endian number in `bytes`, which reach that far.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

/// A little-endian number in `bytes`, which reach that far.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_and_runs_survive_their_encoding() {
        let pointer = BlkPtr { ver: 7 << COUNTER_BITS | 9, pba: (1 << PBA_BITS) - 1, tag: [3; 16] };
        assert_eq!(BlkPtr::decode(&pointer.encode()).unwrap(), pointer);
        assert_eq!(epoch_of(pointer.ver), 7);
        assert_eq!(BlkPtr::decode(&[0; 32]).unwrap(), BlkPtr::HOLE);
        for target in [Target::Block(pointer), Target::Run(1), Target::Run(u64::MAX)] {
            assert_eq!(Target::decode(&target.encode()).unwrap(), target);
        }
    }

    #[test]
    fn what_is_no_pointer_is_refused() {
        let mut bytes = BlkPtr { ver: 1, pba: 5, tag: [1; 16] }.encode();
        bytes[14] = 2;
        assert!(BlkPtr::decode(&bytes).is_err() && Target::decode(&bytes).is_err());
        let mut hole = [0; 32];
        hole[20] = 1;
        assert!(BlkPtr::decode(&hole).is_err() && Target::decode(&hole).is_err());
        assert!(Target::decode(&[0; 32]).is_err() && Target::decode(&Target::Run(0).encode()).is_err());
    }
}
