//! Quantities of the block layer as types whose arithmetic is checked: byte offsets, byte counts,
//! block numbers and block sizes.
//!
//! A wrapped addition on a disk offset is data loss, so none of these types has an operator that
//! could wrap: every sum, product and conversion that can fail returns an `Option`.

use std::fmt;

/// A position on a device or in a backing store, in bytes from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteOffset(pub u64);

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteCount(pub u64);

/// A logical block address: the number of a block, counted in the device's own block size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lba(pub u64);

/// The size of a block in bytes: a power of two from 512 bytes to 64 KiB, or 1 for a device that
/// takes any alignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockSize {
    shift: u32,
}

impl ByteOffset {
    /// The position `count` bytes further on, if it can be represented.
    pub fn checked_add(self, count: ByteCount) -> Option<Self> {
        self.0.checked_add(count.0).map(Self)
    }

    /// How far this position lies behind `start`, if it does.
    pub fn checked_since(self, start: Self) -> Option<ByteCount> {
        self.0.checked_sub(start.0).map(ByteCount)
    }
}

impl ByteCount {
    /// One kibibyte.
    pub const KIB: u64 = 1 << 10;
    /// One mebibyte.
    pub const MIB: u64 = 1 << 20;
    /// One gibibyte.
    pub const GIB: u64 = 1 << 30;
    /// One tebibyte.
    pub const TIB: u64 = 1 << 40;

    /// The length of a slice. Lossless: no target of ours has pointers wider than 64 bits.
    pub fn of(bytes: &[u8]) -> Self {
        Self(bytes.len() as u64)
    }

    /// The sum, if it can be represented.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// The difference, if it is not negative.
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }

    /// This count as a length in memory, if it fits.
    pub fn to_usize(self) -> Option<usize> {
        usize::try_from(self.0).ok()
    }
}

impl BlockSize {
    /// A device that takes any alignment.
    pub const BYTE: Self = Self { shift: 0 };
    /// The traditional disk sector.
    pub const B512: Self = Self { shift: 9 };
    /// The sector of today's disks, and the page of today's page caches.
    pub const B4096: Self = Self { shift: 12 };

    /// A block of `bytes`, which must be 1 or a power of two from 512 to 65536.
    pub fn new(bytes: u32) -> Option<Self> {
        let valid = bytes == 1 || (bytes.is_power_of_two() && (512..=65_536).contains(&bytes));
        valid.then(|| Self { shift: bytes.trailing_zeros() })
    }

    /// The block's size in bytes.
    pub fn bytes(self) -> u32 {
        1 << self.shift
    }

    /// The block's size as a length in memory.
    #[expect(clippy::len_without_is_empty, reason = "a block is never empty")]
    pub fn len(self) -> usize {
        1 << self.shift
    }

    /// Whether both ends of `count` bytes at `offset` fall on a block's boundary.
    pub fn aligns(self, offset: ByteOffset, count: ByteCount) -> bool {
        (offset.0 | count.0) & (u64::from(self.bytes()) - 1) == 0
    }

    /// The largest multiple of the block size that is not above `value`.
    pub fn round_down(self, value: u64) -> u64 {
        value >> self.shift << self.shift
    }

    /// The smallest multiple of the block size that is not below `value`, if it can be represented.
    pub fn round_up(self, value: u64) -> Option<u64> {
        value.checked_add(u64::from(self.bytes()) - 1).map(|v| self.round_down(v))
    }

    /// The block that holds `offset`.
    pub fn block_of(self, offset: ByteOffset) -> Lba {
        Lba(offset.0 >> self.shift)
    }

    /// Where a block begins, if it can be represented.
    pub fn offset_of(self, block: Lba) -> Option<ByteOffset> {
        block.0.checked_mul(u64::from(self.bytes())).map(ByteOffset)
    }
}

impl fmt::Display for ByteCount {
    /// Binary units with up to two decimals: `512 B`, `4 KiB`, `1.5 GiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 4] = [
            (ByteCount::TIB, "TiB"),
            (ByteCount::GIB, "GiB"),
            (ByteCount::MIB, "MiB"),
            (ByteCount::KIB, "KiB"),
        ];
        let Some((unit, name)) = UNITS.into_iter().find(|(unit, _)| self.0 >= *unit) else {
            return write!(f, "{} B", self.0);
        };
        let hundredths = u128::from(self.0) * 100 / u128::from(unit);
        let (whole, part) = (hundredths / 100, hundredths % 100);
        match part {
            0 => write!(f, "{whole} {name}"),
            p if p % 10 == 0 => write!(f, "{whole}.{} {name}", p / 10),
            p => write!(f, "{whole}.{p:02} {name}"),
        }
    }
}

impl std::str::FromStr for ByteCount {
    type Err = String;

    /// Parses `20G`, `512MiB`, `1.5T`, `4096`: binary units, as in QEMU's and cryptsetup's size
    /// arguments; a fraction must come out as whole bytes.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("'{text}' is not a size; write for example 512M, 20G or 1.5T");
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = match unit.to_ascii_lowercase().trim() {
            "" | "b" => 1,
            "k" | "kib" => Self::KIB,
            "m" | "mib" => Self::MIB,
            "g" | "gib" => Self::GIB,
            "t" | "tib" => Self::TIB,
            _ => return Err(bad()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || fraction.len() > 9 || number.ends_with('.') {
            return Err(bad());
        }
        let scale = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| bad())?);
        let whole: u128 = whole.parse::<u64>().map_err(|_| bad())?.into();
        let fraction: u128 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| bad())? };
        let scaled = (whole * scale + fraction).checked_mul(u128::from(unit)).ok_or_else(bad)?;
        if scaled % scale != 0 {
            return Err(format!("'{text}' is not a whole number of bytes"));
        }
        u64::try_from(scaled / scale).map(Self).map_err(|_| format!("'{text}' is too large"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_as_people_write_them() {
        let parse = |s: &str| s.parse::<ByteCount>().map(|c| c.0);
        assert_eq!(parse("4096"), Ok(4096));
        assert_eq!(parse("20G"), Ok(20 << 30));
        assert_eq!(parse("512MiB"), Ok(512 << 20));
        assert_eq!(parse("1.5t"), Ok(3 << 39));
        for bad in ["", "G", "1.", ".5G", "-1", "1X", "1 G B", "99999999999T", "0.3", "1.0000000001G", "1..2"]
        {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sizes_print_short() {
        for (count, text) in [
            (0, "0 B"),
            (511, "511 B"),
            (4096, "4 KiB"),
            (3 << 39, "1.5 TiB"),
            ((1 << 30) + (1 << 24), "1.01 GiB"),
        ] {
            assert_eq!(ByteCount(count).to_string(), text);
        }
    }

    #[test]
    fn blocks_round_and_never_wrap() {
        let block = BlockSize::B4096;
        assert_eq!(block.round_up(1), Some(4096));
        assert_eq!(block.round_up(u64::MAX), None);
        assert_eq!(block.round_down(8191), 4096);
        assert_eq!(block.offset_of(Lba(u64::MAX)), None);
        assert!(block.aligns(ByteOffset(4096), ByteCount(8192)));
        assert!(!block.aligns(ByteOffset(4096), ByteCount(512)));
        assert!(BlockSize::BYTE.aligns(ByteOffset(3), ByteCount(5)));
        assert_eq!(BlockSize::new(1000), None);
        assert_eq!(ByteOffset(u64::MAX).checked_add(ByteCount(1)), None);
    }
}
