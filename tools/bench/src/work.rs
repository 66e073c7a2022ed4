//! The units of work: computations that can be cut into pieces, and whose every piece has a checksum.
//!
//! A piece depends on nothing but its range of iterations, so that it comes to the same checksum on
//! whatever thread and in whatever order it is done. Within a piece each iteration depends on the one
//! before it, so that none can be left out: the ciphers encrypt one block in place again and again.
//! That block stays in the CPU's cache; what memory and disk would add is not measured here.

use std::hint::black_box;
use std::ops::Range;

use clap::ValueEnum;
use hostveil::crypto::Suite;
use hostveil::error::Result;
use hostveil::units::{BlockSize, ByteCount};
use serde::{Deserialize, Serialize};

use crate::cipher::{self, Cipher, fold};

/// Floating-point steps between two blocks of mixed work: about a tenth of it is then encryption.
pub(crate) const STEPS_PER_BLOCK: u64 = 4096;

/// The kinds of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum WorkKind {
    /// A chain of floating-point multiplications, in registers
    Float,
    /// AES-256-XTS, as LUKS2 volumes use it
    Xts,
    /// AES-256-GCM
    Gcm,
    /// AES-256-GCM-SIV
    GcmSiv,
    /// AEGIS-256X4
    Aegis,
    /// Floating point with one block of AES-256-XTS after every 4096 steps
    Mixed,
}

impl WorkKind {
    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Float => "float",
            Self::Xts => "xts",
            Self::Gcm => "gcm",
            Self::GcmSiv => "gcm-siv",
            Self::Aegis => "aegis",
            Self::Mixed => "mixed",
        }
    }

    /// The cipher alone, if it is one.
    pub(crate) fn cipher(self, block: BlockSize) -> Result<Option<Box<dyn Cipher>>> {
        Ok(Some(match self {
            Self::Float | Self::Mixed => return Ok(None),
            Self::Xts => cipher::xts(block)?,
            Self::Gcm => cipher::aead(Suite::Aes256Gcm, block)?,
            Self::GcmSiv => cipher::aead(Suite::Aes256GcmSiv, block)?,
            Self::Aegis => cipher::aead(Suite::Aegis256x4, block)?,
        }))
    }
}

/// A computation to be measured.
pub(crate) trait Work: Send + Sync {
    /// What it is, for people.
    fn name(&self) -> String;

    /// Bytes of memory that a thread needs for its pieces, which is also what a cipher encrypts per
    /// iteration; 0 for work without data.
    fn block(&self) -> usize;

    /// Floating-point steps per iteration; 0 for work without any.
    fn steps(&self) -> u64;

    /// How many iterations a piece has: enough that starting one costs nothing beside them.
    fn piece_len(&self) -> u64;

    /// Does a piece's iterations and returns their checksum. `block` has [`Self::block`] bytes, whose
    /// content means nothing before and after.
    fn piece(&self, iterations: Range<u64>, block: &mut [u8]) -> Result<u64>;
}

/// Makes a unit of work; the block's size matters to the ciphers only.
pub(crate) fn of_kind(kind: WorkKind, block: BlockSize) -> Result<Box<dyn Work>> {
    Ok(match kind.cipher(block)? {
        Some(cipher) => Box::new(Blocks { cipher, block }),
        None if kind == WorkKind::Mixed => Box::new(Mixed { cipher: cipher::xts(block)?, block }),
        None => Box::new(Float),
    })
}

/// The parser of `--block`.
pub(crate) fn block_size(text: &str) -> Result<BlockSize, String> {
    let bytes = u32::try_from(text.parse::<ByteCount>()?.0).ok();
    let size = bytes.and_then(BlockSize::new).filter(|size| *size != BlockSize::BYTE);
    size.ok_or_else(|| "a block is a power of two from 512 bytes to 64 KiB".to_owned())
}

/// The start of a piece's orbit.
fn seed(iteration: u64) -> f64 {
    let seed = u32::try_from(iteration % 1_000_003).unwrap_or(0);
    black_box(f64::from(seed + 1) / 1_000_005.0)
}

/// The orbit of a point under the logistic map, which is chaotic: one wrong bit anywhere changes the
/// end.
fn orbit(mut x: f64, steps: u64) -> f64 {
    for _ in 0..steps {
        x *= 3.99 * (1.0 - x);
    }
    black_box(x)
}

/// Floating point alone.
struct Float;

impl Work for Float {
    fn name(&self) -> String {
        "floating point".to_owned()
    }

    fn block(&self) -> usize {
        0
    }

    fn steps(&self) -> u64 {
        1
    }

    fn piece_len(&self) -> u64 {
        1 << 16
    }

    fn piece(&self, iterations: Range<u64>, _block: &mut [u8]) -> Result<u64> {
        Ok(orbit(seed(iterations.start), iterations.end - iterations.start).to_bits())
    }
}

/// Blocks under a cipher alone.
struct Blocks {
    cipher: Box<dyn Cipher>,
    block: BlockSize,
}

impl Work for Blocks {
    fn name(&self) -> String {
        self.cipher.name().to_owned()
    }

    fn block(&self) -> usize {
        self.block.len()
    }

    fn steps(&self) -> u64 {
        0
    }

    fn piece_len(&self) -> u64 {
        256
    }

    /// The tags vouch for the ciphertext where there are any.
    fn piece(&self, iterations: Range<u64>, block: &mut [u8]) -> Result<u64> {
        block.fill(0);
        let mut tags = None;
        for iteration in iterations {
            if let Some(tag) = self.cipher.encrypt(iteration, block)? {
                *tags.get_or_insert(0) ^= tag;
            }
        }
        Ok(tags.unwrap_or_else(|| fold(block)))
    }
}

/// The computation of [`Float`], and blocks in between.
struct Mixed {
    cipher: Box<dyn Cipher>,
    block: BlockSize,
}

impl Work for Mixed {
    fn name(&self) -> String {
        format!("floating point with {} every {STEPS_PER_BLOCK} steps", self.cipher.name())
    }

    fn block(&self) -> usize {
        self.block.len()
    }

    fn steps(&self) -> u64 {
        STEPS_PER_BLOCK
    }

    fn piece_len(&self) -> u64 {
        16
    }

    fn piece(&self, iterations: Range<u64>, block: &mut [u8]) -> Result<u64> {
        block.fill(0);
        let mut x = seed(iterations.start);
        for iteration in iterations {
            x = orbit(x, STEPS_PER_BLOCK);
            self.cipher.encrypt(iteration, block)?;
        }
        Ok(x.to_bits() ^ fold(block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(work: &dyn Work, iterations: Range<u64>) -> u64 {
        let mut block = vec![0xa5; work.block()];
        work.piece(iterations, &mut block).unwrap()
    }

    fn all() -> Vec<Box<dyn Work>> {
        WorkKind::value_variants().iter().map(|kind| of_kind(*kind, BlockSize::B4096).unwrap()).collect()
    }

    #[test]
    fn a_piece_depends_on_its_range_alone() {
        for work in all() {
            let first = piece(work.as_ref(), 5..25);
            assert_eq!(piece(work.as_ref(), 5..25), first, "{}", work.name());
            for other in [5..24, 4..25, 6..26] {
                assert_ne!(piece(work.as_ref(), other), first, "{}", work.name());
            }
        }
    }

    #[test]
    fn the_orbit_is_the_one_that_another_program_computed() {
        assert_eq!(piece(&Float, 0..1000), FLOAT_CHECKSUM);
    }

    #[test]
    fn gcm_is_the_one_that_another_program_computed() {
        let work = of_kind(WorkKind::Gcm, BlockSize::B4096).unwrap();
        assert_eq!(piece(work.as_ref(), 3..6), GCM_CHECKSUM);
    }

    #[test]
    fn mixed_work_is_floating_point_and_xts() {
        let [mixed, xts] =
            [WorkKind::Mixed, WorkKind::Xts].map(|kind| of_kind(kind, BlockSize::B512).unwrap());
        let float = piece(&Float, 7..7 + 3 * STEPS_PER_BLOCK);
        assert_eq!(piece(mixed.as_ref(), 7..10), float ^ piece(xts.as_ref(), 7..10));
    }

    #[test]
    fn blocks_have_bounds() {
        assert_eq!(block_size("4KiB"), Ok(BlockSize::B4096));
        assert_eq!(block_size("64K").unwrap().bytes(), 65_536);
        for bad in ["", "1", "256", "1000", "128K", "8G"] {
            assert!(block_size(bad).is_err(), "{bad}");
        }
    }

    /// Python's arithmetic on the same seed.
    const FLOAT_CHECKSUM: u64 = 0x3fe4_9e22_1730_f468;
    /// Three blocks by OpenSSL, the second and third starting from the ciphertext before them.
    const GCM_CHECKSUM: u64 = 0x9f63_5fe4_2cc3_02f3;
}
