//! The units of work: computations that can be cut into pieces, and whose every piece has a checksum.
//!
//! A piece depends on nothing but its range of iterations, so that it comes to the same checksum on
//! whatever thread and in whatever order it is done. Within a piece each iteration depends on the one
//! before it, so that none can be left out: the ciphers encrypt one block in place again and again.
//! That block stays in the CPU's cache; what memory and disk would add is not measured here.

use std::hint::black_box;
use std::ops::Range;

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Key, Nonce};
use hostveil::crypto::{Backend, Xts, xts};
use hostveil::error::{Error, ErrorKind, Result};
use hostveil::units::BlockSize;

use crate::args::WorkKind;

/// A computation to be measured.
pub(crate) trait Work: Send + Sync {
    /// What it is, for people.
    fn name(&self) -> String;

    /// Bytes of memory that a thread needs for its pieces, which is also what a cipher encrypts per
    /// iteration; 0 for work without data.
    fn block(&self) -> usize;

    /// How many iterations a piece has: enough that starting one costs nothing beside them.
    fn piece_len(&self) -> u64;

    /// Does a piece's iterations and returns their checksum. `block` has [`Self::block`] bytes, whose
    /// content means nothing before and after.
    fn piece(&self, iterations: Range<u64>, block: &mut [u8]) -> Result<u64>;
}

/// Makes a unit of work; the block's size matters to the ciphers only.
pub(crate) fn of_kind(kind: WorkKind, block: BlockSize) -> Result<Box<dyn Work>> {
    Ok(match kind {
        WorkKind::Float => Box::new(Float),
        WorkKind::Xts => Box::new(XtsWork { cipher: xts(&bench_key::<64>(), Backend::Fastest)?, block }),
        WorkKind::Gcm => {
            Box::new(GcmWork { cipher: Aes256Gcm::new(&Key::<Aes256Gcm>::from(bench_key())), block })
        }
    })
}

/// A key that protects nothing; always the same, so that checksums can be compared between machines.
fn bench_key<const N: usize>() -> [u8; N] {
    let mut key = [0; N];
    key.iter_mut().zip(0x40_u8..).for_each(|(byte, value)| *byte = value);
    key
}

/// The orbit of a point under the logistic map, which is chaotic: one wrong bit anywhere changes the
/// end.
struct Float;

impl Work for Float {
    fn name(&self) -> String {
        "floating point".to_owned()
    }

    fn block(&self) -> usize {
        0
    }

    fn piece_len(&self) -> u64 {
        1 << 16
    }

    fn piece(&self, iterations: Range<u64>, _block: &mut [u8]) -> Result<u64> {
        let seed = u32::try_from(iterations.start % 1_000_003).unwrap_or(0);
        let mut x = black_box(f64::from(seed + 1) / 1_000_005.0);
        for _ in iterations {
            x *= 3.99 * (1.0 - x);
        }
        Ok(black_box(x).to_bits())
    }
}

/// Blocks under AES-256-XTS, by the same backend that volumes use.
struct XtsWork {
    cipher: Box<dyn Xts>,
    block: BlockSize,
}

impl Work for XtsWork {
    fn name(&self) -> String {
        self.cipher.name().to_owned()
    }

    fn block(&self) -> usize {
        self.block.len()
    }

    fn piece_len(&self) -> u64 {
        256
    }

    fn piece(&self, iterations: Range<u64>, block: &mut [u8]) -> Result<u64> {
        block.fill(0);
        for iteration in iterations {
            self.cipher.encrypt(block, self.block, iteration)?;
        }
        Ok(fold(block))
    }
}

/// Blocks under AES-256-GCM, each with a nonce of its own.
struct GcmWork {
    cipher: Aes256Gcm,
    block: BlockSize,
}

impl Work for GcmWork {
    fn name(&self) -> String {
        "aes-256-gcm, RustCrypto".to_owned()
    }

    fn block(&self) -> usize {
        self.block.len()
    }

    fn piece_len(&self) -> u64 {
        256
    }

    fn piece(&self, iterations: Range<u64>, block: &mut [u8]) -> Result<u64> {
        block.fill(0);
        let mut checksum = 0;
        for iteration in iterations {
            let mut nonce = [0; 12];
            nonce[4..].copy_from_slice(&iteration.to_be_bytes());
            let tag = self.cipher.encrypt_inout_detached(&Nonce::from(nonce), b"", (&mut *block).into());
            let tag =
                tag.map_err(|_| Error::new(ErrorKind::InvalidInput, "the block is too large for AES-GCM"))?;
            checksum ^= fold(&tag);
        }
        Ok(checksum)
    }
}

/// Exclusive-or of a block's 64-bit words.
fn fold(block: &[u8]) -> u64 {
    let words = block.chunks_exact(8).filter_map(|word| word.try_into().ok());
    words.fold(0, |sum, word| sum ^ u64::from_le_bytes(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(work: &dyn Work, iterations: Range<u64>) -> u64 {
        let mut block = vec![0xa5; work.block()];
        work.piece(iterations, &mut block).unwrap()
    }

    fn all() -> Vec<Box<dyn Work>> {
        [WorkKind::Float, WorkKind::Xts, WorkKind::Gcm]
            .map(|kind| of_kind(kind, BlockSize::B4096).unwrap())
            .into()
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
    fn xts_is_the_one_that_the_reference_computes() {
        let key = bench_key::<64>();
        let reference = XtsWork { cipher: xts(&key, Backend::Reference).unwrap(), block: BlockSize::B4096 };
        let work = of_kind(WorkKind::Xts, BlockSize::B4096).unwrap();
        assert_eq!(piece(work.as_ref(), 7..17), piece(&reference, 7..17));
    }

    #[test]
    fn gcm_is_the_one_that_another_program_computed() {
        let work = of_kind(WorkKind::Gcm, BlockSize::B4096).unwrap();
        assert_eq!(piece(work.as_ref(), 3..6), GCM_CHECKSUM);
    }

    /// Python's arithmetic on the same seed.
    const FLOAT_CHECKSUM: u64 = 0x3fe4_9e22_1730_f468;
    /// Three blocks by OpenSSL, the second and third starting from the ciphertext before them.
    const GCM_CHECKSUM: u64 = 0x9f63_5fe4_2cc3_02f3;
}
