//! Whether a store is as large as the volume in it says, as far as that can be seen without a key.

use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::luks;
use crate::sealed::{self, SuperblockDescription};
use crate::units::ByteCount;

/// The size of a volume's store beside the one that the volume needs. Who wrote down what it needs is not
/// known without the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct StoreDescription {
    /// Bytes that the store has.
    pub size: u64,
    /// Bytes that the volume needs, or needs at least; none where nothing says that.
    pub needed: Option<u64>,
    /// Whether it was cut off; none where that cannot be told.
    pub cut_off: Option<bool>,
}

impl StoreDescription {
    /// Of a LUKS volume. Where its data reaches to the store's end, a store that has room for a sector
    /// may have had room for more.
    pub(super) fn of_luks(size: ByteCount, header: &luks::Description) -> Self {
        let data = header.data_size.or(header.sector_size.map(u64::from));
        let needed = header.data_offset.zip(data).map(|(offset, data)| offset.saturating_add(data));
        Self::new(size, needed, header.data_size.is_some())
    }

    /// Of a sealed volume, whose superblock says what it needs: without any there is not even room for them,
    /// or nothing is known.
    pub(super) fn of_sealed(size: ByteCount, superblock: Option<&SuperblockDescription>) -> Self {
        let least = sealed::least_store().0;
        match superblock {
            Some(superblock) => Self::new(size, superblock.store_size, true),
            None => Self::new(size, (size.0 < least).then_some(least), false),
        }
    }

    /// `exact` is whether a store of the size that is needed is surely whole.
    fn new(size: ByteCount, needed: Option<u64>, exact: bool) -> Self {
        let cut_off = match needed {
            Some(needed) if size.0 < needed => Some(true),
            Some(_) if exact => Some(false),
            _ => None,
        };
        Self { size: size.0, needed, cut_off }
    }

    /// That the store was not cut off, as far as that can be told.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptHeader`] when it was, with both sizes.
    pub fn check(&self) -> Result<()> {
        let (Some(true), Some(needed)) = (self.cut_off, self.needed) else { return Ok(()) };
        let size = self.size;
        let what =
            format!("the store has {size} bytes and the volume in it needs {needed} or more: it was cut off");
        Err(Error::new(ErrorKind::CorruptHeader, what).hint(
            "restore the file's full size from a backup; if it is a header alone, name the disk and --header",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_is_told() {
        let of = |size, needed, exact| StoreDescription::new(ByteCount(size), needed, exact);
        for (store, cut_off) in [
            (of(99, Some(100), true), Some(true)),
            (of(99, Some(100), false), Some(true)),
            (of(100, Some(100), true), Some(false)),
            (of(101, Some(100), true), Some(false)),
            (of(100, Some(100), false), None),
            (of(0, None, true), None),
            (of(0, None, false), None),
        ] {
            assert_eq!(store.cut_off, cut_off, "{store:?}");
            assert_eq!(store.check().is_err(), cut_off == Some(true), "{store:?}");
        }
        let error = of(99, Some(100), true).check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CorruptHeader);
        assert!(error.to_string().contains("99 bytes") && error.to_string().contains("needs 100"));
    }

    #[test]
    fn a_sealed_store_without_a_superblock_has_no_room_for_one_or_is_not_known() {
        let least = sealed::least_store().0;
        let of = |size| StoreDescription::of_sealed(ByteCount(size), None);
        assert_eq!((of(least - 1).needed, of(least - 1).cut_off), (Some(least), Some(true)));
        assert_eq!((of(least).needed, of(least).cut_off), (None, None));
    }
}
