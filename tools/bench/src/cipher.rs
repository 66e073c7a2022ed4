//! The ciphers that are measured: those that volumes use, by the same implementations.

use hostveil::crypto::aead::NONCE_LEN;
use hostveil::crypto::{AeadKey, Backend, Suite, Xts};
use hostveil::error::Result;
use hostveil::units::BlockSize;

/// A cipher that encrypts numbered blocks of one size in place.
pub(crate) trait Cipher: Send + Sync {
    /// Cipher and implementation.
    fn name(&self) -> &'static str;

    /// Encrypts `data`, a whole number of blocks whose first has the number `first`. Gives the
    /// exclusive-or of the tags' words, if there are tags.
    fn encrypt(&self, first: u64, data: &mut [u8]) -> Result<Option<u64>>;
}

/// AES-256-XTS.
pub(crate) fn xts(block: BlockSize) -> Result<Box<dyn Cipher>> {
    xts_by(Backend::Fastest, block)
}

fn xts_by(backend: Backend, block: BlockSize) -> Result<Box<dyn Cipher>> {
    Ok(Box::new(XtsCipher { cipher: hostveil::crypto::xts(&bench_key::<64>(), backend)?, block }))
}

/// An authenticated cipher.
pub(crate) fn aead(suite: Suite, block: BlockSize) -> Result<Box<dyn Cipher>> {
    Ok(Box::new(AeadCipher { key: AeadKey::new(suite, &bench_key())?, block }))
}

/// A key that protects nothing; always the same, so that checksums can be compared between machines.
fn bench_key<const N: usize>() -> [u8; N] {
    let mut key = [0; N];
    key.iter_mut().zip(0x40_u8..).for_each(|(byte, value)| *byte = value);
    key
}

struct XtsCipher {
    cipher: Box<dyn Xts>,
    block: BlockSize,
}

impl Cipher for XtsCipher {
    fn name(&self) -> &'static str {
        self.cipher.name()
    }

    fn encrypt(&self, first: u64, data: &mut [u8]) -> Result<Option<u64>> {
        // A sector's tweak counts units of 512 bytes, so that neighbours stay apart at every block size.
        let units = u64::from(self.block.bytes()) / hostveil::crypto::TWEAK_UNIT;
        self.cipher.encrypt(data, self.block, first * units)?;
        Ok(None)
    }
}

struct AeadCipher {
    key: AeadKey,
    block: BlockSize,
}

impl Cipher for AeadCipher {
    fn name(&self) -> &'static str {
        self.key.name()
    }

    fn encrypt(&self, first: u64, data: &mut [u8]) -> Result<Option<u64>> {
        let mut tags = 0;
        for (number, block) in (first..).zip(data.chunks_exact_mut(self.block.len())) {
            let mut nonce = [0; NONCE_LEN];
            nonce[4..].copy_from_slice(&number.to_be_bytes());
            tags ^= fold(&self.key.seal(&nonce, b"", block)?);
        }
        Ok(Some(tags))
    }
}

/// Exclusive-or of a block's 64-bit words.
pub(crate) fn fold(block: &[u8]) -> u64 {
    let words = block.chunks_exact(8).filter_map(|word| word.try_into().ok());
    words.fold(0, |sum, word| sum ^ u64::from_le_bytes(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xts_is_the_one_that_the_reference_computes() {
        for block in [BlockSize::B512, BlockSize::B4096] {
            let encrypted = [Backend::Reference, Backend::Fastest].map(|backend| {
                let mut data = vec![7; 3 * block.len()];
                xts_by(backend, block).unwrap().encrypt(9, &mut data).unwrap();
                data
            });
            assert_eq!(encrypted[0], encrypted[1]);
        }
    }

    #[test]
    fn many_blocks_at_once_are_the_same_as_one_by_one() {
        let block = BlockSize::B512;
        for cipher in [xts(block).unwrap(), aead(Suite::Aegis256x4, block).unwrap()] {
            let mut together = vec![3; 4 * 512];
            let tags = cipher.encrypt(5, &mut together).unwrap();
            let mut apart = vec![3; 4 * 512];
            let parts = (5..).zip(apart.chunks_exact_mut(512));
            let each: Vec<_> = parts.map(|(n, part)| cipher.encrypt(n, part).unwrap()).collect();
            assert_eq!(apart, together, "{}", cipher.name());
            assert_eq!(each.iter().flatten().fold(0, |sum, tag| sum ^ tag), tags.unwrap_or(0));
        }
    }
}
