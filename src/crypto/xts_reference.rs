//! AES-XTS by the `xts-mode` and `aes` crates: safe code on every machine, the measure of the others.
//!
//! `aes` zeroes its key schedules on drop and uses the processor's AES instructions where it finds
//! them; elsewhere it works in constant time without tables.

use std::ptr::NonNull;

use aes::cipher::consts::U16;
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, KeyInit};
use aes::{Aes128, Aes256};
use xts_mode::Xts128;

use crate::error::{Error, ErrorKind, Result};
use crate::secret::lock_in_place;
use crate::units::BlockSize;

use super::xts::{Xts, sectors};

struct Reference<C> {
    xts: Xts128<C>,
    name: &'static str,
}

/// AES-256-XTS from two keys of 32 bytes.
pub(super) fn aes_256(data_key: &[u8], tweak_key: &[u8]) -> Result<Box<dyn Xts>> {
    Ok(boxed(Reference { xts: keyed::<Aes256>(data_key, tweak_key)?, name: "aes-256-xts, portable" }))
}

/// AES-128-XTS from two keys of 16 bytes.
pub(super) fn aes_128(data_key: &[u8], tweak_key: &[u8]) -> Result<Box<dyn Xts>> {
    Ok(boxed(Reference { xts: keyed::<Aes128>(data_key, tweak_key)?, name: "aes-128-xts, portable" }))
}

/// Puts a cipher, and the key schedules within it, where they stay, and locks them there.
fn boxed<C>(cipher: Reference<C>) -> Box<dyn Xts>
where
    Reference<C>: Xts + 'static,
{
    let cipher = Box::new(cipher);
    lock_in_place(NonNull::from(&*cipher).cast(), size_of::<Reference<C>>());
    cipher
}

fn keyed<C: KeyInit + BlockSizeUser<BlockSize = U16>>(
    data_key: &[u8],
    tweak_key: &[u8],
) -> Result<Xts128<C>> {
    let cipher = |key| {
        C::new_from_slice(key).map_err(|_| Error::new(ErrorKind::InvalidInput, "a key of the wrong length"))
    };
    Ok(Xts128::new(cipher(data_key)?, cipher(tweak_key)?))
}

impl<C> Xts for Reference<C>
where
    C: BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16> + Send + Sync,
{
    fn encrypt(&self, run: &mut [u8], sector_size: BlockSize, first_tweak: u64) -> Result<()> {
        for (tweak, sector) in sectors(run, sector_size, first_tweak)? {
            self.xts.encrypt_sector(sector, tweak.into());
        }
        Ok(())
    }

    fn decrypt(&self, run: &mut [u8], sector_size: BlockSize, first_tweak: u64) -> Result<()> {
        for (tweak, sector) in sectors(run, sector_size, first_tweak)? {
            self.xts.decrypt_sector(sector, tweak.into());
        }
        Ok(())
    }

    fn name(&self) -> &'static str {
        self.name
    }
}
